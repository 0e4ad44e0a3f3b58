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

from mammo_utils.data.corrections import correct
from mammo_utils.data.dicom import read_headers
from mammo_utils.data.exams import SET_ASIDE, STEPS, USED, VIEWS, Cohort, DataError, check, exam_table, table
from mammo_utils.data.fates import apply_rule, listed
from mammo_utils.data.folders import files_below
from mammo_utils.data.outlines import read_annotations
from mammo_utils.data.sheets import Labels, compare, find_tables, read_clinical, read_workbook
from mammo_utils.files import shown

NO_ROW = "the labels have no row for its breast"
UNLABELLED = {"class": "", "diagnosis": -1, "birads": -1, "density": "", "reason": ""}


def read_release(
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
            f"There is no data folder {shown(folder)}; put the release there or name another in data.folder."
        )
    files, junk = files_below(folder)
    workbook, sheets = find_tables(folder, files)
    labels, ages, odd = read_workbook(workbook) if workbook else ({}, {}, [])
    clinical, clinical_ages, more = _clinical(sheets, needed=workbook is None)
    odd += more
    headers, set_aside = read_headers(folder, progress)
    if not headers:
        raise DataError(f"{shown(folder)} holds no readable DICOM file (*.dcm); put CMMD's images there.")
    headers, clinical, corrected = correct(headers, clinical, on=corrections)
    notes = compare(labels, clinical) if workbook and clinical else {}
    if workbook is None:
        labels, ages = _all_breasts(clinical or {}, headers), clinical_ages
    images = table("images", _images(headers, labels))
    breasts = table("breasts", _breasts(labels, images.to_dict("records"), notes))
    known = set(zip(breasts["exam"], breasts["side"], strict=True))
    odd += [
        {"kind": "annotation", "what": f"{exam} {side}", "reason": note}
        for (exam, side), note in notes.items()
        if (exam, side) not in known
    ]
    set_aside += odd + listed(images[images["fate"] == SET_ASIDE], breasts[breasts["fate"] == SET_ASIDE])
    if junk:
        reason = "left by macOS (__MACOSX, ._…, .DS_Store): neither images nor labels"
        set_aside.append({"kind": "junk", "what": f"{junk} files", "reason": reason})
    sized = images[images["view"].isin(VIEWS)]
    sizes = {(row["exam"], row["view"]): (row["rows"], row["columns"]) for row in sized.to_dict("records")}
    lesions, wrong = read_annotations(folder, sizes)
    synthetic = any(header["synthetic"] for header in headers)
    name = "synthetic cohort" if synthetic else "TOMPEI-CMMD" if workbook else "CMMD"
    tables = {
        "lesions": table("lesions", lesions),
        "set_aside": table("set_aside", set_aside + wrong),
        "corrections": table("corrections", corrected),
    }
    exams = exam_table(breasts, images, tables["lesions"], ages, name)
    found = Cohort(name, folder, synthetic, exams, images, breasts, **tables, rule=cohort)
    found = apply_rule(found)
    rest = found.set_aside.sort_values(["kind", "what", "reason"], ignore_index=True)
    return check(replace(found, set_aside=rest))


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


# --- fates ----------------------------------------------------------------------------------------------


def _images(headers: list[dict], labels: dict) -> list[dict]:
    """Rows of the table images, ordered by exam, view and UID, each used or set aside with its step and reason."""
    rows, uids, views = [], {}, {}
    for header in sorted(headers, key=_order):
        exam, side = header["patient"], header["side"]
        view = f"{side}_{header['view']}" if side and header["view"] else ""
        breast = labels.get((exam, side))
        step, reason = "reading", ""
        if not side or not header["view"]:
            reason = f"no DICOM tag says the {'view' if side else 'side'}"
        elif header["image"] in uids:
            reason = f"the same image as another file: {uids[header['image']]}"
        elif header["damaged"]:
            step, reason = "corrections", f"the image is damaged: {header['damaged']}"
        elif breast is None:
            step, reason = "labels", NO_ROW
        elif breast["reason"]:
            step, reason = "labels", breast["reason"]
        elif (exam, view) in views:
            reason = f"a second image of the same view: beside {views[exam, view]}"
        else:
            step, views[exam, view] = "", header["path"]
        uids.setdefault(header["image"], header["path"])
        fate = {"fate": SET_ASIDE if reason else USED, "step": step, "reason": reason}
        rows.append({**header, "exam": exam, "view": view, **fate})
    return rows


def _order(header: dict) -> tuple:
    """By what the files say, so that their names and order decide nothing; of copies the largest is the whole one."""
    return header["patient"], header["side"], header["view"], header["image"], -header["size"], header["path"]


def _breasts(labels: dict, images: list[dict], notes: dict) -> list[dict]:
    """Rows of the table breasts: every breast of the labels and of the images."""
    there = {(row["exam"], row["side"]) for row in images if row["fate"] == USED}
    found: dict[tuple[str, str], list[dict]] = {}
    for row in images:
        if row["side"]:
            found.setdefault((row["exam"], row["side"]), []).append(row)
    nothing = {"class": "", "diagnosis": -1, "birads": -1, "density": "", "reason": NO_ROW}
    rows = []
    for exam, side in sorted(set(labels) | set(found)):
        label = labels.get((exam, side), nothing)
        step, reason = "", ""
        if (exam, side) not in found:
            step, reason = "reading", "the folder has no image of it"
        elif label["reason"]:
            step, reason = "labels", label["reason"]
        elif (exam, side) not in there:
            step = max((row["step"] for row in found[exam, side]), key=STEPS.index)
            reason = "none of its images can be used"
        fate = {"fate": SET_ASIDE if reason else USED, "step": step, "reason": reason}
        rows.append({"exam": exam, "side": side, **label, **fate, "note": notes.get((exam, side), "")})
    return rows
