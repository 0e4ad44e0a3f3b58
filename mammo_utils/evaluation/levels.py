"""The AUC by breast and by exam, and within and between exams.

An exam is positive if any of its labelled breasts is. A breast without a label counts for neither level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from mammo_utils.evaluation.bootstrap import FEWEST, Sample, bootstrap_settings, interval
from mammo_utils.evaluation.intervals import wilson_interval
from mammo_utils.evaluation.readable import write_range
from mammo_utils.evaluation.runs import RunResult, group_by_seed, labelled_breasts, sample
from mammo_utils.evaluation.tables import INTERVAL_COLUMNS, KEY_COLUMNS, list_counts
from mammo_utils.study import Study
from mammo_utils.vocabulary import TASK_TITLES

RULES = ("max", "mean", "noisy-or")  # how the breasts' probabilities become the exam's; the last one for any classes
LEVELS = ("breast", "exam", "exam of two breasts")
LEVEL_COLUMNS = [*KEY_COLUMNS, "level", "rule", *INTERVAL_COLUMNS, "n_by_class", "patients_by_class", "reason"]
PAIR_COLUMNS = [*KEY_COLUMNS, "pairs", "n_pairs", "value", "low", "high"]


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


def pair_wins(breasts: Sample, exams: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split the pairs that the AUC of two classes counts into those "within" an exam and those "between" exams.

    A system that only decides which side is worse is perfect within exams.

    Args:
        breasts: The labelled breasts.
        exams: (n,) their exams.

    Returns:
        For each kind whether the positive breast of a pair has the higher score (a tie counts half), averaged over
        trainings, and its patient: (pairs,) and (pairs,). The mean of all is the AUC.
    """
    positive = breasts.labels == 1
    same = exams[positive][:, None] == exams[~positive]
    scores = breasts.probabilities[:, :, 1]
    gaps = scores[:, positive][:, :, None] - scores[:, ~positive][:, None, :]  # (S, positives, negatives)
    wins = ((np.sign(gaps) + 1) / 2).mean(0)
    kinds = {"within": same, "between": ~same}
    patients = np.broadcast_to(breasts.groups[positive][:, None], same.shape)
    return {name: (wins[k], patients[k]) for name, k in kinds.items()}


def levels_table(runs: Sequence[RunResult], study: Study) -> pd.DataFrame:
    """Tabulate the AUC of each system and task by level and rule, with the breasts or exams of each class.

    The levels are `LEVELS`; of exams with two labelled breasts, hardly any is negative.
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
    """Tabulate the AUC within and between exams (`pair_wins`), for tasks with two classes.

    Within exams a pair is an exam, so that the AUC is a share of exams and has Wilson's interval; there is none with
    fewer than five patients. Between exams each breast is in many pairs, and there is no interval.
    """
    rows = []
    for key, task, breasts, exams in _samples(runs):
        if breasts.probabilities.shape[2] == 2:
            for name, (wins, patients) in pair_wins(breasts, exams).items():
                row = {**key, "task": task, "pairs": name, "n_pairs": len(wins)}
                row["value"] = wins.mean() if len(wins) else np.nan
                if name == "within" and len(set(patients)) >= FEWEST:
                    row |= dict(zip(("low", "high"), wilson_interval(wins, patients)[1:], strict=True))
                rows.append(row)
    return pd.DataFrame(rows, columns=PAIR_COLUMNS)


def state_levels(levels: pd.DataFrame) -> list[str]:
    """State how the AUCs of the diagnosis differ by level and by rule, as counts of systems.

    Args:
        levels: The result of `levels_table`.
    """
    diagnosis = levels[levels["task"] == "diagnosis"].set_index(["subset", "task_mode", "system"])

    def of(level: str, rule: str) -> pd.Series:
        return diagnosis.loc[(diagnosis["level"] == level) & (diagnosis["rule"] == rule), "value"]

    breasts, exams, two = of(LEVELS[0], ""), of(LEVELS[1], RULES[0]), of(LEVELS[2], RULES[0]).dropna()
    sentences = []
    if len(two):
        below_breasts, below_exams = ((two < values.reindex(two.index)).sum() for values in (breasts, exams))
        sentences.append(
            f"Diagnosis: exams with two labelled breasts have an AUC of {write_range(two, '.3f')} (rule {RULES[0]}). "
            f"It is lower than that of the breasts in {below_breasts} of {len(two)} systems and than that of all "
            f"exams in {below_exams}" + (": the exams with one breast raise it." if below_exams == len(two) else ".")
        )
    if len(exams):
        lower = (of(LEVELS[1], RULES[1]) < exams).sum()
        sentences.append(
            f"Diagnosis: by exam, the AUC with the rule {RULES[1]} is lower than with {RULES[0]} in {lower} of "
            f"{len(exams)} systems."
        )
    return sentences


def state_pairs(pairs: pd.DataFrame) -> list[str]:
    """State in how many systems the AUC within exams is lower than between exams; `pairs` is made by `pairs_table`."""
    sentences = []
    for task, rows in pairs.groupby("task", sort=False):
        wide = rows.pivot(index=["subset", "task_mode", "system"], columns="pairs", values="value").dropna()
        if len(wide):
            lower = (wide["within"] < wide["between"]).sum()
            sentences.append(
                f"{TASK_TITLES[task]}: the AUC within exams is lower than between exams in {lower} of {len(wide)} "
                "systems."
            )
    return sentences


def _samples(runs: Sequence[RunResult]):
    """Each system and task: its key, the task, its breasts and their exams."""
    for (subset, mode, system), seeds in group_by_seed(runs).items():
        for task in seeds[0].tasks:
            key = {"subset": subset, "system": system, "task_mode": mode}
            yield key, task, sample(seeds, task), labelled_breasts(seeds[0], task)["exam"].to_numpy(str)
