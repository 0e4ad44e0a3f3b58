"""Shortcut baselines: what can be predicted about a breast without looking for a lesion.

Logistic regressions on the mean intensity of each view, on 8 x 8 thumbnails, on which views are present, on the
maximum, the percentiles, the histogram and the high-pass extremes, and on the differences between the sides; a
gradient boosting on every statistic at once; and the majority class. A useful system beats them, and a useful cohort
is not solved by them. They use the exams of the runs: they are fitted on the training part, their strength is chosen on
the validation part (where the systems choose their epoch), and they are scored on the reported part.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mammo_utils.evaluation.bootstrap import Sample, interval
from mammo_utils.metrics import METRICS, auc
from mammo_utils.study import Study
from mammo_utils.training.dataset import ExamSet
from mammo_utils.training.run import RunData, load_data
from mammo_utils.vocabulary import REFERENCE

THUMBNAIL = 8  # pixels per side
PENALTIES = (0.001, 0.01, 0.1, 1.0)  # scikit-learn's C: smaller is stronger
ROUNDS = (15, 50, 150)  # trees of the boosting
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)
BINS = 16  # of the histogram
FILTERED_SIZE = 128  # pixels per side; larger images are averaged over blocks before they are filtered
CHUNK = 64  # images that are measured at once
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
    """

    name: str
    shortcut: bool
    sample: Sample
    auc: float
    n_exams: int


def load_subsets(study: Study, subsets: Iterable[str]) -> tuple[dict[str, RunData], str]:
    """Load the exams on which the runs of each subset are trained and scored, as they are on disk now.

    They are the same for every task mode; the first one whose labels exist is used. Loading stops at the first subset
    that cannot be read; the second value is then one sentence with the reason, else "". The keys are
    `RunSpec.data_name`: a subset, or one for each of its folds.
    """
    loaded: dict[str, RunData] = {}
    for subset, fold in product(subsets, study.grid.folds or (None,)):
        errors = []
        for task_mode in study.grid.task_modes:
            spec = study.run(REFERENCE, task_mode, subset, 0, fold=fold)
            try:
                loaded[spec.data_name] = load_data(spec)
                break
            except (OSError, ValueError) as error:
                errors.append(f"The data of the subset {subset} cannot be read: {error}")
        else:
            return loaded, next(iter(errors), "")
    return loaded, ""


def shortcut_baselines(parts: Mapping[str, ExamSet], reported: str, task: str) -> list[Baseline]:
    """Fit and score the baselines of one subset and task.

    Args:
        parts: Part of the split -> its exams (`training.run.RunData.parts`).
        reported: The part on which the baselines are scored.
        task: "diagnosis" or "birads".

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
        return Baseline(name, shortcut, sample, auc(labels[reported], predictions), len(set(names)))

    shares = np.bincount(labels["train"], minlength=n_classes) / len(labels["train"])
    baselines = [score("majority class", False, np.tile(shares, (len(groups), 1)))]
    statistics = {part: measure_views(exams) for part, exams in parts.items()}
    for name, compute in FEATURES.items():
        x = {part: compute(exams, statistics[part])[labelled[part]] for part, exams in parts.items()}
        fits = [_boost(trees) for trees in ROUNDS] if name == BOOSTING else [_regress(c) for c in PENALTIES]
        models = [model.fit(x["train"], labels["train"]) for model in fits]
        scores = [auc(labels["validation"], _predict(model, x["validation"], n_classes)) for model in models]
        best = models[int(np.nanargmax(scores))] if not np.isnan(scores).all() else models[1]
        baselines.append(score(name, True, _predict(best, x[reported], n_classes)))
    return baselines


def pool_baselines(folds: Sequence[list[Baseline]]) -> list[Baseline]:
    """Pool the predictions of the baselines that were fitted on each fold; of one fold, return its own."""
    if len(folds) == 1:
        return folds[0]
    pooled = []
    for same in zip(*folds, strict=True):
        samples = [baseline.sample for baseline in same]
        labels = np.concatenate([sample.labels for sample in samples])
        predictions = np.concatenate([sample.probabilities for sample in samples], axis=1)
        groups = np.concatenate([sample.groups for sample in samples])
        n_exams = sum(baseline.n_exams for baseline in same)
        whole = replace(same[0], sample=Sample(labels, predictions, groups), n_exams=n_exams)
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
    size = images.shape[1] // side * side  # a remainder of pixels beyond whole tiles is dropped
    if not size:
        raise ValueError(f"Images of {images.shape[1]} pixels per side are too small for thumbnails of {side}.")
    means = np.zeros((*rows.shape, side * side))
    for position in zip(*np.nonzero(rows >= 0), strict=True):
        image = images[int(rows[position])].cpu().numpy()[:size, :size]
        means[position] = image.reshape(side, size // side, side, size // side).mean((1, 3)).ravel() / 255
    return means


def measure_views(exams: ExamSet) -> pd.DataFrame:
    """Measure the statistics of each view: 4E rows by exam and view; NaN for an absent view."""
    rows = exams.rows.cpu().numpy().ravel()
    images = exams.images.numpy(force=True) if len(exams.images) else np.zeros((0, 1, 1), np.uint8)
    measured = image_statistics(images[rows[rows >= 0]])
    measured.index = np.flatnonzero(rows >= 0)
    return measured.reindex(range(len(rows)))


def image_statistics(images: np.ndarray) -> pd.DataFrame:
    """Measure what needs no eye for a lesion: extent, grey levels, texture, gradients, high-pass extremes, file size.

    Args:
        images: (n, H, W) uint8, 0 in the air.

    Returns:
        One row per image, one column per statistic.
    """
    parts = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
    return pd.concat([pd.DataFrame(_grey_levels(part) | _textures(part)) for part in parts], ignore_index=True)


def _grey_levels(images: np.ndarray) -> dict[str, np.ndarray]:
    """Extent and grey levels, from every pixel."""
    x = np.asarray(images, dtype=np.float32)
    n = len(x)
    inside = x > 0
    area = np.maximum(inside.sum((1, 2)), 1)

    def mean(values: np.ndarray) -> np.ndarray:  # over the breast
        return (values * inside).sum((1, 2)) / area

    found = {"area": area, "height": inside.any(2).sum(1), "width": inside.any(1).sum(1)}
    found |= {"mean": mean(x), "deviation": np.sqrt(mean(np.square(x - mean(x)[:, None, None])))}
    centred = (x - found["mean"][:, None, None]) / np.maximum(found["deviation"], 1)[:, None, None]
    found |= {"skewness": mean(centred**3), "kurtosis": mean(centred**4)}
    breast = np.where(inside, x, np.nan).reshape(n, -1)
    breast[~inside.any((1, 2))] = 0
    for q, values in zip(PERCENTILES, np.nanpercentile(breast, PERCENTILES, axis=1), strict=True):
        found[f"percentile {q}"] = values
    found["maximum"] = x.max((1, 2))
    bins = [mean((x >= low) & (x < low + 256 / BINS)) for low in np.arange(BINS) * 256 / BINS]
    found |= {f"histogram {i}": share for i, share in enumerate(bins)}
    found["entropy"] = -sum(share * np.log(np.maximum(share, 1e-6)) for share in bins)
    found["compressed size"] = np.array([len(zlib.compress(image.tobytes(), 1)) for image in np.asarray(images)])
    return found


def _textures(images: np.ndarray) -> dict[str, np.ndarray]:
    """What filters find, from images of at most FILTERED_SIZE pixels per side."""
    step = -(-max(images.shape[1:]) // FILTERED_SIZE)
    height, width = (size // step for size in images.shape[1:])
    blocks = np.asarray(images)[:, : height * step, : width * step].reshape(-1, height, step, width, step)
    x = blocks.mean((2, 4), dtype=np.float32)
    n, inside = len(x), x > 0
    area = np.maximum(inside.sum((1, 2)), 1)
    mean, square = x.sum((1, 2)) / area, np.square(x).sum((1, 2)) / area
    deviation = np.sqrt(np.maximum(square - mean**2, 1))[:, None, None]
    bright = {k: (x - mean[:, None, None] > k * deviation) & inside for k in (2, 3)}
    found = {f"spots above {k} deviations": [ndimage.label(b)[1] for b in bright[k]] for k in bright}
    core = ndimage.binary_erosion(inside, np.ones((1, 3, 3)), iterations=max(1, width // 32))  # without the skin
    for sigma in (1, 2, 4, 8):
        smooth = ndimage.gaussian_filter(x, (0, sigma, sigma))
        detail = (x - smooth) * core
        found |= {f"high-pass {sigma} deviation": np.sqrt((detail**2).sum((1, 2)) / area)}
        found |= {f"high-pass {sigma} maximum": detail.max((1, 2)), f"high-pass {sigma} minimum": detail.min((1, 2))}
        found[f"high-pass {sigma} percentile 99.9"] = np.percentile(detail.reshape(n, -1), 99.9, axis=1)
        local = ndimage.gaussian_filter(detail**2, (0, sigma, sigma))
        found[f"local energy {sigma} maximum"] = np.sqrt(local.max((1, 2)))
        band = (smooth - ndimage.gaussian_filter(x, (0, 2 * sigma, 2 * sigma))) * core
        found |= {f"blob {sigma} maximum": band.max((1, 2)), f"blob {sigma} minimum": band.min((1, 2))}
        dy, dx = (np.gradient(smooth, axis=axis) * core for axis in (1, 2))
        size = np.hypot(dy, dx)
        found |= {f"gradient {sigma} mean": size.sum((1, 2)) / area, f"gradient {sigma} maximum": size.max((1, 2))}
        yy, xx, xy = (ndimage.gaussian_filter(a, (0, 2 * sigma, 2 * sigma)) for a in (dy * dy, dx * dx, dy * dx))
        corner = yy * xx - xy * xy - 0.05 * np.square(yy + xx)
        found |= {f"corner {sigma} maximum": corner.max((1, 2)), f"corner {sigma} mean": corner.sum((1, 2)) / area}
        coherence = np.hypot(yy - xx, 2 * xy) * core
        found[f"coherence {sigma}"] = coherence.sum((1, 2)) / np.maximum(((yy + xx) * core).sum((1, 2)), 1e-6)
        found[f"upright {sigma}"] = ((yy - xx) * core).sum((1, 2)) / np.maximum(((yy + xx) * core).sum((1, 2)), 1e-6)
    for step in (1, 2, 4):
        found[f"texture {step} down"] = np.abs(x[:, step:] - x[:, :-step]).sum((1, 2)) / area
        found[f"texture {step} across"] = np.abs(x[:, :, step:] - x[:, :, :-step]).sum((1, 2)) / area
    return found


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
    return HistGradientBoostingClassifier(
        max_iter=trees,
        learning_rate=0.06,
        max_leaf_nodes=8,
        l2_regularization=1.0,
        early_stopping=False,
        class_weight="balanced",
        random_state=0,
    )


def _predict(model, x: np.ndarray, n_classes: int) -> np.ndarray:
    """Probabilities (n, n_classes); 0 for a class that the training part lacks."""
    probabilities = np.zeros((len(x), n_classes))
    if len(x):
        probabilities[:, model.classes_] = model.predict_proba(x)
    return probabilities
