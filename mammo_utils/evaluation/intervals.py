"""Formulas for 95 % intervals and tests of patients as clusters of breasts.

Two breasts of a patient are not independent. A metric's variance is therefore estimated from its influence values
(`metrics.auc_influence`), summed by patient: Obuchowski, Biometrics 1997;53:567, whose variance is DeLong's if each
patient has one breast.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm, t

LEVEL = 0.95
Z = float(norm.ppf((1 + LEVEL) / 2))


def patient_sums(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Sum values (n,) or (n, F) by patient (n,): (patients,) or (patients, F)."""
    member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    sums = np.zeros((member.max(initial=-1) + 1, *values.shape[1:]))
    np.add.at(sums, member, values)
    return sums


def cluster_variance(influence: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Estimate the variance of a metric from the influence (n,) or (n, F) of each breast and its patient (n,)."""
    sums = patient_sums(influence, groups)
    return len(sums) / max(len(sums) - 1, 1) * (sums**2).sum(0)


def logit_interval(value: float, variance: float, quantile: float = Z) -> tuple[float, float]:
    """Compute the ends of the interval that is symmetric on the logit scale.

    Args:
        value: The metric, strictly between 0 and 1.
        variance: Its variance.
        quantile: Half width in standard errors.
    """
    half = quantile * np.sqrt(variance) / (value * (1 - value))
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


def score_interval(area: float, positives: int, negatives: int) -> tuple[float, float]:
    """Compute Newcombe's interval of an AUC by the score method (Stat Med 2006;25:559, method 5).

    It needs no estimated variance, so it has a width where all positives have higher scores than all negatives.

    Args:
        area: The AUC.
        positives: Number of patients with a positive breast.
        negatives: Number of patients with a negative breast.
    """
    more = (positives + negatives) / 2 - 1

    def gap(a: float) -> float:
        spread = a * (1 - a) * (1 + more * (1 - a) / (2 - a) + more * a / (1 + a)) / (positives * negatives)
        return (area - a) ** 2 - Z**2 * spread

    tiny = 1e-9  # 0 and 1 solve the equation of an area of 0 or 1
    low = brentq(gap, 0, min(area, 1 - tiny)) if area > 0 else 0.0
    high = brentq(gap, max(area, tiny), 1) if area < 1 else 1.0
    return float(low), float(high)


def wilson_interval(hits: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """Compute a share of breasts with Wilson's interval, for the effective number of breasts in clusters.

    Args:
        hits: (n,) bool, one per breast, or its expected value, from 0 to 1.
        groups: (n,) the patient of each breast.

    Returns:
        The share and the ends of its interval; NaN without breasts.
    """
    n, patients = len(hits), len(set(groups))
    if not n:
        return np.nan, np.nan, np.nan
    share = float(np.mean(hits))
    if not 0 < share < 1 or patients < 2:
        n = patients  # there is no spread to estimate the design effect from
    else:  # breasts / design effect; two breasts never count for more than two
        variance = cluster_variance((hits - share) / n, groups) * (patients - 1) / patients
        n = min(n, share * (1 - share) / variance) if variance > 0 else n
    return share, *wilson_ends(share, n)


def wilson_ends(share: float, n: float) -> tuple[float, float]:
    """Compute the ends of Wilson's score interval of a share of `n`, the effective number."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    # of 0 and 1 the ends are exact, where floats are not
    return float(centre - half) if share > 0 else 0.0, float(centre + half) if share < 1 else 1.0


# --- training seeds -------------------------------------------------------------------------------------


def seeds_variance(values: np.ndarray) -> float:
    """Estimate the variance of the mean over trainings: s² / S, NaN for one training."""
    return float(np.var(values, ddof=1) / len(values)) if len(values) > 1 else np.nan


def freedom(patients: float, seeds: list[tuple[float, int]]) -> float:
    """Compute Welch's and Satterthwaite's degrees of freedom of a total variance; infinite without seeds.

    Args:
        patients: Variance over patients.
        seeds: For each system its variance over trainings (`seeds_variance`) and the number of trainings.
    """
    spread = sum(variance**2 / (number - 1) for variance, number in seeds if number > 1)
    return (patients + sum(variance for variance, _ in seeds)) ** 2 / spread if spread else np.inf


def total_quantile(patients: float, seeds: list[tuple[float, int]]) -> float:
    """Find the half width in standard errors of an interval over patients and trainings.

    It is Student's, because a variance estimated from a few trainings is itself uncertain.

    Args:
        patients: Variance over patients.
        seeds: As in `freedom`.
    """
    return float(t.ppf((1 + LEVEL) / 2, freedom(patients, seeds)))


# --- many comparisons -----------------------------------------------------------------------------------


def holm(p: np.ndarray) -> np.ndarray:
    """Adjust p values (n,) so that the chance of any false finding among them is bounded; NaN stays NaN."""
    p = np.asarray(p, float)
    adjusted, known = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted
