"""95 % intervals over patients and over trainings, and paired differences between systems.

The AUC has an interval by formula: symmetric on the logit scale, with Obuchowski's variance over patients, or
Newcombe's score interval where that variance is 0. A score that is the same for every breast has an AUC of 0.5 by
construction, and no interval. Other metrics have a percentile interval by bootstrap: a patient is drawn with all its
breasts, because two breasts of one patient are not independent. A resample is a vector of counts, one per breast; all
resamples are scored at once with these counts as weights. For a given seed every interval uses the same resamples, so
that systems are compared on the same patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm, t

from mammo_utils.evaluation.intervals import (
    LEVEL,
    Z,
    cluster_variance,
    freedom,
    logit_interval,
    score_interval,
    seeds_variance,
    total_quantile,
)
from mammo_utils.metrics import METRICS, Metric, explain_undefined
from mammo_utils.study import Study

FEWEST = 5  # patients of each class; with fewer there is no interval
ONE_TRAINING = "one training: its spread is not in the interval"
CONSTANT = "the same score for every breast: 0.5 by construction"


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval.

    Attributes:
        value: The number, NaN if undefined.
        low: Lower end of the interval over patients, NaN if there is none.
        high: Its upper end.
        low_all: Lower end of the interval over patients and trainings, NaN for one training.
        high_all: Its upper end.
        se: Standard error over patients.
        se_seeds: Standard error over trainings, NaN for one training.
        p: Two-sided p value of a difference from 0, NaN otherwise.
        method: How the interval is computed.
        resamples: Number of bootstrap resamples in which the metric is defined; 0 for an interval by formula.
        dropped: Number of resamples in which it is not, because a class was not drawn.
        reason: Why the value or its interval is missing.
    """

    value: float = np.nan
    low: float = np.nan
    high: float = np.nan
    low_all: float = np.nan
    high_all: float = np.nan
    se: float = np.nan
    se_seeds: float = np.nan
    p: float = np.nan
    method: str = ""
    resamples: int = 0
    dropped: int = 0
    reason: str = ""

    def __str__(self) -> str:
        if np.isnan(self.value):
            return ""
        return f"{self.value:.3f} ({'no interval' if np.isnan(self.low) else f'{self.low:.3f} to {self.high:.3f}'})"


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


def bootstrap_settings(study: Study) -> dict[str, int]:
    """The study's settings of the bootstrap, as arguments of `interval`."""
    return {"resamples": study.evaluation.resamples, "seed": study.evaluation.seed}


def interval(sample: Sample, metric: str | Metric, *, resamples: int, seed: int = 0) -> Interval:
    """Compute a metric, averaged over training seeds, with its intervals over patients and over trainings.

    Args:
        sample: Labels and probabilities of one system.
        metric: A key of `METRICS`, or a metric.
        resamples: Bootstrap resamples, where the metric has no formula.
        seed: Of the resamples; the same seed gives every system the same patients.
    """
    entry = METRICS[metric] if isinstance(metric, str) else metric
    value, seeds = _value(sample, entry)
    if reason := _explain(sample, entry, value):
        return Interval(value, reason=reason)
    if entry.influence:
        if (sample.probabilities == sample.probabilities[:, :1]).all():
            return Interval(value, reason=CONSTANT)  # the same AUC whoever the patients are
        variance = float(cluster_variance(_influence(sample, entry), sample.groups))
        positives, negatives = class_patients(sample)
        found = Interval(value, se=np.sqrt(variance), se_seeds=np.sqrt(seeds), method="logit")
        if not variance > 0:
            low, high = score_interval(value, positives, negatives)
            return replace(found, low=low, high=high, method="score")
        low, high = logit_interval(value, variance)
        if np.isnan(seeds):
            return replace(found, low=low, high=high)
        quantile = total_quantile(variance, [(seeds, len(sample.probabilities))])
        low_all, high_all = logit_interval(value, variance + seeds, quantile)
        return replace(found, low=low, high=high, low_all=low_all, high_all=high_all)
    return percentile_interval(value, _resample(sample, entry, resamples, seed), [(seeds, len(sample.probabilities))])


def paired_difference(
    system: Sample, reference: Sample, metric: str | Metric, *, resamples: int, seed: int = 0
) -> Interval:
    """Compute the metric of one system minus that of another on the same breasts, and test whether it is 0.

    `p` includes the spread over trainings if both systems were trained more than once.

    Args:
        system: The one system.
        reference: The other.
        metric: A key of `METRICS`, or a metric.
        resamples: Bootstrap resamples, where the metric has no formula.
        seed: Of the resamples.

    Raises:
        ValueError: The two samples are not of the same breasts.
    """
    if not (np.array_equal(system.labels, reference.labels) and np.array_equal(system.groups, reference.groups)):
        raise ValueError("A paired difference needs two samples of the same breasts in the same order.")
    entry, pair = METRICS[metric] if isinstance(metric, str) else metric, (system, reference)
    (value, seeds), (base, base_seeds) = (_value(sample, entry) for sample in pair)
    trainings = [(v, len(sample.probabilities)) for v, sample in zip((seeds, base_seeds), pair, strict=True)]
    if reason := _explain(system, entry, value):
        return Interval(value - base, reason=reason)
    if not entry.influence:
        resampled, other = (_resample(sample, entry, resamples, seed) for sample in pair)
        found = percentile_interval(value - base, resampled - other, trainings)
        below, above = ((sign * (resampled - other) <= 0).sum() for sign in (1, -1))
        p = min(2 * (1 + min(below, above)) / (1 + resamples), 1)
        return replace(found, p=p if np.isnan(found.se_seeds) else _p_value(found, trainings))
    influence = _influence(system, entry) - _influence(reference, entry)
    variance = float(cluster_variance(influence, system.groups))
    found = Interval(value - base, se=np.sqrt(variance), se_seeds=np.sqrt(seeds + base_seeds), method="influence")
    half = np.array([Z * found.se] * 2)
    if not variance > 0 and not np.array_equal(system.probabilities, reference.probabilities):
        # both separate the classes perfectly: combined from the score intervals, as if they were independent
        (low, high), (base_low, base_high) = (score_interval(v, *class_patients(system)) for v in (value, base))
        half = np.hypot([value - low, high - value], [base_high - base, base - base_low])
        return replace(found, low=found.value - half[0], high=found.value + half[1], p=1.0, method="score")
    found = replace(found, low=found.value - half[0], high=found.value + half[1])
    return replace(_with_trainings(found, trainings), p=_p_value(found, trainings))


def mean_interval(values: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int = 0) -> Interval:
    """Compute a mean with its interval over patients.

    Args:
        values: (n,), one per breast or exam.
        groups: (n,), their patients.
        resamples: Bootstrap resamples.
        seed: Of the resamples.
    """
    values = np.asarray(values, float)
    if not len(values):
        return Interval(reason="nothing to average")
    if len(np.unique(np.asarray(groups, dtype=str))) < 2:
        return Interval(float(values.mean()), reason="one patient has no spread")
    weights = group_weights(groups, resamples, seed)
    return percentile_interval(float(values.mean()), (weights @ values) / weights.sum(1))


def group_weights(groups: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
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


def class_patients(sample: Sample) -> tuple[int, int]:
    """Count the patients with a positive and with a negative breast, for the class that has the fewest patients."""
    k, groups = sample.probabilities.shape[2], sample.groups.astype(str)
    classes = [1] if k == 2 else range(k)
    counts = [(len(set(groups[sample.labels == c])), len(set(groups[sample.labels != c]))) for c in classes]
    return min(counts, key=min)


def _value(sample: Sample, metric: Metric) -> tuple[float, float]:
    """The metric's mean over trainings and the variance of that mean, NaN for one training."""
    values = [metric.value(sample.labels, p) for p in sample.probabilities]
    return float(np.mean(values)), seeds_variance(np.array(values))


def _influence(sample: Sample, metric: Metric) -> np.ndarray:
    return np.mean([metric.influence(sample.labels, p) for p in sample.probabilities], axis=0)


def _resample(sample: Sample, metric: Metric, resamples: int, seed: int = 0) -> np.ndarray:
    """The metric of each resample (resamples,), averaged over trainings."""
    weights = group_weights(sample.groups, resamples, seed)
    return np.mean([metric.weighted(sample.labels, p, weights) for p in sample.probabilities], axis=0)


def _explain(sample: Sample, metric: Metric, value: float) -> str:
    """Why there is no value or no interval, "" if there are both."""
    if np.isnan(value):
        return explain_undefined(sample.labels, sample.probabilities.shape[2]) or "undefined"
    fewest = min(class_patients(sample)) if metric.by_class else len(set(sample.groups))
    subject = "a class has" if metric.by_class else "there are"
    return f"{subject} {fewest} patients; an interval needs {FEWEST}" if fewest < FEWEST else ""


def percentile_interval(value: float, resampled: np.ndarray, trainings: Sequence[tuple[float, int]] = ()) -> Interval:
    """Return a number with the percentile interval of its resamples.

    Args:
        value: The number.
        resampled: (R,) its value in each resample, NaN where undefined.
        trainings: (variance of the mean over trainings, number of trainings) of each system that it compares.
    """
    defined = resampled[~np.isnan(resampled)]
    counts = {"resamples": len(defined), "dropped": len(resampled) - len(defined)}
    if len(defined) < 2:
        return Interval(value, **counts, reason="too few resamples")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    reason = "no width: every resample gives the same value" if defined.min() == defined.max() else ""
    seeds = np.sqrt(sum(variance for variance, _ in trainings)) if trainings else np.nan
    found = Interval(value, float(low), float(high), se=float(defined.std(ddof=1)), se_seeds=seeds, **counts)
    return _with_trainings(replace(found, method="percentile bootstrap", reason=reason), trainings)


def _with_trainings(found: Interval, trainings: list[tuple[float, int]]) -> Interval:
    """Stretch an interval over patients by the ratio of the total standard error to that over patients."""
    if np.isnan(found.se_seeds) or not found.se > 0:
        return found
    stretch = np.hypot(found.se, found.se_seeds) / found.se * total_quantile(found.se**2, trainings) / Z
    low, high = (found.value + stretch * (end - found.value) for end in (found.low, found.high))
    return replace(found, low_all=float(low), high_all=float(high))


def _p_value(found: Interval, trainings: list[tuple[float, int]]) -> float:
    """Two-sided p of a difference from 0, over patients and, where they are known, over trainings."""
    total = found.se if np.isnan(found.se_seeds) else np.hypot(found.se, found.se_seeds)
    if not total > 0:
        return 1.0
    if np.isnan(found.se_seeds):
        return float(2 * norm.sf(abs(found.value) / total))
    return float(2 * t.sf(abs(found.value) / total, freedom(found.se**2, trainings)))
