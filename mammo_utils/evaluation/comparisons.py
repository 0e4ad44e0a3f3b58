"""Comparisons of systems, and what they amount to: statements and claims, all computed from the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from mammo_utils.evaluation.bootstrap import (
    CONSTANT,
    ONE_TRAINING,
    Interval,
    Sample,
    bootstrap_settings,
    interval,
    paired_difference,
)
from mammo_utils.evaluation.intervals import LEVEL, holm
from mammo_utils.evaluation.readable import name_system
from mammo_utils.evaluation.runs import RunResult, categories, group_by_seed, labelled_breasts, sample
from mammo_utils.evaluation.tables import count_breasts
from mammo_utils.metrics import METRICS
from mammo_utils.study import Study
from mammo_utils.vocabulary import MODE_TITLES, REFERENCE, SUBSET_TITLES, SYSTEMS, TASK_TITLES

if TYPE_CHECKING:
    from mammo_utils.evaluation.shortcut_baselines import Baseline

DIFFERENCE_COLUMNS = "difference low high low_all high_all p p_holm p_bh corrected_by answer".split()
COMPARISON_COLUMNS = """subset task metric system task_mode reference question""".split() + DIFFERENCE_COLUMNS
COMPARISON_COLUMNS += "n_exams n_breasts n_seeds reference_seeds reason".split()
VARIANT_COLUMNS = ["run", "variant", "task", *DIFFERENCE_COLUMNS, "n_exams", "n_breasts", "reason"]
STATEMENT_COLUMNS = """subset task_mode system task auc low high beats_chance best_shortcut shortcut_auc beats_shortcuts
ahead ahead_low ahead_high surely_ahead statement""".split()
CORRECTIONS = ("Holm", "Benjamini-Hochberg")  # within a family, and over all comparisons of the study
# AUC; above it, a cohort can largely be solved without looking for lesions. Set beforehand, and not derived
SHORTCUT_LIMIT = 0.65


def compare_variants(runs: Sequence[RunResult], study: Study) -> pd.DataFrame:
    """Compare each variant with the run that has the study's settings, the same system and the same seed.

    One row per variant and task. `difference` is the variant's AUC minus the run's on the same patients; `answer` is
    "told apart" and the better of the two if the corrected p is below 0.05, else "not told apart". The correction is
    that of `compare_systems`, with the variants of a task as one family.
    """
    finished = {run.id: run for run in runs if run.finished}
    rows = []
    for run in finished.values():
        base = finished.get(run.spec.model_copy(update={"variant": ()}).id)
        for task in run.tasks if base and run.spec.variant else ():
            difference = _difference(sample([run], task), sample([base], task), "auc", study)
            row = {"run": base.id, "variant": ", ".join(run.spec.variant), "task": task, "difference": difference.value}
            row |= {"names": ("variant", "study's run")} | asdict(difference)
            row["reason"] = row["reason"] or ONE_TRAINING
            rows.append(row | count_breasts(labelled_breasts(run, task), [run]))
    return _correct(pd.DataFrame(rows, columns=[*VARIANT_COLUMNS, "names"]), ["task"])[VARIANT_COLUMNS]


def compare_systems(runs: Sequence[RunResult], study: Study) -> pd.DataFrame:
    """Compare each system with the reference, and each system of one task with the same system of both tasks.

    One row per comparison, task and metric. `difference` is the system's metric minus the reference's on the same
    patients. `p_holm` is corrected for the comparisons of the same subset, task and metric; `p_bh` (Benjamini and
    Hochberg) for all comparisons of the study. `corrected_by` names the one that decides: Holm's, except for a
    comparison that is the only one of its family, which has no `p_holm`. `answer` is "told apart" and the better of
    the two if the deciding p is below 0.05, else "not told apart".
    """
    groups = group_by_seed(runs)
    rows = []
    for (subset, mode, system), seeds in groups.items():
        comparisons = []  # key of the reference, names of the two in the answer, question
        if system != REFERENCE:
            question = SYSTEMS[system].question or f"Is {SYSTEMS[system].title} better than the reference?"
            comparisons.append(((subset, mode, REFERENCE), (SYSTEMS[system].short, SYSTEMS[REFERENCE].short), question))
        if mode != "multi":
            question = "Does learning one task alone do better than learning both?"
            comparisons.append(((subset, "multi", system), (MODE_TITLES[mode], MODE_TITLES["multi"]), question))
        for key, names, question in comparisons:
            reference = groups.get(key, [])
            row = {"subset": subset, "system": system, "task_mode": mode, "reference": f"{key[2]} {key[1]}"}
            row |= {"question": question, "reference_seeds": len(reference)}
            for task, metric in product(seeds[0].tasks, METRICS):
                if reference and task in reference[0].tasks:
                    difference = _difference(sample(seeds, task), sample(reference, task), metric, study)
                    found = {"task": task, "metric": metric, "names": names} | asdict(difference)
                    found["difference"] = difference.value
                    if not found["reason"] and np.isnan(difference.se_seeds):
                        found["reason"] = ONE_TRAINING
                    rows.append(row | found | count_breasts(labelled_breasts(seeds[0], task), seeds))
    table = _correct(pd.DataFrame(rows, columns=[*COMPARISON_COLUMNS, "names"]), ["subset", "task", "metric"])
    return table.sort_values(["subset", "task", "metric", "task_mode"], kind="stable", ignore_index=True)[
        COMPARISON_COLUMNS
    ]


def _correct(table: pd.DataFrame, family: list[str]) -> pd.DataFrame:
    """Add the corrected p values and the answers; `family` names the columns within which Holm's correction applies."""
    p = table["p"].astype(float)
    families, known = p.groupby([table[name] for name in family]), p.notna()
    alone = families.transform("count") == 1
    table["p_holm"] = families.transform(lambda values: holm(values.to_numpy())).mask(alone)
    table.loc[known, "p_bh"] = false_discovery_control(p[known]) if known.any() else []
    table["corrected_by"] = np.where(~known, "", np.where(alone, *CORRECTIONS[::-1]))
    columns = (table["difference"], table["p_bh"].where(alone, table["p_holm"]), table["names"])
    table["answer"] = [_answer(*values) for values in zip(*columns, strict=True)]
    return table


def with_tested_interval(compared: pd.DataFrame) -> pd.DataFrame:
    """Take as `low` and `high` the interval that belongs to `p`, and name in `over` what it is over.

    That is patients and trainings where both systems were trained more than once, else patients alone; the interval
    over patients stays in `low_patients` and `high_patients`.

    Args:
        compared: The result of `compare_systems` or `compare_variants`.
    """
    both = compared["low_all"].notna()
    ends = {f"{end}_patients": compared[end] for end in ("low", "high")}
    ends |= {end: compared[f"{end}_all"].where(both, compared[end]) for end in ("low", "high")}
    return compared.assign(**ends, over=np.where(both, "patients and trainings", "patients"))


def label_agreement(runs: Sequence[RunResult]) -> pd.DataFrame:
    """Count for each subset the breasts whose labels agree: malignant and of its highest BI-RADS category, or neither.

    The breasts are those with both labels in the parts of the split that the runs of both tasks predicted.
    """
    rows = {}
    for run in runs:
        if run.finished and run.spec.task_mode == "multi":
            both = run.predictions[(run.predictions["diagnosis"] >= 0) & (run.predictions["birads"] >= 0)]
            highest = both["birads"] == max(categories(run, "birads"))
            agree = int((highest == (both["diagnosis"] == 1)).sum())
            rows[run.spec.subset] = {"breasts": len(both), "agree": agree, "share": agree / max(len(both), 1)}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["breasts", "agree", "share"]).rename_axis("subset")


def statements(
    runs: Sequence[RunResult], baselines: Mapping[tuple[str, str], Sequence[Baseline]], study: Study
) -> pd.DataFrame:
    """State for each system and task whether its AUC on the reported part beats chance and the shortcuts.

    Args:
        runs: The runs of the study.
        baselines: (subset, task) -> the fitted baselines.
        study: The study, for the settings of the bootstrap.

    Returns:
        `beats_chance`: the interval lies above 0.5 (False for a constant score); `beats_shortcuts`: the AUC is higher
        than every shortcut's; `ahead`: the paired difference to the best shortcut; `surely_ahead`: its interval lies
        above 0; `statement`: all of this in one sentence. None where a comparison is not possible.
    """
    rows = []
    for (subset, mode, system), seeds in group_by_seed(runs).items():
        for task in seeds[0].tasks:
            predictions = sample(seeds, task)
            auc = interval(predictions, "auc", **bootstrap_settings(study))
            shortcuts = [b for b in baselines.get((subset, task), ()) if b.shortcut and not np.isnan(b.auc)]
            best = max(shortcuts, key=lambda baseline: baseline.auc, default=None)
            ahead = _difference(predictions, best.sample, "auc", study) if best else Interval()
            row = {"subset": subset, "task_mode": mode, "system": system, "task": task}
            row |= {"auc": auc.value, "low": auc.low, "high": auc.high}
            row["beats_chance"] = False if auc.reason == CONSTANT else _exceeds(auc.low, 0.5)
            row |= {"best_shortcut": best.name if best else "", "shortcut_auc": best.auc if best else np.nan}
            row |= {"beats_shortcuts": _exceeds(auc.value, row["shortcut_auc"])}
            row |= {"ahead": ahead.value, "ahead_low": ahead.low, "ahead_high": ahead.high}
            row |= {"surely_ahead": _exceeds(ahead.low, 0)}
            rows.append(row | {"statement": _write_statement(row)})
    return pd.DataFrame(rows, columns=STATEMENT_COLUMNS)


def _write_statement(row: Mapping[str, Any]) -> str:
    chance = {None: "has no interval to compare with chance", True: "beats chance"}
    ahead = {
        None: "but without an interval of the difference to the best of them",
        True: "and told apart from the best of them",
        False: "but not told apart from the best of them",
    }[row["surely_ahead"]]
    shortcuts = {
        None: "there is no shortcut to compare it with",
        True: f"its AUC is above that of every shortcut, {ahead}",
        False: "it does not beat the best shortcut",
    }
    if row["best_shortcut"]:
        best = f"({row['best_shortcut']}, AUC {row['shortcut_auc']:.3f})"
        shortcuts |= {known: f"{shortcuts[known]} {best}" for known in (True, False)}
    number = str(Interval(row["auc"], row["low"], row["high"]))
    subject = f"{TASK_TITLES[row['task']]}, {name_system(row['system'], row['task_mode'], row['subset'])}: AUC {number}"
    verdict = chance.get(row["beats_chance"], "is not told apart from chance")
    return f"{subject} {verdict}; {shortcuts[row['beats_shortcuts']]}."


def check_claims(runs: Sequence[RunResult], statements: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """Check what the study claims about itself.

    Args:
        runs: The runs of the study.
        statements: The table made by `statements`.
        baselines: The table made by `evaluation.shortcut_baselines.baseline_table`.

    Returns:
        One row per claim: `holds` (True, False, or None if it cannot be checked), `count` and `exceptions`.
    """
    grid = [run for run in runs if run.in_grid]
    unfinished = [run.spec.title for run in grid if not run.finished]
    stale = [run.spec.title for run in grid if run.stale]
    n_finished = len(grid) - len(unfinished)
    diagnosis = statements[statements["task"] == "diagnosis"]
    names = [name_system(row.system, row.task_mode, row.subset) for row in diagnosis.itertuples()]

    def check(claim: str, column: str) -> tuple:
        values = list(diagnosis[column])
        holds = False if False in values else None if not values or None in values else True
        exceptions = [name for name, value in zip(names, values, strict=True) if not value]
        return claim, holds, f"{values.count(True)} of {len(values)}", exceptions

    shortcuts = baselines[(baselines["metric"] == "auc") & (baselines["task"] == "diagnosis")]
    shortcuts = shortcuts[shortcuts["baseline"] != "majority class"]
    strong = [
        f"{row.baseline}, {SUBSET_TITLES[row.subset]}" for row in shortcuts.itertuples() if row.value > SHORTCUT_LIMIT
    ]
    highest = f"highest {shortcuts['value'].max():.3f}" if len(shortcuts) else ""
    limit = f"diagnosis: the AUC of every shortcut is at most {SHORTCUT_LIMIT}, a limit set beforehand"
    rows = [
        ("every run of the grid is finished", not unfinished, f"{n_finished} of {len(grid)}", unfinished),
        ("every finished run matches configuration, data and code", not stale if n_finished else None, "", stale),
        check("diagnosis: the interval of each system's AUC lies above 0.5", "beats_chance"),
        check("diagnosis: each system is told apart from the best shortcut, and better", "surely_ahead"),
        (limit, not strong if len(shortcuts) else None, highest, strong),
    ]
    table = pd.DataFrame(rows, columns=["claim", "holds", "count", "exceptions"]).astype({"holds": object})
    return table.assign(exceptions=table["exceptions"].map("; ".join)).set_index("claim")


# --- parts of the tables --------------------------------------------------------------------------------


def _difference(system: Sample, reference: Sample, metric: str, study: Study) -> Interval:
    """The paired difference; if the two are not of the same breasts, none and the reason."""
    try:
        return paired_difference(system, reference, metric, **bootstrap_settings(study))
    except ValueError as error:
        return Interval(reason=str(error))


def _answer(difference: float, p: float, names: tuple[str, str]) -> str:
    if np.isnan(p):
        return "no interval"
    if p >= 1 - LEVEL:
        return "not told apart"
    return f"told apart: {names[0] if difference > 0 else names[1]} better"


def _exceeds(value: float, limit: float) -> bool | None:
    return None if np.isnan(value) or np.isnan(limit) else bool(value > limit)
