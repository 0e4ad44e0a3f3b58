"""VinDr-Mammo (Nguyen et al. 2023, DOI 10.13026/br2v-7517): BI-RADS and density of each breast, no pathology.

The files are those of PhysioNet, at any depth: `<study_id>/<image_id>.dicom` and `breast-level_annotations.csv`, one
row per image. A study is an exam. The release does not identify patients, so a split by exam is the best possible. Its
own split (training, test) is not used. Labels:

| column | label |
|---|---|
| breast_birads "BI-RADS 1" to "BI-RADS 5" | birads 1-5; any other value excludes the breast |
| breast_density "DENSITY A" to "DENSITY D" | fatty, scattered, heterogeneous, extreme |
| (no pathology) | diagnosis -1: task mode birads only |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from mammo_utils.data.assemble import assemble
from mammo_utils.data.cohort import Cohort, DataError
from mammo_utils.data.dicom import read_headers
from mammo_utils.data.folders import walk_below
from mammo_utils.data.label_tables import NO_ROW, UNLABELLED, Labels, add_label, read_records
from mammo_utils.io import display_path
from mammo_utils.vocabulary import DENSITIES, SIDES

ANNOTATIONS = "breast-level_annotations.csv"
COLUMNS = ("image_id", "study_id", "laterality", "view_position", "breast_birads", "breast_density")
BIRADS = re.compile(r"BI-RADS ([1-5])")


def read_vindr_mammo(folder: Path, *, cohort: str, progress: Callable[[int, int], None]) -> Cohort:
    """Read the exams of VinDr-Mammo.

    Side and view come from the csv; a tag that contradicts them is noted.

    Args:
        folder: The data set's folder.
        cohort: "usable", "annotated" or "complete", see `sources.read_cohort`.
        progress: Called with (files read, files in all).

    Raises:
        DataError: The csv, one of its columns or every image is missing.
    """
    tables = [path for path in walk_below(folder)[0] if path.name == ANNOTATIONS]
    if len(tables) != 1:
        raise DataError(
            f"{display_path(folder)} should hold one {ANNOTATIONS}, but has {len(tables)}; put VinDr-Mammo's there."
        )
    headers, excluded = read_headers(folder, progress)
    names = {PurePosixPath(file["path"]).stem for file in headers}
    names |= {PurePosixPath(row["what"]).stem for row in excluded if row["kind"] == "file"}
    records, unusable = read_records(tables[0], COLUMNS, ("laterality", "breast_birads"))
    excluded += unusable
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        if rows.setdefault(record["image_id"], record) != record:
            reason = "a second row, which contradicts the first"
            excluded.append({"kind": "annotation", "what": record["image_id"], "reason": reason})
    excluded += [
        {"kind": "annotation", "what": f"{row['study_id']}/{name}", "reason": "the folder has no file of this image"}
        for name, row in rows.items()
        if name not in names
    ]
    headers = [_apply_row(header, rows) for header in headers]
    return assemble("VinDr-Mammo", folder, headers, _make_labels(rows.values()), excluded, rule=cohort)


def _apply_row(header: dict, rows: dict[str, dict[str, str]]) -> dict:
    """A header with the exam, side and view from the csv row of its file."""
    path = PurePosixPath(header["path"])
    row = rows.get(path.stem)
    if row is None:
        return header | {"patient": path.parent.name or header["patient"], "refused": NO_ROW}
    side, view = row["laterality"].upper(), row["view_position"].upper()
    if side not in SIDES or view not in ("CC", "MLO"):
        reason = f"its row has the side {side[:20]!r} and the view {view[:20]!r}"
        return header | {"patient": row["study_id"], "side": "", "view": "", "refused": reason}
    notes = [header["note"]] + [
        f"{what}: {value} in the csv, {header[what]} in the tags"
        for what, value in (("side", side), ("view", view))
        if header[what] and header[what] != value
    ]
    note = "; ".join(filter(None, notes))
    return header | {"patient": row["study_id"], "side": side, "view": view, "refused": "", "note": note}


def _make_labels(rows: Iterable[dict[str, str]]) -> Labels:
    labels: Labels = {}
    for row in rows:
        side = row["laterality"].upper()
        if side not in SIDES:
            continue  # the image is listed with this reason
        birads = BIRADS.fullmatch(row["breast_birads"].upper())
        density = row["breast_density"].upper().removeprefix("DENSITY ")
        label = UNLABELLED | {
            "birads": int(birads[1]) if birads else -1,
            "density": dict(zip("ABCD", DENSITIES, strict=True)).get(density, ""),
            "reason": "" if birads else f"its BI-RADS {row['breast_birads'][:40]!r} is unknown",
        }
        add_label(labels, (row["study_id"], side), label, "the csv")
    return labels
