"""What lies below a data folder, whatever its layout: each file once, and the junk that macOS leaves counted."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MAY_NOT = "may not be read; change its permissions"


def files_below(folder: Path) -> tuple[list[Path], int]:
    """Every file at any depth, ordered by path, and how many files macOS left (``__MACOSX``, ``._…``, .DS_Store).

    Links to folders are followed, each folder entered once.
    """
    files, junk, _ = walk_below(folder)
    return files, junk


def walk_below(folder: Path) -> tuple[list[Path], int, list[tuple[Path, str]]]:
    """As :func:`files_below`, and what else is there but out of reach, each with the reason: folders that may not be
    read, links that lead nowhere, what is neither a file nor a folder."""
    files, junk, entered = [], 0, set()
    lost: list[tuple[Path, str]] = []

    def unread(error: OSError) -> None:
        denied = isinstance(error, PermissionError)
        reason = f"the folder {MAY_NOT}" if denied else f"the folder cannot be read ({type(error).__name__})"
        lost.append((Path(error.filename), reason))

    for place, folders, names in os.walk(folder, onerror=unread, followlinks=True):
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in entered:
            folders.clear()
            continue
        entered.add((here.st_dev, here.st_ino))
        folders.sort()  # which way in comes first must not hang on the order of the listing
        inside = "__MACOSX" in Path(place).relative_to(folder).parts
        for name in names:
            path = Path(place, name)
            if inside or name.startswith("._") or name == ".DS_Store":
                junk += 1
            elif reason := _no_file(path):
                lost.append((path, reason))
            else:
                files.append(path)
    return sorted(files), junk, sorted(lost)


def _no_file(path: Path) -> str:
    """Why a name that is no folder is no file either, "" where it is one."""
    try:
        return "" if stat.S_ISREG(os.stat(path).st_mode) else "it is neither a file nor a folder"
    except PermissionError:
        return f"its folder {MAY_NOT}"
    except OSError:
        return "the link leads nowhere" if os.path.islink(path) else "it cannot be opened"
