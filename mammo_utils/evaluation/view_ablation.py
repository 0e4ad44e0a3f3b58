"""What a trained system does with its views: the weights of its gate, and its predictions without each view.

A view's weight (Eq. 9) describes how the features were mixed, not why. What a view contributes to the predictions is
measured by removing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from mammo_utils.config import Training
from mammo_utils.evaluation.bootstrap import Interval, Sample, mean_interval, paired_difference
from mammo_utils.evaluation.runs import RunResult
from mammo_utils.metrics import auc, softmax
from mammo_utils.training.dataset import ExamSet
from mammo_utils.training.predict import predict
from mammo_utils.vocabulary import CLASSES, SIDES, VIEWS


def view_weights(run: RunResult, exams: pd.DataFrame) -> pd.DataFrame:
    """List the gate's weights in the reported part, one row per breast and view.

    `exams` is the cohort's exam table, for the class of each breast. Columns: exam, group, side, class, complete (all
    four views are present), view, weight, present.
    """
    table = run.predictions[run.predictions["part"] == run.reported].reset_index(drop=True)
    classes = [exams.at[exam, f"{side}_class"] for exam, side in zip(table["exam"], table["side"], strict=True)]
    complete = table[[f"present_{view}" for view in VIEWS]].all(axis=1)
    breasts = table[["exam", "group", "side"]].assign(**{"class": classes, "complete": complete})
    columns = [{"view": v, "weight": table[f"weight_{v}"], "present": table[f"present_{v}"]} for v in VIEWS]
    return pd.concat([breasts.assign(**values) for values in columns], ignore_index=True)


def weight_table(weights: pd.DataFrame, *, resamples: int, seed: int = 0) -> pd.DataFrame:
    """Average the weight of each view by class and side of the breast, over exams with all four views.

    Args:
        weights: The table made by `view_weights`.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        One row per class and side: n_exams and, for each view, its mean weight and the ends of its interval,
        `<view>_low` and `<view>_high`. The four means of a row sum to 1.
    """
    complete, rows = weights[weights["complete"]], []
    for name, side in product(CLASSES, SIDES):
        breasts = complete[(complete["class"] == name) & (complete["side"] == side)]
        if len(breasts):
            row: dict[str, Any] = {"class": name, "side": side, "n_exams": breasts["exam"].nunique()}
            for view, cell in breasts.groupby("view"):
                groups = cell["group"].to_numpy()
                row |= _prefix(view, mean_interval(cell["weight"], groups, resamples=resamples, seed=seed))
            rows.append(row)
    columns = [f"{view}{end}" for view in VIEWS for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["class", "side", "n_exams", *columns])


def absent_weight(weights: pd.DataFrame) -> dict[str, float]:
    """Average the weight of absent and of present views over exams that lack a view: n_exams, absent, present.

    With missing="zeros" (the paper) an absent view may get weight; with "masked" its weight is exactly 0.
    """
    views = weights[~weights["complete"]].drop_duplicates(["exam", "view"])
    absent, present = (float(views.loc[views["present"] == state, "weight"].mean()) for state in (False, True))
    return {"n_exams": views["exam"].nunique(), "absent": absent, "present": present}


@dataclass(frozen=True)
class Removal:
    """Predictions of one task for the same n breasts with all views of an exam and without one of them.

    Attributes:
        view: The removed view.
        before: The predictions with all views.
        after: The predictions without the view.
        sides: (n,) "L" or "R".
        exams: (n,) exam of each breast.
    """

    view: str
    before: Sample
    after: Sample
    sides: np.ndarray
    exams: np.ndarray


def remove_views(model: nn.Module, exams: ExamSet, settings: Training) -> dict[str, list[Removal]]:
    """Predict again without each view, which is made absent as in training (zeros, and the presence mask).

    Args:
        model: A system in eval mode.
        exams: The exams; a view is removed from those that have it and at least one other view.
        settings: Training settings, for the batch size and precision.

    Returns:
        Task -> one `Removal` for each view that was removed from any exam.
    """
    everything = [True] * len(VIEWS)
    complete, _ = _predict_shown(model, exams, everything, settings)
    removals: dict[str, list[Removal]] = {task: [] for task in complete}
    present = exams.present.cpu().numpy()
    for index, view in enumerate(VIEWS):
        positions = np.flatnonzero(present[:, index] & (present.sum(1) > 1))
        if not len(positions):
            continue
        chosen = select_exams(exams, positions)
        reduced, _ = _predict_shown(model, chosen, [other != view for other in VIEWS], settings)
        sides = np.tile(SIDES, len(chosen))
        names, groups = (np.repeat(np.array(values, dtype=str), 2) for values in (chosen.names, chosen.groups))
        for task, probabilities in complete.items():
            labels = chosen.labels[task].cpu().numpy().ravel()  # (2E,)
            both = np.stack([probabilities[positions], reduced[task]]).reshape(2, 1, len(labels), -1)
            before, after = (Sample(labels, p, groups).select(labels >= 0) for p in both)
            removals[task].append(Removal(view, before, after, sides[labels >= 0], names[labels >= 0]))
    return removals


def select_exams(exams: ExamSet, positions: np.ndarray) -> ExamSet:
    """Select exams by position, in the order of `positions`."""
    index = torch.as_tensor(positions, device=exams.rows.device)
    return replace(
        exams,
        names=tuple(exams.names[i] for i in positions),
        groups=tuple(exams.groups[i] for i in positions),
        rows=exams.rows[index],
        labels={task: labels[index] for task, labels in exams.labels.items()},
    )


def removal_table(removals: dict[str, list[Removal]], *, resamples: int, seed: int = 0) -> pd.DataFrame:
    """Tabulate the effect of removing each view, one row per task, view and side of the breast.

    Args:
        removals: The result of `remove_views`.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        auc, auc_without and auc_change with its paired interval; and the mean change in the probability of the highest
        class (malignant, or the highest BI-RADS category) with its interval, for breasts of that class
        (change_of_class) and for all others (change_of_others).
    """
    rows, bootstrap = [], {"resamples": resamples, "seed": seed}
    listed = [(task, removal) for task, of_task in removals.items() for removal in of_task]
    for (task, removal), side in product(listed, ("both", *SIDES)):
        selected = (removal.sides == side) | (side == "both")
        if not selected.any():
            continue
        before, after = removal.before.select(selected), removal.after.select(selected)
        row = {"task": task, "view": removal.view, "side": side}
        row |= {"n_exams": len(set(removal.exams[selected])), "n_breasts": int(selected.sum())}
        row["auc"], row["auc_without"] = (auc(s.labels, s.probabilities[0]) for s in (before, after))
        change = paired_difference(after, before, "auc", **bootstrap)
        row |= _prefix("auc_change", change) | {"reason": change.reason}
        gain = (after.probabilities - before.probabilities)[0, :, -1]  # (n,) of the highest class
        highest = before.labels == before.probabilities.shape[2] - 1
        for name, breasts in (("change_of_class", highest), ("change_of_others", ~highest)):
            row |= _prefix(name, mean_interval(gain[breasts], before.groups[breasts], **bootstrap))
        rows.append(row)
    return pd.DataFrame(rows)


def _prefix(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def predict_with_views(
    model: nn.Module, exams: ExamSet, position: int, shown: Sequence[bool], settings: Training
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Predict one exam from some of its views.

    Args:
        model: A system in eval mode.
        exams: The set that the exam belongs to.
        position: Its position in the set.
        shown: (4,) one bool per view; a view that the exam lacks stays absent.
        settings: Training settings, for the precision.

    Returns:
        Task -> probabilities (2, K) by side, and the gate's weights (4,).
    """
    probabilities, weights = _predict_shown(model, select_exams(exams, np.array([position])), shown, settings)
    return {task: values[0] for task, values in probabilities.items()}, weights[0]


def _predict_shown(model: nn.Module, exams: ExamSet, shown: Sequence[bool], settings: Training):
    """Predict with the views shown (4,) only."""
    rows = torch.where(torch.tensor(list(shown), device=exams.rows.device), exams.rows, -1)
    logits, weights = predict(model, replace(exams, rows=rows), settings)
    return {task: softmax(values) for task, values in logits.items()}, weights
