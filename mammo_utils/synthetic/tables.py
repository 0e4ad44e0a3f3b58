"""The tables of the release: CMMD's clinical sheet and metadata.csv, TOMPEI-CMMD's workbook and annotations.

Names of sheets and columns, and the header rows, are those of the real release.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from openpyxl import Workbook

from mammo_utils.io import atomic_write
from mammo_utils.synthetic.cases import Breast, Exam, iterate_breasts
from mammo_utils.synthetic.findings import LesionOutline
from mammo_utils.synthetic.headers import MARK, SOP_CLASS

CLINICAL_SHEET = "CMMD_clinicaldata_revision.xlsx"
WORKBOOK = "TOMPEI-CMMD_clinical_data_v01_20250121.xlsx"
ANNOTATIONS = "TOMPEI-CMMD_v01_20250123"

MASS = ("Location", "Shape", "Margin", "Density", "Associated calcification", "Other Associated Findings")
CALC = ("Location", "Morphology", "Distribution", "Clearly Benign Calcifications", "Other Associated Findings")
OTHER = ("Location", "Breast Parenchyma", "Skin", "Lymph Nodes")
MASS_WORDS = (  # (least suspicion, cells), most suspicious first
    (0.9, ("irregular", "Spiculated", "High density")),
    (0.7, ("irregular", "Indistinct", "High density")),
    (0.3, ("round/oval", "Indistinct", "Equal density")),
    (0.0, ("round/oval", "Circumscribed", "Equal density")),
)
CALC_WORDS = (
    (0.9, ("Pleomorphic calcification", "segmental/linear")),
    (0.5, ("Amorphous and indistinct calcification", "grouped")),
    (0.2, ("Small Round Calcification", "grouped")),
    (0.0, ("Small Round Calcification", "regional")),
)
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
FIRST_COLUMN = {"Normal": 4, "Benign": 5, "Malignant": 11}  # of a class in LESION_COLUMNS
METADATA_COLUMNS = (
    "Series UID,Collection,3rd Party Analysis,Data Description URI,Subject ID,Study UID,Study Description,"
    "Study Date,Series Description,Manufacturer,Modality,SOP Class Name,SOP Class UID,Number of Images,"
    "File Size,File Location,Download Timestamp"
).split(",")
REASON = {"Invisible": "Unclear on image", "Exclusion": f"{MARK}: left out"}


def write_clinical_sheet(path: Path, exams: list[Exam]) -> None:
    """Write CMMD's own labels: one row for each breast that has one."""
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append(["ID1", "LeftRight", "Age", "number", "abnormality", "classification", "subtype"])
    for exam, breast in iterate_breasts(exams):
        if breast.cmmd:
            sheet.append([exam.id, breast.side, exam.age, 2, breast.abnormality, breast.cmmd, breast.subtype])
    _save(book, path)


def write_workbook(path: Path, exams: list[Exam], settings: dict[str, Any]) -> None:
    """Write TOMPEI-CMMD's workbook: README, imaging sheet (two header rows), lesion sheet (three).

    Args:
        path: File to write.
        exams: One row is written for each of their breasts.
        settings: What the release was drawn with, for the README.
    """
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
        last = column + len(below) - 1
        if last > column:
            imaging.merge_cells(start_row=1, end_row=1, start_column=column, end_column=last)
        column = last + 1
    for exam, breast in iterate_breasts(exams):
        imaging.append(_make_imaging_row(exam, breast))

    lesions = book.create_sheet("Lesion Details Sheet")
    lesions.append([MARK])
    lesions.append([next((c for c, first in FIRST_COLUMN.items() if first == i), None) for i in range(18)])
    lesions.append(LESION_COLUMNS)
    rows = [_make_lesion_row(exam, breast) for exam, breast in iterate_breasts(exams)]
    for row in rows:
        lesions.append(row)
    lesions.append([None, None, None, *(sum(row[i] or 0 for row in rows) for i in range(3, 16))])  # totals, without ID
    _save(book, path)


def _save(book: Workbook, path: Path) -> None:
    with atomic_write(path) as temporary:
        book.save(temporary)


def _make_imaging_row(exam: Exam, breast: Breast) -> list[Any]:
    """Make a row of 33 cells: as in the release, no age without a CMMD label, and zero-width spaces in some cells."""
    row: list[Any] = [None] * 33
    row[:3] = exam.id, breast.side, exam.age if breast.cmmd else None
    row[3:6] = breast.classification, REASON.get(breast.classification), breast.density or None
    row[21] = breast.birads
    for finding in breast.findings:
        up, kind, s = finding.place[2], finding.kind, finding.suspicion
        level = "U" if up > 0.25 else "L" if up < -0.25 else "M"
        if kind == "calc":
            row[12:15] = [level, *_describe(s, CALC_WORDS)]
        elif kind in ("dist", "FAD"):
            row[17] = kind
        elif kind in ("FA", "lipoma"):
            row[6], row[10] = level, {"FA": "Fibroadenoma", "lipoma": "Lipoma"}[kind]
        else:
            row[6:10] = [level, *_describe(s, MASS_WORDS)]
    if breast.classification == "Normal" and breast.birads == 2:
        row[12], row[15] = "M", "Vascular Calcifications"
    if exam.number % 40 == 7:
        row[3] += "\u200b"
    if exam.number % 40 == 19 and row[5]:
        row[5] = "\u200b" + row[5]
    return row


def _describe(suspicion: float, words: tuple[tuple[float, tuple[str, ...]], ...]) -> tuple[str, ...]:
    return next(found for least, found in words if suspicion >= least)


def _make_lesion_row(exam: Exam, breast: Breast) -> list[Any]:
    name = breast.classification
    row: list[Any] = [exam.id, breast.side, name, len(breast.findings), *[None] * 13, REASON.get(name)]
    if name in ("Normal", "Invisible"):
        row[{"Normal": 4, "Invisible": 15}[name]] = 1
    for finding in breast.findings:
        kind = "Other mass" if finding.kind == "mass" and name == "Benign" else finding.kind
        row[LESION_COLUMNS.index(kind, FIRST_COLUMN[name])] = 1
    return row


def make_annotation(outlines: list[LesionOutline], exam: Exam) -> str:
    """Make the JSON text of one annotation file; points are pixels, x to the right, y down.

    As in the release, some labels end in a space and there are two types of outline.
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


def make_metadata_row(exam: Exam, uids: tuple[str, str], date: str, n_images: int, size: int, folder: str) -> list[Any]:
    """Make one row of the downloader's metadata.csv.

    Args:
        exam: The patient.
        uids: Of study and series.
        date: Of the study, YYYYMMDD.
        n_images: Images of the series.
        size: Of its files, in bytes.
        folder: Relative to that of the manifest.
    """
    shown = f"{date[4:6]}-{date[6:]}-{date[:4]}"
    location = ".\\" + folder.replace("/", "\\")
    name = "Digital Mammography X-Ray Image Storage - For Presentation"
    megabytes = f"{size / 1e6:.2f} MB"
    start = [uids[1], "CMMD", "NO", f"{MARK}: drawn by mammo_utils", exam.id, uids[0], "NA", shown, "NA"]
    return [*start, MARK, "MG", name, SOP_CLASS, n_images, megabytes, location, "2025-01-21T00:00:00.000"]


def write_metadata(path: Path, rows: list[list[Any]]) -> None:
    """Write metadata.csv from the rows of `make_metadata_row`."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(METADATA_COLUMNS)
        writer.writerows(rows)
