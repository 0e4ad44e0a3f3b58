"""The contribution of a view, which is known for a system that looks at one view."""

import numpy as np
import pandas as pd
import pytest

from mammo_utils.config import Training
from mammo_utils.evaluation.runs import read_runs
from mammo_utils.evaluation.view_ablation import (
    absent_weight,
    predict_with_views,
    removal_table,
    remove_views,
    select_exams,
    view_weights,
    weight_table,
)
from tests.evaluation.exams import LooksAtOneView, exam_set_of
from tests.evaluation.fakes import write_run

SETTINGS = Training(device="cpu", batch_size=7)


def test_only_the_view_that_the_system_looks_at_matters():
    exams = exam_set_of(60, signal="mean")
    table = removal_table(remove_views(LooksAtOneView(0), exams, SETTINGS), resamples=100, seed=0)
    table = table.set_index(["task", "view", "side"])
    left = table.loc["diagnosis", "L_CC", "L"]
    assert left["auc"] == 1 and left["auc_without"] == 0.5 and left["auc_change"] == -0.5
    assert left["n_exams"] == 60 and left["change_of_class"] < 0
    others = table.drop(index=[("diagnosis", "L_CC", side) for side in ("both", "L", "R")])
    assert (others["auc_change"] == 0).all() and (others["change_of_class"] == 0).all()


def test_only_exams_with_the_view_and_another_one_are_used():
    exams = exam_set_of(40, signal="none", missing=0.5)
    removals = {r.view: r for r in remove_views(LooksAtOneView(0), exams, SETTINGS)["diagnosis"]}
    with_right = exams.present[:, 2].numpy()
    assert set(removals["R_CC"].exams) == {n for n, there in zip(exams.names, with_right, strict=True) if there}
    lone = select_exams(exams, np.flatnonzero(~with_right))
    lone.rows[:, 1] = -1  # L_CC is now the only view
    assert remove_views(LooksAtOneView(0), lone, SETTINGS)["diagnosis"] == []


def test_removing_views_does_not_change_the_exams():
    exams = exam_set_of(10)
    before = exams.rows.clone()
    remove_views(LooksAtOneView(1), exams, SETTINGS)
    assert (exams.rows == before).all()


def test_an_exam_is_predicted_from_the_chosen_views():
    exams = exam_set_of(8, signal="mean", missing=0.0)
    exam = int(np.flatnonzero(exams.labels["diagnosis"][:, 0].numpy() == 1)[0])
    with_it, weights = predict_with_views(LooksAtOneView(0), exams, exam, (True, False, True, True), SETTINGS)
    without, _ = predict_with_views(LooksAtOneView(0), exams, exam, (False, True, True, True), SETTINGS)
    assert weights.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
    assert without["diagnosis"][0].tolist() == [0.5, 0.5] and abs(with_it["diagnosis"][0, 1] - 0.5) > 0.01


def test_weights_by_class_and_side(fake_study):
    spec = fake_study.runs()[4]
    write_run(spec)
    run = next(r for r in read_runs(fake_study) if r.id == spec.id)
    names = {0: "benign", 1: "malignant"}
    exams = pd.DataFrame("", index=sorted(set(run.predictions["exam"])), columns=["L_class", "R_class"])
    for row in run.predictions.itertuples():
        exams.loc[row.exam, f"{row.side}_class"] = names[row.diagnosis]
    weights = view_weights(run, exams)
    assert len(weights) == 4 * 91
    table = weight_table(weights, resamples=50, seed=0)
    views = ["L_CC", "L_MLO", "R_CC", "R_MLO"]
    assert table[views].sum(1).to_numpy() == pytest.approx(1)
    assert set(table["class"]) == {"benign", "malignant"}
    test = run.predictions.query("part == 'test' and side == 'R' and diagnosis == 1")
    test = test[test[[f"present_{view}" for view in views]].all(axis=1)]
    row = table.query("`class` == 'malignant' and side == 'R'").iloc[0]
    assert row["n_exams"] == len(test) and row["R_CC"] == pytest.approx(test["weight_R_CC"].mean())
    assert row["R_CC_low"] < row["R_CC"] < row["R_CC_high"]
    absent = absent_weight(weights)
    assert 0 < absent["absent"] < 1 and absent["n_exams"] == 60 - weights[weights["complete"]]["exam"].nunique()
