"""Data sets whose table has one row per image: a file's name finds the row, which has exam, side and view.

The tags need not identify anything, because the anonymised files of these data sets lack many of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from mammo_utils.data.dicom import read_headers
from mammo_utils.data.folders import walk_below
from mammo_utils.data.label_tables import NO_ROW, find_table, read_records
from mammo_utils.vocabulary import SIDES

Record = dict[str, str]  # the cells of a row by column


def read_images(
    folder: Path,
    title: str,
    name: str,
    columns: tuple[str, ...],
    required: tuple[str, str],
    progress: Callable[[int, int], None],
    image_id: Callable[[str], str] = lambda stem: stem,
) -> tuple[list[dict], dict[str, Record], list[dict]]:
    """Read the headers of all images and the rows of the table.

    Args:
        folder: The data set's folder.
        title: The data set's name.
        name: Name of the table.
        columns: The columns to read, the image's ID first.
        required: The columns of the side and of a label.
        progress: Called with (files read, files in all).
        image_id: From a file's name without suffix to the image's ID.

    Returns:
        The headers, each with its row in `record` (None if it has none) and its ID in `image` if the UID was removed;
        the rows by ID; and rows of the table excluded, among them rows without a file.

    Raises:
        DataError: The table or one of its columns is missing.
    """
    path = find_table(folder, walk_below(folder)[0], name, title)
    records, excluded = read_records(path, columns, required)
    headers, unusable = read_headers(folder, progress, tables=[path], tagged=False)
    rows: dict[str, Record] = {}
    for record in records:
        if rows.setdefault(record[columns[0]], record) != record:
            reason = "a second row, which contradicts the first"
            excluded.append({"kind": "annotation", "what": record[columns[0]], "reason": reason})
    files = [header["path"] for header in headers] + [row["what"] for row in unusable if row["kind"] == "file"]
    present = {image_id(PurePosixPath(file).stem) for file in files}
    reason = "the folder has no file of this image"
    missing = [image for image in rows if image not in present]
    excluded += [{"kind": "annotation", "what": image, "reason": reason} for image in missing]
    for header in headers:
        image = image_id(PurePosixPath(header["path"]).stem)
        header |= {"record": rows.get(image), "image": header["image"] or image}
    return headers, rows, excluded + unusable


def place_images(headers: list[dict], exam: str, side: str, view: str) -> list[dict]:
    """Place each header of `read_images` by its row, see `place_image`; without a row, its folder names the exam.

    Args:
        headers: Headers of `read_images`.
        exam: Column of the exam.
        side: Column of the side.
        view: Column of the view.
    """
    placed = []
    for header in headers:
        row = header["record"] or {}
        name = row.get(exam) or PurePosixPath(header["path"]).parent.name
        placed.append(place_image(header, name, row.get(side, "").upper(), row.get(view, "").upper()))
    return placed


def place_image(header: dict, exam: str, side: str, view: str) -> dict:
    """Return a header with the exam, side and view of its row; a tag that contradicts them is noted.

    Args:
        header: A header of `read_images`.
        exam: The exam. Of a header without a row, the exam is the only thing known.
        side: The side in the row.
        view: The view in the row.
    """
    header = header | {"patient": exam, "study": ""}  # the row decides what an exam is
    if header["record"] is None:
        return header | {"refused": NO_ROW}
    if side not in SIDES:
        return header | {"side": "", "view": "", "refused": f"its row has the side {side[:20]!r}"}
    notes = [header["note"]] + [
        f"{what}: {value} in the table, {header[what]} in the tags"
        for what, value in (("side", side), ("view", view))
        if header[what] and header[what] != value
    ]
    placed = {"side": side, "view": view, "refused": "", "note": "; ".join(filter(None, notes))}
    if view not in ("CC", "MLO"):
        placed |= {"view": "", "refused": f"another projection: {view[:20] or 'none'}, neither CC nor MLO"}
    return header | placed
