"""CMMD with the labels of TOMPEI-CMMD: the real release, or a synthetic one in its format.

Images are found by their DICOM headers, labels in TOMPEI-CMMD's workbook, lesions in its annotation files. A breast
is used if the workbook neither excludes it nor rates it invisible, and if one of its images can be used. Without the
workbook, CMMD's own clinical sheet gives the labels, which are diagnoses only. Known errors are corrected first. The
datasheet is in `mammo_utils/data/cohort.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mammo_utils.data import label_tables
from mammo_utils.data.assemble import assemble, reading_order
from mammo_utils.data.cohort import Cohort, DataError
from mammo_utils.data.corrections import apply_corrections
from mammo_utils.data.dicom import read_headers
from mammo_utils.data.folders import walk_below
from mammo_utils.data.outlines import OUTLINES, read_annotations


def read_cmmd(folder: Path, *, cohort: str, corrections: bool, progress: Callable[[int, int], None]) -> Cohort:
    """Read a folder with the files of CMMD and TOMPEI-CMMD, at any depth.

    Args:
        folder: The data set's folder.
        cohort: "usable", "annotated" or "complete", see `sources.read_cohort`.
        corrections: Whether to correct the known errors of the release.
        progress: Called with (files read, files in all).

    Raises:
        DataError: Images or labels are missing, or a table of labels lacks a column.
    """
    files = walk_below(folder)[0]
    workbook, sheets = label_tables.find_label_tables(folder, files)
    labels, ages, excluded = label_tables.read_workbook(workbook) if workbook else ({}, {}, [])
    clinical, clinical_ages, unusable = None, {}, []
    try:
        if sheets:
            clinical, clinical_ages, unusable = label_tables.read_clinical(sheets)
    except DataError as error:
        if workbook is None:
            raise
        unusable = [{"kind": "annotation", "what": sheets[0].name, "reason": str(error)}]
    tables = {*sheets, *([workbook] if workbook else []), *(path for path in files if path.name.endswith(OUTLINES))}
    headers, unreadable = read_headers(folder, progress, tables=tables)
    headers, clinical, corrected = apply_corrections(headers, clinical, enabled=corrections)
    notes = label_tables.find_label_conflicts(labels, clinical) if workbook and clinical else {}
    breasts = {(header["patient"], header["side"]) for header in headers if header["side"]}
    if workbook is None:  # CMMD has no label for the other breast of 729 patients, but images of it
        labels, ages = dict.fromkeys(breasts, label_tables.UNLABELLED) | (clinical or {}), clinical_ages
    unmatched = notes.keys() - breasts - labels.keys()
    unusable += [{"kind": "annotation", "what": " ".join(key), "reason": notes[key]} for key in unmatched]
    sizes = {
        (header["patient"], f"{header['side']}_{header['view']}"): (header["rows"], header["columns"])
        for header in sorted(headers, key=reading_order, reverse=True)  # of several images the first, which is used
    }
    lesions, rejected = read_annotations(folder, files, sizes)
    excluded += unusable + unreadable + rejected
    synthetic = any(header["synthetic"] for header in headers)
    name = "synthetic cohort" if synthetic else "TOMPEI-CMMD" if workbook else "CMMD"
    details = {"lesions": lesions, "ages": ages, "notes": notes, "corrections": corrected}
    return assemble(name, folder, headers, labels, excluded, rule=cohort, **details)
