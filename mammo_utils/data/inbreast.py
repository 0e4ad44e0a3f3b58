"""INbreast (Moreira et al. 2012, DOI 10.1016/j.acra.2011.09.014): BI-RADS and density of each breast, no pathology.

The files are those of the release, at any depth: `AllDICOMs/<image>_<patient>_MG_<L|R>_<CC|ML>_ANON.dcm` and
`INbreast.csv`, one row per image (the release's `INbreast.xls` has the same rows; save it as csv). Only the file names
identify patients. Tags have neither side nor view: both are in the csv, and in the names, where ML is MLO. Outlines
(`AllXML`) are not read. A patient is an exam; of a patient with a follow-up, only the images of the latest
"Acquisition date" are used; an image without a date belongs to the patient's only study. Labels, of a breast the
highest of its images (they differ in a few breasts):

| column | label |
|---|---|
| Bi-Rads 1 to 5; 4a, 4b, 4c | birads 1-5; 4 |
| Bi-Rads 6 (malignancy proven by biopsy) | class malignant, diagnosis 1, birads -1 |
| ACR 1 to 4; blank | fatty, scattered, heterogeneous, extreme; "" |
| (no pathology) | diagnosis -1 otherwise, so that task mode birads only is meaningful |
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from mammo_utils.data.assemble import assemble
from mammo_utils.data.cohort import Cohort
from mammo_utils.data.image_tables import place_image, read_images
from mammo_utils.data.kinds import OTHER_STUDY
from mammo_utils.data.label_tables import UNLABELLED, Labels
from mammo_utils.vocabulary import DENSITIES

TITLE, TABLE = "INbreast", "INbreast.csv"
COLUMNS = ("File Name", "Laterality", "View", "Acquisition date", "ACR", "Bi-Rads")
FILE = re.compile(r"(?P<image>\d+)_(?P<patient>[0-9a-f]+)_MG_(?P<side>[LR])_(?P<view>[A-Z]+)_ANON", re.IGNORECASE)
UNDATED = "its row has no Acquisition date, and the patient has several studies"
BIRADS = re.compile(r"[1-6]|4[abc]", re.IGNORECASE)


def read_inbreast(folder: Path, *, cohort: str, progress: Callable[[int, int], None]) -> Cohort:
    """Read the exams of INbreast.

    Args:
        folder: The data set's folder.
        cohort: "usable", "annotated" or "complete", see `sources.read_cohort`.
        progress: Called with (files read, files in all).

    Raises:
        DataError: The csv, one of its columns or every image is missing.
    """
    headers, _, excluded = read_images(
        folder, TITLE, TABLE, COLUMNS, ("Laterality", "Bi-Rads"), progress, lambda stem: stem.split("_")[0]
    )
    headers = [_place(header) for header in headers]
    dates: dict[str, set[str]] = {}  # of each patient's studies
    for header in headers:
        if not header["refused"] and (date := header["record"]["Acquisition date"]):
            dates.setdefault(header["patient"], set()).add(date)
    labels: Labels = {}
    rated = set()  # breasts with a usable image
    for header in headers:
        breast, row = (header["patient"], header["side"]), header["record"]
        if row and all(breast):
            labels.setdefault(breast, dict(UNLABELLED))  # also of a breast without a usable image
        if header["refused"]:
            continue
        label, studies, date = labels[breast], dates.get(header["patient"], {""}), row["Acquisition date"]
        if date != max(studies) and (date or len(studies) > 1):
            header["refused"] = OTHER_STUDY if date else UNDATED
            continue
        rated.add(breast)
        if not BIRADS.fullmatch(row["Bi-Rads"]):
            reason = f"the BI-RADS {row['Bi-Rads'][:20]!r} is unknown"
            excluded.append({"kind": "annotation", "what": row["File Name"], "reason": reason})
        elif row["Bi-Rads"] == "6":
            label |= {"class": "malignant", "diagnosis": 1}
        else:
            label["birads"] = max(label["birads"], int(row["Bi-Rads"][0]))
        label["density"] = dict(zip("1234", DENSITIES, strict=True)).get(row["ACR"], label["density"])
    for label in (labels[breast] for breast in rated):
        if label["birads"] < 0 and label["diagnosis"] < 0:
            label["reason"] = "none of its rows has a known BI-RADS"
    return assemble(TITLE, folder, headers, labels, excluded, rule=cohort)


def _place(header: dict) -> dict:
    """A header with the exam from its file's name, and side and view from its row."""
    match = FILE.fullmatch(PurePosixPath(header["path"]).stem)
    row = header["record"] or {}
    side, view = row.get("Laterality", "").upper(), row.get("View", "").upper()
    if match is None:
        reason = "its name is not <image>_<patient>_MG_<side>_<view>_ANON, so its patient is unknown"
        return place_image(header, "", side, view) | {"refused": reason}
    placed = place_image(header, match["patient"].lower(), side, view)
    named = f"{match['side']} {'MLO' if match['view'].upper() == 'ML' else match['view']}".upper()
    if header["record"] and named != f"{side} {view}":
        note = f"side or view: {side} {view} in the csv, {named} in the file's name"
        placed["note"] = "; ".join(filter(None, [placed["note"], note]))
    return placed
