"""What a trained system does with its views: the weights of its gate, and its answers when a view is taken away.

A view's weight (Eq. 9) says how the features were mixed, not why; what a view is worth to the answer is found by
answering again without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import nn

from mammo_utils.config import Training
from mammo_utils.evaluation.bootstrap import Interval, Sample, interval, mean_interval, paired_difference
from mammo_utils.evaluation.runs import RunResult
from mammo_utils.training.dataset import ExamSet
from mammo_utils.training.predict import predict
from mammo_utils.vocabulary import CLASSES, SIDES, VIEWS

# --- weights of the gate --------------------------------------------------------------------------------


def view_weights(run: RunResult, exams: pd.DataFrame) -> pd.DataFrame:
    """One row a (breast, view) of the reported part: exam, group, side, class, view, weight, present, complete.

    exams: the study's exam table, for the class of each breast; complete: all four views are there.
    """
    table = run.predictions[run.predictions["part"] == run.reported].reset_index(drop=True)
    classes = [exams.at[exam, f"{side}_class"] for exam, side in zip(table["exam"], table["side"], strict=True)]
    present = table[[f"present_{view}" for view in VIEWS]].to_numpy(bool)
    kept = table[["exam", "group", "side"]].assign(**{"class": classes, "complete": present.all(1)})
    return pd.concat(
        kept.assign(view=view, weight=table[f"weight_{view}"], present=present[:, index])
        for index, view in enumerate(VIEWS)
    ).reset_index(drop=True)


def weight_table(weights: pd.DataFrame, *, resamples: int, seed: int = 0) -> pd.DataFrame:
    """Mean weight of each view by class and side of the breast, over exams with all four views.

    One row a (class, side): n_exams, and for each view its mean and, as <view>_low and <view>_high, the
    interval over patients. The four means of a row sum to 1.
    """
    complete = weights[weights["complete"]]
    rows = []
    for name in CLASSES:
        for side in SIDES:
            cell = complete[(complete["class"] == name) & (complete["side"] == side)]
            if cell.empty:
                continue
            row: dict = {"class": name, "side": side, "n_exams": cell["exam"].nunique()}
            for view in VIEWS:
                values = cell[cell["view"] == view]
                mean = mean_interval(values["weight"], values["group"].to_numpy(), resamples=resamples, seed=seed)
                row |= {view: mean.value, f"{view}_low": mean.low, f"{view}_high": mean.high}
            rows.append(row)
    columns = ["class", "side", "n_exams", *(f"{view}{end}" for view in VIEWS for end in ("", "_low", "_high"))]
    return pd.DataFrame(rows, columns=columns)


def absent_weight(weights: pd.DataFrame) -> dict[str, float]:
    """The mean weight that an absent view gets and the exams it rests on; a present view's beside it.

    With missing="zeros" (the paper) an absent view may take weight; with "masked" it takes exactly 0.
    """
    exams = weights.drop_duplicates(["exam", "view"])
    exams = exams[~exams["complete"]]
    absent, present = exams[~exams["present"]], exams[exams["present"]]
    return {
        "n_exams": exams["exam"].nunique(),
        "absent": float(absent["weight"].mean()) if len(absent) else np.nan,
        "present": float(present["weight"].mean()) if len(present) else np.nan,
    }


# --- views taken away -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Removal:
    """Answers with all views of an exam and without one of them, for the same breasts, one task.

    labels, sides, groups, exams: (n,); before, after: probabilities (n, K).
    """

    view: str
    labels: np.ndarray
    sides: np.ndarray
    groups: np.ndarray
    exams: np.ndarray
    before: np.ndarray
    after: np.ndarray


def remove_views(
    model: nn.Module, exams: ExamSet, settings: Training, views: Sequence[str] = VIEWS
) -> dict[str, list[Removal]]:
    """Evaluate again with each view absent, as a view is absent in training (zeros, and a presence mask).

    Counted are the exams that have the view and another one besides; with the view as their only one nothing
    would be left to look at. Returns task -> one Removal a view that any exam has.
    """
    before, _ = predict(model, exams, settings)
    found: dict[str, list[Removal]] = {task: [] for task in before}
    for view in views:
        index = VIEWS.index(view)
        present = exams.present.cpu().numpy()
        kept = np.flatnonzero(present[:, index] & (present.sum(1) > 1))
        if not len(kept):
            continue
        fewer = take(exams, kept)
        rows = fewer.rows.clone()
        rows[:, index] = -1
        after, _ = predict(model, replace(fewer, rows=rows), settings)
        for task in before:
            labels = fewer.labels[task].cpu().numpy()  # (E, 2)
            known = labels >= 0
            groups = np.broadcast_to(np.array(fewer.groups, dtype=str)[:, None], labels.shape)
            names = np.broadcast_to(np.array(fewer.names, dtype=str)[:, None], labels.shape)
            sides = np.broadcast_to(np.array(SIDES), labels.shape)
            found[task].append(
                Removal(
                    view,
                    labels[known],
                    sides[known],
                    groups[known],
                    names[known],
                    before[task][kept][known],
                    after[task][known],
                )
            )
    return found


def take(exams: ExamSet, positions: np.ndarray) -> ExamSet:
    """Some exams of a set, in the order of `positions`."""
    index = torch.as_tensor(positions, device=exams.rows.device)
    return replace(
        exams,
        names=tuple(exams.names[i] for i in positions),
        groups=tuple(exams.groups[i] for i in positions),
        rows=exams.rows[index],
        labels={task: labels[index] for task, labels in exams.labels.items()},
    )


def removal_table(removals: dict[str, list[Removal]], *, resamples: int, seed: int = 0) -> pd.DataFrame:
    """What each removal does: one row a (task, view, side of the breast).

    auc, auc_without, auc_change with its paired interval over patients; and the mean change in the probability
    of the highest class (malignant, or the highest BI-RADS category), apart for the breasts of that class
    (change_of_class) and the others (change_of_others), each with its interval.
    """
    rows = []
    for task, found in removals.items():
        for removal in found:
            for side in ("both", *SIDES):
                kept = np.ones(len(removal.labels), bool) if side == "both" else removal.sides == side
                if not kept.any():
                    continue
                groups, labels = removal.groups[kept], removal.labels[kept]
                before = Sample(labels, removal.before[kept][None], groups)
                after = Sample(labels, removal.after[kept][None], groups)
                settings = {"resamples": resamples, "seed": seed}
                row = {"task": task, "view": removal.view, "side": side}
                row |= {"n_exams": len(set(removal.exams[kept])), "n_breasts": int(kept.sum())}
                row |= {"auc": interval(before, "auc", resamples=1).value}
                row |= {"auc_without": interval(after, "auc", resamples=1).value}
                change = paired_difference(after, before, "auc", **settings)
                row |= _named("auc_change", change) | {"reason": change.reason}
                moved = (removal.after - removal.before)[kept, -1]
                highest = labels == removal.before.shape[1] - 1
                for name, which in (("change_of_class", highest), ("change_of_others", ~highest)):
                    row |= _named(name, mean_interval(moved[which], groups[which], **settings))
                rows.append(row)
    return pd.DataFrame(rows)


def _named(name: str, found: Interval) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


# --- one exam -------------------------------------------------------------------------------------------


def predict_with_views(
    model: nn.Module, exams: ExamSet, position: int, shown: Sequence[bool], settings: Training
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One exam answered with some of its views: task -> (2, K) probabilities by side, and weights (4,).

    shown: one bool a view of VIEWS; a view that the exam lacks stays absent whatever is asked.
    """
    one = take(exams, np.array([position]))
    rows = torch.where(torch.tensor(list(shown), device=one.rows.device), one.rows, -1)
    probabilities, weights = predict(model, replace(one, rows=rows), settings)
    return {task: values[0] for task, values in probabilities.items()}, weights[0]
