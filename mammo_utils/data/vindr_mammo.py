"""VinDr-Mammo (Nguyen et al. 2023, DOI 10.13026/br2v-7517): BI-RADS and density of each breast, no pathology.

The files are those of PhysioNet, at any depth: `<study_id>/<image_id>.dicom` and `breast-level_annotations.csv`, one
row per image. A study is an exam. The authors' anonymiser (github.com/vinbigdata-medical/vindr-mammo, tags.csv) removes
PatientID, PatientOrientation and ViewCodeSequence, so the csv gives the exam, the side and the view. The release does
not identify patients: a split by exam is the best possible. Its own split (training, test) is not used. Labels:

| column | label |
|---|---|
| breast_birads "BI-RADS 1" to "BI-RADS 5" | birads 1-5; any other value excludes the breast |
| breast_density "DENSITY A" to "DENSITY D" | fatty, scattered, heterogeneous, extreme |
| (no pathology) | diagnosis -1: task mode birads only |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from mammo_utils.data.assemble import assemble
from mammo_utils.data.cohort import Cohort
from mammo_utils.data.image_tables import Record, place_images, read_images
from mammo_utils.data.label_tables import UNLABELLED, Labels, add_label, fill_blanks
from mammo_utils.vocabulary import DENSITIES, SIDES

TITLE, ANNOTATIONS = "VinDr-Mammo", "breast-level_annotations.csv"
COLUMNS = ("image_id", "study_id", "laterality", "view_position", "breast_birads", "breast_density")
BIRADS = re.compile(r"BI-RADS ([1-5])")


def read_vindr_mammo(folder: Path, *, cohort: str, progress: Callable[[int, int], None]) -> Cohort:
    """Read the exams of VinDr-Mammo.

    Args:
        folder: The data set's folder.
        cohort: "usable", "annotated" or "complete", see `sources.read_cohort`.
        progress: Called with (files read, files in all).

    Raises:
        DataError: The csv, one of its columns or every image is missing.
    """
    headers, rows, excluded = read_images(
        folder, TITLE, ANNOTATIONS, COLUMNS, ("laterality", "breast_birads"), progress
    )
    headers = place_images(headers, "study_id", "laterality", "view_position")
    return assemble(TITLE, folder, headers, _make_labels(rows.values()), excluded, rule=cohort)


def _make_labels(rows: Iterable[Record]) -> Labels:
    labels: Labels = {}
    for row in fill_blanks(list(rows), "study_id", "laterality", COLUMNS[4:]):
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
