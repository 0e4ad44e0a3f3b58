"""Do the two heads of a multi-task system agree about a breast?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from mammo_utils.evaluation.calibration import RUN_COLUMNS
from mammo_utils.evaluation.runs import RunResult, categories, group_by_seed, labelled_breasts, probabilities

LOW, HIGH = 2, 4  # BI-RADS up to 2 is benign, from 4 suspicious
CONSISTENCY_COLUMNS = [*RUN_COLUMNS, "n_breasts", "correlation_expected", "correlation_highest"]
CONSISTENCY_COLUMNS += "malignant_but_low benign_but_high labels_malignant_but_low labels_benign_but_high".split()


def consistency_table(runs: Sequence[RunResult]) -> pd.DataFrame:
    """Compare the answers of the two tasks on the breasts that have both labels.

    Returns:
        One row per multi-task training: Spearman's correlation of P(malignant) with the expected BI-RADS category and
        with the probability of the highest one; the shares of breasts that are answered malignant (above 0.5) with a
        BI-RADS of at most 2, and not malignant with one of at least 4; and the same shares of the labels.
    """
    rows = []
    for (subset, mode, system), seeds in group_by_seed(runs).items():
        for run in seeds if mode == "multi" else ():
            table = labelled_breasts(run, "diagnosis")
            table, classes = table[table["birads"] >= 0], np.array(categories(run, "birads"))
            malignant = probabilities(table, "diagnosis", (0, 1))[:, 1]
            birads = probabilities(table, "birads", tuple(classes))
            row = {
                "subset": subset,
                "task_mode": mode,
                "system": system,
                "seed": run.spec.seed,
                "n_breasts": len(table),
            }
            if len(table) > 2:
                row["correlation_expected"] = spearmanr(malignant, birads @ classes).statistic
                row["correlation_highest"] = spearmanr(malignant, birads[:, -1]).statistic
            answers = (malignant > 0.5, classes[birads.argmax(1)])
            labels = (table["diagnosis"].to_numpy() == 1, table["birads"].to_numpy())
            for prefix, (positive, category) in (("", answers), ("labels_", labels)):
                row[f"{prefix}malignant_but_low"] = np.mean(positive & (category <= LOW))
                row[f"{prefix}benign_but_high"] = np.mean(~positive & (category >= HIGH))
            rows.append(row)
    return pd.DataFrame(rows, columns=CONSISTENCY_COLUMNS)
