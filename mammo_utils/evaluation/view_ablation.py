"""What a trained system predicts from some of its views, and what weight it gives to views that are absent.

All of it is read from a run's files. Removing a view shows what the predictions depend on, with two limits: most of the
15 subsets never occur in training, and a gate that gives a view no weight makes its removal have no effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress, product
from typing import Any

import numpy as np
import pandas as pd

from mammo_utils.config import Training
from mammo_utils.evaluation.bootstrap import bootstrap_settings, interval, paired_difference
from mammo_utils.evaluation.gate import log_odds_shares, main_task, view_shares
from mammo_utils.evaluation.runs import RunResult, categories, probabilities, read_views, sample, with_views
from mammo_utils.metrics import softmax
from mammo_utils.models.system import System
from mammo_utils.study import Study
from mammo_utils.training.dataset import ExamSet
from mammo_utils.training.views import ALL_VIEWS, VIEW_SUBSETS, classify, encode, shown_views
from mammo_utils.vocabulary import VIEW_TITLES, VIEWS


def absent_weight(run: RunResult) -> dict[str, float]:
    """Average the weight of absent and of present views over exams of the reported part that lack a view.

    With missing="zeros" (the paper) an absent view may get weight; with "masked" its weight is exactly 0.

    Returns:
        n_exams, absent, present.
    """
    exams = run.predictions[run.predictions["part"] == run.reported].drop_duplicates("exam")
    weights, present = (exams[[f"{kind}_{view}" for view in VIEWS]].to_numpy() for kind in ("weight", "present"))
    lacking = ~present.astype(bool).all(1)
    weights, present = weights[lacking], present[lacking].astype(bool)
    means = {
        k: float(weights[of].mean()) if of.any() else np.nan for k, of in (("absent", ~present), ("present", present))
    }
    return {"n_exams": int(lacking.sum()), **means}


def present_views(views: pd.DataFrame) -> np.ndarray:
    """The subset of views that the exam of each row has (see `VIEW_SUBSETS`), (n,) int."""
    return views[[f"present_{view}" for view in VIEWS]].to_numpy(int) @ (1 << np.arange(len(VIEWS)))


def subset_table(runs: Sequence[RunResult], study: Study) -> pd.DataFrame:
    """Score each finished run from every subset of the views.

    Args:
        runs: The runs of the study; those without `views.parquet` are left out.
        study: The study, for the settings of the bootstrap.

    Returns:
        One row per run, task and subset. `views` is the subset (see `VIEW_SUBSETS`) and `shown` its names; `trained`
        whether exams with just these views, or with views dropped at random, occur in training. `auc` with its
        interval, and the paired `change` from all four views, are over the `n_exams` exams that have all four;
        `auc_all` is over all `n_all` exams that have those of the subset. Ends of intervals are `<measure>_low` and
        `<measure>_high`.
    """
    bootstrap = bootstrap_settings(study)
    rows = []
    for run in with_views(runs):
        views = read_views(run)
        four = present_views(views) == ALL_VIEWS
        met = {int(subset) for subset in run.metrics.get("train_views", {})}
        for task, subset in product(run.tasks, VIEW_SUBSETS):
            row: dict[str, Any] = {"run": run.id, "task": task, "views": subset}
            row["shown"] = " + ".join(compress(VIEW_TITLES.values(), shown_views(subset)))
            row["trained"] = subset in met or run.spec.training.view_dropout > 0
            chosen = views["views"] == subset
            same, everyone, whole = (
                replace(run, predictions=views[rows_of])
                for rows_of in (chosen & four, chosen, four & (views["views"] == ALL_VIEWS))
            )
            found = {"auc": interval(sample([same], task), "auc", **bootstrap)}
            more = len(everyone.predictions) > len(same.predictions)
            found["auc_all"] = interval(sample([everyone], task), "auc", **bootstrap) if more else found["auc"]
            found["change"] = paired_difference(sample([same], task), sample([whole], task), "auc", **bootstrap)
            for name, of in found.items():
                row |= {name: of.value, f"{name}_low": of.low, f"{name}_high": of.high}
            row |= {"n_exams": same.predictions["exam"].nunique(), "n_all": everyone.predictions["exam"].nunique()}
            rows.append(row)
    return pd.DataFrame(rows)


# --- one exam ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExamPrediction:
    """The prediction for one exam from some of its views.

    Attributes:
        probabilities: Task -> (2, K) by side.
        weights: (4,) of the views.
        contributions: (2, 4) by side and view, to the log-odds of the first task, see `gate.CompleteExams`.
    """

    probabilities: dict[str, np.ndarray]
    weights: np.ndarray
    contributions: np.ndarray


def stored_prediction(run: RunResult, views: pd.DataFrame, exam: str, shown: Sequence[bool]) -> ExamPrediction:
    """Look up what a run predicts for one exam from some of its views; all NaN if none of them is shown.

    Args:
        run: The run.
        views: What `read_views` returns for it.
        exam: The exam's research ID.
        shown: (4,) one bool per view; a view that the exam lacks stays absent.
    """
    rows, task = views[views["exam"] == exam].sort_values("side"), main_task(run)
    subset = int(present_views(rows)[0]) & sum(1 << i for i, there in enumerate(shown) if there)
    classes = {task: categories(run, task) for task in run.tasks}
    found = rows[rows["views"] == (subset or rows["views"].iloc[0])]
    prediction = ExamPrediction(
        {task: probabilities(found, task, of) for task, of in classes.items()},
        found[[f"weight_{view}" for view in VIEWS]].to_numpy(float)[0],
        view_shares(found, task, classes[task]),
    )
    if subset:
        return prediction
    nothing = {task: np.full_like(p, np.nan) for task, p in prediction.probabilities.items()}
    return ExamPrediction(nothing, np.full(len(VIEWS), np.nan), np.full_like(prediction.contributions, np.nan))


def predict_exams(model: System, exams: ExamSet, settings: Training) -> list[ExamPrediction]:
    """Predict exams that belong to no run, from all of their views.

    Args:
        model: A system.
        exams: The exams.
        settings: Training settings, for the batch size and precision.
    """
    encoded = encode(model, exams, settings)
    logits, weights, parts = classify(model, encoded.views, encoded.present, settings.batch_size)
    task = next(iter(logits))
    shares = log_odds_shares(parts[task] if task in parts else np.full((len(exams), 2, len(VIEWS), 2), np.nan))
    return [
        ExamPrediction({task: softmax(values[i]) for task, values in logits.items()}, weights[i], shares[i])
        for i in range(len(exams))
    ]
