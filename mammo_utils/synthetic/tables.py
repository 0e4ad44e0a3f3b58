"""The tables of the release: CMMD's clinical sheet and metadata.csv, TOMPEI-CMMD's workbook and annotations.

Names of sheets and columns and the header rows are those of the real release.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from openpyxl import Workbook

from mammo_utils.io import atomic_write
from mammo_utils.synthetic.cases import Breast, Exam, Settings, iterate_breasts
from mammo_utils.synthetic.findings import LesionOutline
from mammo_utils.synthetic.headers import MARK, SOP_CLASS, identify_study

CLINICAL_SHEET = "CMMD_clinicaldata_revision.xlsx"
WORKBOOK = "TOMPEI-CMMD_clinical_data_v01_20250121.xlsx"
ANNOTATIONS = "TOMPEI-CMMD_v01_20250123"

MASS = ("Location", "Shape", "Margin", "Density", "Associated calcification", "Other Associated Findings")
CALC = ("Location", "Morphology", "Distribution", "Clearly Benign Calcifications", "Other Associated Findings")
OTHER = ("Location", "Breast Parenchyma", "Skin", "Lymph Nodes")
GROUPS = (  # (first header row, second header row of each of its columns)
    *((name, (None,)) for name in ("ID", "LeftRight", "Age")),
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
FIRST_COLUMN = {"Benign": 5, "Malignant": 11}  # of the lesion kinds of a class, from 0
METADATA_COLUMNS = (
    "Series UID,Collection,3rd Party Analysis,Data Description URI,Subject ID,Study UID,Study Description,"
    "Study Date,Series Description,Manufacturer,Modality,SOP Class Name,SOP Class UID,Number of Images,"
    "File Size,File Location,Download Timestamp"
).split(",")
REASON = {"Invisible": "Unclear on image", "Exclusion": f"{MARK}: left out"}
CALC_WORDS = ("Small Round Calcification", "Amorphous and indistinct calcification", "Pleomorphic calcification")
MASS_NAMES = {"FA": "Fibroadenoma", "lipoma": "Lipoma"}


def write_clinical_sheet(path: Path, exams: list[Exam]) -> None:
    """Write CMMD's own labels: one row per breast that it labelled."""
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append(["ID1", "LeftRight", "Age", "number", "abnormality", "classification", "subtype"])
    for exam, breast in iterate_breasts(exams):
        if breast.cmmd:
            sheet.append([exam.id, breast.side, exam.age, 2, breast.abnormality, breast.cmmd, breast.subtype])
    _save(book, path)


def write_workbook(path: Path, exams: list[Exam], settings: dict[str, Any]) -> None:
    """Write TOMPEI-CMMD's workbook: README, imaging sheet (two header rows) and lesion sheet (three).

    Args:
        path: The file.
        exams: The exams of the release.
        settings: Settings to list in README; `null` must be among them.
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
        if len(below) > 1:
            imaging.merge_cells(start_row=1, start_column=column, end_row=1, end_column=column + len(below) - 1)
        column += len(below)
    for exam, breast in iterate_breasts(exams):
        imaging.append(_make_imaging_row(exam, breast))

    lesions = book.create_sheet("Lesion Details Sheet")
    lesions.append([MARK])
    lesions.append([{4: "Normal", 5: "Benign", 11: "Malignant"}.get(i) for i in range(len(LESION_COLUMNS))])
    lesions.append(LESION_COLUMNS)
    rows = [_make_lesion_row(exam, breast) for exam, breast in iterate_breasts(exams)]
    for row in rows:
        lesions.append(row)
    totals = [sum(row[i] or 0 for row in rows) for i in range(3, 16)]
    lesions.append([None, None, None, *totals])  # the real sheet ends in totals without an ID
    _save(book, path)


def format_annotation(outlines: list[LesionOutline], exam: Exam) -> str:
    """Format an annotation file as JSON. Points are pixels, x to the right and y down.

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


def write_metadata(manifest: Path, exams: list[Exam], settings: Settings) -> None:
    """Write the downloader's metadata.csv.

    Args:
        manifest: The folder of the table and the images.
        exams: The exams of the release.
        settings: What the release is drawn with.
    """
    rows = []
    for exam in exams:
        study = identify_study(exam, settings)
        sizes = [path.stat().st_size for path in (manifest / study.folder).glob("*.dcm")]
        date = f"{study.date[4:6]}-{study.date[6:]}-{study.date[:4]}"
        row = [study.series, "CMMD", "NO", f"{MARK}: drawn by mammo_utils", exam.id, study.uid, "NA", date, "NA"]
        row += [MARK, "MG", "Digital Mammography X-Ray Image Storage - For Presentation", SOP_CLASS, len(sizes)]
        location = "\\".join((".", *study.folder.parts))
        rows.append([*row, f"{sum(sizes) / 1e6:.2f} MB", location, "2025-01-21T00:00:00.000"])
    with atomic_write(manifest / "metadata.csv") as temporary:
        pd.DataFrame(rows, columns=METADATA_COLUMNS).to_csv(temporary, index=False, lineterminator="\r\n")


def _save(book: Workbook, path: Path) -> None:
    with atomic_write(path) as temporary:
        book.save(temporary)


def _make_imaging_row(exam: Exam, breast: Breast) -> list[Any]:
    """A row of 33 cells, some with a zero-width space; no age without a CMMD label; both as in the release."""
    row: list[Any] = [None] * 33
    row[:3] = exam.id, breast.side, exam.age if breast.cmmd else None
    row[3:6] = breast.classification, REASON.get(breast.classification), breast.density or None
    row[21] = breast.birads
    for finding in breast.findings:
        up, s = finding.position[2], finding.suspicion
        level = "U" if up > 0.25 else "L" if up < -0.25 else "M"
        if finding.kind == "calc":
            distribution = "segmental/linear" if s > 0.9 else "regional" if s < 0.2 else "grouped"
            row[12:15] = level, CALC_WORDS[(s > 0.5) + (s > 0.9)], distribution
        elif finding.kind in ("dist", "FAD"):
            row[17] = finding.kind
        elif finding.kind in MASS_NAMES:
            row[6], row[10] = level, MASS_NAMES[finding.kind]
        else:
            shape, density = ("irregular", "High density") if s > 0.7 else ("round/oval", "Equal density")
            margin = "Circumscribed" if s < 0.3 else "Spiculated" if s > 0.9 else "Indistinct"
            row[6:10] = level, shape, margin, density
    if breast.classification == "Normal" and breast.birads == 2:
        row[12], row[15] = "M", "Vascular Calcifications"
    if exam.number % 40 == 7:
        row[3] += "\u200b"
    if exam.number % 40 == 19 and row[5]:
        row[5] = "\u200b" + row[5]
    return row


def _make_lesion_row(exam: Exam, breast: Breast) -> list[Any]:
    row: list[Any] = [exam.id, breast.side, breast.classification, len(breast.findings), *[None] * 14]
    row[17] = REASON.get(breast.classification)
    if breast.classification in ("Normal", "Invisible"):
        row[4 if breast.classification == "Normal" else 15] = 1
    for finding in breast.findings:
        name = "Other mass" if finding.kind == "mass" and breast.classification == "Benign" else finding.kind
        row[LESION_COLUMNS.index(name, FIRST_COLUMN[breast.classification])] = 1
    return row
