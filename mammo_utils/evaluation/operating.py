"""Operating points: a threshold chosen on validation, what it does on other patients, and what that is worth.

A breast or exam is recalled if its P(malignant) is above the threshold. Where it has been rounded to 1, the score that
stands for it in the AUC (`metrics.rank_scores`) decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from mammo_utils.evaluation.bootstrap import Sample
from mammo_utils.evaluation.calibration import RUN_COLUMNS, diagnosis_samples
from mammo_utils.evaluation.intervals import wilson_interval
from mammo_utils.evaluation.levels import exam_sample
from mammo_utils.evaluation.runs import RunResult, labelled_breasts, repeat_by_fold, sample
from mammo_utils.metrics import rank_scores

SPECIFICITIES = (0.90, 0.95)  # aimed at on validation
PREVALENCES = (0.005, 0.01, 0.05)  # of malignant exams: of screening, and higher
FEWEST = 10  # negatives on validation
RATES = ("sensitivity", "specificity", "ppv", "recall_rate")
POINT_COLUMNS = [*RUN_COLUMNS, "level", "aim", "threshold", "specificity_validation"]
POINT_COLUMNS += [f"{name}{end}" for name in RATES for end in ("", "_low", "_high")]
POINT_COLUMNS += "n_positive n_negative n_negative_validation reason".split()
PREVALENCE_COLUMNS = [*RUN_COLUMNS, "level", "aim", "prevalence"]
PREVALENCE_COLUMNS += "ppv ppv_low ppv_high found_per_1000 recalled_per_1000".split()


def choose_threshold(sample: Sample, specificity: float) -> float:
    """Find the lowest threshold of the score with at least this specificity; NaN with too few negatives.

    Args:
        sample: Breasts or exams of the validation part, of one training.
        specificity: In (0, 1].
    """
    negatives = np.sort(rank_scores(sample.probabilities[0, sample.labels == 0], 1))
    if len(negatives) < FEWEST:
        return np.nan
    return float(negatives[int(np.ceil(specificity * len(negatives) - 1e-9)) - 1])


def rates_at(sample: Sample, threshold: float | np.ndarray) -> dict[str, tuple[float, float, float]]:
    """Compute sensitivity, specificity, PPV and the share of recalls, each with Wilson's interval over patients.

    Args:
        sample: n breasts or exams, of one training.
        threshold: One for all, or (n,).
    """
    recalled, positive = rank_scores(sample.probabilities[0], 1) > threshold, sample.labels == 1
    everyone = np.ones(len(positive), bool)
    parts = {"sensitivity": (recalled, positive), "specificity": (~recalled, ~positive)}
    parts |= {"ppv": (positive, recalled), "recall_rate": (recalled, everyone)}
    return {name: wilson_interval(hits[of], sample.groups[of]) for name, (hits, of) in parts.items()}


def operating_table(runs: Sequence[RunResult]) -> pd.DataFrame:
    """Tabulate the operating points of each training, by breast and by exam (the higher P(malignant) of its breasts).

    One row per training, level and aimed specificity, with the specificity on validation and the rates on the reported
    part. Each fold has a threshold from its own validation part, for its own patients; `threshold` is then their mean,
    and `n_negative_validation` that of the fold with the fewest.
    """
    rows = []
    for key, run, breasts in diagnosis_samples(runs):
        for level, aim in product(("breast", "exam"), SPECIFICITIES):
            row: dict[str, Any] = {**key, "level": level, "aim": aim}
            validation = [_at_level(member, level, "validation") for member in run.members]
            chosen = [choose_threshold(of, aim) for of in validation]
            by_breast = repeat_by_fold(run, "diagnosis", chosen)
            reported = breasts
            if level == "exam":
                first = ~labelled_breasts(run, "diagnosis")["exam"].duplicated().to_numpy()
                reported, by_breast = _at_level(run, level), by_breast[first]
            row["n_negative_validation"] = min((of.labels == 0).sum() for of in validation)
            row |= {"n_positive": (reported.labels == 1).sum(), "n_negative": (reported.labels == 0).sum()}
            if np.isnan(chosen).any():
                rows.append(row | {"reason": f"validation has fewer than {FEWEST} negatives"})
                continue
            row["threshold"] = np.minimum(chosen, 1).mean()
            pairs = zip(validation, chosen, strict=True)
            row["specificity_validation"] = np.mean([rates_at(of, t)["specificity"][0] for of, t in pairs])
            for name, (value, low, high) in rates_at(reported, by_breast).items():
                row |= {name: value, f"{name}_low": low, f"{name}_high": high}
            rows.append(row | {"reason": "" if run.reported == "test" else "scored where it was chosen"})
    return pd.DataFrame(rows, columns=POINT_COLUMNS)


def _at_level(run: RunResult, level: str, part: str = "") -> Sample:
    """The breasts of a part, or its exams with the higher probability of their breasts."""
    breasts = sample([run], "diagnosis", part)
    exams = labelled_breasts(run, "diagnosis", part)["exam"].to_numpy(str)
    return exam_sample(breasts, exams, "max") if level == "exam" else breasts


def ppv_at(sensitivity: float, specificity: float, prevalence: float) -> float:
    """Compute the PPV of a sensitivity and a specificity at another prevalence.

    Args:
        sensitivity: In [0, 1].
        specificity: In [0, 1].
        prevalence: In [0, 1].
    """
    found, false = prevalence * sensitivity, (1 - prevalence) * (1 - specificity)
    return found / (found + false) if found + false else np.nan


def prevalence_table(points: pd.DataFrame) -> pd.DataFrame:
    """Transfer the operating points of `operating_table` to the prevalences of `PREVALENCES`.

    `found_per_1000` and `recalled_per_1000` are malignant breasts or exams found, and all that are recalled; `ppv_low`
    and `ppv_high` are the PPV if sensitivity and specificity are both at the low or high end of their intervals.
    """
    rows = []
    for point in points[points["sensitivity"].notna() & points["specificity"].notna()].to_dict("records"):
        se, sp = point["sensitivity"], point["specificity"]
        for prevalence in PREVALENCES:
            recalled = 1000 * (prevalence * se + (1 - prevalence) * (1 - sp))
            row = {name: point[name] for name in (*RUN_COLUMNS, "level", "aim")}
            row |= {"prevalence": prevalence, "ppv": ppv_at(se, sp, prevalence)}
            for end in ("low", "high"):
                row[f"ppv_{end}"] = ppv_at(point[f"sensitivity_{end}"], point[f"specificity_{end}"], prevalence)
            rows.append(row | {"found_per_1000": 1000 * prevalence * se, "recalled_per_1000": recalled})
    return pd.DataFrame(rows, columns=PREVALENCE_COLUMNS)


def net_benefit(sample: Sample, thresholds: np.ndarray, prevalence: float | None = None) -> np.ndarray:
    """Compute the net benefit of recalling above each threshold (Vickers and Elkin 2006).

    It is the share of true positives less that of false positives, each of which costs t / (1 - t).

    Args:
        sample: Breasts of one training.
        thresholds: (T,) in (0, 1).
        prevalence: Of malignant breasts; that of the sample if None. With another one, the positives and negatives are
            weighted, and the probabilities are moved to it (`move_prior`).

    Returns:
        (T,).
    """
    positive, p = sample.labels == 1, sample.probabilities[0, :, 1]
    share = positive.mean()
    if prevalence is not None:
        p, share = move_prior(p, share, prevalence), prevalence
    recalled = p >= thresholds[:, None]  # (T, n)
    found, false = recalled[:, positive].mean(1), recalled[:, ~positive].mean(1)
    return share * found - (1 - share) * false * thresholds / (1 - thresholds)


def recall_all(thresholds: np.ndarray, prevalence: float) -> np.ndarray:
    """Compute the net benefit of recalling every breast, at thresholds (T,) and a prevalence."""
    return prevalence - (1 - prevalence) * thresholds / (1 - thresholds)


def move_prior(p: np.ndarray, prevalence: float, to: float) -> np.ndarray:
    """Move calibrated probabilities from one prevalence to another (Bayes' theorem).

    Args:
        p: (n,) probabilities.
        prevalence: At which they are calibrated.
        to: The other prevalence.
    """
    return expit(logit(np.clip(p.astype(float), 1e-12, 1 - 1e-12)) + logit(to) - logit(prevalence))
