"""Tables of labels: TOMPEI-CMMD's workbook, CMMD's own clinical sheet, and csv files of other data sets."""

from __future__ import annotations

import csv
import filecmp
import re
import warnings
import zipfile
from collections.abc import Sequence
from contextlib import closing
from fnmatch import fnmatch
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from openpyxl import load_workbook

from mammo_utils.data.cohort import DataError
from mammo_utils.data.folders import NOT_PERMITTED, hint_packed, name_below
from mammo_utils.io import display_path
from mammo_utils.vocabulary import CLASSES, DENSITIES, SIDES

WORKBOOK = "TOMPEI-CMMD_clinical_data*.xlsx"
SHEET = "Imaging Diagnosis Details Sheet"
COLUMNS = ("ID", "LeftRight", "Age", "classification", "Breast density", "BI-RADS Category")
CLINICAL = ("CMMD_clinicaldata*.xlsx", "CMMD_clinicaldata*.csv")
CLINICAL_COLUMNS = ("ID1", "LeftRight", "Age", "classification")
LARGEST_WORKBOOK, LARGEST_UNPACKED = 50 * 2**20, 100 * 2**20  # bytes
MOST_ROWS = 100_000
EXCLUDED_CLASSES = {
    "exclusion": "marked as excluded in the workbook",
    "invisible": "marked as invisible in the workbook: malignant, with nothing to see and no BI-RADS",
}
COMPATIBLE = {  # class in CMMD's sheet -> classes in the workbook that do not contradict it
    "malignant": ("malignant", "invisible", "exclusion"),
    "benign": ("benign", "normal", "exclusion"),
}
NO_ROW = "the labels have no row for its breast"
UNLABELLED = {"class": "", "diagnosis": -1, "birads": -1, "density": "", "reason": ""}
Labels = dict[tuple[str, str], dict[str, Any]]  # (exam, side) -> UNLABELLED's keys; a reason excludes the breast


def find_label_tables(folder: Path, files: list[Path]) -> tuple[Path | None, list[Path]]:
    """Find TOMPEI-CMMD's workbook (None if there is none) and every copy of CMMD's clinical sheet.

    Raises DataError if there is neither, or more than one workbook.
    """
    workbooks = [path for path in files if fnmatch(path.name, WORKBOOK)]
    clinical = [path for path in files if any(fnmatch(path.name, pattern) for pattern in CLINICAL)]
    if len(workbooks) > 1 or not (workbooks or clinical):
        names = ", ".join(path.relative_to(folder).as_posix() for path in workbooks) or "none"
        raise DataError(
            f"{display_path(folder)} should hold one workbook {WORKBOOK}, or CMMD's own {CLINICAL[0]}, but has {names};"
            f" see docs/data.md.{hint_packed(folder, files)}"
        )
    return (workbooks[0] if workbooks else None), clinical


def find_table(folder: Path, files: list[Path], name: str, title: str) -> Path:
    """Find the data set's table called `name`; browsers name a second download "name (1)".

    Args:
        folder: The data folder.
        files: All files below it.
        name: The name, whatever its case.
        title: The data set's name for the error.

    Raises:
        DataError: There is none, or several that differ.
    """
    pattern = re.compile(re.sub(r"(\.\w+)$", r"( ?\\(\\d+\\))?\\\1", name), re.IGNORECASE)
    found = [path for path in files if pattern.fullmatch(path.name)]
    if not found or any(not filecmp.cmp(found[0], path, shallow=False) for path in found[1:]):
        names = ", ".join(name_below(folder, path) for path in found)
        others = [path.name for path in files if path.stem.lower() == Path(name).stem.lower() and path not in found]
        has = f"{len(found)} that differ: {names}" if found else "none"
        has += f" ({others[0]} has to be saved as csv)" if others and not found else ""
        raise DataError(
            f"{display_path(folder)} should hold one {name}, but has {has}; put {title}'s there."
            f"{hint_packed(folder, files)}"
        )
    return found[0]


def read_workbook(path: Path) -> tuple[Labels, dict[str, float], list[dict]]:
    """Read the imaging sheet of TOMPEI-CMMD's workbook.

    Returns:
        The labels, each with its `kind` (the classification as written); the age of each exam in years, which the sheet
        has only for breasts labelled by CMMD; and rows of the table excluded for unusable cells.

    Raises:
        DataError: The file is unreadable, or the sheet, a column or every row is missing.
    """
    labels, ages = {}, {}
    records, unusable = read_records(path, COLUMNS, ("LeftRight", "classification"), SHEET, ("Exclusion reasons",))
    records = fill_blanks(records, "ID", "LeftRight", COLUMNS[3:])
    for exam, side, record in _iterate_breasts(records, "the workbook", ages, unusable):
        label = _make_label(record["classification"].lower(), CLASSES, EXCLUDED_CLASSES)
        density, birads = record["Breast density"].lower(), record["BI-RADS Category"]
        label["density"] = next((name for name in DENSITIES if density.startswith(name)), "")
        if label["kind"] == "exclusion" and record.get("Exclusion reasons"):
            label["reason"] += f": {record['Exclusion reasons'][:80]}"
        if label["class"] and birads.removesuffix(".0") in set("12345"):
            label["birads"] = int(birads.removesuffix(".0"))
        elif label["class"] and birads:
            reason = f"the BI-RADS {birads[:20]!r} in the workbook is none of 1 to 5, so the breast has none"
            unusable.append({"kind": "annotation", "what": f"{exam} {side}", "reason": reason})
        add_label(labels, (exam, side), label, "the workbook")
    if not labels:
        raise DataError(f"{path.name}, sheet {SHEET}: no row has an ID and a side; download the file again.")
    return labels, ages, unusable


def read_clinical(paths: list[Path]) -> tuple[Labels, dict[str, float], list[dict]]:
    """Read CMMD's own labels, without BI-RADS and density, from copies of its sheet, as `read_workbook` does."""
    labels, ages, unusable = {}, {}, []
    for path in paths:
        records, rejected = read_records(path, CLINICAL_COLUMNS, ("LeftRight", "classification"))
        unusable += rejected
        records = fill_blanks(records, "ID1", "LeftRight", CLINICAL_COLUMNS[3:])
        for exam, side, record in _iterate_breasts(records, path.name, ages, unusable):
            label = _make_label(record["classification"].lower(), tuple(COMPATIBLE), {})
            add_label(labels, (exam, side), label, "CMMD's sheet")
    if not labels:
        raise DataError(f"{paths[0].name}: no row has an ID and a side; download the file again.")
    return labels, ages, unusable


def find_label_conflicts(labels: Labels, clinical: Labels) -> dict[tuple[str, str], str]:
    """Describe, by (exam, side), how the workbook and CMMD's sheet contradict each other."""
    notes = {}
    exams = {exam for exam, _ in clinical}
    for key, label in labels.items():
        original = clinical.get(key)
        if original and label["kind"] not in COMPATIBLE.get(original["kind"], (label["kind"],)):
            notes[key] = f"label: {original['kind']} in CMMD's sheet, {label['kind'] or 'nothing'} in the workbook"
        elif original is None and key[0] in exams and label["kind"] in ("malignant", "invisible"):
            notes[key] = f"label: {label['kind']} in the workbook, but CMMD's sheet has no label for this breast"
    missing = {key: "label: CMMD's sheet has one, the workbook no row" for key in clinical if key not in labels}
    return notes | missing


def add_label(labels: Labels, key: tuple[str, str], label: dict[str, Any], table: str) -> None:
    """Add the label of a breast; if an earlier row of the table contradicts it, the breast has no label.

    Args:
        labels: (exam, side) -> label, changed in place.
        key: The breast.
        label: Its label in this row.
        table: Name of the table for the reason.
    """
    if labels.get(key, label) != label:
        label = UNLABELLED | {"kind": "", "reason": f"{table} has conflicting rows for this breast"}
    labels[key] = label


def fill_blanks(records: list[dict[str, str]], exam: str, side: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """Fill blank cells from the first row of the same breast that has a value; values are never replaced.

    Args:
        records: The rows of a table.
        exam: Column of the exam.
        side: Column of the side.
        columns: Columns that belong to the breast and not to one image.
    """
    found: dict[tuple[str, str, str], str] = {}
    for row in records:
        for column in columns:
            if row[column]:
                found.setdefault((row[exam], row[side].upper(), column), row[column])
    return [
        row | {column: row[column] or found.get((row[exam], row[side].upper(), column), "") for column in columns}
        for row in records
    ]


def _make_label(kind: str, accepted: tuple[str, ...], reasons: dict[str, str]) -> dict[str, Any]:
    if kind in accepted:
        return UNLABELLED | {"class": kind, "diagnosis": int(kind == "malignant"), "kind": kind}
    return UNLABELLED | {"reason": reasons.get(kind, f"its classification {kind[:40]!r} is unknown"), "kind": kind}


def _iterate_breasts(records: list[dict[str, str]], table: str, ages: dict[str, float], unusable: list[dict]):
    """Yield exam, side and record of each row; fill `ages`, and `unusable` with the rows that have no valid side."""
    for record in records:
        exam, side = next(iter(record.values())), record["LeftRight"].upper()
        if side in SIDES:
            yield exam, side, record
            age = pd.to_numeric(record["Age"], errors="coerce")
            if 0 <= age <= 130:
                ages[exam] = float(age)
        else:
            reason = f"the side {side[:20]!r} in {table} is neither L nor R, so the row is skipped"
            unusable.append({"kind": "annotation", "what": exam, "reason": reason})


# --- rows and cells -----------------------------------------------------------------------------------------


def read_records(
    path: Path, columns: tuple[str, ...], required: tuple[str, str], sheet: str = "", second: tuple[str, ...] = ()
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Read the rows of a workbook or a csv file (separated by commas, semicolons or tabs) as cleaned cells by column.

    Args:
        path: The file; its suffix decides how it is read.
        columns: The columns to read, the ID first.
        required: The columns of the side and of a label.
        sheet: The sheet of the workbook; the first one if "".
        second: Optional columns, named in a second header row; if empty, there is only one header row.

    Returns:
        The rows with an ID, and rows of the table excluded. Blank rows and totals have no ID and are skipped; a row
        with a side and a label belonged to a breast and is excluded.

    Raises:
        DataError: The file is unreadable or too large, or the sheet or a column is missing.
    """
    rows = _read_rows(path, sheet)
    header = [clean(cell) for cell in rows[0]] if rows else []
    missing = [column for column in columns if column not in header]
    if missing:
        where = f"{path.name}, sheet {sheet}" if sheet else path.name
        raise DataError(f"{where}: the column {missing[0]!r} is missing; download the file again.")
    indices = {column: header.index(column) for column in columns}
    second_header = [clean(cell) for cell in rows[1]] if second and len(rows) > 1 else []
    indices |= {column: second_header.index(column) for column in second if column in second_header}
    records, unusable, (side, label) = [], [], required
    for number, row in enumerate(rows[2 if second else 1 :], 1):
        record = {column: clean(row[index]) if index < len(row) else "" for column, index in indices.items()}
        if record[columns[0]]:
            records.append(record)
        elif record[side].upper() in ("L", "R", "LEFT", "RIGHT") and record[label]:
            reason = f"it has no ID, but a side and a label: {record[side]}, {record[label][:40]}"
            what = f"{path.name}, row {number} below the header"
            unusable.append({"kind": "annotation", "what": what, "reason": reason})
    return records, unusable


def clean(cell: Any) -> str:
    """Return a cell's text without zero-width characters and with each run of white space as one blank."""
    text = "" if cell is None else str(cell)
    return " ".join(re.sub("[\u200b-\u200d\u2060\ufeff]", "", text).split())


def _read_rows(path: Path, sheet: str) -> list[Sequence]:
    is_csv = path.suffix.lower() == ".csv"
    if path.stat().st_size > LARGEST_WORKBOOK:
        raise DataError(f"{path.name} is larger than {LARGEST_WORKBOOK // 2**20} MB; download it again.")
    try:
        return _read_csv(path) if is_csv else _read_sheet(path, sheet)
    except DataError:
        raise
    except PermissionError:
        raise DataError(f"The file {path.name} {NOT_PERMITTED}.") from None
    except Exception as error:  # files are untrusted, and openpyxl raises many kinds of errors
        kind = "csv" if is_csv else "a workbook"
        raise DataError(f"{path.name} cannot be read as {kind} ({type(error).__name__}); download it again.") from None


def _read_csv(path: Path) -> list[list[str]]:
    text = path.read_text(encoding="utf-8-sig")
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    return list(csv.reader(StringIO(text, newline=""), delimiter=delimiter))


def _read_sheet(path: Path, sheet: str) -> list[tuple]:
    with zipfile.ZipFile(path) as parts:
        unpacked = sum(part.file_size for part in parts.infolist())
    if unpacked > LARGEST_UNPACKED:
        raise DataError(f"{path.name} unpacks to more than {LARGEST_UNPACKED // 2**20} MB; download it again.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with closing(load_workbook(path, read_only=True, data_only=True)) as book:
            sheet = sheet or book.sheetnames[0]
            if sheet not in book.sheetnames:
                names = ", ".join(book.sheetnames)
                raise DataError(f"{path.name} has no sheet {sheet!r}, only {names}; download it again.")
            book[sheet].reset_dimensions()  # the dimensions stated in the file are not to be trusted
            rows = list(islice(book[sheet].iter_rows(values_only=True), MOST_ROWS + 1))
    if len(rows) > MOST_ROWS:
        raise DataError(f"{path.name} has more than {MOST_ROWS:,} rows; download it again.")
    return rows
