"""AUC and macro F1 of §4.4, over breasts.

Labels are class indices 0..K-1, or -1 where absent; probabilities have one column a class. A breast without a
label does not count. A metric that is undefined is NaN, and :func:`undefined` says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import f1_score, roc_auc_score


def auc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Area under the ROC curve: of class 1 for two classes, else one-vs-rest, averaged over classes (macro).

    labels (n,) int, probabilities (n, K) in [0, 1]. NaN where :func:`undefined` gives a reason.
    Raises ValueError where shapes do not fit or a counted probability is not finite.
    """
    labels, probabilities = counted(labels, probabilities)
    if undefined(labels, probabilities.shape[1]):
        return float("nan")
    return float(np.mean([roc_auc_score(labels == k, probabilities[:, k]) for k in scored_classes(probabilities)]))


def f1_macro(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN); the class with the highest probability is predicted.

    labels (n,) int, probabilities (n, K). A class that is there and never predicted right has F1 = 0; NaN
    where :func:`undefined` gives a reason. Raises ValueError as :func:`auc` does.
    """
    labels, probabilities = counted(labels, probabilities)
    n_classes = probabilities.shape[1]
    if undefined(labels, n_classes):
        return float("nan")
    predicted = probabilities.argmax(1)
    return float(f1_score(labels, predicted, labels=range(n_classes), average="macro", zero_division=0))


def undefined(labels: np.ndarray, n_classes: int) -> str:
    """Why AUC and macro F1 are undefined for these labels, in a few words; "" where they are defined."""
    known = np.asarray(labels)
    known = known[known >= 0]
    if not len(known):
        return "no labelled breast"
    absent = sorted(set(range(n_classes)) - set(known.tolist()))
    return f"no breast of class {', '.join(map(str, absent))} of {n_classes}" if absent else ""


def scored_classes(probabilities: np.ndarray) -> range:
    """The classes whose one-vs-rest curves the AUC averages: all, or class 1 alone where there are two."""
    n_classes = probabilities.shape[-1]
    return range(1, 2) if n_classes == 2 else range(n_classes)


def counted(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels and probabilities (n, K) of the breasts that have a label, checked."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(f"Labels {labels.shape} and probabilities {probabilities.shape} should be (n,) and (n, K).")
    if labels.max(initial=-1) >= probabilities.shape[1]:
        raise ValueError(f"The label {labels.max()} has no column among {probabilities.shape[1]} probabilities.")
    known = labels >= 0
    labels, probabilities = labels[known], probabilities[known]
    if not np.isfinite(probabilities).all():
        bad = int((~np.isfinite(probabilities).all(1)).sum())
        raise ValueError(f"The probabilities of {bad} of {len(labels)} breasts are not finite; the model diverged.")
    return labels, probabilities


# --- metrics of weighted breasts, for all resamples at once ---------------------------------------------


def weighted_auc(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The AUC of each row of weights, by ranks; NaN where a class has no weight.

    labels (n,), probabilities (n, K), weights (R, n) -> (R,). The AUC is the share of (positive, negative)
    pairs in which the positive has the higher score, ties counting one half.
    """
    curves = [_binary_auc(labels == k, probabilities[:, k], weights) for k in scored_classes(probabilities)]
    return np.mean(curves, axis=0)


def _binary_auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])  # equal scores are one step
    weights, positive = weights[:, order], positive[order]
    up = np.add.reduceat(weights * positive, starts, axis=1)  # (R, U)
    down = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = down.cumsum(1) - down / 2  # negatives below, and half of those level
    pairs = up.sum(1) * down.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (up * below).sum(1) / pairs, np.nan)


def weighted_f1_macro(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The macro F1 of each row of weights (shapes as :func:`weighted_auc`); NaN where a class has no weight."""
    classes = np.arange(probabilities.shape[1])
    true = labels[:, None] == classes  # (n, K)
    predicted = probabilities.argmax(1)[:, None] == classes
    hits, there, said = (weights @ matrix.astype(float) for matrix in (true & predicted, true, predicted))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there > 0, 2 * hits / (there + said), np.nan).mean(1)


# --- the registry -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A metric: its title, its value for one sample, and its values under many weightings of the same sample.

    Attributes:
        title: Its name in tables and figures.
        value: (labels (n,), probabilities (n, K)) -> float.
        weighted: (labels (n,), probabilities (n, K), weights (R, n)) -> (R,); NaN where it is undefined.
    """

    title: str
    value: Callable[[np.ndarray, np.ndarray], float]
    weighted: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


METRICS: dict[str, Metric] = {  # §4.4
    "auc": Metric("AUC", auc, weighted_auc),
    "f1_macro": Metric("F1-Macro", f1_macro, weighted_f1_macro),
}
