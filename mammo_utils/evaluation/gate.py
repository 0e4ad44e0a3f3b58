"""What the gate's weights are worth: how much of a breast's prediction comes from the other breast.

All numbers are computed from a run's `views.parquet`, over the exams of the reported part that have all four views. The
log-odds are those of the last class (malignant, or the highest BI-RADS category), "positive" below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp
from scipy.stats import rankdata, spearmanr

from mammo_utils.evaluation.bootstrap import Interval, Sample, bootstrap_settings, interval, mean_interval
from mammo_utils.evaluation.intervals import wilson_interval
from mammo_utils.evaluation.runs import RunResult, categories, read_views, with_views
from mammo_utils.metrics import softmax
from mammo_utils.models.fusion import FUSIONS
from mammo_utils.study import Study
from mammo_utils.training.views import ALL_VIEWS
from mammo_utils.vocabulary import SIDES, VIEWS

BREASTS = (0b0011, 0b1100)  # the views of the left and of the right breast, see `training.views.VIEW_SUBSETS`


@dataclass(frozen=True)
class CompleteExams:
    """E exams with all four views, as one run predicts them.

    Attributes:
        exams: (E,) research IDs.
        groups: (E,) patients.
        positive: (E, 2) by side: 1 for the last class, 0 for another one, -1 without a label.
        odds: (16, E, 2) log-odds by subset of the views, see `VIEW_SUBSETS`; NaN for the empty one.
        alpha: (E, 4) weights of the views.
        contributions: (E, 2, 4) contribution of each view to each breast's log-odds. With more than two classes, to
            the logit of the last class less the mean logit. NaN if the task has a CORN head, see `view_shares`.
    """

    exams: np.ndarray
    groups: np.ndarray
    positive: np.ndarray
    odds: np.ndarray
    alpha: np.ndarray
    contributions: np.ndarray


def main_task(run: RunResult) -> str:
    """The task that the gate is examined on: the diagnosis if the run has it."""
    return run.tasks[0]


def complete_exams(run: RunResult, views: pd.DataFrame) -> CompleteExams:
    """Arrange the rows of a run's `views.parquet` that belong to exams with all four views.

    Args:
        run: The run.
        views: What `read_views` returns for it.
    """
    task = main_task(run)
    classes = categories(run, task)
    table = views[views[[f"present_{view}" for view in VIEWS]].all(axis=1)]
    table = table.sort_values(["views", "exam", "side"], ignore_index=True)
    whole = table[table["views"] == ALL_VIEWS].reset_index(drop=True)
    left = whole[whole["side"] == SIDES[0]]
    n = len(left)
    labels = whole[task].to_numpy()
    odds = log_odds(table[[f"{task}_logit_{k}" for k in classes]].to_numpy()).reshape(ALL_VIEWS, n, 2)
    return CompleteExams(
        left["exam"].to_numpy(str),
        left["group"].to_numpy(str),
        np.where(labels < 0, -1, labels == classes[-1]).reshape(n, 2),
        np.concatenate([np.full((1, n, 2), np.nan), odds]),
        left[[f"weight_{view}" for view in VIEWS]].to_numpy(float),
        view_shares(whole, task, classes).reshape(n, 2, 4),
    )


def log_odds(logits: np.ndarray) -> np.ndarray:
    """Log-odds of the last class from logits (..., K), in float64."""
    logits = np.asarray(logits, np.float64)
    return logits[..., -1] - logsumexp(logits[..., :-1], axis=-1)


def view_shares(table: pd.DataFrame, task: str, classes: Sequence[int]) -> np.ndarray:
    """Contribution of each view to the log-odds of the last class, (n, 4), from rows of a run's `views.parquet`.

    They are NaN for BI-RADS with `model.birads_head: corn`: its log-probabilities are no sum over the views.

    Args:
        table: The rows.
        task: "diagnosis" or "birads".
        classes: Its classes.
    """
    columns = [f"{task}_from_{view}_{k}" for view in VIEWS for k in classes]
    return log_odds_shares(table.reindex(columns=columns).to_numpy(float).reshape(-1, len(VIEWS), len(classes)))


def log_odds_shares(contributions: np.ndarray) -> np.ndarray:
    """Contributions to the log-odds of the last class, from those to the logits (..., K).

    With more than two classes, log-odds are no sum over views; the contribution to the last logit stands for them.
    """
    last = contributions[..., -1]
    return last - contributions[..., 0] if contributions.shape[-1] == 2 else last


# --- the weights ----------------------------------------------------------------------------------------


def weight_spread(exams: CompleteExams, fusion: str) -> dict[str, float]:
    """Describe how far the gate chooses a single view.

    Args:
        exams: The exams.
        fusion: Name of the fusion, for the views that compete: all four, or the two of each breast.

    Returns:
        `entropy`, the mean over exams of H(alpha) divided by its largest value (0: one view has all the weight, 1: all
        have the same); `median_largest`, the median of the largest weight; `share_above_95`, the share of exams whose
        largest weight is above 0.95. The weights are normalised to sum to 1 first.
    """
    alpha = _competing(exams.alpha, fusion)
    alpha = alpha / alpha.sum(1, keepdims=True)
    entropy = -(alpha * np.log(np.maximum(alpha, 1e-300))).sum(1) / np.log(alpha.shape[1])
    largest = alpha.max(1)
    return {
        "entropy": float(entropy.mean()),
        "median_largest": float(np.median(largest)),
        "share_above_95": float((largest > 0.95).mean()),
    }


def left_weight_auc(exams: CompleteExams, *, resamples: int, seed: int = 0) -> Interval:
    """Score "the left breast is the positive one" by the share of the weight on the left views.

    Only exams with exactly one positive breast count. An AUC near 1 or near 0 means that the weights hold the answer:
    near 1 they favour the positive breast, near 0 the other one.

    Args:
        exams: The exams.
        resamples: Bootstrap resamples.
        seed: Of the resamples.
    """
    one = (exams.positive.min(1) >= 0) & (exams.positive.sum(1) == 1)
    share = exams.alpha[one, :2].sum(1) / exams.alpha[one].sum(1)
    sample = Sample(exams.positive[one, 0], np.stack([1 - share, share], 1)[None], exams.groups[one])
    return interval(sample, "auc", resamples=resamples, seed=seed)


def agreement(exams: CompleteExams, fusion: str, *, resamples: int, seed: int = 0) -> dict[str, Interval]:
    """Compare the order of the weights with that of the effects of leaving one view out.

    The effect of a view is the sum over both breasts of the absolute change in log-odds when it is removed.

    Args:
        exams: The exams.
        fusion: Name of the fusion, for the views that compete.
        resamples: Bootstrap resamples.
        seed: Of the resamples.

    Returns:
        `top`, the share of exams in which the view with the largest weight has the largest effect (by chance one in
        the number of competing views); `spearman`, the mean rank correlation within an exam. If all weights of an exam
        are equal, it is not counted.
    """
    change = [exams.odds[ALL_VIEWS] - exams.odds[ALL_VIEWS ^ (1 << i)] for i in range(len(VIEWS))]
    effect = _competing(np.abs(np.stack(change, 1)).sum(2), fusion)  # (E, 4, 2) -> (E, 4)
    alpha = _competing(exams.alpha, fusion)
    groups = np.repeat(exams.groups, len(alpha) // max(1, len(exams.groups)))
    differ = (np.ptp(alpha, axis=1) > 1e-6) & (np.ptp(effect, axis=1) > 0)
    alpha, effect, groups = alpha[differ], effect[differ], groups[differ]
    ranks = [rankdata(values, axis=1) - (alpha.shape[1] + 1) / 2 for values in (alpha, effect)]
    norms = [np.sqrt((rank**2).sum(1)) for rank in ranks]
    correlations = (ranks[0] * ranks[1]).sum(1) / np.prod(norms, 0)
    return {
        "top": Interval(*wilson_interval(alpha.argmax(1) == effect.argmax(1), groups), method="Wilson"),
        "spearman": mean_interval(correlations, groups, resamples=resamples, seed=seed),
    }


def seed_agreement(runs: Sequence[RunResult]) -> pd.DataFrame:
    """Compare the weights of trainings that differ in their seed alone, one row per pair of finished runs.

    Args:
        runs: The runs of the study.

    Returns:
        run, other, n_exams, and `correlation`: the rank correlation over exams of the share of the weight on the left
        views. It is 1 if both trainings weigh alike, and -1 if the weights have turned round.
    """
    alike = ("system", "task_mode", "subset", "blocks", "fold", "variant")
    gated = [r for r in with_views(runs) if FUSIONS[r.spec.model.fusion].gated]
    gated = [r for r in gated if not FUSIONS[r.spec.model.fusion].per_breast]
    rows = []
    for one, other in combinations(gated, 2):
        if all(getattr(one.spec, name) == getattr(other.spec, name) for name in alike):
            pair = [complete_exams(run, read_views(run)) for run in (one, other)]
            if len(pair[0].exams) > 1 and np.array_equal(pair[0].exams, pair[1].exams):
                left = [exams.alpha[:, :2].sum(1) / exams.alpha.sum(1) for exams in pair]
                row = {"run": one.id, "other": other.id, "n_exams": len(pair[0].exams)}
                rows.append(row | {"correlation": float(spearmanr(*left).statistic)})
    return pd.DataFrame(rows, columns=["run", "other", "n_exams", "correlation"])


def _competing(values: np.ndarray, fusion: str) -> np.ndarray:
    """Values (E, 4) by the views that compete for weight: (E, 4), or (2E, 2) if each breast has its own gate."""
    return values.reshape(-1, 2) if FUSIONS[fusion].per_breast else values


# --- the other breast -------------------------------------------------------------------------------------


def cross_reading(exams: CompleteExams, *, resamples: int, seed: int = 0) -> dict[str, Interval]:
    """Measure how far a breast's log-odds move when its own views are removed, and when those of the other breast are.

    Args:
        exams: The exams.
        resamples: Bootstrap resamples.
        seed: Of the resamples.

    Returns:
        Mean absolute changes of positive and of other breasts: `positive_own`, `positive_other`, `negative_own`,
        `negative_other`. A system that reads each breast from its own views has 0 in both `_other`.
    """
    found, groups = {}, np.repeat(exams.groups[:, None], 2, axis=1)
    for name, label in (("positive", 1), ("negative", 0)):
        chosen = exams.positive == label
        for whose, subsets in (("own", BREASTS[::-1]), ("other", BREASTS)):  # the views that remain
            left = np.stack([exams.odds[subset][:, side] for side, subset in enumerate(subsets)], axis=1)
            change = np.abs(exams.odds[ALL_VIEWS] - left)[chosen]
            found[f"{name}_{whose}"] = mean_interval(change, groups[chosen], resamples=resamples, seed=seed)
    return found


def unseen_auc(exams: CompleteExams, *, resamples: int, seed: int = 0) -> Interval:
    """Compute the AUC of breasts that the system does not see, from the views of the other breast alone.

    Args:
        exams: The exams.
        resamples: Bootstrap resamples.
        seed: Of the resamples.
    """
    odds = np.stack([exams.odds[subset][:, side] for side, subset in enumerate(BREASTS[::-1])], axis=1)
    known = exams.positive >= 0
    p = softmax(np.stack([np.zeros(known.sum()), odds[known]], axis=1))
    groups = np.repeat(exams.groups[:, None], 2, axis=1)[known]
    return interval(Sample(exams.positive[known], p[None], groups), "auc", resamples=resamples, seed=seed)


# --- tables -----------------------------------------------------------------------------------------------


def gate_table(runs: Sequence[RunResult], study: Study) -> pd.DataFrame:
    """Describe each finished run's weights and cross-reading, one row per run.

    Runs without `views.parquet` are left out. The measures of the weights are empty for a fusion without a gate.

    Args:
        runs: The runs of the study.
        study: The study, for the settings of the bootstrap.

    Returns:
        run, fusion, task, n_exams, n_patients, and the measures of `weight_spread`, `left_weight_auc`, `agreement`,
        `cross_reading` and `unseen_auc`; `<measure>_low` and `<measure>_high` are the ends of an interval.
    """
    bootstrap = bootstrap_settings(study)
    rows = []
    for run in with_views(runs):
        exams, fusion = complete_exams(run, read_views(run)), run.spec.model.fusion
        row: dict[str, Any] = {"run": run.id, "fusion": fusion, "task": main_task(run)}
        row |= {"n_exams": len(exams.exams), "n_patients": len(set(exams.groups))}
        measures = cross_reading(exams, **bootstrap) | {"unseen_auc": unseen_auc(exams, **bootstrap)}
        if FUSIONS[fusion].gated and len(exams.exams):
            row |= weight_spread(exams, fusion) | {"chance": 0.5 if FUSIONS[fusion].per_breast else 0.25}
            measures |= agreement(exams, fusion, **bootstrap)
            if not FUSIONS[fusion].per_breast:  # there the weights of each breast sum to 1
                measures["left_weight_auc"] = left_weight_auc(exams, **bootstrap)
        for name, found in measures.items():
            row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)
