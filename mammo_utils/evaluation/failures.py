"""The breasts that a system gets wrong at its operating point, in the order of its own certainty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mammo_utils.evaluation.calibration import RUN_COLUMNS, diagnosis_samples, log_odds
from mammo_utils.evaluation.operating import SPECIFICITIES, choose_threshold
from mammo_utils.evaluation.runs import RunResult, labelled_breasts, read_views, repeat_by_fold, sample, with_views
from mammo_utils.metrics import rank_scores
from mammo_utils.vocabulary import VIEWS

SHOWN = 6  # of each kind
KINDS = ("false negative", "false positive")
CONTRIBUTIONS = [f"from_{view}" for view in VIEWS]
FAILURE_COLUMNS = [*RUN_COLUMNS, "kind", "rank", "exam", "side", "p", "log_odds", "threshold", "wrong_systems"]
FAILURE_COLUMNS += CONTRIBUTIONS
AGREEMENT_COLUMNS = "subset task_mode n_trainings exams none some all".split()


def find_wrong(run: RunResult) -> tuple[np.ndarray, np.ndarray]:
    """Find the reported breasts (n,) on the wrong side of the threshold, and the threshold of each (n,).

    It has a specificity of 0.90 on validation, of each fold its own. Without enough negatives there it is 0.5.
    """
    reported, validation = sample([run], "diagnosis"), [sample([m], "diagnosis", "validation") for m in run.members]
    chosen = np.nan_to_num([choose_threshold(of, SPECIFICITIES[0]) for of in validation], nan=0.5)
    thresholds = repeat_by_fold(run, "diagnosis", chosen)
    wrong = (rank_scores(reported.probabilities[0], 1) > thresholds) != (reported.labels == 1)
    return wrong, np.minimum(thresholds, 1)


def failures_table(runs: Sequence[RunResult], limit: int = SHOWN) -> pd.DataFrame:
    """List the worst failures of each training, `limit` of each kind, by the absolute log-odds of its answer.

    `wrong_systems` names the systems of the same subset and task mode that get the breast wrong at their thresholds.
    `from_<view>` is what each view contributes to the log-odds of the breast; it is empty for runs without
    `views.parquet`.
    """
    found = [(key, run, reported, *find_wrong(run)) for key, run, reported in diagnosis_samples(runs)]
    rows = []
    for key, run, reported, wrong, thresholds in found:
        breasts, odds = labelled_breasts(run, "diagnosis"), log_odds(reported)
        views = [read_views(member) if with_views([member]) else None for member in run.members]
        members = repeat_by_fold(run, "diagnosis", range(len(views)))
        others = [(k["system"], w) for k, _, s, w, _ in found if _same(k, key) and len(s.labels) == len(odds)]
        for kind, label in zip(KINDS, (1, 0), strict=True):
            own = np.flatnonzero(wrong & (reported.labels == label))
            certainty = odds[own] if label else -odds[own]
            for rank, position in enumerate(own[np.argsort(certainty, kind="stable")][:limit], start=1):
                row = {**key, "kind": kind, "rank": rank, "p": reported.probabilities[0, position, 1]}
                row |= {"exam": breasts["exam"][position], "side": breasts["side"][position]}
                row["threshold"] = thresholds[position]
                member = members[position]
                if views[member] is not None:
                    row |= _contributions(views[member], row["exam"], row["side"])
                names = dict.fromkeys(name for name, other in others if other[position])
                rows.append(row | {"log_odds": odds[position], "wrong_systems": ", ".join(names)})
    return pd.DataFrame(rows, columns=FAILURE_COLUMNS)


def agreement_table(runs: Sequence[RunResult]) -> pd.DataFrame:
    """Count the exams that none, some and all trainings of a subset and task mode get wrong in any breast."""
    found: dict[tuple, list[pd.Series]] = {}
    for key, run, _ in diagnosis_samples(runs):
        wrong = find_wrong(run)[0]
        by_exam = pd.Series(wrong).groupby(labelled_breasts(run, "diagnosis")["exam"].to_numpy()).any()
        found.setdefault((key["subset"], key["task_mode"]), []).append(by_exam)
    rows = []
    for (subset, mode), columns in found.items():
        share = pd.concat(columns, axis=1, join="inner").mean(axis=1)
        row = {"subset": subset, "task_mode": mode, "n_trainings": len(columns), "exams": len(share)}
        rows.append(row | {"none": (share == 0).sum(), "some": share.between(0, 1, "neither").sum()})
        rows[-1]["all"] = (share == 1).sum()
    return pd.DataFrame(rows, columns=AGREEMENT_COLUMNS)


def _contributions(views: pd.DataFrame, exam: str, side: str) -> dict[str, float]:
    """What the views contribute to the log-odds of a breast, from the rows of `views.parquet`."""
    rows = views[(views["exam"] == exam) & (views["side"] == side)]
    row = rows.loc[rows["views"].idxmax()]  # all views that the exam has
    shares = [row[f"diagnosis_from_{view}_1"] - row[f"diagnosis_from_{view}_0"] for view in VIEWS]
    return dict(zip(CONTRIBUTIONS, shares, strict=True))


def _same(one: dict, other: dict) -> bool:
    return (one["subset"], one["task_mode"]) == (other["subset"], other["task_mode"])
