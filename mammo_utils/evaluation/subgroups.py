"""The diagnosis by subgroup: AUC by density, age and views; sensitivity by kind and size of the lesion and BI-RADS."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, norm

from mammo_utils.data.cohort import Cohort
from mammo_utils.evaluation.bootstrap import FEWEST, Sample, class_patients, interval
from mammo_utils.evaluation.calibration import RUN_COLUMNS, diagnosis_samples
from mammo_utils.evaluation.failures import find_wrong
from mammo_utils.evaluation.intervals import LEVEL, Z, cluster_variance, wilson_interval
from mammo_utils.evaluation.runs import RunResult, labelled_breasts
from mammo_utils.metrics import auc, auc_influence
from mammo_utils.vocabulary import DENSITIES, LESION_KINDS, VIEWS

AGES = {"below 45": (0, 45), "45 to 59": (45, 60), "60 and above": (60, np.inf)}
SIZES = ("small", "medium", "large")  # thirds of the breasts with an outlined lesion
ORDER = [*DENSITIES, *AGES, "unknown", "four", "fewer", *"12345", *LESION_KINDS, *SIZES]  # of the groups
SUBGROUP_COLUMNS = [*RUN_COLUMNS, "attribute", "group", "measure", "n_patients", "n_positive", "n_negative"]
SUBGROUP_COLUMNS += "value low high difference difference_low difference_high p p_bh answer reason".split()


def breast_attributes(breasts: pd.DataFrame, cohort: Cohort) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Describe breasts: density, age and views of all, and BI-RADS, kind and size of the lesion of malignant ones.

    Args:
        breasts: Rows of `labelled_breasts`.
        cohort: Their cohort.

    Returns:
        Two tables with a row per breast; "" where an attribute does not apply or is not known.
    """
    exams, sides = cohort.exams.loc[breasts["exam"]], breasts["side"].to_numpy()
    ages = exams["age"].to_numpy()
    known = [[name for name, (low, high) in AGES.items() if low <= age < high] for age in ages]
    density = np.where(sides == "L", exams["L_density"], exams["R_density"])
    four = breasts[[f"present_{view}" for view in VIEWS]].all(axis=1)
    every = pd.DataFrame({"density": density, "age": [names[0] if names else "unknown" for names in known]})
    every["views"] = np.where(four, "four", "fewer")
    birads = np.where(sides == "L", exams["L_birads"], exams["R_birads"])
    malignant = breasts["diagnosis"].to_numpy() == 1
    lesions = cohort.lesions.assign(size=[_root_area(points) for points in cohort.lesions["points"]])
    largest = lesions.sort_values("size").drop_duplicates(["exam", "side"], keep="last").set_index(["exam", "side"])
    found = largest.reindex(pd.MultiIndex.from_frame(breasts[["exam", "side"]]))
    kinds, sizes = found["kind"].fillna("").to_numpy(), found["size"].to_numpy(float)
    sizes[~malignant] = np.nan
    thirds = np.searchsorted(np.nanquantile(sizes, [1 / 3, 2 / 3]), sizes) if (~np.isnan(sizes)).any() else sizes
    named = ["" if np.isnan(size) else SIZES[int(third)] for size, third in zip(sizes, thirds, strict=True)]
    only = pd.DataFrame({"BI-RADS": [str(b) if b > 0 else "" for b in birads], "lesion": kinds, "lesion size": named})
    only[~malignant] = ""
    return every, only


def _root_area(points: str) -> float:
    """The square root of an outline's area, in pixels of the original image."""
    x, y = np.array(json.loads(points), float).reshape(-1, 2).T
    return float(np.sqrt(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2))


def subgroup_table(runs: Sequence[RunResult], cohort: Cohort) -> pd.DataFrame:
    """Tabulate AUC or sensitivity of each training by subgroup, and the difference from all other breasts.

    The sensitivity is that at the threshold with a specificity of 0.90 on validation. With fewer than five patients of
    a class, in the group or outside it, there are counts only.

    One row per training, attribute and group; `p_bh` is corrected over all rows of a training (Benjamini and Hochberg).
    """
    tables = []
    for key, run, reported in diagnosis_samples(runs):
        every, malignant = breast_attributes(labelled_breasts(run, "diagnosis"), cohort)
        hits, positive, rows = ~find_wrong(run)[0], reported.labels == 1, []
        for attribute, values in [*every.items(), *malignant.items()]:
            ranks = attribute in every
            for group in sorted(set(values) - {""}, key=lambda name: ORDER.index(name) if name in ORDER else -1):
                own, known = (values == group).to_numpy(), (values != "").to_numpy()
                row = {**key, "attribute": attribute, "group": group, "measure": "AUC" if ranks else "sensitivity"}
                row |= {"n_patients": len(set(reported.groups[own])), "n_positive": (own & positive).sum()}
                row["n_negative"] = (own & ~positive).sum()
                found = compare_auc(reported, own) if ranks else compare_share(hits, reported.groups, own, known & ~own)
                rows.append(row | found)
        table = pd.DataFrame(rows, columns=SUBGROUP_COLUMNS)
        tested = table["p"].notna()
        table.loc[tested, "p_bh"] = (
            false_discovery_control(table.loc[tested, "p"].astype(float)) if tested.any() else []
        )
        apart = table["p_bh"].astype(float) < 1 - LEVEL
        table["answer"] = np.where(tested, np.where(apart, "told apart", "not told apart"), "no test")
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=SUBGROUP_COLUMNS)


def compare_auc(sample: Sample, own: np.ndarray) -> dict[str, Any]:
    """Compute the AUC of some breasts (n,) bool and its difference from that of the others."""
    group, rest = sample.select(own), sample.select(~own)
    if min(class_patients(group)) < FEWEST:
        return {"reason": f"fewer than {FEWEST} patients of a class"}
    found = interval(group, "auc", resamples=0)
    row = {"value": found.value, "low": found.low, "high": found.high, "reason": ""}
    if min(class_patients(rest)) < FEWEST:
        return row | {"reason": f"fewer than {FEWEST} patients of a class in the rest"}
    influence = np.zeros(len(own))
    influence[own] = auc_influence(group.labels, group.probabilities[0])
    influence[~own] = -auc_influence(rest.labels, rest.probabilities[0])
    difference = found.value - auc(rest.labels, rest.probabilities[0])
    return row | _difference(difference, cluster_variance(influence, sample.groups))


def compare_share(hits: np.ndarray, groups: np.ndarray, own: np.ndarray, rest: np.ndarray) -> dict[str, Any]:
    """Compute the share of hits among some breasts and its difference from that among others.

    Args:
        hits: (n,) bool.
        groups: (n,) patients.
        own: (n,) bool, the breasts of the group.
        rest: (n,) bool, the others.
    """
    if len(set(groups[own])) < FEWEST:
        return {"reason": f"fewer than {FEWEST} patients"}
    value, low, high = wilson_interval(hits[own], groups[own])
    row = {"value": value, "low": low, "high": high, "reason": ""}
    if len(set(groups[rest])) < FEWEST:
        return row | {"reason": f"fewer than {FEWEST} patients in the rest"}
    other, other_low, other_high = wilson_interval(hits[rest], groups[rest])
    # Newcombe's square-and-add interval, and a score test: without a difference both have the share of all
    ends = np.hypot([value - low, high - value], [other_high - other, other - other_low])
    both = own | rest
    share, n = hits[both].mean(), both.sum()
    clustered = cluster_variance((hits[both] - share) / n, groups[both])  # at least that of independent breasts
    variance = max(clustered, share * (1 - share) / n) * n * (1 / own.sum() + 1 / rest.sum())
    test = _difference(value - other, variance)
    return row | test | {"difference_low": value - other - ends[0], "difference_high": value - other + ends[1]}


def _difference(value: float, variance: float) -> dict[str, float]:
    half = Z * np.sqrt(variance)
    p = 2 * norm.sf(abs(value) / np.sqrt(variance)) if variance > 0 else 1.0
    return {"difference": value, "difference_low": value - half, "difference_high": value + half, "p": float(p)}
