"""RSNA Screening Mammography Breast Cancer Detection (Kaggle 2022): whether a breast had cancer, and some BI-RADS.

The files are those of the competition, at any depth: `train_images/<patient_id>/<image_id>.dcm` and `train.csv`, one
row per image. A patient is an exam; of several images of a view one is used (`kinds.py`). `test.csv` has no labels, so
the images of `test_images` are listed and not used. Definitions are those of the competition's data page
(kaggle.com/competitions/rsna-breast-cancer-detection/data):

| column | label of the breast |
|---|---|
| cancer 1; 0 | diagnosis 1, class malignant; diagnosis 0 |
| biopsy 1 with cancer 0; biopsy 0 | class benign; "", because normal or benign is not recorded |
| BIRADS 1 negative; 2 normal | birads 1; 2 |
| BIRADS 0 (needs follow-up); blank, as in most rows | birads -1, absent: categories 3 to 5 do not occur |
| density A to D; blank | fatty, scattered, heterogeneous, extreme; "" |

How cancer was established, and the time between image and diagnosis, are not known.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from mammo_utils.data.assemble import assemble
from mammo_utils.data.cohort import Cohort
from mammo_utils.data.image_tables import Record, place_images, read_images
from mammo_utils.data.label_tables import UNLABELLED, Labels, add_label, fill_blanks
from mammo_utils.vocabulary import DENSITIES, SIDES

TITLE, TABLE = "RSNA 2022", "train.csv"
COLUMNS = ("image_id", "patient_id", "laterality", "view", "age", "cancer", "biopsy", "BIRADS", "density")


def read_rsna(folder: Path, *, cohort: str, progress: Callable[[int, int], None]) -> Cohort:
    """Read the training exams of the RSNA competition.

    Args:
        folder: The data set's folder.
        cohort: "usable", "annotated" or "complete", see `sources.read_cohort`.
        progress: Called with (files read, files in all).

    Raises:
        DataError: The csv, one of its columns or every image is missing.
    """
    headers, rows, excluded = read_images(folder, TITLE, TABLE, COLUMNS, ("laterality", "cancer"), progress)
    headers = place_images(headers, "patient_id", "laterality", "view")
    labels: Labels = {}
    ages: dict[str, float] = {}
    for row in fill_blanks(list(rows.values()), "patient_id", "laterality", COLUMNS[5:]):
        if (side := row["laterality"].upper()) in SIDES:
            add_label(labels, (row["patient_id"], side), _make_label(row), "the csv")
        if 0 <= (age := pd.to_numeric(row["age"], errors="coerce")) <= 130:
            ages[row["patient_id"]] = float(age)
    return assemble(TITLE, folder, headers, labels, excluded, rule=cohort, ages=ages)


def _make_label(row: Record) -> dict:
    cancer, biopsy, birads = (row[name].removesuffix(".0") for name in ("cancer", "biopsy", "BIRADS"))
    if cancer not in ("0", "1"):
        return UNLABELLED | {"reason": f"its cancer {row['cancer'][:20]!r} is neither 0 nor 1"}
    return UNLABELLED | {
        "class": "malignant" if cancer == "1" else "benign" if biopsy == "1" else "",
        "diagnosis": int(cancer),
        "birads": int(birads) if birads in set("12345") else -1,
        "density": dict(zip("ABCD", DENSITIES, strict=True)).get(row["density"].upper(), ""),
    }
