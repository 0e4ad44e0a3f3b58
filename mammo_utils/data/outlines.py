"""Lesion outlines of TOMPEI-CMMD: one JSON file a breast, MLO alone."""

from __future__ import annotations

import filecmp
import json
import math
import re
from pathlib import Path
from typing import Any

from mammo_utils.data.folders import MAY_NOT, files_below
from mammo_utils.vocabulary import LESION_KINDS

NAME = re.compile(r"^(?P<exam>[A-Za-z0-9-]+)_(?P<view>CC|MLO)_(?P<side>[LR])_AnnotationFile\.json$")
LARGEST = 20 * 2**20  # bytes; the real files have some 4 kB a lesion
JUST_OUTSIDE = 0.01  # of the image's side: points so near are drawn by hand at the edge, and clipped


def read_annotations(
    folder: Path, sizes: dict[tuple[str, str], tuple[int, int]]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """All outlines under `folder` for images of `sizes`, (exam, view) -> (rows, columns).

    Returns rows of the table lesions and, for what cannot be used, rows of excluded. The junk that macOS
    leaves (``__MACOSX``, names that begin ``._``) is no annotation and is passed over.
    """
    lesions, excluded = [], []
    named: dict[str, list[Path]] = {}
    for path in files_below(folder)[0]:
        if path.name.endswith("_AnnotationFile.json"):
            named.setdefault(path.name, []).append(path)
    for name, (path, *copies) in sorted(named.items()):
        match = NAME.match(name)
        exam, side, view = match.group("exam", "side", "view") if match else ("", "", "")
        size = sizes.get((exam, f"{side}_{view}"))
        others = [copy for copy in copies if not _same(path, copy)]
        outlines, reasons = [], []
        if not match:
            reasons = ["the name is not ID_MLO_SIDE_AnnotationFile.json, so no image is known for it"]
        elif size is None:
            reasons = [f"the folder has no such image: {exam} {side}_{view}"]
        elif others:
            reasons = [f"another file of this name says otherwise: {others[0].relative_to(folder).as_posix()}"]
        else:
            outlines, reasons = read_outlines(path, *size)
        lesions += [{"exam": exam, "side": side, "view": f"{side}_{view}", **outline} for outline in outlines]
        place = path.relative_to(folder).as_posix()
        excluded += [{"kind": "annotation", "what": place, "reason": reason} for reason in reasons]
        excluded += [
            {"kind": "annotation", "what": copy.relative_to(folder).as_posix(), "reason": f"a copy: of {place}"}
            for copy in copies
        ]
    return lesions, excluded


def _same(path: Path, copy: Path) -> bool:
    try:
        return filecmp.cmp(path, copy, shallow=False)
    except OSError:  # one of them may not be read
        return False


def read_outlines(path: Path, rows: int, columns: int) -> tuple[list[dict[str, str]], list[str]]:
    """The outlines of one file, {kind, points}, and a sentence for each that cannot be used. Never raises."""
    try:
        if path.stat().st_size > LARGEST:
            return [], [f"the file is larger than {LARGEST // 2**20} MB"]
        lesions = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        return [], [f"the file {MAY_NOT}"]
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
        reason = _wrong(kind, points, rows, columns)
        if reason:
            reasons.append(f"lesion {number}: {reason}")
            continue
        clipped = [[min(max(x, 0.0), float(columns)), min(max(y, 0.0), float(rows))] for x, y in points]
        outlines.append({"kind": kind, "points": json.dumps(clipped)})
    return outlines, reasons


def _wrong(kind: str, points: list[tuple[float, float]], rows: int, columns: int) -> str:
    if kind not in LESION_KINDS:
        return f"the label {kind[:40]!r} is none of {', '.join(LESION_KINDS)}"
    if len(points) < 3:
        return f"{len(points)} points are no outline"
    if not all(math.isfinite(x) and math.isfinite(y) for x, y in points):
        return "a point is not finite"
    far = max(max(-x / columns, x / columns - 1, -y / rows, y / rows - 1) for x, y in points)
    if far > JUST_OUTSIDE:
        return f"points lie up to {100 * far:.0f} % of the side outside the image of {columns} x {rows} pixels"
    return ""
