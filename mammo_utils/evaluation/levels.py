"""The AUC by breast and by exam, and within and between exams.

An exam is positive if any of its labelled breasts is. A breast without a label counts for neither level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from mammo_utils.evaluation.bootstrap import Sample, bootstrap_settings, interval
from mammo_utils.evaluation.runs import RunResult, group_by_seed, labelled_breasts, sample
from mammo_utils.evaluation.tables import INTERVAL_COLUMNS, KEY_COLUMNS, list_counts
from mammo_utils.study import Study

RULES = ("max", "mean", "noisy-or")  # how the breasts' probabilities become the exam's; the last one for any classes
LEVELS = ("breast", "exam", "exam of two breasts")
LEVEL_COLUMNS = [*KEY_COLUMNS, "level", "rule", *INTERVAL_COLUMNS, "n_by_class", "patients_by_class", "reason"]
PAIR_COLUMNS = [*KEY_COLUMNS, "pairs", "n_pairs", "value"]


def exam_sample(breasts: Sample, exams: np.ndarray, rule: str) -> Sample:
    """Aggregate a sample of breasts to one of exams.

    Args:
        breasts: The labelled breasts; those of an exam follow each other.
        exams: (n,) their exams.
        rule: "max" and "mean" of the probability of class 1, for two classes; "noisy-or" for any number: the class of
            the higher of independent draws, P(highest <= k) = product over breasts of P(class <= k), which with two
            classes is 1 - product of (1 - p).

    Returns:
        One row per exam with its highest label.

    Raises:
        ValueError: The rule is unknown, or not one for more than two classes.
    """
    n_classes = breasts.probabilities.shape[2]
    if rule not in RULES or (n_classes > 2 and rule != "noisy-or"):
        accepted = ", ".join(RULES if n_classes == 2 else RULES[2:])
        raise ValueError(f"The rule {rule!r} does not aggregate {n_classes} classes; accepted are: {accepted}.")
    if not len(exams):
        return breasts
    starts = np.flatnonzero(np.r_[True, exams[1:] != exams[:-1]])
    if rule == "noisy-or":
        below = np.multiply.reduceat(breasts.probabilities.cumsum(2), starts, axis=1)  # P(highest <= k)
        probabilities = np.diff(below, axis=2, prepend=0)
    else:
        # each class on its own: a probability near 1 is known by its complement, which 1 - p would round to 0
        reduced = (np.minimum, np.maximum) if rule == "max" else (np.add, np.add)
        pairs = [of.reduceat(breasts.probabilities[:, :, k], starts, axis=1) for k, of in enumerate(reduced)]
        counts = np.diff(np.r_[starts, len(exams)]) if rule == "mean" else np.ones(len(starts))
        probabilities = np.stack(pairs, axis=-1) / counts[:, None]
    return Sample(np.maximum.reduceat(breasts.labels, starts), probabilities, breasts.groups[starts])


def pair_areas(breasts: Sample, exams: np.ndarray) -> dict[str, tuple[float, int]]:
    """Split the AUC of two classes into its pairs: "within" an exam and "between" exams -> (AUC, number of pairs).

    A system that only decides which side is worse is perfect within exams.
    """
    positive = breasts.labels == 1
    same = exams[positive][:, None] == exams[~positive]
    scores = breasts.probabilities[:, :, 1]
    gaps = scores[:, positive][:, :, None] - scores[:, ~positive][:, None, :]  # (S, positives, negatives)
    wins = ((np.sign(gaps) + 1) / 2).mean(0)
    kinds = {"within": same, "between": ~same}
    return {name: (float(wins[k].mean()) if k.any() else np.nan, int(k.sum())) for name, k in kinds.items()}


def levels_table(runs: Sequence[RunResult], study: Study) -> pd.DataFrame:
    """Tabulate the AUC of each system and task by level and rule, with the breasts or exams of each class.

    The levels are `LEVELS`; of exams of two breasts, hardly any is negative.
    """
    rows = []
    for key, task, breasts, exams in _samples(runs):
        n_classes = breasts.probabilities.shape[2]
        n_of_exam = pd.Series(exams).groupby(exams).transform("size").to_numpy()
        rules = RULES if n_classes == 2 else RULES[2:]
        levels = [(LEVELS[0], "", breasts)]
        for level, kept in ((LEVELS[1], n_of_exam > 0), (LEVELS[2], n_of_exam > 1)):
            levels += [(level, rule, exam_sample(breasts.select(kept), exams[kept], rule)) for rule in rules]
        for level, rule, found in levels:
            row = {**key, "task": task, "level": level, "rule": rule, **list_counts(found)}
            rows.append(row | asdict(interval(found, "auc", **bootstrap_settings(study))))
    return pd.DataFrame(rows, columns=LEVEL_COLUMNS)


def pairs_table(runs: Sequence[RunResult]) -> pd.DataFrame:
    """Tabulate the AUC within and between exams (`pair_areas`), for tasks with two classes."""
    rows = []
    for key, task, breasts, exams in _samples(runs):
        if breasts.probabilities.shape[2] == 2:
            for name, (value, n) in pair_areas(breasts, exams).items():
                rows.append({**key, "task": task, "pairs": name, "n_pairs": n, "value": value})
    return pd.DataFrame(rows, columns=PAIR_COLUMNS)


def _samples(runs: Sequence[RunResult]):
    """Each system and task: its key, the task, its breasts and their exams."""
    for (subset, mode, system), seeds in group_by_seed(runs).items():
        for task in seeds[0].tasks:
            key = {"subset": subset, "system": system, "task_mode": mode}
            yield key, task, sample(seeds, task), labelled_breasts(seeds[0], task)["exam"].to_numpy(str)
