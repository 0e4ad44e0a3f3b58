"""CMMD with TOMPEI-CMMD's labels: the reader of the real release and of the synthetic one.

Images are found by their headers, labels in TOMPEI-CMMD's workbook, lesions in its annotation files (data
contract of both collections: the README). A breast is used if the workbook names it, neither excludes it nor
calls it invisible, and an image of it can be used.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from openpyxl import load_workbook

from mammo_utils.data.dicom import read_headers
from mammo_utils.data.exams import (
    CLASSES,
    DENSITIES,
    SET_ASIDE,
    SIDES,
    STEPS,
    USED,
    VIEWS,
    Cohort,
    DataError,
    exam_table,
    table,
)
from mammo_utils.data.fates import apply_rule, listed
from mammo_utils.data.outlines import read_annotations
from mammo_utils.files import shown

WORKBOOK = "TOMPEI-CMMD_clinical_data*.xlsx"
SHEET = "Imaging Diagnosis Details Sheet"
COLUMNS = ("ID", "LeftRight", "Age", "classification", "Breast density", "BI-RADS Category")
LARGEST_WORKBOOK = 50 * 2**20  # bytes
NO_ROW = "the labels have no row for its breast"
LEFT_OUT = {
    "exclusion": "excluded by TOMPEI-CMMD",
    "invisible": "TOMPEI-CMMD calls it invisible: malignant, with nothing to see and no BI-RADS",
}


def read_release(
    folder: Path, *, cohort: str = "usable", progress: Callable[[int, int], None] = lambda done, total: None
) -> Cohort:
    """Read a folder with CMMD's images and TOMPEI-CMMD's files, at any depth and in any order.

    Raises DataError where the folder, the images or the workbook are missing or the workbook lacks a column.
    """
    if not folder.is_dir():
        raise DataError(
            f"There is no data folder {shown(folder)}; put the release there or name another in data.folder."
        )
    labels, ages, odd = read_workbook(find_workbook(folder))
    headers, set_aside = read_headers(folder, progress)
    if not headers:
        raise DataError(f"{shown(folder)} holds no readable DICOM file (*.dcm); put CMMD's images there.")
    images = table("images", _images(headers, labels))
    breasts = table("breasts", _breasts(labels, images.to_dict("records")))
    set_aside += odd + listed(images[images["fate"] == SET_ASIDE], breasts[breasts["fate"] == SET_ASIDE])
    sized = images[images["view"].isin(VIEWS)]
    sizes = {(row["exam"], row["view"]): (row["rows"], row["columns"]) for row in sized.to_dict("records")}
    lesions, wrong = read_annotations(folder, sizes)
    set_aside += wrong
    synthetic = any(header["synthetic"] for header in headers)
    name = "synthetic cohort" if synthetic else "TOMPEI-CMMD"
    lesions = table("lesions", lesions)
    exams = exam_table(breasts, images, lesions, ages, name)
    rest = table("set_aside", set_aside)
    found = apply_rule(Cohort(name, folder, synthetic, exams, images, breasts, lesions, rest, rule=cohort))
    return replace(found, set_aside=found.set_aside.sort_values(["kind", "what"], ignore_index=True))


# --- the workbook ---------------------------------------------------------------------------------------


def find_workbook(folder: Path) -> Path:
    """The one workbook of labels. Raises DataError where there is none or more than one."""
    found = sorted(path for path in folder.rglob(WORKBOOK) if not path.name.startswith(("._", "~")))
    if len(found) != 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in found) or "none"
        raise DataError(f"{shown(folder)} should hold one workbook {WORKBOOK}, but has {names}; see the README.")
    return found[0]


def read_workbook(path: Path) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[str, float], list[dict]]:
    """Labels, (exam, side) -> {class, diagnosis, birads, density, reason}, the exams' ages in years, and rows of
    set_aside for cells that say nothing usable.

    The imaging sheet has two header rows; columns are found by the first. Ages are blank for breasts that CMMD
    did not label, so an exam's age is that of either row. Raises DataError naming what is missing.
    """
    header, rows = _sheet(path)
    place = {column: header.index(column) for column in COLUMNS if column in header}
    missing = [column for column in COLUMNS if column not in place]
    if missing:
        raise DataError(f"{path.name}, sheet {SHEET}: the column {missing[0]!r} is missing; download the file again.")
    labels, ages, odd = {}, {}, []
    for row in rows:
        cells = {name: row[at] if at < len(row) else None for name, at in place.items()}
        exam, side = clean(cells["ID"]), clean(cells["LeftRight"]).upper()
        if not exam:
            continue  # blank rows, and totals below the table
        if side not in SIDES:
            reason = f"the side {side[:20]!r} in the workbook is neither L nor R, so the row is passed over"
            odd.append({"kind": "annotation", "what": exam, "reason": reason})
            continue
        label = _label(cells)
        birads = clean(cells["BI-RADS Category"])
        if birads and not label["reason"] and label["birads"] < 0:
            reason = f"the BI-RADS {birads[:20]!r} in the workbook is none of 1 to 5, so the breast has none"
            odd.append({"kind": "annotation", "what": f"{exam} {side}", "reason": reason})
        if labels.get((exam, side), label) != label:
            nothing = {"class": "", "diagnosis": -1, "birads": -1, "density": ""}
            label = {**nothing, "reason": "the workbook has rows for it that disagree"}
        labels[exam, side] = label
        age = pd.to_numeric(clean(cells["Age"]), errors="coerce")
        if 0 <= age <= 130:
            ages[exam] = float(age)
    if not labels:
        raise DataError(f"{path.name}, sheet {SHEET}: no row names an ID and a side; download the file again.")
    return labels, ages, odd


def _sheet(path: Path) -> tuple[list[str], list[tuple]]:
    """The cleaned first header row of the imaging sheet and the rows below both header rows."""
    if path.stat().st_size > LARGEST_WORKBOOK:
        raise DataError(f"{path.name} is larger than {LARGEST_WORKBOOK // 2**20} MB; download it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            book = load_workbook(path, read_only=True, data_only=True)
            sheet = book[SHEET] if SHEET in book.sheetnames else None
            rows = list(sheet.iter_rows(values_only=True)) if sheet is not None else None
            names = book.sheetnames
            book.close()
    except Exception as error:  # an untrusted file: openpyxl raises many kinds
        raise DataError(
            f"{path.name} cannot be read as a workbook ({type(error).__name__}); download it again."
        ) from None
    if rows is None:
        raise DataError(f"{path.name} has no sheet {SHEET!r}, only {', '.join(names)}; download it again.")
    return [clean(cell) for cell in rows[0]] if rows else [], rows[2:]


def clean(cell: Any) -> str:
    """A cell's text without zero-width characters, its white space (newlines too) folded."""
    text = "" if cell is None else str(cell)
    return " ".join(re.sub("[\u200b-\u200d\u2060\ufeff]", "", text).split())


def _label(cells: dict[str, Any]) -> dict[str, Any]:
    kind, density = clean(cells["classification"]).lower(), clean(cells["Breast density"]).lower()
    birads = clean(cells["BI-RADS Category"]).removesuffix(".0")
    density = next((d for d in DENSITIES if density.startswith(d)), "")
    known = kind in CLASSES
    reason = "" if known else LEFT_OUT.get(kind, f"its classification {kind[:40]!r} is not a known one")
    return {
        "class": kind if known else "",
        "diagnosis": int(kind == "malignant") if known else -1,
        "birads": int(birads) if known and birads in set("12345") else -1,
        "density": density,
        "reason": reason,
    }


# --- fates ----------------------------------------------------------------------------------------------


def _images(headers: list[dict], labels: dict) -> list[dict]:
    """Rows of the table images, ordered by exam, view and UID, each used or set aside with its step and reason."""
    rows, uids, views = [], {}, {}
    for header in sorted(headers, key=lambda h: (h["patient"], h["side"], h["view"], h["image"], h["path"])):
        exam, side = header["patient"], header["side"]
        view = f"{side}_{header['view']}" if side and header["view"] else ""
        breast = labels.get((exam, side))
        step, reason = "reading", ""
        if not side or not header["view"]:
            reason = f"no DICOM tag says the {'view' if side else 'side'}"
        elif header["image"] in uids:
            reason = f"the same image as another file: {uids[header['image']]}"
        elif breast is None:
            step, reason = "labels", NO_ROW
        elif breast["reason"]:
            step, reason = "labels", breast["reason"]
        elif (exam, view) in views:
            reason = f"a second image of the same view: beside {views[exam, view]}"
        else:
            step, views[exam, view] = "", header["path"]
        uids.setdefault(header["image"], header["path"])
        kept = {k: v for k, v in header.items() if k not in ("patient", "synthetic")}
        fate = {"fate": SET_ASIDE if reason else USED, "step": step, "reason": reason}
        rows.append({**kept, "exam": exam, "view": view, **fate})
    return rows


def _breasts(labels: dict, images: list[dict]) -> list[dict]:
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
        step, reason = ("labels", label["reason"]) if label["reason"] else ("", "")
        if not reason and (exam, side) not in found:
            step, reason = "reading", "the folder has no image of it"
        elif not reason and (exam, side) not in there:
            step = max((row["step"] for row in found[exam, side]), key=STEPS.index)
            reason = "none of its images can be used"
        fate = {"fate": SET_ASIDE if reason else USED, "step": step, "reason": reason}
        rows.append({"exam": exam, "side": side, **label, **fate})
    return rows
