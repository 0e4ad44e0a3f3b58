"""Shortcut baselines: what can be predicted about a breast without looking for a lesion.

Logistic regressions on the mean intensity of each view, on 8 x 8 thumbnails, on which views are present, on the
maximum, the percentiles, the histogram and the high-pass extremes, and on the differences between the sides; a
gradient boosting on every statistic at once; and the majority class. A useful system beats them, and a useful cohort
is not solved by them. They use the exams of the runs: they are fitted on the training part, their strength is chosen on
the validation part (where the systems choose their epoch), and they are scored on the reported part. They need
the thumbnails and statistics that notebook 02 has kept, but no image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mammo_utils.data.cohort import DataError
from mammo_utils.evaluation.bootstrap import Sample, interval
from mammo_utils.images.statistics import image_statistics
from mammo_utils.images.store import STATISTICS, THUMBNAIL, average_tiles, load_thumbnails
from mammo_utils.metrics import METRICS, auc
from mammo_utils.study import Study
from mammo_utils.training.dataset import ExamSet
from mammo_utils.training.run import RunData, load_data
from mammo_utils.vocabulary import REFERENCE

PENALTIES = (0.001, 0.01, 0.1, 1.0)  # scikit-learn's C: smaller is stronger
ROUNDS = (15, 50, 150)  # trees of the boosting
TABLE_COLUMNS = "subset task baseline metric value low high reason n_exams n_breasts".split()


@dataclass(frozen=True)
class Baseline:
    """One fitted baseline.

    Attributes:
        name: Its name in tables and figures.
        shortcut: False for the majority class.
        sample: Its predictions for the labelled breasts of the reported part.
        auc: Its AUC on them.
        n_exams: Number of their exams.
        exams: (n,) the exam of each breast, sorted, the left breast first; by it, folds are pooled.
    """

    name: str
    shortcut: bool
    sample: Sample
    auc: float
    n_exams: int
    exams: np.ndarray | None = None


def load_subsets(study: Study, subsets: Iterable[str]) -> tuple[dict[str, RunData], str]:
    """Load the exams on which the runs of each subset are trained and scored, with thumbnails as their images.

    Without the thumbnails, which an earlier version did not keep, the image store is needed. The exams are the same
    for every task mode; the first one whose labels exist is used. Loading stops at the first subset that cannot be
    read; the second value is then one sentence with the reason, else "". The keys are `RunSpec.data_name`: a subset, or
    one for each of its folds.
    """
    loaded: dict[str, RunData] = {}
    folder = study.folder / "thumbnails"
    try:
        store = load_thumbnails(folder) if folder.is_dir() else None
    except DataError as error:
        return {}, str(error)
    for subset, fold in product(subsets, study.grid.folds or (None,)):
        errors = []
        for task_mode in study.grid.task_modes:
            spec = study.run(REFERENCE, task_mode, subset, 0, fold=fold)
            try:
                loaded[spec.data_name] = load_data(spec, store=store)
                break
            except (OSError, ValueError) as error:
                errors.append(f"The data of the subset {subset} cannot be read: {error}")
        else:
            return loaded, next(iter(errors), "")
    return loaded, ""


def load_statistics(study: Study) -> pd.DataFrame | None:
    """Read the statistics of each image of the store that notebook 02 has kept, None if an earlier version kept none.

    Raises:
        DataError: They are damaged.
    """
    folder = study.folder / "thumbnails"
    if not folder.is_dir():
        return None
    load_thumbnails(folder)  # compares the table with its hash
    return pd.read_parquet(folder / STATISTICS)


def shortcut_baselines(
    parts: Mapping[str, ExamSet], reported: str, task: str, statistics: pd.DataFrame | None = None
) -> list[Baseline]:
    """Fit and score the baselines of one subset and task.

    Args:
        parts: Part of the split -> its exams (`training.run.RunData.parts`).
        reported: The part on which the baselines are scored.
        task: "diagnosis" or "birads".
        statistics: Of each image of the store, see `image_statistics`; measured here if None.

    Returns:
        The baselines, the majority class first; none if the training part has fewer than two classes, or the reported
        part no label.
    """
    labels = {part: exams.labels[task].cpu().numpy().ravel() for part, exams in parts.items()}  # (2E,), -1 absent
    labelled = {part: values >= 0 for part, values in labels.items()}
    labels = {part: values[labelled[part]] for part, values in labels.items()}
    if len(np.unique(labels["train"])) < 2 or not len(labels[reported]):
        return []
    n_classes = 2 if task == "diagnosis" else len(parts[reported].categories)
    groups, names = (
        np.repeat(np.array(values, dtype=str), 2)[labelled[reported]]
        for values in (parts[reported].groups, parts[reported].names)
    )

    def score(name: str, shortcut: bool, predictions: np.ndarray) -> Baseline:
        sample = Sample(labels[reported], predictions[None], groups)
        return Baseline(name, shortcut, sample, auc(labels[reported], predictions), len(set(names)), names)

    shares = np.bincount(labels["train"], minlength=n_classes) / len(labels["train"])
    baselines = [score("majority class", False, np.tile(shares, (len(groups), 1)))]
    measured = {part: measure_views(exams, statistics) for part, exams in parts.items()}
    for name, compute in FEATURES.items():
        x = {part: compute(exams, measured[part])[labelled[part]] for part, exams in parts.items()}
        fits = [_boost(trees) for trees in ROUNDS] if name == BOOSTING else [_regress(c) for c in PENALTIES]
        models = [model.fit(x["train"], labels["train"]) for model in fits]
        scores = [auc(labels["validation"], _predict(model, x["validation"], n_classes)) for model in models]
        best = models[int(np.nanargmax(scores))] if not np.isnan(scores).all() else models[1]
        baselines.append(score(name, True, _predict(best, x[reported], n_classes)))
    return baselines


def pool_baselines(folds: Sequence[list[Baseline]]) -> list[Baseline]:
    """Pool the predictions of the baselines that were fitted on each fold; of one fold, return its own.

    The breasts are sorted as `runs.labelled_breasts` sorts those of the systems, so that both can be paired.
    """
    if len(folds) == 1:
        return folds[0]
    pooled = []
    for same in zip(*folds, strict=True):
        samples = [baseline.sample for baseline in same]
        exams = np.concatenate([baseline.exams for baseline in same])
        order = np.argsort(exams, kind="stable")
        labels = np.concatenate([sample.labels for sample in samples])[order]
        predictions = np.concatenate([sample.probabilities for sample in samples], axis=1)[:, order]
        groups = np.concatenate([sample.groups for sample in samples])[order]
        n_exams = sum(baseline.n_exams for baseline in same)
        whole = replace(same[0], sample=Sample(labels, predictions, groups), n_exams=n_exams, exams=exams[order])
        pooled.append(replace(whole, auc=auc(labels, predictions[0])))
    return pooled


def baseline_table(baselines: Mapping[tuple[str, str], list[Baseline]], *, resamples: int, seed: int) -> pd.DataFrame:
    """Tabulate the metrics of baselines with their intervals over patients.

    Args:
        baselines: (subset, task) -> its baselines.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.
    """
    rows = []
    for (subset, task), fitted in baselines.items():
        for baseline in fitted:
            counts = {"n_exams": baseline.n_exams, "n_breasts": len(baseline.sample.labels)}
            for metric in METRICS:
                row = {"subset": subset, "task": task, "baseline": baseline.name, "metric": metric} | counts
                rows.append(row | asdict(interval(baseline.sample, metric, resamples=resamples, seed=seed)))
    return pd.DataFrame(rows, columns=TABLE_COLUMNS)


# --- features -------------------------------------------------------------------------------------------


def thumbnails(exams: ExamSet, side: int = THUMBNAIL) -> np.ndarray:
    """Average each view over side x side tiles: (E, 4, side * side) in [0, 1], 0 for an absent view."""
    images, rows = exams.images, exams.rows.cpu().numpy()
    means = np.zeros((*rows.shape, side * side))
    for position in zip(*np.nonzero(rows >= 0), strict=True):
        means[position] = average_tiles(images[int(rows[position])].cpu().numpy(), side).ravel() / 255
    return means


def measure_views(exams: ExamSet, statistics: pd.DataFrame | None = None) -> pd.DataFrame:
    """Look up the statistics of each view, 4E rows by exam and view, NaN for an absent view; measure them if None."""
    rows = exams.rows.cpu().numpy().ravel()
    if statistics is None:
        used = np.unique(rows[rows >= 0])
        images = exams.images.numpy(force=True) if len(exams.images) else np.zeros((0, 1, 1), np.uint8)
        statistics = image_statistics(images[used]).set_axis(used)
    return statistics.reindex(rows).reset_index(drop=True)


def _select(statistics: pd.DataFrame, pattern: str) -> np.ndarray:
    """Features by breast (2E, 4F) of the statistics whose names match; 0 for an absent view."""
    values = statistics.filter(regex=pattern).fillna(0).to_numpy()
    return breast_features(values.reshape(-1, 4, values.shape[1]))


def _side_differences(statistics: pd.DataFrame) -> np.ndarray:
    """Own minus other breast of each statistic, by breast (2E, 2F), with its size; 0 if the other is absent."""
    values = statistics.to_numpy().reshape(-1, 2, 2, statistics.shape[1]).mean(2)  # (E, side, F)
    difference = (values - values[:, ::-1]).reshape(-1, values.shape[-1])
    return np.nan_to_num(np.hstack([difference, np.abs(difference)]))


def _everything(statistics: pd.DataFrame) -> np.ndarray:
    """The breast's own views and the differences between the sides, by breast (2E, 4F)."""
    own = statistics.to_numpy().reshape(-1, 2 * statistics.shape[1])
    return np.hstack([own, _side_differences(statistics)])


BOOSTING = "boosted statistics"
FEATURES: dict[
    str, Callable[[ExamSet, pd.DataFrame], np.ndarray]
] = {  # exams, statistics -> features by breast (2E, F)
    "mean intensity": lambda exams, _: breast_features(thumbnails(exams, side=1)),
    f"{THUMBNAIL}x{THUMBNAIL} thumbnails": lambda exams, _: breast_features(thumbnails(exams)),
    "view availability": lambda exams, _: breast_features(exams.present.cpu().numpy()[..., None].astype(float)),
    "maximum": lambda _, statistics: _select(statistics, "^maximum$"),
    "percentiles": lambda _, statistics: _select(statistics, "^percentile"),
    "histogram": lambda _, statistics: _select(statistics, "^histogram"),
    "high-pass extremes": lambda _, statistics: _select(statistics, "^(high-pass|blob) .*(mum|99.9)$"),
    "side differences": lambda _, statistics: _side_differences(statistics),
    BOOSTING: lambda _, statistics: _everything(statistics),
}


def breast_features(views: np.ndarray) -> np.ndarray:
    """Rearrange features by view (E, 4, F) to features by breast (2E, 4F), L before R: its own CC and MLO first.

    Right breasts are stored flipped, so that a feature means the same for both sides.
    """
    both = np.stack([views, views[:, [2, 3, 0, 1]]], axis=1)  # (E, 2, 4, F)
    return both.reshape(2 * len(views), -1)


# classes have equal weight, as in the systems' loss (§4.1)


def _regress(penalty: float):
    return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000))


def _boost(trees: int) -> HistGradientBoostingClassifier:
    # without class weights, with which scikit-learn bins each feature in Python, 150 times as slowly; AUCs need none
    return HistGradientBoostingClassifier(
        max_iter=trees,
        learning_rate=0.06,
        max_leaf_nodes=8,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    )


def _predict(model, x: np.ndarray, n_classes: int) -> np.ndarray:
    """Probabilities (n, n_classes); 0 for a class that the training part lacks."""
    probabilities = np.zeros((len(x), n_classes))
    if len(x):
        probabilities[:, model.classes_] = model.predict_proba(x)
    return probabilities
