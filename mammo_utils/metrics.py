"""The study's metrics over breasts: AUC and macro F1 (§4.4).

Labels are class indices 0 to K-1, or -1 where absent; probabilities have one column per class. Breasts without a
label are ignored. An undefined metric is NaN, and `explain_undefined` gives the reason.

To add a metric, add one entry to `METRICS`; the tables and notebooks follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax as _softmax
from scipy.stats import rankdata
from sklearn.metrics import f1_score, roc_auc_score


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits (..., K), in float64, in which the small ones do not become 0."""
    return _softmax(np.asarray(logits, np.float64), axis=-1)


def auc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Area under the ROC curve: of class 1 for two classes, else the mean of the one-vs-rest areas (macro).

    `labels` is (n,) int, `probabilities` (n, K) in [0, 1]. Raises ValueError if the shapes do not match or a labelled
    breast has a probability that is not finite.
    """
    labels, probabilities = select_labelled(labels, probabilities)
    if explain_undefined(labels, probabilities.shape[1]):
        return float("nan")
    return float(
        np.mean([roc_auc_score(labels == k, rank_scores(probabilities, k)) for k in scored_classes(probabilities)])
    )


def f1_macro(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN), predicting the most probable class.

    Shapes and errors are those of `auc`. A class that occurs but is never predicted correctly has F1 = 0.
    """
    labels, probabilities = select_labelled(labels, probabilities)
    n_classes = probabilities.shape[1]
    if explain_undefined(labels, n_classes):
        return float("nan")
    return float(f1_score(labels, probabilities.argmax(1), labels=range(n_classes), average="macro", zero_division=0))


def rank_scores(probabilities: np.ndarray, k: int) -> np.ndarray:
    """Return the score of class k by which breasts are ranked, from probabilities (..., K).

    It is p_k, except where p_k has been rounded to 1. There the other probabilities still differ, and the score rises
    as their sum falls, so that predictions with unequal logits are not tied.
    """
    probabilities = np.asarray(probabilities, np.float64)
    others = np.maximum(np.delete(probabilities, k, axis=-1).sum(-1), np.finfo(np.float64).tiny)
    return np.where(probabilities[..., k] > 1 - 1e-9, -np.log(others), probabilities[..., k])  # -log(1e-9) > 1


def explain_undefined(labels: np.ndarray, n_classes: int) -> str:
    """Explain in a few words why AUC and macro F1 are undefined for these labels; "" if they are defined."""
    present = {label for label in np.asarray(labels).tolist() if label >= 0}
    if not present:
        return "no labelled breast"
    absent = sorted(set(range(n_classes)) - present)
    return f"no breast of class {', '.join(map(str, absent))} of {n_classes}" if absent else ""


def scored_classes(probabilities: np.ndarray) -> range:
    """Return the classes whose one-vs-rest AUCs are averaged: all, or only class 1 if there are two."""
    n_classes = probabilities.shape[-1]
    return range(1, 2) if n_classes == 2 else range(n_classes)


def select_labelled(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check labels (n,) and probabilities (n, K), and return those of the labelled breasts; see `auc` for errors."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(f"Labels {labels.shape} and probabilities {probabilities.shape} should be (n,) and (n, K).")
    if labels.max(initial=-1) >= probabilities.shape[1]:
        raise ValueError(f"The label {labels.max()} has no column among {probabilities.shape[1]} probabilities.")
    labelled = labels >= 0
    labels, probabilities = labels[labelled], probabilities[labelled]
    if bad := int((~np.isfinite(probabilities).all(1)).sum()):
        raise ValueError(f"The probabilities of {bad} of {len(labels)} breasts are not finite; the model diverged.")
    return labels, probabilities


# --- what the intervals need ----------------------------------------------------------------------------


def auc_influence(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Compute each breast's influence on the AUC; summed by patient and squared, they estimate its variance.

    The influence of a positive is (V - AUC) / m, where V is the share of negatives with a lower score (a tie counts
    half) and m the number of positives; that of a negative likewise (DeLong et al. 1988; Obuchowski 1997). With more
    than two classes it is averaged over the one-vs-rest areas.

    Args:
        labels: (n,) class indices, without -1; every class occurs.
        probabilities: (n, K).

    Returns:
        (n,); its sum is 0.
    """
    classes = scored_classes(probabilities)
    return np.mean([_binary_influence(labels == k, rank_scores(probabilities, k)) for k in classes], axis=0)


def _binary_influence(positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    m, n = positive.sum(), (~positive).sum()
    ranks, placement = rankdata(scores), np.empty(len(scores))
    placement[positive] = (ranks[positive] - rankdata(scores[positive])) / n
    placement[~positive] = 1 - (ranks[~positive] - rankdata(scores[~positive])) / m
    return (placement - placement[positive].mean()) / np.where(positive, m, n)


def weighted_auc(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the AUC for each row of weights.

    The AUC is the share of (positive, negative) pairs in which the positive has the higher score; a tie counts half.

    Args:
        labels: (n,) int, without -1.
        probabilities: (n, K).
        weights: (R, n), how often each breast occurs in each resample.

    Returns:
        (R,), NaN where a class has no weight.
    """
    classes = scored_classes(probabilities)
    areas = [_weighted_binary_auc(labels == k, rank_scores(probabilities, k), weights) for k in classes]
    return np.mean(areas, axis=0)


def _weighted_binary_auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])  # equal scores form one step of the curve
    weights, positive = weights[:, order], positive[order]
    positives = np.add.reduceat(weights * positive, starts, axis=1)  # (R, number of distinct scores)
    negatives = np.add.reduceat(weights * ~positive, starts, axis=1)
    lower_negatives = negatives.cumsum(1) - negatives / 2  # negatives with a lower score, and half of the tied ones
    pairs = positives.sum(1) * negatives.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (positives * lower_negatives).sum(1) / pairs, np.nan)


def weighted_f1_macro(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute macro F1 for each row of weights.

    Args:
        labels: (n,) class indices.
        probabilities: (n, K).
        weights: (R, n).

    Returns:
        (R,); NaN where a class has no weight.
    """
    classes = np.arange(probabilities.shape[1])
    actual = labels[:, None] == classes  # (n, K)
    predicted = probabilities.argmax(1)[:, None] == classes
    n_hits, n_actual, n_predicted = (weights @ m.astype(float) for m in (actual & predicted, actual, predicted))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n_actual > 0, 2 * n_hits / (n_actual + n_predicted), np.nan).mean(1)


@dataclass(frozen=True)
class Metric:
    """A metric of one sample of breasts, and what its interval is computed from: one of the last two.

    Attributes:
        title: Its name in tables and figures.
        value: (labels (n,), probabilities (n, K)) -> float.
        weighted: (labels (n,), probabilities (n, K), weights (R, n)) -> (R,), the metric of each bootstrap resample, in
            which a breast occurs `weights` times; NaN where undefined.
        influence: (labels (n,), probabilities (n, K)) -> (n,), each breast's influence on a metric between 0 and 1.
        by_class: Whether it rests on each class, so that an interval needs patients of each.
    """

    title: str
    value: Callable[[np.ndarray, np.ndarray], float]
    weighted: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None
    influence: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    by_class: bool = True


def mean_metric(title: str, of_breast: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Metric:
    """Make a metric that is the mean of a number of each breast: (labels (n,), probabilities (n, K)) -> (n,)."""

    def value(labels: np.ndarray, probabilities: np.ndarray) -> float:
        return float(np.mean(of_breast(labels, probabilities))) if len(labels) else float("nan")

    def weighted(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return weights @ of_breast(labels, probabilities) / weights.sum(1)

    return Metric(title, value, weighted, by_class=False)


METRICS: dict[str, Metric] = {  # §4.4
    "auc": Metric("AUC", auc, influence=auc_influence),
    "f1_macro": Metric("F1-Macro", f1_macro, weighted_f1_macro),
}
