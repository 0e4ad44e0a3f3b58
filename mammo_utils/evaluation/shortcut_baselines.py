"""Shortcuts: what can be told of a breast without looking for a lesion.

Logistic regressions on the mean intensity of each view, on thumbnails of 8 x 8 pixels and on which views there
are, and the majority class. A system worth its name beats them; a cohort worth its name is not solved by them.
They see the run's own exams: fitted on the training part, penalty chosen on the validation part as the systems
choose their epoch there, scored on the reported part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mammo_utils.config import Study
from mammo_utils.evaluation.bootstrap import Interval, Sample, interval
from mammo_utils.metrics import METRICS, auc
from mammo_utils.training.dataset import ExamSet
from mammo_utils.training.run import RunData, load_data

THUMBNAIL = 8  # pixels a side
PENALTIES = (0.001, 0.01, 0.1, 1.0)  # scikit-learn's C: smaller is stronger


@dataclass(frozen=True)
class Baseline:
    """One fitted baseline: its answers for the reported part, breasts ordered by exam and side."""

    name: str
    shortcut: bool  # False for the majority class
    sample: Sample
    auc: float
    n_exams: int


def load_subsets(study: Study, subsets: Iterable[str]) -> tuple[dict[str, RunData], str]:
    """Subset -> the exams on which its runs are trained and judged, as the study's folder has them now.

    They are the same for every task mode of the grid; the first whose labels the data have is asked for. Where they
    cannot be read, none, and one sentence on why.
    """
    found: dict[str, RunData] = {}
    for subset in subsets:
        why = ""
        for task_mode in study.grid.task_modes:
            try:
                found[subset] = load_data(study.run("resnet18", task_mode, subset, 0))
                break
            except (OSError, ValueError) as error:
                why = why or f"The data of the subset {subset} cannot be read: {error}"
        if subset not in found:
            return found, why
    return found, ""


def shortcut_baselines(parts: Mapping[str, ExamSet], reported: str, task: str) -> list[Baseline]:
    """Fit and score the baselines of one subset and task.

    parts: part -> exams (training.run.RunData.parts). Empty where the training part has one class only
    or, as of a data set without diagnoses, none, and where the reported part has no label of the task.
    """
    labels = {part: exams.labels[task].cpu().numpy().ravel() for part, exams in parts.items()}  # (2E,), -1 absent
    n_classes = 2 if task == "diagnosis" else len(next(iter(parts.values())).categories)
    known = {part: values >= 0 for part, values in labels.items()}
    y = labels["train"][known["train"]]
    if len(np.unique(y)) < 2 or not known[reported].any():
        return []
    groups = np.repeat(np.array(parts[reported].groups, dtype=str), 2)[known[reported]]
    exams = np.repeat(np.array(parts[reported].names, dtype=str), 2)[known[reported]]
    truth = labels[reported][known[reported]]

    def scored(name: str, shortcut: bool, answers: np.ndarray) -> Baseline:
        return Baseline(name, shortcut, Sample(truth, answers[None], groups), auc(truth, answers), len(set(exams)))

    share = np.bincount(y, minlength=n_classes) / len(y)
    found = [scored("majority class", False, np.tile(share, (len(truth), 1)))]
    for name, features in FEATURES.items():
        x = {part: breast_features(features(exams))[known[part]] for part, exams in parts.items()}
        models = [_fit(x["train"], y, penalty) for penalty in PENALTIES]
        validation = labels["validation"][known["validation"]]
        scores = [auc(validation, _answers(model, x["validation"], n_classes)) for model in models]
        best = models[int(np.nanargmax(scores))] if not np.isnan(scores).all() else models[1]
        found.append(scored(name, True, _answers(best, x[reported], n_classes)))
    return found


def baseline_table(
    baselines: Mapping[tuple[str, str], list[Baseline]], *, resamples: int, seed: int = 0
) -> pd.DataFrame:
    """One row a (subset, task, baseline, metric): value, interval over patients, exams and breasts."""
    rows = []
    for (subset, task), found in baselines.items():
        for baseline in found:
            for metric in METRICS:
                ours: Interval = interval(baseline.sample, metric, resamples=resamples, seed=seed)
                rows.append(
                    {"subset": subset, "task": task, "baseline": baseline.name, "metric": metric}
                    | {"value": ours.value, "low": ours.low, "high": ours.high, "reason": ours.reason}
                    | {"n_exams": baseline.n_exams, "n_breasts": len(baseline.sample.labels)}
                )
    columns = ["subset", "task", "baseline", "metric", "value", "low", "high", "reason", "n_exams", "n_breasts"]
    return pd.DataFrame(rows, columns=columns)


# --- features -------------------------------------------------------------------------------------------


def thumbnails(exams: ExamSet, side: int = THUMBNAIL) -> np.ndarray:
    """(E, 4, side * side), means over tiles in [0, 1]; an absent view is 0."""
    images, rows = exams.images, exams.rows.cpu().numpy()
    size = images.shape[1] // side * side  # the few pixels beyond a whole number of tiles are left out
    if not size:
        raise ValueError(f"Images of {images.shape[1]} pixels a side are too small for thumbnails of {side}.")
    result = np.zeros((*rows.shape, side * side))
    for position in zip(*np.nonzero(rows >= 0), strict=True):
        tiles = images[int(rows[position])].cpu().numpy()[:size, :size].reshape(side, size // side, side, size // side)
        result[position] = tiles.mean((1, 3)).ravel() / 255
    return result


def mean_intensity(exams: ExamSet) -> np.ndarray:
    """(E, 4, 1), the mean of each view in [0, 1]; an absent view is 0."""
    return thumbnails(exams, side=1)


def availability(exams: ExamSet) -> np.ndarray:
    """(E, 4, 1), 1 where the view is there."""
    return exams.present.cpu().numpy()[..., None].astype(float)


FEATURES: dict[str, Callable[[ExamSet], np.ndarray]] = {
    "mean intensity": mean_intensity,
    f"{THUMBNAIL}x{THUMBNAIL} thumbnails": thumbnails,
    "view availability": availability,
}


def breast_features(views: np.ndarray) -> np.ndarray:
    """(E, 4, F) by view to (2E, 4F) by breast, L then R: the breast's own CC and MLO, then the other's.

    Right breasts are stored flipped, so own and other mean the same for both sides.
    """
    both = np.stack([views, views[:, [2, 3, 0, 1]]], axis=1)  # (E, 2, 4, F)
    return both.reshape(2 * len(views), -1)


def _fit(x: np.ndarray, y: np.ndarray, penalty: float):
    # classes weigh alike, as in the systems' loss (§4.1)
    model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000)
    return make_pipeline(StandardScaler(), model).fit(x, y)


def _answers(model, x: np.ndarray, n_classes: int) -> np.ndarray:
    """(n, n_classes); a class that the training part lacks has probability 0."""
    answers = np.zeros((len(x), n_classes))
    if len(x):
        answers[:, model.classes_] = model.predict_proba(x)
    return answers
