"""Conformal sets of BI-RADS categories: as many as needed to hold the true one in 90 % of breasts.

Split conformal prediction with the score 1 - P(label) (Sadinle, Lei and Wasserman 2019). The promise holds for breasts
that are exchangeable with those of validation. Two breasts of a patient are not, so one of each patient is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mammo_utils.evaluation.bootstrap import Sample
from mammo_utils.evaluation.calibration import RUN_COLUMNS
from mammo_utils.evaluation.intervals import wilson_interval
from mammo_utils.evaluation.runs import RunResult, categories, group_by_seed, repeat_by_fold, sample
from mammo_utils.study import Study

ALPHA = 0.1  # share of breasts whose set may miss the label
CONFORMAL_COLUMNS = [*RUN_COLUMNS, "category", "coverage", "low", "high", "mean_size", "n_breasts", "n_validation"]


def one_breast_a_patient(sample: Sample, seed: int = 0) -> Sample:
    """Draw one breast of each patient at random."""
    order = np.random.default_rng(seed).permutation(len(sample.labels))
    return sample.select(np.sort(order[np.unique(sample.groups[order].astype(str), return_index=True)[1]]))


def conformal_quantile(validation: Sample, alpha: float = ALPHA) -> float:
    """Compute the highest score 1 - P(category) with which a category belongs to a set.

    It is the ceil((n + 1)(1 - alpha))-th smallest score of the n validation breasts' labels, infinite if there are
    fewer.
    """
    scores = np.sort(1 - validation.probabilities[0][np.arange(len(validation.labels)), validation.labels])
    rank = int(np.ceil((len(scores) + 1) * (1 - alpha) - 1e-9))
    return float(scores[rank - 1]) if rank <= len(scores) else np.inf


def conformal_sets(probabilities: np.ndarray, quantile: float | np.ndarray) -> np.ndarray:
    """Build the sets of probabilities (n, K): (n, K) bool. The quantile is one number, or (n, 1).

    Gaps between two categories are filled, because the categories are ordered, and an empty set gets the most probable
    category; both only add coverage.
    """
    sets = 1 - probabilities <= quantile
    sets[np.arange(len(sets)), probabilities.argmax(1)] = True
    return np.maximum.accumulate(sets, axis=1) & np.maximum.accumulate(sets[:, ::-1], axis=1)[:, ::-1]


def conformal_table(runs: Sequence[RunResult], study: Study) -> pd.DataFrame:
    """Tabulate coverage and size of the sets of each training on the reported part, for all breasts and by category.

    Intervals are Wilson's, over patients. `n_validation` counts the patients of validation that set the quantile.
    Each fold has a quantile from its own validation part, for its own patients; `n_validation` is then that of the
    fold with the fewest.
    """
    rows = []
    for (subset, mode, system), seeds in group_by_seed(runs).items():
        for run in seeds:
            if "birads" not in run.tasks:
                continue
            reported = sample([run], "birads")
            validation = [sample([member], "birads", "validation") for member in run.members]
            if not all(len(of.labels) for of in validation):
                continue
            validation = [one_breast_a_patient(of, study.evaluation.seed) for of in validation]
            quantiles = repeat_by_fold(run, "birads", [conformal_quantile(of) for of in validation])
            sets = conformal_sets(reported.probabilities[0], quantiles[:, None])
            held, row = sets[np.arange(len(sets)), reported.labels], {"subset": subset, "system": system}
            row |= {"task_mode": mode, "seed": run.spec.seed, "n_validation": min(len(of.labels) for of in validation)}
            parts = {"all": np.ones(len(sets), bool)}
            parts |= {name: reported.labels == k for k, name in enumerate(categories(run, "birads"))}
            for name, own in parts.items():
                coverage, low, high = wilson_interval(held[own], reported.groups[own])
                size = sets[own].sum(1).mean() if own.any() else np.nan
                found = {"category": str(name), "coverage": coverage, "low": low, "high": high}
                rows.append(row | found | {"mean_size": size, "n_breasts": own.sum()})
    return pd.DataFrame(rows, columns=CONFORMAL_COLUMNS)
