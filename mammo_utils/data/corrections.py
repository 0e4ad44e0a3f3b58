"""Known errors of CMMD, one row a fact in corrections.csv, and how they are put right.

exam and where say which image ("R_CC", as its tags say) or label ("R") is meant; kind and value what is known:

    side      the image shows the other breast, `value`
    mirrored  the image is stored mirrored; preprocessing turns it where its pixels say so too
    damaged   the image cannot be used; `value` says why
    label     the label of CMMD's clinical sheet belongs to the other breast, `value`
    twin      the same pixels stand under another patient, `value`; both stay in one part of the split

TOMPEI-CMMD's workbook has its labels on the right breast already and is not changed. A source is where the fact was
read, not what was seen here; a copy of CMMD whose errors were repaired since would be made wrong, which
:func:`doubted` shows for the sides once the pixels have been looked at.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

FACTS = Path(__file__).with_name("corrections.csv")
KINDS = ("side", "mirrored", "damaged", "label", "duplicate")


@cache
def known_errors() -> tuple[dict[str, str], ...]:
    """The rows of corrections.csv: exam, where, kind, value, source."""
    with FACTS.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def correct(
    headers: list[dict[str, Any]], sheet: dict[tuple[str, str], Any] | None, *, on: bool = True
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], Any] | None, list[dict[str, Any]]]:
    """Headers and the clinical sheet's labels put right, and rows of the table corrections.

    headers: as :func:`mammo_utils.data.dicom.read_headers` gives them; each comes back with `mirrored` (bool) and
    `damaged` (why, or ""). sheet: (exam, side) -> label, None where the folder has none. A fact is listed where
    the folder has an image of its exam, applied or with the reason why not; with ``on=False`` none is applied.
    """
    headers = [{**header, "mirrored": False, "damaged": ""} for header in headers]
    places: dict[tuple[str, str], list[dict]] = {}
    for header in headers:
        places.setdefault((header["patient"], f"{header['side']}_{header['view']}"), []).append(header)
    moved = None if sheet is None else dict(sheet)
    here = {header["patient"] for header in headers}
    rows = []
    for fact in known_errors():
        exam, where, kind, value = (fact[name] for name in ("exam", "where", "kind", "value"))
        if exam not in here and not (kind == "duplicate" and value in here):
            continue
        images = places.get((exam, where), [])
        if not on:
            why_not = "corrections are switched off"
        elif kind == "duplicate":
            why_not = "".join(f"{name} is not in this folder" for name in (exam, value) if name not in here)
        elif kind == "label":
            why_not = _move(sheet, moved, exam, where, value)
        else:
            why_not = "" if images else f"no image of it is tagged {where}"
            for image in images:
                image[kind] = True if kind == "mirrored" else value
        rows.append({**fact, "applied": not why_not, "why_not": why_not})
    return headers, moved, rows


def suspect_corrections(corrections: pd.DataFrame, index: pd.DataFrame) -> pd.DataFrame:
    """The images whose chest wall does not lie where their side puts it, with a `note` where a correction did that.

    corrections: the cohort's; index: the store's. A side that was changed against what the pixels say was right in
    this copy of the images, perhaps.
    """
    odd = index[~index["agrees"]]
    changed = corrections[(corrections["kind"] == "side") & corrections["applied"]]
    now = {(row["exam"], row["value"] + row["where"][1:]): row["where"] for row in changed.to_dict("records")}
    note = "corrected from {}, which the pixels contradict: perhaps not needed here (data.corrections: false)"
    tags = [now.get(key) for key in zip(odd["exam"], odd["view"], strict=True)]
    return odd.assign(note=[note.format(tag) if tag else "" for tag in tags])


def _move(sheet: dict | None, moved: dict | None, exam: str, side: str, other: str) -> str:
    """Move one label to the other breast; returns why not, or "". Every label is taken from the sheet as it was."""
    if sheet is None or moved is None:
        return "the labels are TOMPEI-CMMD's, on the right breast already"
    if (exam, side) not in sheet:
        return f"CMMD's sheet has no label for {side}"
    if (exam, other) in sheet:
        return f"CMMD's sheet has a label for {other} too"
    moved[exam, other] = moved.pop((exam, side))
    return ""
