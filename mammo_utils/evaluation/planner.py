"""How many patients and trainings another study needs, from the spread that is measured in this one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm

from mammo_utils.evaluation.bootstrap import FEWEST, Sample, class_patients
from mammo_utils.evaluation.intervals import LEVEL, cluster_variance, patient_sums
from mammo_utils.evaluation.runs import RunResult, group_by_seed, sample
from mammo_utils.metrics import auc, auc_influence
from mammo_utils.vocabulary import REFERENCE

POWER = 0.8
DIFFERENCES = (0.02, 0.05)  # in AUC
PLAN_COLUMNS = """subset task_mode system task auc n_patients se design_effect correlation se_difference sd_seeds
sd_reference difference patients patients_corrected seeds""".split()


def hanley_mcneil(area: float, positives: float, negatives: float) -> float:
    """Compute the variance of an AUC of independent breasts (Hanley and McNeil 1982).

    Args:
        area: The AUC.
        positives: Number of positive breasts.
        negatives: Number of negative breasts.
    """
    both_positive, both_negative = area / (2 - area), 2 * area**2 / (1 + area)
    spread = (
        area * (1 - area) + (positives - 1) * (both_positive - area**2) + (negatives - 1) * (both_negative - area**2)
    )
    return spread / (positives * negatives)


def design_effect(breasts: Sample) -> float:
    """Measure how much a patient's two breasts change the variance of the AUC, for two classes."""
    influence = auc_influence(breasts.labels, breasts.probabilities[0])
    return float(cluster_variance(influence, breasts.groups) / cluster_variance(influence, np.arange(len(influence))))


def influence_correlation(one: Sample, other: Sample) -> float:
    """Correlate the patients' influences on the AUCs of two systems: what their comparison gains by being paired."""
    sums = [patient_sums(auc_influence(s.labels, s.probabilities[0]), s.groups) for s in (one, other)]
    return float(np.corrcoef(*sums)[0, 1])


def needed_patients(n_patients: int, se_difference: float, difference: float, comparisons: int = 1) -> float:
    """Compute the patients needed to find a difference with a power of 80 % at a level of 5 %.

    Args:
        n_patients: Patients with which the standard error was measured.
        se_difference: Standard error of the paired difference over patients.
        difference: True difference of the AUCs.
        comparisons: Number of comparisons that Holm's method corrects for, at its strictest step.
    """
    return float(n_patients * (_quantiles(comparisons) * se_difference / difference) ** 2)


def needed_seeds(sd_seeds: float, sd_reference: float, difference: float, comparisons: int = 1) -> float:
    """Compute the trainings of each of two systems needed to find a difference with any number of patients.

    The variance of the difference of two means of n trainings is (sd_seeds² + sd_reference²) / n.

    Args:
        sd_seeds: Standard deviation of the system's AUC over trainings; NaN for one training, and so is the result.
        sd_reference: That of the reference's AUC.
        difference: True difference of the AUCs.
        comparisons: As in `needed_patients`.
    """
    return float((_quantiles(comparisons) / difference) ** 2 * (sd_seeds**2 + sd_reference**2))


def _quantiles(comparisons: int) -> float:
    return norm.ppf(1 - (1 - LEVEL) / 2 / comparisons) + norm.ppf(POWER)


def plan_table(runs: Sequence[RunResult]) -> pd.DataFrame:
    """Plan the comparison of each system with the reference, for the tasks with two classes.

    The standard error is sqrt(design effect x Hanley and McNeil's variance); that of a difference is sqrt(2 (1 - r))
    times it, where r is the measured correlation. `patients_corrected` is for Holm's correction over all systems.
    `seeds` rests on the spread of both systems over their trainings and is NaN if one of them was trained once.
    """
    groups, rows = group_by_seed(runs), []
    for (subset, mode, system), seeds in groups.items():
        reference = groups.get((subset, mode, REFERENCE), [])
        for task in seeds[0].tasks if reference and system != REFERENCE else ():
            one, other = sample(seeds, task), sample(reference, task)
            same = np.array_equal(one.labels, other.labels) and np.array_equal(one.groups, other.groups)
            if one.probabilities.shape[2] > 2 or not same or min(class_patients(one)) < FEWEST:
                continue
            areas, reference_areas = ([auc(s.labels, p) for p in s.probabilities] for s in (one, other))
            area, n = float(np.mean(areas)), len(set(one.groups))
            se = np.sqrt(design_effect(one) * hanley_mcneil(area, (one.labels == 1).sum(), (one.labels == 0).sum()))
            row = {"subset": subset, "task_mode": mode, "system": system, "task": task, "auc": area, "n_patients": n}
            row |= {"se": se, "design_effect": design_effect(one), "correlation": influence_correlation(one, other)}
            row["se_difference"] = np.sqrt(2 * (1 - row["correlation"])) * se
            spreads = [np.std(a, ddof=1) if len(a) > 1 else np.nan for a in (areas, reference_areas)]
            row |= dict(zip(("sd_seeds", "sd_reference"), spreads, strict=True))
            others = sum(key[:2] == (subset, mode) and key[2] != REFERENCE for key in groups)
            for difference in DIFFERENCES:
                counts = [needed_patients(n, row["se_difference"], difference, k) for k in (1, others)]
                found = {"difference": difference, "patients": np.ceil(counts[0])}
                found["patients_corrected"] = np.ceil(counts[1])
                found["seeds"] = np.ceil(needed_seeds(*spreads, difference))
                rows.append(row | found)
    return pd.DataFrame(rows, columns=PLAN_COLUMNS)
