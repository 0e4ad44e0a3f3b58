"""Predictions for exams in DICOM files: one row per breast, and in what an exam is unlike the training data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from mammo_utils.data.sources import SOURCES
from mammo_utils.evaluation.bootstrap import Sample
from mammo_utils.evaluation.calibration import scale
from mammo_utils.evaluation.conformal import conformal_sets
from mammo_utils.evaluation.view_ablation import ExamPrediction, predict_exams
from mammo_utils.predict.exams import Exams, measure, read_exams
from mammo_utils.predict.model import Card, Model
from mammo_utils.training.dataset import make_exam_set
from mammo_utils.vocabulary import SIDES, SUBSETS, VIEW_TITLES, VIEWS

PREDICTED, NOT_PREDICTED = "predicted", "not predicted"


def predict(
    model: Model, paths: str | Path | Sequence[str | Path], out: str | Path | None = None, *, keep_ids: bool = False
) -> pd.DataFrame:
    """Predict every exam in DICOM files.

    A breast without an image gets no prediction, although the system computes one from the other breast's views.

    Args:
        model: What `load_run` returned.
        paths: DICOM files, and folders in which they lie at any depth; one or several.
        out: A folder for `predictions.csv`, `predictions.json` and pages with the pictures; nothing is written if None.
        keep_ids: Name every exam by its PatientID; else one that is no research ID is replaced by a hash.

    Returns:
        One row per exam and breast: `exam`, `side`, `status` ("predicted" or "not predicted"), `reason`; `malignant_p`
        as trained and `malignant_p_calibrated`; `birads_p<category>`, and `birads_set`, the conformal set;
        `from_<view>`, what each view contributes to the log-odds of the first task as trained, and `weight_<view>`; all
        are means over the runs. `present_<view>`; `unlike_training`, in what the exam is unlike the training data;
        `notice`. `.attrs["unread"]` lists what was not used and why, `.attrs["statements"]` what the model is.

    Raises:
        DataError: A path does not exist, or no file is a mammogram.
    """
    paths, run = [paths] if isinstance(paths, str | Path) else paths, model.card.run
    ids = ".*" if keep_ids else SOURCES[run.data.source].ids
    with TemporaryDirectory() as temporary:
        exams = read_exams([Path(path) for path in paths], Path(temporary), run.images, ids)
        table = exams.cohort.exams
        inputs = make_exam_set(table, table.index.to_series(), exams.store, SUBSETS[run.subset], "cpu")
        found, rows = [], []
        if len(inputs):
            pairs = zip(model.card.members, model.systems, strict=True)
            found = list(zip(*(predict_exams(system, inputs, m.run.training) for m, system in pairs), strict=True))
            unlike = unlike_training(model.card, exams)
        means = [_mean(predictions) for predictions in found]
        for (exam, row), predictions, mean in zip(table.iterrows(), found, means, strict=True):
            breasts = _breasts(model.card, row[list(VIEWS)].astype(bool), mean, _calibrate(model.card, predictions))
            rows += [{"exam": exam, **breast, "unlike_training": unlike[exam]} for breast in breasts]
        for row in exams.unread:
            lost = {"status": NOT_PREDICTED, "reason": row["reason"], "unlike_training": ""}
            rows += [{"exam": row["what"], "side": side, **lost} for side in SIDES if row["kind"] == "exam"]
        result = pd.DataFrame(rows).sort_values(["exam", "side"], ignore_index=True)
        result["notice"] = " ".join(model.card.statements[:2])
        result.attrs = {"unread": exams.unread, "statements": model.card.statements}
        if out is not None:
            from mammo_utils.predict.pages import write_results  # slow to import

            write_results(Path(out), model.card, inputs, means, result)
    return result


def _mean(found: Sequence[ExamPrediction]) -> ExamPrediction:
    """The mean over runs of what they predict for one exam."""
    probabilities = {task: np.mean([of.probabilities[task] for of in found], axis=0) for task in found[0].probabilities}
    weights, contributions = (np.mean([getattr(of, name) for of in found], 0) for name in ("weights", "contributions"))
    return ExamPrediction(probabilities, weights, contributions)


def _calibrate(card: Card, found: Sequence[ExamPrediction]) -> np.ndarray:
    """The mean of the calibrated P(malignant) of both breasts of an exam, NaN if a run has no scaling."""
    if any(member.temperature is None for member in card.members):
        return np.full(2, np.nan)
    samples = [Sample(np.zeros(2, int), of.probabilities["diagnosis"][None], np.array(SIDES)) for of in found]
    pairs = zip(samples, card.members, strict=True)
    return np.mean([scale(of, m.temperature, m.shift).probabilities[0, :, 1] for of, m in pairs], axis=0)


def _breasts(card: Card, present: pd.Series, found: ExamPrediction, calibrated: np.ndarray) -> list[dict[str, Any]]:
    """The rows of both breasts of an exam."""
    rows, categories = [], SUBSETS[card.run.subset]
    for i, side in enumerate(SIDES):
        row: dict[str, Any] = {"side": side, "status": PREDICTED, "reason": ""}
        if not present[[view for view in VIEWS if view[0] == side]].any():
            row |= {"status": NOT_PREDICTED, "reason": "no image of this breast can be used"}
        else:
            if "diagnosis" in found.probabilities:
                row["malignant_p"], row["malignant_p_calibrated"] = (
                    found.probabilities["diagnosis"][i, 1],
                    calibrated[i],
                )
            if "birads" in found.probabilities:
                p = found.probabilities["birads"][i]
                row |= {f"birads_p{category}": value for category, value in zip(categories, p, strict=True)}
                kept = conformal_sets(p[None], card.quantile)[0] if card.quantile is not None else [False] * len(p)
                row["birads_set"] = " ".join(str(c) for c, there in zip(categories, kept, strict=True) if there)
            row |= {f"from_{view}": value for view, value in zip(VIEWS, found.contributions[i], strict=True)}
            row |= {f"weight_{view}": value for view, value in zip(VIEWS, found.weights, strict=True)}
        rows.append(row | {f"present_{view}": bool(there) for view, there in present.items()})
    return rows


def unlike_training(card: Card, exams: Exams) -> dict[str, str]:
    """Describe in what each exam is unlike those of the training part: views, FACTS of images, and notes on headers."""
    found: dict[str, list[str]] = {}
    for exam, row in exams.cohort.exams.iterrows():
        there, absent = ([view for view in VIEWS if row[view] == wanted] for wanted in (True, False))
        subset = str(sum(1 << VIEWS.index(view) for view in there))
        there, absent = ([VIEW_TITLES[view] for view in views] for views in (there, absent))
        found[exam] = [f"without {', '.join(absent)}"] if absent else []
        if any(
            subset not in m.metrics.get("train_views", subset) and not m.run.training.view_dropout for m in card.members
        ):
            found[exam].append(f"no training exam had {', '.join(there)} alone")
    facts = measure(exams.store, exams.cohort.folder)
    for exam, images in exams.store.index.groupby("exam"):
        for name, (low, high) in card.ranges.items():
            values = facts.loc[images.index, name]
            for outside in (values.isna(), (values < low) | (values > high)):
                if outside.any():
                    views = "all views" if outside.all() else ", ".join(images["view"][outside].map(VIEW_TITLES))
                    found[exam].append(f"{name} {_span(values[outside])} in {views} ({_span([low, high])} in training)")
        for view, agrees, note in zip(images["view"].map(VIEW_TITLES), images["agrees"], images["note"], strict=True):
            found[exam] += [] if agrees else [f"{view}: the chest wall is not where its side puts it"]
            found[exam] += [f"{view}: {note}"] if note else []
    return {exam: "; ".join(clauses) for exam, clauses in found.items()}


def _span(values: Any) -> str:
    low, high = f"{np.min(values):.4g}", f"{np.max(values):.4g}"
    return "unknown" if low == "nan" else low if low == high else f"{low} to {high}"
