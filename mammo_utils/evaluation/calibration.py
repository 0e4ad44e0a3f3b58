"""Calibration of P(malignant): does it equal the share of malignant breasts, and does scaling on validation help?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from mammo_utils.evaluation.bootstrap import Interval, Sample, bootstrap_settings, interval, paired_difference
from mammo_utils.evaluation.intervals import LEVEL, Z, cluster_variance
from mammo_utils.evaluation.runs import RunResult, group_by_seed, repeat_by_fold, sample
from mammo_utils.metrics import Metric, auc, mean_metric
from mammo_utils.study import Study

BINS = 10
SCALINGS = ("as trained", "temperature", "temperature and intercept")
FEWEST = 10  # breasts of each class to fit a scaling on
SMALLEST = 1e-12  # probabilities are clipped here before the logarithm
RUN_COLUMNS = "subset system task_mode seed".split()
CALIBRATION_COLUMNS = [*RUN_COLUMNS, "scaling", "temperature", "shift"]
CALIBRATION_COLUMNS += [f"{name}{end}" for name in ("ece", "brier", "log_loss") for end in ("", "_low", "_high")]
CALIBRATION_COLUMNS += "ece_if_calibrated slope slope_low slope_high intercept log_loss_change helped reason".split()


def diagnosis_samples(runs: Sequence[RunResult]) -> Iterator[tuple[dict[str, Any], RunResult, Sample]]:
    """Yield each training with a diagnosis: its key, the run, or its pooled folds, and the reported breasts."""
    for (subset, mode, system), seeds in group_by_seed(runs).items():
        for run in seeds:
            if "diagnosis" in run.tasks:
                key = {"subset": subset, "system": system, "task_mode": mode, "seed": run.spec.seed}
                yield key, run, sample([run], "diagnosis")


# --- metrics --------------------------------------------------------------------------------------------


def equal_count_bins(p: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Assign probabilities (n,) to bins of equal count by rank: (n,) from 0."""
    return np.argsort(np.argsort(p, kind="stable"), kind="stable") * bins // max(len(p), 1)


def weighted_ece(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the expected calibration error of each resample, in the bins of the sample.

    It is the sum over bins of |malignant - expected| / n, so it is 0 only if every bin is exactly as expected: of a
    small sample it is above 0 even for perfect probabilities.

    Args:
        labels: (n,) 0 or 1.
        probabilities: (n, 2).
        weights: (R, n).
    """
    p = probabilities[:, 1]
    member = equal_count_bins(p)[:, None] == np.arange(BINS)  # (n, bins)
    return np.abs(weights @ (member * (labels - p)[:, None])).sum(1) / weights.sum(1)


def ece(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Compute the expected calibration error of breasts: labels (n,), probabilities (n, 2)."""
    return float(weighted_ece(labels, probabilities, np.ones((1, len(labels))))[0]) if len(labels) else np.nan


def _log_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    return -np.log(np.clip(probabilities[np.arange(len(labels)), labels], SMALLEST, 1))


METRICS = {
    "ece": Metric("ECE", ece, weighted_ece, by_class=False),
    "brier": mean_metric("Brier score", lambda labels, p: (labels - p[:, 1]) ** 2),
    "log_loss": mean_metric("log loss", _log_losses),
}


# --- scaling --------------------------------------------------------------------------------------------


def log_odds(sample: Sample) -> np.ndarray:
    """Compute the log-odds of class 1 of a sample's first training: (n,)."""
    return logit(np.clip(sample.probabilities[0, :, 1].astype(float), SMALLEST, 1 - SMALLEST))


def fit_scaling(validation: Sample, scaling: str) -> tuple[float, float, str]:
    """Fit P = sigmoid(log-odds / temperature + shift) on validation by maximum likelihood (Guo et al. 2017).

    Class weights in the loss move the log-odds by a constant, which a temperature alone cannot undo.

    Args:
        validation: The breasts of the validation part.
        scaling: One of `SCALINGS`.

    Returns:
        Temperature, shift, and the reason if there is no fit, "" otherwise.
    """
    if scaling == SCALINGS[0]:
        return 1.0, 0.0, ""
    counts = np.bincount(validation.labels, minlength=2)
    if counts.min() < FEWEST:
        return np.nan, np.nan, f"validation has {counts.min()} breasts of a class; a fit needs {FEWEST}"
    if auc(validation.labels, validation.probabilities[0]) in (0, 1):
        return np.nan, np.nan, "validation is separated perfectly, so no temperature fits"
    model = LogisticRegression(C=1e12, fit_intercept=scaling == SCALINGS[2], max_iter=1000)
    model.fit(log_odds(validation)[:, None], validation.labels)
    slope, shift = model.coef_.item(), float(np.ravel(model.intercept_)[0])
    return (1 / slope, shift, "") if slope > 0 else (np.nan, np.nan, "validation ranks worse than chance")


def scale(sample: Sample, temperature: float | np.ndarray, shift: float | np.ndarray) -> Sample:
    """Replace P(malignant) by sigmoid(log-odds / temperature + shift).

    Args:
        sample: n breasts, of one training.
        temperature: Above 1, it draws probabilities towards 0.5. A positive one keeps their order. One number, or (n,).
        shift: Added to the log-odds; one number, or (n,).
    """
    scaled = log_odds(sample) / temperature + shift
    return Sample(sample.labels, expit(np.stack([-scaled, scaled], axis=-1))[None], sample.groups)


def scale_run(run: RunResult, scaling: str) -> tuple[Sample | None, float, float, str]:
    """Scale the reported breasts of a training, those of each fold by the fit on the fold's own validation part.

    Args:
        run: The run, or pooled folds.
        scaling: One of `SCALINGS`.

    Returns:
        The scaled breasts, or None if a fit fails; the temperature and the shift, of folds their means; and the reason
        if there is no fit, "" otherwise.
    """
    fits = [fit_scaling(sample([member], "diagnosis", "validation"), scaling) for member in run.members]
    reason = next((why for *_, why in fits if why), "")
    temperature, shift = np.mean([fit[:2] for fit in fits], axis=0)
    if reason:
        return None, temperature, shift, reason
    by_breast = repeat_by_fold(run, "diagnosis", [fit[:2] for fit in fits])  # (n, 2)
    return scale(sample([run], "diagnosis"), *by_breast.T), temperature, shift, ""


def calibration_line(sample: Sample) -> tuple[Interval, float]:
    """Fit malignant ~ slope · log-odds + intercept: the slope with its interval over patients, and the intercept.

    Calibrated log-odds have slope 1 and intercept 0; a slope below 1 means that they are too extreme.
    """
    if min(np.bincount(sample.labels, minlength=2)) < FEWEST or auc(sample.labels, sample.probabilities[0]) in (0, 1):
        return Interval(reason="too few breasts of a class, or separated perfectly"), np.nan
    x = np.stack([log_odds(sample), np.ones(len(sample.labels))], axis=-1)
    model = LogisticRegression(C=1e12, fit_intercept=False, max_iter=1000).fit(x, sample.labels)
    p = expit(x @ model.coef_[0])
    information = (x * (p * (1 - p))[:, None]).T @ x
    influence = np.linalg.solve(information, (x * (sample.labels - p)[:, None]).T).T
    slope, se = model.coef_[0, 0], np.sqrt(cluster_variance(influence, sample.groups)[0])
    return Interval(slope, slope - Z * se, slope + Z * se, se=se, method="sandwich"), float(model.coef_[0, 1])


def expected_ece(sample: Sample, seed: int = 0) -> float:
    """Average the ECE of labels that are drawn with the sample's own probabilities: what chance alone gives."""
    p = sample.probabilities[0]
    draws = np.random.default_rng(seed).random((200, len(p))) < p[:, 1]
    return float(np.mean([ece(labels.astype(int), p) for labels in draws]))


def calibration_table(runs: Sequence[RunResult], study: Study) -> pd.DataFrame:
    """Tabulate the calibration of each training on the reported part, as trained and scaled on validation.

    Returns:
        One row per training and scaling: the fit (of folds its mean); ECE, Brier score and log loss with percentile
        intervals over patients; `ece_if_calibrated`, the ECE that chance alone gives; slope and intercept;
        `log_loss_change` from "as trained", and `helped`: "yes" or "no, worse" if the change is told apart from 0,
        else "not told apart".
    """
    rows = []
    for key, run, reported in diagnosis_samples(runs):
        for scaling in SCALINGS:
            scaled, temperature, shift, reason = scale_run(run, scaling)
            row = {**key, "scaling": scaling, "temperature": temperature, "shift": shift, "reason": reason}
            if run.reported == "validation" and scaling != SCALINGS[0]:
                row["reason"] = reason or "scored where it was fitted"
            if scaled and len(reported.labels):
                row |= _describe(scaled, study)
                if scaling != SCALINGS[0]:
                    row |= _change(scaled, reported, study)
            rows.append(row)
    return pd.DataFrame(rows, columns=CALIBRATION_COLUMNS).fillna({"helped": ""})


def _describe(found: Sample, study: Study) -> dict[str, float]:
    row = {"ece_if_calibrated": expected_ece(found, study.evaluation.seed)}
    for name, metric in METRICS.items():
        value = interval(found, metric, **bootstrap_settings(study))
        row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    slope, intercept = calibration_line(found)
    return row | {"slope": slope.value, "slope_low": slope.low, "slope_high": slope.high, "intercept": intercept}


def _change(scaled: Sample, before: Sample, study: Study) -> dict[str, Any]:
    change = paired_difference(scaled, before, METRICS["log_loss"], **bootstrap_settings(study))
    told_apart = change.p < 1 - LEVEL
    helped = "not told apart" if not told_apart else "yes" if change.value < 0 else "no, worse"
    return {"log_loss_change": change.value, "helped": "no interval" if np.isnan(change.p) else helped}
