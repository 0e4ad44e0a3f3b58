"""The breasts that a system gets wrong at its operating point, in the order of its own certainty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mammo_utils.evaluation.bootstrap import Sample
from mammo_utils.evaluation.calibration import RUN_COLUMNS, diagnosis_samples, log_odds
from mammo_utils.evaluation.operating import SPECIFICITIES, choose_threshold
from mammo_utils.evaluation.runs import RunResult, labelled_breasts

SHOWN = 6  # of each kind
KINDS = ("false negative", "false positive")
FAILURE_COLUMNS = [*RUN_COLUMNS, "kind", "rank", "exam", "side", "p", "log_odds", "threshold", "wrong_systems"]
AGREEMENT_COLUMNS = "subset task_mode n_trainings exams none some all".split()


def find_wrong(validation: Sample, reported: Sample) -> tuple[np.ndarray, float]:
    """Find the breasts (n,) on the wrong side of the threshold, which has a specificity of 0.90 on validation.

    Without enough negatives on validation the threshold is 0.5.
    """
    threshold = choose_threshold(validation, SPECIFICITIES[0])
    threshold = 0.5 if np.isnan(threshold) else threshold
    return (reported.probabilities[0, :, 1] > threshold) != (reported.labels == 1), threshold


def failures_table(runs: Sequence[RunResult], limit: int = SHOWN) -> pd.DataFrame:
    """List the worst failures of each training, `limit` of each kind, by the absolute log-odds of its answer.

    `wrong_systems` names the systems of the same subset and task mode that get the breast wrong at their thresholds.
    """
    found = [(key, run, reported, *find_wrong(v, reported)) for key, run, v, reported in diagnosis_samples(runs)]
    rows = []
    for key, run, reported, wrong, threshold in found:
        breasts, odds = labelled_breasts(run, "diagnosis"), log_odds(reported)
        others = [(k["system"], w) for k, _, s, w, _ in found if _same(k, key) and len(s.labels) == len(odds)]
        for kind, label in zip(KINDS, (1, 0), strict=True):
            own = np.flatnonzero(wrong & (reported.labels == label))
            certainty = odds[own] if label else -odds[own]
            for rank, position in enumerate(own[np.argsort(certainty, kind="stable")][:limit], start=1):
                row = {**key, "kind": kind, "rank": rank, "p": reported.probabilities[0, position, 1]}
                row |= {"exam": breasts["exam"][position], "side": breasts["side"][position], "threshold": threshold}
                names = dict.fromkeys(name for name, other in others if other[position])
                rows.append(row | {"log_odds": odds[position], "wrong_systems": ", ".join(names)})
    return pd.DataFrame(rows, columns=FAILURE_COLUMNS)


def agreement_table(runs: Sequence[RunResult]) -> pd.DataFrame:
    """Count the exams that none, some and all trainings of a subset and task mode get wrong in any breast."""
    found: dict[tuple, list[pd.Series]] = {}
    for key, run, validation, reported in diagnosis_samples(runs):
        wrong = find_wrong(validation, reported)[0]
        by_exam = pd.Series(wrong).groupby(labelled_breasts(run, "diagnosis")["exam"].to_numpy()).any()
        found.setdefault((key["subset"], key["task_mode"]), []).append(by_exam)
    rows = []
    for (subset, mode), columns in found.items():
        share = pd.concat(columns, axis=1, join="inner").mean(axis=1)
        row = {"subset": subset, "task_mode": mode, "n_trainings": len(columns), "exams": len(share)}
        rows.append(row | {"none": (share == 0).sum(), "some": share.between(0, 1, "neither").sum()})
        rows[-1]["all"] = (share == 1).sum()
    return pd.DataFrame(rows, columns=AGREEMENT_COLUMNS)


def _same(one: dict, other: dict) -> bool:
    return (one["subset"], one["task_mode"]) == (other["subset"], other["task_mode"])
