"""What lies below a data folder, whatever its layout: each file once, and the junk that macOS leaves counted."""

from __future__ import annotations

import os
from pathlib import Path


def files_below(folder: Path) -> tuple[list[Path], int]:
    """Every file at any depth, ordered by path, and how many files macOS left (``__MACOSX``, ``._…``, .DS_Store).

    Links to folders are followed, each folder entered once.
    """
    files, junk, entered = [], 0, set()
    for place, folders, names in os.walk(folder, followlinks=True):
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in entered:
            folders.clear()
            continue
        entered.add((here.st_dev, here.st_ino))
        folders.sort()  # which way in comes first must not hang on the order of the listing
        inside = "__MACOSX" in Path(place).relative_to(folder).parts
        for name in names:
            if inside or name.startswith("._") or name == ".DS_Store":
                junk += 1
            elif os.path.isfile(os.path.join(place, name)):
                files.append(Path(place, name))
    return sorted(files), junk
