"""Known errors of CMMD and their correction. `corrections.csv` has one row per error.

`exam` and `where` name an image ("R_CC", according to its tags) or a label ("R"). The other columns:

| kind | value |
|---|---|
| side | the breast that the image really shows |
| mirrored | empty: the image is stored mirrored; preprocessing flips it if its pixels confirm this |
| damaged | why the image cannot be used |
| label | the breast to which this label of CMMD's clinical sheet belongs |
| duplicate | another patient with the same pixels; both stay in one part of the split |

The labels of TOMPEI-CMMD's workbook are on the right breast already. `source` names where the error was reported. In a
copy that was repaired since, a correction introduces an error; `suspect_corrections` finds such sides by the pixels.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

TABLE = Path(__file__).with_name("corrections.csv")
KINDS = ("side", "mirrored", "damaged", "label", "duplicate")


@cache
def known_errors() -> tuple[dict[str, str], ...]:
    """Read corrections.csv. Each row has exam, where, kind, value and source."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def apply_corrections(
    headers: list[dict[str, Any]], clinical: dict[tuple[str, str], Any] | None, *, enabled: bool = True
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], Any] | None, list[dict[str, Any]]]:
    """Correct the known errors that concern the given images.

    Args:
        headers: Headers from `mammo_utils.data.dicom.read_headers`.
        clinical: Labels of CMMD's clinical sheet by (exam, side); None if there is no such sheet.
        enabled: Whether to apply the corrections, or only to list them.

    Returns:
        The headers, each with `mirrored` (bool) and `damaged` (the reason, or ""); the corrected labels; and rows of
        the table corrections: each error of an exam in the folder, applied or with the reason why not.
    """
    headers = [{**header, "mirrored": False, "damaged": ""} for header in headers]
    images_by_view: dict[tuple[str, str], list[dict]] = {}
    for header in headers:
        images_by_view.setdefault((header["patient"], f"{header['side']}_{header['view']}"), []).append(header)
    corrected = None if clinical is None else dict(clinical)
    patients = {header["patient"] for header in headers}
    rows = []
    for error in known_errors():
        exam, where, kind, value = (error[name] for name in ("exam", "where", "kind", "value"))
        if exam not in patients and not (kind == "duplicate" and value in patients):
            continue
        images = images_by_view.get((exam, where), [])
        if not enabled:
            why_not = "corrections are switched off"
        elif kind == "duplicate":
            why_not = "".join(f"{name} is not in this folder" for name in (exam, value) if name not in patients)
        elif kind == "label":
            why_not = _move_label(clinical, corrected, exam, where, value)
        else:
            why_not = "" if images else f"no image of it is tagged {where}"
            for image in images:
                image[kind] = True if kind == "mirrored" else value
        rows.append({**error, "applied": not why_not, "why_not": why_not})
    return headers, corrected, rows


def suspect_corrections(corrections: pd.DataFrame, index: pd.DataFrame) -> pd.DataFrame:
    """Return the images whose pixels contradict their side.

    These are the rows of the store's `index` whose chest wall is not where their side implies. The column `note` marks
    a side that the cohort's table `corrections` changed: the tag may be right in this copy of the images.
    """
    suspects = index[~index["agrees"]]
    sides = corrections[(corrections["kind"] == "side") & corrections["applied"]]
    tags = {(row["exam"], row["value"] + row["where"][1:]): row["where"] for row in sides.to_dict("records")}
    note = "corrected from {}, which the pixels contradict: perhaps not needed here (data.corrections: false)"
    corrected = [tags.get(key) for key in zip(suspects["exam"], suspects["view"], strict=True)]
    return suspects.assign(note=[note.format(tag) if tag else "" for tag in corrected])


def _move_label(clinical: dict | None, corrected: dict | None, exam: str, side: str, other: str) -> str:
    """Move a label to the other breast in `corrected`. Returns the reason why not, or ""."""
    if clinical is None or corrected is None:
        return "the labels are TOMPEI-CMMD's, on the right breast already"
    if (exam, side) not in clinical:
        return f"CMMD's sheet has no label for {side}"
    if (exam, other) in clinical:
        return f"CMMD's sheet has a label for {other} too"
    corrected[exam, other] = corrected.pop((exam, side))
    return ""
