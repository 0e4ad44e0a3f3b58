"""95 % intervals by bootstrap over patients, and paired differences between systems.

A patient (group) is drawn with all its breasts, so that what two breasts of one body share widens the interval
as it should. A resample is a vector of counts, one a group; metrics are computed with these counts as weights,
for all resamples at once. Every interval of a seed uses the same resamples, so that systems are compared on
the same patients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mammo_utils.metrics import METRICS, undefined

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % percentile interval.

    low and high are NaN where there is none, and `reason` says why; used and dropped count the resamples in
    which the metric is defined and in which it is not (a class was not drawn).
    """

    value: float
    low: float
    high: float
    used: int
    dropped: int
    reason: str = ""

    def __str__(self) -> str:
        if np.isnan(self.value):
            return ""
        return (
            f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})" if self.used else f"{self.value:.3f} (no interval)"
        )


@dataclass(frozen=True)
class Sample:
    """One system's answers for n breasts: labels (n,) class index, none absent; probabilities (S, n, K), one
    layer a training seed; groups (n,), the patient of each breast."""

    labels: np.ndarray
    probabilities: np.ndarray
    groups: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.probabilities.ndim != 3 or self.probabilities.shape[1] != n or len(self.groups) != n:
            raise ValueError(
                f"A sample of {n} labels has probabilities {self.probabilities.shape} and {len(self.groups)} groups; "
                f"they should be (seeds, {n}, classes) and {n}."
            )


def interval(sample: Sample, metric: str, *, resamples: int, seed: int = 0) -> Interval:
    """The metric ("auc" or "f1_macro"), averaged over training seeds, with its interval over patients."""
    value, drawn = _values(sample, metric, resamples, seed)
    return _percentiles(value, drawn, sample)


def paired_difference(ours: Sample, reference: Sample, metric: str, *, resamples: int, seed: int = 0) -> Interval:
    """The metric of `ours` less that of `reference`, on the same breasts and the same resampled patients.

    Raises ValueError where the two samples are not of the same breasts.
    """
    if not (np.array_equal(ours.labels, reference.labels) and np.array_equal(ours.groups, reference.groups)):
        raise ValueError("A paired difference needs two samples of the same breasts in the same order.")
    (value, drawn), (base, base_drawn) = (_values(s, metric, resamples, seed) for s in (ours, reference))
    return _percentiles(value - base, drawn - base_drawn, ours)


def mean_interval(
    values: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int = 0, weights: np.ndarray | None = None
) -> Interval:
    """The mean of one value a breast or exam, with its interval over patients."""
    values = np.asarray(values, float)
    if not len(values):
        return Interval(np.nan, np.nan, np.nan, 0, resamples, "nothing to average")
    counts = group_weights(groups, resamples, seed) if weights is None else weights
    with np.errstate(invalid="ignore"):
        drawn = (counts @ values) / counts.sum(1)
    return _percentiles(float(values.mean()), drawn, Sample(np.zeros(len(values)), values[None, :, None], groups))


def group_weights(groups: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """How often each breast occurs in each resample, (resamples, n): G groups drawn from G, with replacement."""
    names, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    rng = np.random.default_rng(np.random.SeedSequence([seed, len(names)]))
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return counts[:, member].astype(float)


# --- resamples -----------------------------------------------------------------------------------------


def _values(sample: Sample, metric: str, resamples: int, seed: int) -> tuple[float, np.ndarray]:
    """The metric of the sample and of each resample, both averaged over training seeds."""
    value = float(np.mean([METRICS[metric].value(sample.labels, p) for p in sample.probabilities]))
    if np.isnan(value):
        return value, np.full(resamples, np.nan)
    weights = group_weights(sample.groups, resamples, seed)
    return value, np.mean([METRICS[metric].weighted(sample.labels, p, weights) for p in sample.probabilities], axis=0)


def _percentiles(value: float, drawn: np.ndarray, sample: Sample) -> Interval:
    known = drawn[~np.isnan(drawn)]
    used, dropped = len(known), len(drawn) - len(known)
    if np.isnan(value):
        return Interval(np.nan, np.nan, np.nan, used, dropped, undefined(sample.labels, sample.probabilities.shape[2]))
    if len(np.unique(np.asarray(sample.groups, dtype=str))) < 2:
        return Interval(value, np.nan, np.nan, 0, len(drawn), "one patient has no spread")
    if used < max(2, len(drawn) / 2):
        return Interval(
            value, np.nan, np.nan, 0, len(drawn), f"a class is absent from {dropped} of {len(drawn)} resamples"
        )
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    reason = "no width: every resample gives the same value" if known.min() == known.max() else ""
    return Interval(value, float(low), float(high), used, dropped, reason)
