"""Lesion outlines of TOMPEI-CMMD: one JSON file per breast, MLO only."""

from __future__ import annotations

import filecmp
import json
import math
import re
from pathlib import Path
from typing import Any

from mammo_utils.data.folders import NOT_PERMITTED, name_below
from mammo_utils.vocabulary import LESION_KINDS

NAME = re.compile(r"^(?P<exam>[A-Za-z0-9-]+)_(?P<view>CC|MLO)_(?P<side>[LR])_AnnotationFile\.json$")
OUTLINES = "_AnnotationFile.json"  # the end of the files' names
LARGEST = 20 * 2**20  # bytes; the real files have about 4 kB per lesion
TOLERANCE = 0.01  # fraction of the image's side; points so close outside were drawn at the edge


def read_annotations(
    folder: Path, files: list[Path], sizes: dict[tuple[str, str], tuple[int, int]]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Read all lesion outlines of a data folder.

    Args:
        folder: The data folder.
        files: All files below it.
        sizes: (exam, view) -> (rows, columns) of each image, in pixels.

    Returns:
        Rows of the table lesions, and rows of the table excluded for outlines that cannot be used.
    """
    lesions, excluded = [], []
    paths_by_name: dict[str, list[Path]] = {}
    for path in files:
        if path.name.endswith(OUTLINES):
            paths_by_name.setdefault(path.name, []).append(path)
    for name, (path, *copies) in sorted(paths_by_name.items()):
        match = NAME.match(name)
        exam, side, view = match.group("exam", "side", "view") if match else ("", "", "")
        size = sizes.get((exam, f"{side}_{view}"))
        different = [copy for copy in copies if not _are_equal(path, copy)]
        outlines, reasons = [], []
        if not match:
            reasons = ["the name is not ID_MLO_SIDE_AnnotationFile.json, so it cannot be matched to an image"]
        elif size is None:
            reasons = [f"the folder has no such image: {exam} {side}_{view}"]
        elif different:
            reasons = [f"another file of this name differs: {name_below(folder, different[0])}"]
        else:
            outlines, reasons = _read_outlines(path, *size)
        lesions += [{"exam": exam, "side": side, "view": f"{side}_{view}", **outline} for outline in outlines]
        what = name_below(folder, path)
        found = [(what, reason) for reason in reasons]
        found += [(name_below(folder, copy), f"a copy: of {what}") for copy in copies]
        excluded += [{"kind": "annotation", "what": what, "reason": reason} for what, reason in found]
    return lesions, excluded


def _are_equal(path: Path, copy: Path) -> bool:
    try:
        return filecmp.cmp(path, copy, shallow=False)
    except OSError:  # one of them may not be read
        return False


def _read_outlines(path: Path, rows: int, columns: int) -> tuple[list[dict[str, str]], list[str]]:
    """The outlines of one file, {kind, points}, and a reason for each that is cut or cannot be used. Never raises."""
    try:
        if path.stat().st_size > LARGEST:
            return [], [f"the file is larger than {LARGEST // 2**20} MB"]
        lesions = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        return [], [f"the file {NOT_PERMITTED}"]
    except (OSError, ValueError, RecursionError) as error:
        return [], [f"the file cannot be read as JSON ({type(error).__name__}); download it again"]
    if not isinstance(lesions, list):
        return [], ["the file does not hold a list of lesions; download it again"]
    outlines, reasons = [], []
    for number, lesion in enumerate(lesions, 1):
        try:
            kind = str(lesion["label"]).strip()
            points = [(float(point["x"]), float(point["y"])) for point in lesion["cgPoints"]]
        except (KeyError, TypeError, ValueError, OverflowError):  # an integer may be too large for a float
            reasons.append(f"lesion {number} has no label or no points {{x, y}}")
            continue
        if fault := _find_fault(kind, points):
            reasons.append(f"lesion {number}: {fault}")
            continue
        clipped = [[min(max(x, 0.0), float(columns)), min(max(y, 0.0), float(rows))] for x, y in points]
        excess = max(max(-x / columns, x / columns - 1, -y / rows, y / rows - 1) for x, y in points)
        where = f"outside the image of {columns} x {rows} pixels"
        if excess > TOLERANCE:
            outside = any(min(values) == max(values) for values in zip(*clipped, strict=True))  # all on one edge
            what = "it lies" if outside else f"it is cut at the edge, points lie up to {100 * excess:.0f} % of the side"
            reasons.append(f"lesion {number}: {what} {where}")
            if outside:
                continue
        outlines.append({"kind": kind, "points": json.dumps(clipped)})
    return outlines, reasons


def _find_fault(kind: str, points: list[tuple[float, float]]) -> str:
    if kind not in LESION_KINDS:
        return f"the label {kind[:40]!r} is none of {', '.join(LESION_KINDS)}"
    if len(points) < 3:
        return f"an outline needs 3 points or more, but this one has {len(points)}"
    if not all(math.isfinite(x) and math.isfinite(y) for x, y in points):
        return "a point is not finite"
    return ""
