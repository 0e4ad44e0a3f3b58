"""The tables of labels: TOMPEI-CMMD's workbook and CMMD's own clinical sheet (xlsx or csv)."""

from __future__ import annotations

import csv
import re
import warnings
import zipfile
from fnmatch import fnmatch
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from openpyxl import load_workbook

from mammo_utils.data.cohort import DataError
from mammo_utils.data.folders import MAY_NOT
from mammo_utils.io import display_path
from mammo_utils.vocabulary import CLASSES, DENSITIES, SIDES

WORKBOOK = "TOMPEI-CMMD_clinical_data*.xlsx"
SHEET = "Imaging Diagnosis Details Sheet"
COLUMNS = ("ID", "LeftRight", "Age", "classification", "Breast density", "BI-RADS Category")
CLINICAL = ("CMMD_clinicaldata*.xlsx", "CMMD_clinicaldata*.csv")
CLINICAL_COLUMNS = ("ID1", "LeftRight", "Age", "classification")
LARGEST_WORKBOOK, LARGEST_UNPACKED = 50 * 2**20, 100 * 2**20  # bytes
MOST_ROWS = 100_000
LEFT_OUT = {
    "exclusion": "excluded by TOMPEI-CMMD",
    "invisible": "TOMPEI-CMMD calls it invisible: malignant, with nothing to see and no BI-RADS",
}
AGREE = {  # what the workbook may say of a breast that CMMD's sheet calls so
    "malignant": ("malignant", "invisible", "exclusion"),
    "benign": ("benign", "normal", "exclusion"),
}
Labels = dict[tuple[str, str], dict[str, Any]]


def find_label_tables(folder: Path, files: list[Path]) -> tuple[Path | None, list[Path]]:
    """TOMPEI-CMMD's workbook, None where there is none, and every copy of CMMD's clinical sheet.

    Raises DataError where there is neither or more than one workbook.
    """
    workbooks = [path for path in files if fnmatch(path.name, WORKBOOK)]
    clinical = [path for path in files if any(fnmatch(path.name, pattern) for pattern in CLINICAL)]
    if len(workbooks) > 1 or not (workbooks or clinical):
        names = ", ".join(path.relative_to(folder).as_posix() for path in workbooks) or "none"
        raise DataError(
            f"{display_path(folder)} should hold one workbook {WORKBOOK}, or CMMD's own {CLINICAL[0]}, but has {names};"
            " see the README."
        )
    return (workbooks[0] if workbooks else None), clinical


def read_workbook(path: Path) -> tuple[Labels, dict[str, float], list[dict]]:
    """Labels, (exam, side) -> {class, diagnosis, birads, density, reason, kind}, the exams' ages in years, and rows
    of excluded for cells that say nothing usable.

    The imaging sheet has two header rows; columns are found by the first. Ages are blank for breasts that CMMD
    did not label, so an exam's age is that of either row. Raises DataError naming what is missing.
    """
    rows = _cells(path, SHEET)
    place = _places(path, SHEET, rows, COLUMNS)
    below = [clean(cell) for cell in rows[1]] if len(rows) > 1 else []
    if "Exclusion reasons" in below:
        place["why"] = below.index("Exclusion reasons")
    labels, ages, odd = {}, {}, []
    for cells in _records(rows[2:], place, path.name, ("LeftRight", "classification"), odd):
        exam, side = cells["ID"], cells["LeftRight"].upper()
        if not _known_side(exam, side, "the workbook", odd):
            continue
        label = _label(cells)
        birads = cells["BI-RADS Category"]
        if birads and not label["reason"] and label["birads"] < 0:
            reason = f"the BI-RADS {birads[:20]!r} in the workbook is none of 1 to 5, so the breast has none"
            odd.append({"kind": "annotation", "what": f"{exam} {side}", "reason": reason})
        _put(labels, (exam, side), label, "the workbook has")
        _put_age(ages, exam, cells["Age"])
    if not labels:
        raise DataError(f"{path.name}, sheet {SHEET}: no row names an ID and a side; download the file again.")
    return labels, ages, odd


def read_clinical(paths: list[Path]) -> tuple[Labels, dict[str, float], list[dict]]:
    """CMMD's own labels, from copies of its sheet as xlsx or csv: as :func:`read_workbook`, without BI-RADS and
    density. Raises DataError naming what is missing."""
    labels, ages, odd = {}, {}, []
    for path in paths:
        rows = _csv(path) if path.suffix.lower() == ".csv" else _cells(path)
        place = _places(path, "", rows, CLINICAL_COLUMNS)
        for cells in _records(rows[1:], place, path.name, ("LeftRight", "classification"), odd):
            exam, side, kind = cells["ID1"], cells["LeftRight"].upper(), cells["classification"].lower()
            if not _known_side(exam, side, path.name, odd):
                continue
            known = kind in AGREE
            reason = "" if known else f"its classification {kind[:40]!r} is not a known one"
            label = {"class": kind if known else "", "diagnosis": int(kind == "malignant") if known else -1}
            label |= {"birads": -1, "density": "", "reason": reason, "kind": kind}
            _put(labels, (exam, side), label, "CMMD's sheet has")
            _put_age(ages, exam, cells["Age"])
    if not labels:
        raise DataError(f"{paths[0].name}: no row names an ID and a side; download the file again.")
    return labels, ages, odd


def compare(labels: Labels, clinical: Labels) -> dict[tuple[str, str], str]:
    """(exam, side) -> how the workbook and CMMD's sheet contradict each other."""
    notes = {}
    exams = {exam for exam, _ in clinical}
    for key, label in labels.items():
        theirs = clinical.get(key)
        if theirs and label["kind"] not in AGREE.get(theirs["kind"], (label["kind"],)):
            notes[key] = f"label: CMMD's sheet says {theirs['kind']}, the workbook {label['kind'] or 'nothing'}"
        elif theirs is None and key[0] in exams and label["kind"] in ("malignant", "invisible"):
            notes[key] = f"label: the workbook says {label['kind']}, CMMD's sheet has no label for this breast"
    missing = {key: "label: CMMD's sheet has one, the workbook no row" for key in clinical if key not in labels}
    return notes | missing


def clean(cell: Any) -> str:
    """A cell's text without zero-width characters, its white space (newlines too) folded."""
    text = "" if cell is None else str(cell)
    return " ".join(re.sub("[\u200b-\u200d\u2060\ufeff]", "", text).split())


# --- cells ------------------------------------------------------------------------------------------------


def _cells(path: Path, sheet: str = "") -> list[tuple]:
    """The rows of one sheet of a workbook, the first where no name is given."""
    if path.stat().st_size > LARGEST_WORKBOOK:
        raise DataError(f"{path.name} is larger than {LARGEST_WORKBOOK // 2**20} MB; download it again.")
    try:
        with zipfile.ZipFile(path) as parts:
            unpacked = sum(part.file_size for part in parts.infolist())
        if unpacked > LARGEST_UNPACKED:
            raise DataError(f"{path.name} unpacks to more than {LARGEST_UNPACKED // 2**20} MB; download it again.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            book = load_workbook(path, read_only=True, data_only=True)
            names = book.sheetnames
            wanted = sheet or names[0]
            rows = None
            if wanted in names:
                book[wanted].reset_dimensions()  # the size that the file states may be anything
                rows = list(islice(book[wanted].iter_rows(values_only=True), MOST_ROWS + 1))
            book.close()
    except DataError:
        raise
    except PermissionError:
        raise DataError(f"The file {path.name} {MAY_NOT}.") from None
    except Exception as error:  # an untrusted file: openpyxl raises many kinds
        raise DataError(
            f"{path.name} cannot be read as a workbook ({type(error).__name__}); download it again."
        ) from None
    if rows is None:
        raise DataError(f"{path.name} has no sheet {sheet!r}, only {', '.join(names)}; download it again.")
    if len(rows) > MOST_ROWS:
        raise DataError(f"{path.name} has more than {MOST_ROWS:,} rows; download it again.")
    width = max(map(len, rows), default=0)
    return [(*row, *[None] * (width - len(row))) for row in rows]


def _csv(path: Path) -> list[tuple]:
    """The rows of a csv file, its cells separated by commas, semicolons or tabs."""
    if path.stat().st_size > LARGEST_WORKBOOK:
        raise DataError(f"{path.name} is larger than {LARGEST_WORKBOOK // 2**20} MB; download it again.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        return [tuple(row) for row in csv.reader(StringIO(text, newline=""), delimiter=delimiter)]
    except PermissionError:
        raise DataError(f"The file {path.name} {MAY_NOT}.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path.name} cannot be read as csv ({type(error).__name__}); download it again.") from None


def csv_records(
    path: Path, columns: tuple[str, ...], says: tuple[str, str]
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The rows of a csv file as cleaned cells by column, and rows of excluded for those that lack their ID alone.

    columns: those wanted, the ID first; says: the columns of the side and of a label. Raises DataError naming the
    file and what is wrong or missing.
    """
    rows, odd = _csv(path), []
    return _records(rows[1:], _places(path, "", rows, columns), path.name, says, odd), odd


def _places(path: Path, sheet: str, rows: list[tuple], columns: tuple[str, ...]) -> dict[str, int]:
    header = [clean(cell) for cell in rows[0]] if rows else []
    missing = [column for column in columns if column not in header]
    if missing:
        where = f"{path.name}, sheet {sheet}" if sheet else path.name
        raise DataError(f"{where}: the column {missing[0]!r} is missing; download the file again.")
    return {column: header.index(column) for column in columns}


def _records(
    rows: list[tuple], place: dict[str, int], where: str, says: tuple[str, str], odd: list[dict]
) -> list[dict[str, str]]:
    """The rows as cleaned cells; those without an ID are left out.

    Blank rows and totals below the table have none and say nothing; a row with a side and a label (`says` names
    their columns) was a breast's, and is listed in `odd`.
    """
    records, (side, label) = [], says
    for number, row in enumerate(rows, 1):
        record = {name: clean(row[at]) if at < len(row) else "" for name, at in place.items()}
        if next(iter(record.values())):
            records.append(record)
        elif record[side].upper() in ("L", "R", "LEFT", "RIGHT") and record[label]:
            reason = f"it has no ID, but a side and a label: {record[side]}, {record[label][:40]}"
            odd.append({"kind": "annotation", "what": f"{where}, row {number} below the header", "reason": reason})
    return records


def _known_side(exam: str, side: str, where: str, odd: list[dict]) -> bool:
    if side in SIDES:
        return True
    reason = f"the side {side[:20]!r} in {where} is neither L nor R, so the row is passed over"
    odd.append({"kind": "annotation", "what": exam, "reason": reason})
    return False


def _put(labels: Labels, key: tuple[str, str], label: dict[str, Any], where: str) -> None:
    """Keep a breast's label; where an earlier row says otherwise, it has none."""
    if labels.get(key, label) != label:
        nothing = {"class": "", "diagnosis": -1, "birads": -1, "density": "", "kind": ""}
        label = {**nothing, "reason": f"{where} rows for it that disagree"}
    labels[key] = label


def _put_age(ages: dict[str, float], exam: str, cell: str) -> None:
    age = pd.to_numeric(cell, errors="coerce")
    if 0 <= age <= 130:
        ages[exam] = float(age)


def _label(cells: dict[str, str]) -> dict[str, Any]:
    kind, density = cells["classification"].lower(), cells["Breast density"].lower()
    birads = cells["BI-RADS Category"].removesuffix(".0")
    density = next((d for d in DENSITIES if density.startswith(d)), "")
    known = kind in CLASSES
    reason = "" if known else LEFT_OUT.get(kind, f"its classification {kind[:40]!r} is not a known one")
    if kind == "exclusion" and cells.get("why"):
        reason += f": {cells['why'][:80]}"
    return {
        "class": kind if known else "",
        "diagnosis": int(kind == "malignant") if known else -1,
        "birads": int(birads) if known and birads in set("12345") else -1,
        "density": density,
        "reason": reason,
        "kind": kind,
    }
