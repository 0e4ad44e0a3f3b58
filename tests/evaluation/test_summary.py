"""The sentences hold the numbers of the tables."""

from dataclasses import replace

import numpy as np
import pandas as pd

from mammo_utils.evaluation.calibration import calibration_table
from mammo_utils.evaluation.comparisons import compare_systems, label_agreement, statements
from mammo_utils.evaluation.conformal import conformal_table
from mammo_utils.evaluation.levels import levels_table
from mammo_utils.evaluation.operating import operating_table
from mammo_utils.evaluation.runs import read_runs
from mammo_utils.evaluation.subgroups import subgroup_table
from mammo_utils.evaluation.summary import (
    state_sides,
    summarise_decisions,
    summarise_results,
    summarise_shortcuts,
    summarise_subgroups,
)
from mammo_utils.evaluation.tables import parts_table, results_table
from tests.evaluation.fakes import write_run


def tables(runs, study):
    stated = statements(runs, {}, study)
    return (results_table(runs, study), compare_systems(runs, study), levels_table(runs, study), stated), (
        calibration_table(runs, study),
        operating_table(runs),
        conformal_table(runs, study),
    )


def test_the_sentences_count_what_the_tables_hold(fake_study):
    for system, seed in (("resnet18", 0), ("hybrid_shared", 0), ("hybrid_shared", 1)):
        write_run(fake_study.run(system, "multi", "1v5", seed))
    runs = read_runs(fake_study)
    results, decisions = tables(runs, fake_study)
    compared = results[1]
    told, trained, exams = summarise_results(*results)
    apart = compared["answer"].str.startswith("told apart").sum()
    assert told.startswith(f"{apart} of 4 comparisons of two systems are told apart at the 5 % level.")
    assert "; 4 have no others there" in told, "one system is compared, so Holm's families have one member"
    assert compared["p_holm"].isna().all()
    holm, overall = ((compared[name] < 0.05).sum() for name in ("p", "p_bh"))
    assert told.endswith(f"alone it would be {holm}, with Benjamini and Hochberg's alone {overall}.")
    assert trained.startswith("1 of 2 systems were trained once, so their spread over trainings is unknown.")
    assert "of 2 systems (rule max), " in exams and "exams without cancer" in exams
    subgroups = subgroup_table([], None)
    sentences = summarise_decisions(*decisions, subgroups)
    assert len(sentences) == 4 and "of 3 trainings" in sentences[0]
    for level in ("breast", "exam"):
        rows = decisions[1].query(f"level == '{level}' and aim == 0.9")
        limits = (
            f"(3 trainings, 95 % limits {rows['sensitivity_low'].min():.3f} to {rows['sensitivity_high'].max():.3f})"
        )
        span = f"{rows['sensitivity'].min():.3f} to {rows['sensitivity'].max():.3f} by {level}"
        assert f"{span} {limits}" in sentences[2]
    sizes = decisions[2].query("category == 'all'")["mean_size"]
    assert f"hold {sizes.min():.2f} to {sizes.max():.2f} of 2 categories (3 trainings" in sentences[3]
    table = label_agreement(runs)
    assert table.loc["1v5", "share"] == 1 and table.loc["1v5", "agree"] == table.loc["1v5", "breasts"]


def test_the_sides_are_compared_by_task(fake_study):
    write_run(fake_study.run("resnet18", "multi", "1v5", 0))
    results = results_table(read_runs(fake_study), fake_study)
    areas = results[results["metric"] == "auc"].set_index(["task", "side"])["value"]
    for task, sentence in zip(("diagnosis", "birads"), state_sides(results), strict=True):
        gap = areas[task, "L"] - areas[task, "R"]
        assert f"in {int(gap > 0)} of 1 systems; the difference is {gap:+.3f}." in sentence
    assert state_sides(results[:0]) == []


def test_both_parts_of_a_run_are_scored(fake_study):
    write_run(fake_study.run("resnet18", "multi", "1v5", 0))
    runs = read_runs(fake_study)
    table = parts_table(runs).set_index("task")
    results = results_table(runs, fake_study).query("metric == 'auc' and side == 'both'").set_index("task")
    np.testing.assert_allclose(table["reported"], results["value"].loc[table.index])
    assert (table["validation"] != table["reported"]).all() and (table["validation_low"] < table["validation"]).all()
    paper = [replace(run, metrics={**run.metrics, "reported": "validation"}) for run in runs]
    assert parts_table(paper).empty and parts_table([]).empty


def test_without_runs_there_is_nothing_to_summarise(fake_study):
    runs = read_runs(fake_study)
    results, decisions = tables(runs, fake_study)
    assert summarise_results(*results) == [] and summarise_decisions(*decisions, subgroup_table([], None)) == []
    assert label_agreement(runs).empty


def test_the_systems_that_are_not_told_apart_from_the_best_shortcut_are_named():
    row = {"subset": "1to5", "system": "hybrid_shared", "best_shortcut": "percentiles"}
    rows = [
        row | {"task_mode": mode, "task": task, "surely_ahead": ahead}
        for mode, task, ahead in (
            ("multi", "diagnosis", True),
            ("multi", "birads", True),
            ("birads", "birads", False),
            ("birads", "birads", None),
        )
    ]
    name = "Hybrid (Shared), BI-RADS alone, BI-RADS 1 to 5"
    diagnosis, birads = summarise_shortcuts(pd.DataFrame(rows))
    assert diagnosis == "Diagnosis: 1 of 1 systems are told apart from the best shortcut, and better."
    assert birads.endswith(f": 1 of 3 systems are told apart from the best shortcut, and better. Not: {name}; {name}.")
    assert summarise_shortcuts(pd.DataFrame(rows).assign(best_shortcut="")) == []


def test_a_few_subgroups_that_are_told_apart_are_named():
    row = {"subset": "1v5", "system": "resnet18", "task_mode": "multi", "seed": 2, "attribute": "age"}
    row |= {"group": "60 and above", "measure": "AUC", "n_patients": 15, "value": 0.99, "low": 0.9, "high": 1.0}
    apart = pd.DataFrame([row | {"difference": 0.1137}])
    assert summarise_subgroups(apart, 216).endswith(
        "Hochberg): age 60 and above of ResNet-18, both tasks, BI-RADS 1 vs 5, seed 2: AUC 0.990 (0.900 to 1.000; 15 "
        "patients), difference from the others +0.114."
    )
    for n in (0, 6):
        many = summarise_subgroups(apart.loc[[0] * n], 216)
        assert many.startswith(f"In {n} of 216 tests") and "ResNet" not in many
