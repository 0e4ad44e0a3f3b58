"""CMMD with TOMPEI-CMMD's labels: the reader of the real release and of the synthetic one.

Images are found by their headers, labels in TOMPEI-CMMD's workbook, lesions in its annotation files (data
contract of both collections: the README). A breast is used if the workbook names it, neither excludes it nor
calls it invisible, and an image of it can be used. Without the workbook the labels are those of CMMD's own clinical
sheet, diagnoses alone; with both, the sheet is held against the workbook. Known errors are put right first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mammo_utils.data.assemble import UNLABELLED, breast_rows, image_rows
from mammo_utils.data.cohort import EXCLUDED, Cohort, DataError, check, exam_table, table
from mammo_utils.data.corrections import correct
from mammo_utils.data.dicom import read_headers
from mammo_utils.data.exclusions import apply_rule, exclusion_rows
from mammo_utils.data.folders import files_below
from mammo_utils.data.label_tables import Labels, compare, find_label_tables, read_clinical, read_workbook
from mammo_utils.data.outlines import read_annotations
from mammo_utils.io import display_path
from mammo_utils.vocabulary import VIEWS


def read_cmmd(
    folder: Path,
    *,
    cohort: str = "usable",
    corrections: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Cohort:
    """Read a folder with CMMD's images and TOMPEI-CMMD's files, at any depth and in any order.

    Raises DataError where the folder, the images or the labels are missing or a table of labels lacks a column.
    """
    if not folder.is_dir():
        raise DataError(
            f"There is no data folder {display_path(folder)}; put the release there or name another in data.folder."
        )
    files, junk = files_below(folder)
    workbook, sheets = find_label_tables(folder, files)
    labels, ages, odd = read_workbook(workbook) if workbook else ({}, {}, [])
    clinical, clinical_ages, more = _clinical(sheets, needed=workbook is None)
    odd += more
    headers, excluded = read_headers(folder, progress)
    if not headers:
        raise DataError(f"{display_path(folder)} holds no readable DICOM file (*.dcm); put CMMD's images there.")
    headers, clinical, corrected = correct(headers, clinical, on=corrections)
    notes = compare(labels, clinical) if workbook and clinical else {}
    if workbook is None:
        labels, ages = _all_breasts(clinical or {}, headers), clinical_ages
    images = table("images", image_rows(headers, labels))
    breasts = table("breasts", breast_rows(labels, images.to_dict("records"), notes))
    known = set(zip(breasts["exam"], breasts["side"], strict=True))
    odd += [
        {"kind": "annotation", "what": f"{exam} {side}", "reason": note}
        for (exam, side), note in notes.items()
        if (exam, side) not in known
    ]
    excluded += odd + exclusion_rows(images[images["status"] == EXCLUDED], breasts[breasts["status"] == EXCLUDED])
    if junk:
        reason = "left by macOS (__MACOSX, ._…, .DS_Store): neither images nor labels"
        excluded.append({"kind": "junk", "what": f"{junk} files", "reason": reason})
    sized = images[images["view"].isin(VIEWS)]
    sizes = {(row["exam"], row["view"]): (row["rows"], row["columns"]) for row in sized.to_dict("records")}
    lesions, wrong = read_annotations(folder, sizes)
    synthetic = any(header["synthetic"] for header in headers)
    name = "synthetic cohort" if synthetic else "TOMPEI-CMMD" if workbook else "CMMD"
    tables = {
        "lesions": table("lesions", lesions),
        "excluded": table("excluded", excluded + wrong),
        "corrections": table("corrections", corrected),
    }
    exams = exam_table(breasts, images, tables["lesions"], ages, name)
    found = Cohort(name, folder, synthetic, exams, images, breasts, **tables, rule=cohort)
    found = apply_rule(found)
    rest = found.excluded.sort_values(["kind", "what", "reason"], ignore_index=True)
    return check(replace(found, excluded=rest))


def _clinical(sheets: list[Path], *, needed: bool) -> tuple[Labels | None, dict[str, float], list[dict]]:
    """CMMD's own labels, None where there are none. A sheet that cannot be read only matters where it is needed."""
    if not sheets:
        return None, {}, []
    try:
        return read_clinical(sheets)
    except DataError as error:
        if needed:
            raise
        return None, {}, [{"kind": "annotation", "what": sheets[0].name, "reason": str(error)}]


def _all_breasts(clinical: Labels, headers: list[dict]) -> Labels:
    """CMMD's labels, and none for the breasts that it shows without one (the other breast of 729 patients)."""
    sides = {(header["patient"], header["side"]): dict(UNLABELLED) for header in headers if header["side"]}
    return sides | clinical
