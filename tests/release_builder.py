"""A tiny release in the true layout, built from the data contract alone.

It shares no code with mammo_utils.synthetic, so that a misreading of the format cannot hide in both.
"""

import json

import numpy as np
import openpyxl
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

ROWS, COLUMNS = 24, 20
CODES = {"CC": ("399162004", "cranio-caudal"), "MLO": ("399368009", "medio-lateral oblique")}
ORIENTATIONS = {
    ("L", "CC"): ["A", "R"],
    ("L", "MLO"): ["A", "FR"],
    ("R", "CC"): ["P", "L"],
    ("R", "MLO"): ["P", "FL"],
}
SHEET = "Imaging Diagnosis Details Sheet"
HEADER = {  # the first of two header rows; 33 columns, those without a name are the second row's
    **{1: "ID", 2: "LeftRight", 3: "Age", 4: "classification", 6: "Breast density", 7: "Mass", 13: "Calcification"},
    **{18: "Other findings", 22: "BI-RADS\nCategory", 23: "Notes", 24: "Mass - Additional Lesion"},
    30: "Calcification - Additional Lesion",
}
BELOW = {5: "Exclusion reasons", 7: "Location", 8: "Shape", 9: "Margin", 10: "Density", 13: "Location"}
BREASTS = [  # ID, side, age, classification, density, BI-RADS
    ("D1-0001", "R", 44, "Benign", "heterogeneous dense", 2),
    ("D1-0001", "L", None, "Normal\u200b", "heterogeneous dense", 1),
    ("D1-0002", "L", 51, "Malignant", "extremely dense", 5),
    ("D2-0001", "L", 60, "Exclusion", "fatty", None),
    ("D2-0001", "R", None, "\u200bNormal", "scattered", "1\u200b"),
    ("D2-0002", "R", 38, "Invisible", "scattered", None),
]


def write_dicom(path, patient, side, view, number, uid="", values=None):
    """Write one image with CMMD's header pattern: side in ImageLaterality, view in ViewCodeSequence.

    values: (rows, columns) uint8 or uint16, by default a breast at the edge of the side's chest wall.
    """
    if values is None:
        values = np.zeros((ROWS, COLUMNS), np.uint8)
        breast = slice(0, 9) if side == "L" else slice(COLUMNS - 9, COLUMNS)
        values[4:20, breast] = 60 + number
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid or f"2.25.{1000 + number}"
    dataset.PatientID, dataset.ImageLaterality, dataset.Laterality, dataset.ViewPosition = patient, side, "", ""
    dataset.PatientOrientation = ORIENTATIONS[side, view]
    code = Dataset()
    code.CodeValue, code.CodeMeaning = CODES[view]
    dataset.ViewCodeSequence = Sequence([code])
    (dataset.Rows, dataset.Columns), dataset.SamplesPerPixel = values.shape, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    bits = 8 * values.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelData = values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_workbook(path, breasts=BREASTS):
    """Write the three sheets; breasts: rows such as BREASTS, a seventh value is the reason of an exclusion."""
    book = openpyxl.Workbook()
    book.active.title = "README"
    sheet = book.create_sheet(SHEET)
    columns = (1, 2, 3, 4, 6, 22, 5)
    rows = [HEADER, BELOW, *(dict(zip(columns, breast, strict=False)) for breast in breasts)]
    for row in rows:
        sheet.append([row.get(column) for column in range(1, 34)])
    lesions = book.create_sheet("Lesion Details Sheet")
    for row in (["a"], ["b"], ["c"], [None, "total", 2]):
        lesions.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


def write_annotation(folder, exam, side, lesions):
    """Write lesions, each (label, points), and the junk file that macOS adds to the release."""
    name = f"{exam}_MLO_{side}_AnnotationFile.json"
    values = [
        {"cgPoints": [{"x": x, "y": y} for x, y in points], "label": label, "_id": "0", "type": "Draw", "color": "#f00"}
        for label, points in lesions
    ]
    for parent in (folder / "TOMPEI-CMMD_v01_20250123", folder / "__MACOSX" / "TOMPEI-CMMD_v01_20250123"):
        parent.mkdir(parents=True, exist_ok=True)
    (folder / "TOMPEI-CMMD_v01_20250123" / name).write_text(json.dumps(values))
    (folder / "__MACOSX" / "TOMPEI-CMMD_v01_20250123" / f"._{name}").write_bytes(b"\x00\x05\x16\x07junk")


def build_release(folder, breasts=BREASTS, annotate=True):
    """Build a release of the given breasts, a CC and an MLO image each, and outlines on three of them."""
    number = 0
    for exam, side, *_ in breasts:
        for view in ("CC", "MLO"):
            write_dicom(folder / "CMMD" / f"series-{number}" / "1-1.dcm", exam, side, view, number)
            number += 1
    write_workbook(folder / "TOMPEI-CMMD_clinical_data_v01_20250121.xlsx", breasts)
    if not annotate:
        return folder
    inside = [(2.0, 5.0), (6.0, 5.0), (4.0, 9.0)]
    write_annotation(folder, "D1-0002", "L", [("mass ", inside), ("calc", [(-0.1, 5.0), (6.0, 5.0), (4.0, 9.0)])])
    write_annotation(folder, "D2-0001", "L", [("mass", inside)])
    write_annotation(folder, "D1-0001", "R", [("FAD", [(2.0, 5.0), (6.0, 5.0), (40.0, 9.0)])])
    return folder
