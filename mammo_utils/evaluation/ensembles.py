"""Ensembles: the probabilities of the trainings of a system averaged, and what that adds to one training.

Folds are pooled, not averaged: an exam of the study is in the training part of all folds but one.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mammo_utils.evaluation.bootstrap import Sample, bootstrap_settings, interval, paired_difference
from mammo_utils.evaluation.runs import RunResult, group_by_seed, sample
from mammo_utils.evaluation.tables import KEY_COLUMNS
from mammo_utils.study import Study

ENSEMBLE_COLUMNS = [*KEY_COLUMNS, "trainings", "mean_of_trainings", "ensemble", "low", "high"]
ENSEMBLE_COLUMNS += ["gain", "gain_low", "gain_high", "reason"]


def average_trainings(trainings: Sample) -> Sample:
    """Average the probabilities (S, n, K) of S trainings of a system: a sample of one training."""
    return Sample(trainings.labels, trainings.probabilities.mean(0, keepdims=True), trainings.groups)


def ensemble_table(runs: Sequence[RunResult], study: Study) -> pd.DataFrame:
    """Compare the AUC of each system's ensemble with the mean AUC of its trainings, on the same patients.

    Args:
        runs: The runs of the study.
        study: The study, for the settings of the bootstrap.

    Returns:
        One row per subset, task mode, task and system with at least two trainings. `gain` is the AUC of the ensemble
        less the mean of the trainings; intervals are over patients.
    """
    rows = []
    for (subset, mode, system), seeds in group_by_seed(runs).items():
        for task in seeds[0].tasks if len(seeds) > 1 else ():
            trainings = sample(seeds, task)
            together = average_trainings(trainings)
            value = interval(together, "auc", **bootstrap_settings(study))
            gain = paired_difference(together, trainings, "auc", **bootstrap_settings(study))
            row = {"subset": subset, "task_mode": mode, "system": system, "task": task, "trainings": len(seeds)}
            row |= {"mean_of_trainings": value.value - gain.value, "ensemble": value.value}
            row |= {"low": value.low, "high": value.high, "reason": value.reason}
            rows.append(row | {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high})
    return pd.DataFrame(rows, columns=ENSEMBLE_COLUMNS)
