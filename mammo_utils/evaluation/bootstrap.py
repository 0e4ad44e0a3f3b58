"""95 % intervals by bootstrap over patients, and paired differences between systems.

A patient (group) is drawn with all its breasts, because two breasts of one patient are not independent. A resample
is a vector of counts, one per group; all resamples are scored at once with these counts as weights. For a given seed
every interval uses the same resamples, so that systems are compared on the same patients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mammo_utils.metrics import METRICS, explain_undefined

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % percentile interval.

    Attributes:
        value: The number, NaN if undefined.
        low: Lower end of the interval, NaN if there is none.
        high: Upper end.
        resamples: Number of resamples in which the metric is defined.
        dropped: Number of resamples in which it is not, because a class was not drawn.
        reason: Why the value or its interval is missing.
    """

    value: float = np.nan
    low: float = np.nan
    high: float = np.nan
    resamples: int = 0
    dropped: int = 0
    reason: str = ""

    def __str__(self) -> str:
        if np.isnan(self.value):
            return ""
        spread = f"{self.low:.3f} to {self.high:.3f}" if self.resamples else "no interval"
        return f"{self.value:.3f} ({spread})"


@dataclass(frozen=True)
class Sample:
    """A system's predictions for n labelled breasts.

    Attributes:
        labels: (n,) class indices, none of them -1.
        probabilities: (S, n, K), one layer per training seed.
        groups: (n,) the patient of each breast.
    """

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

    def select(self, breasts: np.ndarray) -> Sample:
        """Select breasts by a mask or positions."""
        return Sample(self.labels[breasts], self.probabilities[:, breasts], self.groups[breasts])


def interval(sample: Sample, metric: str, *, resamples: int, seed: int) -> Interval:
    """Compute a metric, averaged over training seeds, with its interval over patients.

    Args:
        sample: Labels and probabilities of one system.
        metric: A key of `METRICS`.
        resamples: Bootstrap resamples.
        seed: Of the resamples; the same seed gives every system the same patients.
    """
    value, resampled = _score_resamples(sample, metric, resamples, seed)
    return _make_interval(value, resampled, sample.groups, _explain(sample))


def paired_difference(system: Sample, reference: Sample, metric: str, *, resamples: int, seed: int) -> Interval:
    """Compute the metric of one system minus that of another, on the same breasts and the same resampled patients.

    Args:
        system: The one system.
        reference: The other.
        metric: A key of `METRICS`.
        resamples: Bootstrap resamples.
        seed: Of the resamples.

    Raises:
        ValueError: The two samples are not of the same breasts.
    """
    if not (np.array_equal(system.labels, reference.labels) and np.array_equal(system.groups, reference.groups)):
        raise ValueError("A paired difference needs two samples of the same breasts in the same order.")
    value, resampled = _score_resamples(system, metric, resamples, seed)
    base, base_resampled = _score_resamples(reference, metric, resamples, seed)
    return _make_interval(value - base, resampled - base_resampled, system.groups, _explain(system))


def mean_interval(values: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """Compute a mean with its interval over patients.

    Args:
        values: (n,), one per breast or exam.
        groups: (n,), their patients.
        resamples: Bootstrap resamples.
        seed: Of the resamples.
    """
    values = np.asarray(values, float)
    if not len(values):
        return Interval(dropped=resamples, reason="nothing to average")
    weights = group_weights(groups, resamples, seed)
    return _make_interval(float(values.mean()), (weights @ values) / weights.sum(1), groups)


def group_weights(groups: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Count how often each breast occurs in each resample: G groups drawn from G with replacement.

    Args:
        groups: (n,), the patient of each breast.
        resamples: Number of resamples R.
        seed: Of the draws.

    Returns:
        (R, n).
    """
    names, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    rng = np.random.default_rng(np.random.SeedSequence([seed, len(names)]))
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return counts[:, member].astype(float)


def _score_resamples(sample: Sample, metric: str, resamples: int, seed: int) -> tuple[float, np.ndarray]:
    """The metric of the sample and of each resample (resamples,), both averaged over training seeds."""
    value = float(np.mean([METRICS[metric].value(sample.labels, p) for p in sample.probabilities]))
    if np.isnan(value):
        return value, np.full(resamples, np.nan)
    weights = group_weights(sample.groups, resamples, seed)
    return value, np.mean([METRICS[metric].weighted(sample.labels, p, weights) for p in sample.probabilities], axis=0)


def _explain(sample: Sample) -> str:
    return explain_undefined(sample.labels, sample.probabilities.shape[2])


def _make_interval(value: float, resampled: np.ndarray, groups: np.ndarray, undefined: str = "") -> Interval:
    """The percentile interval; `undefined` is the reason to give if the value is NaN."""
    n, defined = len(resampled), resampled[~np.isnan(resampled)]
    if np.isnan(value):
        return Interval(dropped=n, reason=undefined)
    if len(np.unique(np.asarray(groups, dtype=str))) < 2:
        return Interval(value, dropped=n, reason="one patient has no spread")
    if len(defined) < max(2, n / 2):
        return Interval(value, dropped=n, reason=f"a class is absent from {n - len(defined)} of {n} resamples")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    reason = "no width: every resample gives the same value" if defined.min() == defined.max() else ""
    return Interval(value, float(low), float(high), len(defined), n - len(defined), reason)
