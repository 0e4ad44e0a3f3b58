"""The tables of the release: CMMD's clinical sheet and metadata.csv, TOMPEI-CMMD's workbook and annotations.

Sheet names, header rows and column names are the real ones (data contract, sections 1 and 2).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from openpyxl import Workbook
from openpyxl.utils import get_column_letter

from mammo_utils.io import atomic_write
from mammo_utils.synthetic.cases import Breast, Exam, each_breast
from mammo_utils.synthetic.findings import Outline
from mammo_utils.synthetic.headers import MARK, SOP_CLASS

CLINICAL_SHEET = "CMMD_clinicaldata_revision.xlsx"
WORKBOOK = "TOMPEI-CMMD_clinical_data_v01_20250121.xlsx"
ANNOTATIONS = "TOMPEI-CMMD_v01_20250123"

MASS = ("Location", "Shape", "Margin", "Density", "Associated calcification", "Other Associated Findings")
CALC = ("Location", "Morphology", "Distribution", "Clearly Benign Calcifications", "Other Associated Findings")
OTHER = ("Location", "Breast Parenchyma", "Skin", "Lymph Nodes")
GROUPS = (  # (first header row, second header row of each of its columns)
    ("ID", (None,)),
    ("LeftRight", (None,)),
    ("Age", (None,)),
    ("classification", (None, "Exclusion reasons")),
    ("Breast density", (None,)),
    ("Mass", MASS),
    ("Calcification", CALC),
    ("Other findings", OTHER),
    ("BI-RADS\nCategory", (None,)),
    ("Notes", (None,)),
    ("Mass - Additional Lesion", MASS),
    ("Calcification - Additional Lesion", CALC[:4]),
)
LESION_COLUMNS = (
    *("ID1", "LeftRight", "classification", "Number of lesions", None),
    *("FA", "lipoma", "Other mass", "calc", "FAD", "dist"),
    *("mass", "calc", "FAD", "dist", "invisible", None, "Exclusion reasons"),
)
FIRST_COLUMN = {"Benign": 5, "Malignant": 11}  # of a class's lesion kinds, from 0
METADATA_COLUMNS = (
    "Series UID,Collection,3rd Party Analysis,Data Description URI,Subject ID,Study UID,Study Description,"
    "Study Date,Series Description,Manufacturer,Modality,SOP Class Name,SOP Class UID,Number of Images,"
    "File Size,File Location,Download Timestamp"
).split(",")
REASON = {"Invisible": "Unclear on image", "Exclusion": f"{MARK}: left out"}


def write_clinical_sheet(path: Path, exams: list[Exam]) -> None:
    """Write CMMD's own labels: one row per breast that it labelled."""
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append(["ID1", "LeftRight", "Age", "number", "abnormality", "classification", "subtype"])
    for exam, breast in each_breast(exams):
        if breast.cmmd:
            row = [exam.id, breast.side, exam.age, 2, breast.abnormality, breast.cmmd, breast.subtype]
            sheet.append(row)
    _save(book, path)


def write_workbook(path: Path, exams: list[Exam], settings: dict[str, Any]) -> None:
    """Write TOMPEI-CMMD's workbook: README, imaging sheet (two header rows), lesion sheet (three)."""
    book = Workbook()
    readme = book.active
    readme.title = "README"
    readme.append([f"{MARK} release, drawn by mammo_utils in the format of TOMPEI-CMMD. It shows no patient."])
    if settings["null"]:
        readme.append(["Null setting: images and outlines are drawn without regard to these labels."])
    for name, value in settings.items():
        readme.append([name, str(value)])

    imaging = book.create_sheet("Imaging Diagnosis Details Sheet")
    imaging.append([cell for name, below in GROUPS for cell in (name, *[None] * (len(below) - 1))])
    imaging.append([cell for _, below in GROUPS for cell in below])
    column = 1
    for _, below in GROUPS:
        if len(below) > 1:
            first, last = get_column_letter(column), get_column_letter(column + len(below) - 1)
            imaging.merge_cells(f"{first}1:{last}1")
        column += len(below)
    for exam, breast in each_breast(exams):
        imaging.append(_imaging_row(exam, breast))

    lesions = book.create_sheet("Lesion Details Sheet")
    lesions.append([f"{MARK}"])
    groups: list[str | None] = [None] * len(LESION_COLUMNS)
    groups[4], groups[5], groups[11] = "Normal", "Benign", "Malignant"
    lesions.append(groups)
    lesions.append(LESION_COLUMNS)
    rows = [_lesion_row(exam, breast) for exam, breast in each_breast(exams)]
    for row in rows:
        lesions.append(row)
    totals = [sum(row[i] or 0 for row in rows) for i in range(3, 16)]
    lesions.append([None, None, None, *totals])  # the real sheet ends in totals without an ID
    _save(book, path)


def _save(book: Workbook, path: Path) -> None:
    with atomic_write(path) as temporary:
        book.save(temporary)


def _imaging_row(exam: Exam, breast: Breast) -> list[Any]:
    """One row of 33 cells. As in the release, the age is blank for a breast without a CMMD label, and some
    cells carry a zero-width space."""
    row: list[Any] = [None] * 33
    row[:3] = exam.id, breast.side, exam.age if breast.cmmd else None
    row[3:6] = breast.classification, REASON.get(breast.classification), breast.density or None
    row[21] = breast.birads
    for finding in breast.findings:
        where, s = _level(finding.place[2]), finding.suspicion
        if finding.kind == "calc":
            row[12:15] = [where, *_calc_words(s)]
        elif finding.kind in ("dist", "FAD"):
            row[17] = finding.kind
        elif finding.kind in ("FA", "lipoma"):
            row[6], row[10] = where, {"FA": "Fibroadenoma", "lipoma": "Lipoma"}[finding.kind]
        else:
            row[6:10] = [where, *_mass_words(s)]
    if breast.classification == "Normal" and breast.birads == 2:
        row[12], row[15] = "M", "Vascular Calcifications"
    if exam.number % 40 == 7:
        row[3] += "\u200b"
    if exam.number % 40 == 19 and row[5]:
        row[5] = "\u200b" + row[5]
    return row


def _level(up: float) -> str:
    return "U" if up > 0.25 else "L" if up < -0.25 else "M"


def _mass_words(s: float) -> tuple[str, str, str]:
    if s > 0.7:
        return "irregular", "Spiculated" if s > 0.9 else "Indistinct", "High density"
    return "round/oval", "Circumscribed" if s < 0.3 else "Indistinct", "Equal density"


def _calc_words(s: float) -> tuple[str, str]:
    if s > 0.9:
        return "Pleomorphic calcification", "segmental/linear"
    if s > 0.5:
        return "Amorphous and indistinct calcification", "grouped"
    return "Small Round Calcification", "regional" if s < 0.2 else "grouped"


def _lesion_row(exam: Exam, breast: Breast) -> list[Any]:
    row: list[Any] = [exam.id, breast.side, breast.classification, len(breast.findings), *[None] * 14]
    if breast.classification == "Normal":
        row[4] = 1
    if breast.classification == "Invisible":
        row[15] = 1
    if breast.classification in REASON:
        row[17] = REASON[breast.classification]
    if breast.classification in FIRST_COLUMN:
        columns = LESION_COLUMNS[FIRST_COLUMN[breast.classification] :]
        for finding in breast.findings:
            name = "Other mass" if finding.kind == "mass" and breast.classification == "Benign" else finding.kind
            row[FIRST_COLUMN[breast.classification] + columns.index(name)] = 1
    return row


def annotation(outlines: list[Outline], exam: Exam) -> str:
    """The JSON text of one annotation file. Points are pixels, x to the right, y down.

    As in the release, some labels end in a space and both types of outline occur.
    """
    lesions = [
        {
            "cgPoints": [{"x": float(np.round(x, 4)), "y": float(np.round(y, 4))} for x, y in outline.points],
            "label": outline.kind + (" " if (exam.number + i) % 4 == 0 else ""),
            "_id": f"DICOM_App__{MARK}{exam.number:06d}{i}",
            "type": "Polyline" if (exam.number + i) % 3 == 0 else "Draw",
            "color": "#cdff27",
        }
        for i, outline in enumerate(outlines)
    ]
    return json.dumps(lesions, indent=4) + "\n"


def metadata_row(exam: Exam, uids: tuple[str, str], date: str, images: int, size: int, place: str) -> list[Any]:
    """One row of the downloader's metadata.csv; `size` in bytes, `place` relative to the manifest's folder."""
    shown = f"{date[4:6]}-{date[6:]}-{date[:4]}"
    location = ".\\" + place.replace("/", "\\")
    name = "Digital Mammography X-Ray Image Storage - For Presentation"
    megabytes = f"{size / 1e6:.2f} MB"
    start = [uids[1], "CMMD", "NO", f"{MARK}: drawn by mammo_utils", exam.id, uids[0], "NA", shown, "NA"]
    return [*start, MARK, "MG", name, SOP_CLASS, images, megabytes, location, "2025-01-21T00:00:00.000"]


def write_metadata(path: Path, rows: list[list[Any]]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(METADATA_COLUMNS)
        writer.writerows(rows)
