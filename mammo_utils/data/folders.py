"""The files below a data folder, whatever its layout."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

NOT_PERMITTED = "may not be read; change its permissions"
PACKED = "an archive or a compressed file; unpack it"
PACKED_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".z")
PACKED_BYTES = (b"PK\3\4", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")  # how such files begin


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


def is_packed(path: Path) -> bool:
    """Whether a file is an archive or compressed: by its suffix, or by its first bytes if it has none."""
    if path.suffix:
        return path.suffix.lower() in PACKED_SUFFIXES
    try:
        with path.open("rb") as file:
            return file.read(8).startswith(PACKED_BYTES)
    except OSError:
        return False


def hint_packed(folder: Path, files: list[Path]) -> str:
    """A sentence for an error: which packed files to unpack, "" if there are none."""
    packed = [name_below(folder, path) for path in files if is_packed(path)]
    return f" Unpack {packed[0]}{f' and {len(packed) - 1} more' if packed[1:] else ''} first." if packed else ""


def name_below(folder: Path, path: Path) -> str:
    r"""A path relative to `folder`, with /, for tables. Bytes that are not UTF-8 (zips of Windows) become \xe9."""
    name = os.fsencode(path.relative_to(folder).as_posix()).replace(b"\\x", b"\\x5cx")  # so that no two are the same
    return name.decode("utf-8", "backslashreplace")


def path_below(folder: Path, name: str) -> Path:
    """The path below `folder` that has this name in tables, the inverse of `name_below`."""
    return folder / os.fsdecode(re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), name.encode()))
