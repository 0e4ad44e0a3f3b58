"""CMMD and TOMPEI-CMMD as users have them on disk: real tags and label rows, small pixels, three layouts.

The tags are read from header_facts.csv. What the images show is written here, independently of
mammo_utils/data/corrections.csv.
"""

import hashlib
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd

from tests.release_builder import COLUMNS, ROWS, write_annotation, write_dicom, write_workbook

FACTS = Path(__file__).parent / "data"
ROOT = "1.3.6.1.4.1.14519.5.2.1.1239.1759."  # of the release's UIDs
LAYOUTS = ("descriptive", "rest", "flat")
VIEWS = {"399162004": "CC", "399368009": "MLO"}
OTHER = {"L": "R", "R": "L"}

BOTH_REVERSED = ("D1-0252", "D1-0690", "D1-0711")
SWAPPED = {"D1-0999": "MLO", "D2-0224": "MLO", "D2-0229": "MLO", "D2-0642": "MLO", "D2-0041": "CC"}
MIRRORED = ("D2-0112", "L", "CC")
DAMAGED = ("D1-0951", "R", "MLO")
LABEL_MOVED = {  # CMMD's side -> TOMPEI-CMMD's
    **{"D1-0252": "RL", "D1-0690": "RL", "D1-0711": "LR", "D2-0048": "LR", "D2-0132": "RL", "D2-0153": "RL"},
    **{"D2-0212": "RL", "D2-0282": "RL", "D2-0458": "RL", "D2-0637": "LR"},
}
DUPLICATES = {"D2-0284": "D1-0202", "D1-1292": "D1-0808"}  # of the second pair only the R-CC


def read_facts(name):
    """Read a table of real header values or labels."""
    return pd.read_csv(FACTS / f"{name}_facts.csv", dtype=str, keep_default_na=False, comment="#")


def true_side(exam, side, view):
    """Return the breast that an image really shows."""
    return OTHER[side] if exam in BOTH_REVERSED or SWAPPED.get(exam) == view else side


def make_pixels(exam, side, view, bits=8):
    """Draw a breast at its chest wall, different in each image but in duplicates. side: what the image shows."""
    same = exam not in DUPLICATES or (DUPLICATES[exam] == "D1-0808" and (side, view) != ("R", "CC"))
    seed = hashlib.sha256(f"{exam if same else DUPLICATES[exam]} {side} {view}".encode()).digest()
    values = np.zeros((ROWS, COLUMNS), np.uint8 if bits == 8 else np.uint16)
    values[3:21, :9] = 60 * 2 ** (bits - 8) + np.random.default_rng(list(seed)).integers(0, 60, (18, 9))
    wall = "R" if (exam, side, view) == MIRRORED else side
    return values[:, ::-1] if wall == "R" else values


def list_images():
    """List the images: each row of header_facts.csv with exam, view, tag (tagged side), side (true side) and uid."""
    rows = read_facts("header").to_dict("records")
    for row in rows:
        view = VIEWS[row["CodeValue"]]
        row |= {"exam": row["PatientID"], "tag": row["ImageLaterality"], "view": view}
        row |= {"side": true_side(row["exam"], row["tag"], view), "uid": ROOT + row["SOPInstanceUID"]}
    return rows


def locate_image(folder, row, layout):
    """Return the path that a downloader gives to an image."""
    study, series, number = ROOT + row["StudyInstanceUID"], ROOT + row["SeriesInstanceUID"], row["InstanceNumber"]
    if layout == "rest":
        md5 = hashlib.md5(row["uid"].encode()).hexdigest()
        return folder / "tciaDownload" / series / (f"1-{md5}.dcm" if row["exam"] < "D2" else f"{int(number):08d}.dcm")
    if layout == "flat":
        return folder / "CMMD" / study / f"1-{number}.dcm"
    date = f"{row['StudyDate'][4:6]}-{row['StudyDate'][6:]}-{row['StudyDate'][:4]}-NA-NA-{study[-5:]}"
    return (
        folder
        / "manifest-1616439774456"
        / "CMMD"
        / row["exam"]
        / date
        / f"1.000000-NA-{series[-5:]}"
        / f"1-{number}.dcm"
    )


def write_clinical(path):
    """Write CMMD's own sheet as xlsx or csv."""
    rows = read_facts("clinical")
    if path.suffix == ".csv":
        rows.to_csv(path, index=False)
        return
    book = openpyxl.Workbook()
    book.active.title = "Sheet1"
    for row in [list(rows.columns), *rows.to_numpy().tolist()]:
        book.active.append([cell or None for cell in row])
    book.save(path)


def list_labels():
    """List rows of TOMPEI-CMMD's imaging sheet: the 41 real ones, and CMMD's labels of other patients, corrected.

    The latter are made up: benign with BI-RADS 2, malignant with 4, the other breast normal.
    """
    columns = ["ID", "LeftRight", "Age", "classification", "Breast density", "BI-RADS Category", "Exclusion reasons"]
    real = [tuple(cell or None for cell in row) for row in read_facts("tompei")[columns].to_numpy().tolist()]
    rows = {(row[0], row[1]): row for row in real}
    known = {exam for exam, _ in rows}
    for row in list_images():
        key = (row["exam"], row["side"])
        if row["exam"] not in known:
            rows[key] = (*key, None, "Normal\u200b", "scattered", 1, None)
    for row in read_facts("clinical").to_dict("records"):
        exam, side, kind = row["ID1"], row["LeftRight"], row["classification"]
        if exam not in known:
            side = LABEL_MOVED.get(exam, (side, side))[-1]
            rows[exam, side] = (exam, side, row["Age"], kind, "scattered", {"Benign": 2, "Malignant": 4}[kind], None)
    return [rows[key] for key in sorted(rows)]


def build_cmmd(folder, layout="descriptive", clinical="xlsx", workbook=True):
    """Build a data folder with both collections and an outline on the MLO of each malignant breast."""
    for number, row in enumerate(list_images()):
        values = make_pixels(row["exam"], row["side"], row["view"], int(row["BitsStored"]))
        write_dicom(locate_image(folder, row, layout), row["exam"], row["tag"], row["view"], number, row["uid"], values)
    if clinical:
        write_clinical(folder / f"CMMD_clinicaldata_revision.{clinical}")
    if workbook:
        rows = list_labels()
        write_workbook(folder / "TOMPEI" / "TOMPEI-CMMD_clinical_data_v01_20250121.xlsx", rows)
        for exam, side, *_ in (row for row in rows if row[3] == "Malignant"):
            write_annotation(folder / "TOMPEI", exam, side, [("mass ", [(2.0, 5.0), (6.0, 5.0), (4.0, 9.0)])])
    return folder
