"""BI-RADS as the ordered categories that they are: how far the answers are off, not only how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score

from mammo_utils.evaluation.bootstrap import bootstrap_settings, interval
from mammo_utils.evaluation.runs import RunResult, categories, group_by_seed, sample
from mammo_utils.evaluation.tables import INTERVAL_COLUMNS
from mammo_utils.metrics import Metric, mean_metric
from mammo_utils.study import Study

ANSWERS = ("argmax", "median")  # the most probable category; the first with at least half of the probability below it
ORDINAL_COLUMNS = ["subset", "task_mode", "system", "answer", "metric", *INTERVAL_COLUMNS, "method", "reason"]


def ordinal_metrics(classes: Sequence[int], answer: str) -> dict[str, Metric]:
    """Make the metrics of ordered categories.

    Args:
        classes: The categories in order, such as (1, 3, 5), whose steps count 2 in `mae`.
        answer: One of `ANSWERS`, how one category is taken from the probabilities.

    Returns:
        `kappa` (quadratic weights), `mae` (in categories), `exact`, `adjacent` (one step off) and `off` (further), and
        `rps`, the ranked probability score: the squared error of P(category <= k), averaged over the steps k.
    """
    k, values = len(classes), np.array(classes)

    def choose(p: np.ndarray) -> np.ndarray:
        return p.argmax(1) if answer == "argmax" else (p.cumsum(1) < 0.5 - 1e-9).sum(1)

    def steps(labels: np.ndarray, p: np.ndarray) -> np.ndarray:
        return np.abs(choose(p) - labels)

    def kappa(labels: np.ndarray, p: np.ndarray) -> float:
        return float(cohen_kappa_score(labels, choose(p), labels=range(k), weights="quadratic"))

    def weighted_kappa(labels: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
        cells = (labels * k + choose(p))[:, None] == np.arange(k * k)
        counts = (weights @ cells).reshape(-1, k, k)
        cost = (np.arange(k)[:, None] - np.arange(k)) ** 2
        chance = counts.sum(2)[:, :, None] * counts.sum(1)[:, None, :] / counts.sum((1, 2))[:, None, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            return 1 - (counts * cost).sum((1, 2)) / (chance * cost).sum((1, 2))

    def squared_errors(labels: np.ndarray, p: np.ndarray) -> np.ndarray:
        return ((p.cumsum(1) - (labels[:, None] <= np.arange(k))) ** 2)[:, :-1].sum(1) / (k - 1)

    return {
        "kappa": Metric("weighted κ", kappa, weighted_kappa, by_class=False),
        "mae": mean_metric("mean absolute error", lambda labels, p: np.abs(values[choose(p)] - values[labels])),
        "exact": mean_metric("exact", lambda labels, p: steps(labels, p) == 0),
        "adjacent": mean_metric("one step off", lambda labels, p: steps(labels, p) == 1),
        "off": mean_metric("further off", lambda labels, p: steps(labels, p) > 1),
        "rps": mean_metric("ranked probability score", squared_errors),
    }


def ordinal_table(runs: Sequence[RunResult], study: Study) -> pd.DataFrame:
    """Tabulate the ordinal metrics of each system whose BI-RADS task has more than two categories.

    One row per subset, task mode, system, answer and metric, with percentile intervals over patients.
    """
    rows = []
    for (subset, mode, system), seeds in group_by_seed(runs).items():
        classes = categories(seeds[0], "birads") if "birads" in seeds[0].tasks else ()
        for answer in ANSWERS if len(classes) > 2 else ():
            for name, metric in ordinal_metrics(classes, answer).items():
                row = {"subset": subset, "task_mode": mode, "system": system, "answer": answer, "metric": name}
                rows.append(row | asdict(interval(sample(seeds, "birads"), metric, **bootstrap_settings(study))))
    return pd.DataFrame(rows, columns=ORDINAL_COLUMNS)
