"""The files below a data folder, whatever its layout."""

from __future__ import annotations

import os
import stat
from pathlib import Path

NOT_PERMITTED = "may not be read; change its permissions"


def walk_below(folder: Path) -> tuple[list[Path], int, list[tuple[Path, str]]]:
    """List all files at any depth below `folder`. Links to folders are followed; each folder is entered once.

    Returns:
        The files, ordered by path; the number of files left by macOS (`__MACOSX`, `._…`, `.DS_Store`); and what cannot
        be reached, each path with its reason: folders without permission, broken links, pipes and the like.
    """
    files, unreachable, entered = [], [], set()
    junk = 0

    def report_error(error: OSError) -> None:
        denied = isinstance(error, PermissionError)
        reason = f"the folder {NOT_PERMITTED}" if denied else f"the folder cannot be read ({type(error).__name__})"
        unreachable.append((Path(error.filename), reason))

    for parent, folders, names in os.walk(folder, onerror=report_error, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders.sort()  # which of two paths to a linked folder is used must not depend on the order of the listing
        in_junk = "__MACOSX" in Path(parent).relative_to(folder).parts
        for name in names:
            path = Path(parent, name)
            if in_junk or name.startswith("._") or name == ".DS_Store":
                junk += 1
            elif reason := _explain_unreadable(path):
                unreachable.append((path, reason))
            else:
                files.append(path)
    return sorted(files), junk, sorted(unreachable)


def _explain_unreadable(path: Path) -> str:
    """Why `path` is not a regular file, "" if it is one."""
    try:
        return "" if stat.S_ISREG(os.stat(path).st_mode) else "it is neither a file nor a folder"
    except PermissionError:
        return f"its folder {NOT_PERMITTED}"
    except OSError:
        return "the link is broken" if os.path.islink(path) else "it cannot be opened"
