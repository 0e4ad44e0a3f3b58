"""VinDr-Mammo (Nguyen et al. 2023, DOI 10.13026/br2v-7517): BI-RADS and density of each breast, no pathology.

Files as PhysioNet has them, at any depth: ``<study_id>/<image_id>.dicom`` and ``breast-level_annotations.csv``, one
row an image. A study is an exam; which studies are of one patient is not released, so a split by exam is the best
there is. The release's own split (training, test) is not used. Labels:

| column | here |
|---|---|
| breast_birads "BI-RADS 1" to "BI-RADS 5" | birads 1-5; other words set the breast aside |
| breast_density "DENSITY A" to "DENSITY D" | fatty, scattered, heterogeneous, extreme |
| (pathology is not in it) | diagnosis -1: task mode birads alone |
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from mammo_utils.data.assemble import NO_ROW, UNLABELLED, assemble
from mammo_utils.data.cohort import Cohort, DataError
from mammo_utils.data.dicom import read_headers
from mammo_utils.data.folders import files_below
from mammo_utils.data.label_tables import csv_records
from mammo_utils.io import display_path
from mammo_utils.vocabulary import DENSITIES

LABELS = "breast-level_annotations.csv"
COLUMNS = ("image_id", "study_id", "laterality", "view_position", "breast_birads", "breast_density")
BIRADS = re.compile(r"BI-RADS ([1-5])")


def read_vindr_mammo(
    folder: Path, *, cohort: str = "usable", progress: Callable[[int, int], None] = lambda done, total: None
) -> Cohort:
    """The exams of a folder of VinDr-Mammo.

    Side and view are those of the csv; a tag that contradicts them is noted. Raises DataError where the folder, the
    csv, one of its columns or every image is missing.
    """
    if not folder.is_dir():
        raise DataError(f"There is no data folder {display_path(folder)}; put VinDr-Mammo there.")
    files = [path for path in files_below(folder)[0] if path.name == LABELS]
    if len(files) != 1:
        raise DataError(
            f"{display_path(folder)} should hold one {LABELS}, but has {len(files)}; put VinDr-Mammo's there."
        )
    headers, excluded = read_headers(folder, progress)
    if not headers:
        raise DataError(
            f"{display_path(folder)} holds no readable DICOM file (*.dicom); put VinDr-Mammo's images there."
        )
    rows: dict[str, dict[str, str]] = {}
    records, odd = csv_records(files[0], COLUMNS, ("laterality", "breast_birads"))
    excluded += odd
    for row in records:
        if rows.setdefault(row["image_id"], row) != row:
            excluded.append({"kind": "annotation", "what": row["image_id"], "reason": "a second row, which disagrees"})
    found = [_placed(header, rows) for header in headers]
    there = {PurePosixPath(header["path"]).stem for header in headers}
    there |= {PurePosixPath(row["what"]).stem for row in excluded if row["kind"] == "file"}
    excluded += [
        {"kind": "annotation", "what": f"{row['study_id']}/{name}", "reason": "the folder has no file of this image"}
        for name, row in rows.items()
        if name not in there
    ]
    return assemble("VinDr-Mammo", folder, found, _labels(rows.values()), excluded, rule=cohort)


def _placed(header: dict, rows: dict[str, dict[str, str]]) -> dict:
    """A header with the exam, side and view that the csv has for its file."""
    path = PurePosixPath(header["path"])
    row = rows.get(path.stem)
    if row is None:
        return header | {"patient": path.parent.name or header["patient"], "refused": NO_ROW}
    side, view = row["laterality"].upper(), row["view_position"].upper()
    if side not in ("L", "R") or view not in ("CC", "MLO"):
        reason = f"its row says side {side[:20]!r} and view {view[:20]!r}"
        return header | {"patient": row["study_id"], "side": "", "view": "", "refused": reason}
    notes = [header["note"]] + [
        f"{what}: the csv says {said}, the tags {header[what]}"
        for what, said in (("side", side), ("view", view))
        if header[what] and header[what] != said
    ]
    placed = {"patient": row["study_id"], "side": side, "view": view, "refused": ""}
    return header | placed | {"note": "; ".join(filter(None, notes))}


def _labels(rows) -> dict[tuple[str, str], dict]:
    labels: dict[tuple[str, str], dict] = {}
    for row in rows:
        key = row["study_id"], row["laterality"].upper()
        if key[1] not in ("L", "R"):
            continue  # its image says so
        birads = BIRADS.fullmatch(row["breast_birads"].upper())
        density = row["breast_density"].upper().removeprefix("DENSITY ")
        label = UNLABELLED | {
            "birads": int(birads[1]) if birads else -1,
            "density": dict(zip("ABCD", DENSITIES, strict=True)).get(density, ""),
            "reason": "" if birads else f"its BI-RADS {row['breast_birads'][:40]!r} is not a known one",
        }
        if labels.get(key, label) != label:
            label = UNLABELLED | {"reason": "the csv has rows for it that disagree"}
        labels[key] = label
    return labels
