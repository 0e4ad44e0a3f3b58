"""Failures, subgroups, consistency and plans where the answer is known."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from mammo_utils.evaluation import planner
from mammo_utils.evaluation.bootstrap import Sample, interval, paired_difference
from mammo_utils.evaluation.consistency import consistency_table
from mammo_utils.evaluation.failures import agreement_table, failures_table
from mammo_utils.evaluation.intervals import holm
from mammo_utils.evaluation.runs import read_runs
from mammo_utils.evaluation.subgroups import breast_attributes, compare_auc, compare_share, subgroup_table
from mammo_utils.metrics import auc
from mammo_utils.vocabulary import VIEWS
from tests.evaluation.fakes import write_run
from tests.evaluation.patients import as_sample, simulate


@pytest.fixture
def runs(fake_study):
    for system in ("resnet18", "hybrid_shared"):
        write_run(fake_study.run(system, "multi", "1v5", 0))
    return read_runs(fake_study)


def change(run, rows, **values):
    """Overwrite columns of a run's predictions in place."""
    for name, value in values.items():
        run.predictions.loc[rows, name] = value


# --- failures -------------------------------------------------------------------------------------------


def test_a_planted_wrong_label_comes_first(runs):
    run = next(run for run in runs if run.id == "hybrid_shared-multi-1v5-seed0")
    test = run.predictions[run.predictions["part"] == "test"]
    sure = test.index[test["diagnosis"] == 1][3]
    change(run, sure, diagnosis_p=1e-6)
    other = test.index[test["diagnosis"] == 0][5]
    change(run, other, diagnosis_p=1 - 1e-6)
    table = failures_table(runs)
    table = table[table["system"] == "hybrid_shared"]
    worst = table[table["rank"] == 1].set_index("kind")
    for kind, row in (("false negative", sure), ("false positive", other)):
        planted = run.predictions.loc[row]
        assert (worst.at[kind, "exam"], worst.at[kind, "side"]) == (planted["exam"], planted["side"])
        assert "hybrid_shared" in worst.at[kind, "wrong_systems"]
    assert (table.groupby("kind")["rank"].max() <= 6).all()
    for _, rows in table.groupby("kind"):
        assert rows["log_odds"].abs().is_monotonic_decreasing or rows["log_odds"].lt(0).any()
    assert (table.loc[table["kind"] == "false negative", "p"] <= table["threshold"].iloc[0]).all()


def test_a_failure_has_the_contributions_of_the_views_to_its_own_breast(runs):
    assert failures_table(runs)[[f"from_{view}" for view in VIEWS]].isna().all(axis=None), "without views.parquet"
    run = next(run for run in runs if run.id == "hybrid_shared-multi-1v5-seed0")
    table = run.predictions[run.predictions["part"] == "test"].copy()
    present = table[[f"present_{view}" for view in VIEWS]].to_numpy() @ (1 << np.arange(4))
    rng = np.random.default_rng(0)
    names = [f"diagnosis_from_{view}_{k}" for view in VIEWS for k in (0, 1)]
    table[names] = rng.normal(size=(len(table), 8))
    whole = table.assign(views=present)
    part = table.assign(views=1, **dict.fromkeys(names, 0.0))[present == 15]  # one view alone, which must not be taken
    pd.concat([part, whole], ignore_index=True).to_parquet(run.spec.folder / "views.parquet")
    failures = failures_table(runs)
    failures = failures[failures["system"] == "hybrid_shared"]
    stored = table.set_index(["exam", "side"])
    for row in failures.to_dict("records"):
        of = stored.loc[(row["exam"], row["side"])]
        for view in VIEWS:
            gap = of[f"diagnosis_from_{view}_1"] - of[f"diagnosis_from_{view}_0"]
            assert row[f"from_{view}"] == pytest.approx(gap)
    assert len(failures) > 4 and set(failures["side"]) == {"L", "R"}


def test_exams_by_how_many_trainings_get_them_wrong(runs):
    counts = agreement_table(runs).iloc[0]
    assert counts[["none", "some", "all"]].sum() == counts["exams"] == 60 and counts["n_trainings"] == 2
    assert failures_table([]).empty and agreement_table([]).empty


# --- subgroups ------------------------------------------------------------------------------------------


def cohort_of(runs, rng):
    """A cohort of the fakes' exams: an outlined square in every malignant breast of the left side."""
    exams = sorted(set(runs[0].predictions["exam"]) | {e for run in runs for e in run.predictions.get("exam", ())})
    n = len(exams)
    columns = {"age": rng.choice([30.0, 50.0, 70.0, np.nan], n)}
    for side in "LR":
        columns |= {f"{side}_density": rng.choice(["fatty", "extreme", ""], n), f"{side}_birads": rng.choice([4, 5], n)}
    square = [[0, 0], [1, 0], [1, 1], [0, 1]]
    rows = [
        {"exam": e, "side": "L", "view": "L_MLO", "kind": "mass", "points": json.dumps((i * np.array(square)).tolist())}
        for i, e in enumerate(exams, start=1)
    ]
    return SimpleNamespace(exams=pd.DataFrame(columns, index=pd.Index(exams, name="exam")), lesions=pd.DataFrame(rows))


def test_attributes_are_those_of_the_breast(runs):
    finished = [run for run in runs if run.finished]
    cohort = cohort_of(finished, np.random.default_rng(0))
    breasts = finished[0].predictions.query("part == 'test'").reset_index(drop=True)
    every, malignant = breast_attributes(breasts, cohort)
    first = breasts.iloc[0]
    assert every["density"].iloc[0] == cohort.exams.at[first["exam"], f"{first['side']}_density"]
    ages = dict(zip(breasts["exam"], every["age"], strict=True))
    assert all(
        ages[exam] == {30: "below 45", 50: "45 to 59", 70: "60 and above"}.get(age, "unknown")
        for exam, age in cohort.exams["age"].items()
        if exam in ages
    )
    assert (every["views"] == "four").equals(breasts[[f"present_{v}" for v in VIEWS]].all(axis=1))
    outlined = (breasts["diagnosis"] == 1) & (breasts["side"] == "L")
    assert ((malignant["lesion"] == "mass") == outlined).all()
    sizes = malignant.loc[outlined, "lesion size"].value_counts()
    assert sizes.max() - sizes.min() <= 1 and (malignant.loc[~outlined, "lesion size"] == "").all()


def test_a_subgroup_of_everyone_has_the_same_number():
    labels, groups, scores = simulate(80, [0.9], np.random.default_rng(0))
    sample = as_sample(labels, groups, scores[:, 0])
    found = compare_auc(sample, np.ones(len(labels), bool))
    whole = interval(sample, "auc", resamples=0)
    assert (found["value"], found["low"], found["high"]) == (whole.value, whole.low, whole.high)
    assert "in the rest" in found["reason"] and "difference" not in found
    few = compare_auc(sample, np.arange(len(labels)) < 4)
    assert "value" not in few and few["reason"] == "fewer than 5 patients of a class"


def test_shuffled_subgroups_are_not_told_apart():
    """Four subgroups drawn by patient, 150 times: at most 6 % (and three standard errors) have any difference."""
    rng, found = np.random.default_rng(1), 0
    for _ in range(150):
        labels, groups, scores = simulate(120, [0.85], rng)
        sample, kind = as_sample(labels, groups, scores[:, 0]), rng.integers(0, 4, 120)[groups]
        hits = (sample.probabilities[0, :, 1] > 0.5) == (labels == 1)
        p = [compare_auc(sample, kind == k).get("p", np.nan) for k in range(4)]
        p += [compare_share(hits, groups, kind == k, kind != k)["p"] for k in range(4)]
        found += (holm(np.array(p)) < 0.05).any()
    assert found / 150 <= 0.06 + 3 * np.sqrt(0.06 * 0.94 / 150)


def test_a_true_difference_between_subgroups_is_found():
    rng = np.random.default_rng(0)
    labels, groups, scores = simulate(400, [0.95, 0.7], rng)
    own = groups < 200
    sample = as_sample(labels, groups, np.where(own, scores[:, 0], scores[:, 1]))
    found = compare_auc(sample, own)
    assert found["p"] < 0.001 and found["difference_low"] < 0.25 < found["difference_high"] + 0.05
    one = auc(labels[own], sample.probabilities[0][own]) - auc(labels[~own], sample.probabilities[0][~own])
    assert found["difference"] == pytest.approx(one)


def test_a_small_perfect_group_is_not_told_apart():
    """Ten of ten against 38 of 45: Fisher's exact p is 0.33."""
    hits = np.r_[np.ones(48), np.zeros(7)].astype(bool)
    own = np.arange(55) < 10
    found = compare_share(hits, np.arange(55), own, ~own)
    assert found["p"] > 0.15 and found["difference_low"] < 0 < found["difference_high"]


def test_the_subgroups_of_a_study(runs):
    finished = [run for run in runs if run.finished]
    table = subgroup_table(runs, cohort_of(finished, np.random.default_rng(0)))
    assert set(table["attribute"]) == {"density", "age", "views", "BI-RADS", "lesion", "lesion size"}
    assert set(table["answer"]) <= {"told apart", "not told apart", "no test"}
    assert (table["n_negative"] == 0)[table["measure"] == "sensitivity"].all()
    tested = table["p"].notna()
    assert (table.loc[tested, "p_bh"] >= table.loc[tested, "p"]).all() and tested.sum() > 8
    assert subgroup_table([], None).empty


# --- consistency ----------------------------------------------------------------------------------------


def test_the_heads_agree_or_do_not(runs):
    run = next(run for run in runs if run.id == "resnet18-multi-1v5-seed0")
    p = run.predictions["diagnosis_p"]
    change(run, slice(None), birads_p5=p, birads_p1=1 - p)
    row = consistency_table(runs).set_index("system").loc["resnet18"]
    assert row["correlation_expected"] == row["correlation_highest"] == pytest.approx(1)
    assert row["malignant_but_low"] == row["benign_but_high"] == 0
    change(run, slice(None), birads_p5=1 - p, birads_p1=p)
    row = consistency_table(runs).set_index("system").loc["resnet18"]
    assert row["correlation_expected"] == pytest.approx(-1)
    assert row["malignant_but_low"] + row["benign_but_high"] == 1
    assert row["labels_malignant_but_low"] == 0 and consistency_table([]).empty


# --- plans ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("area", [0.8, 0.9])
def test_the_planned_standard_error_is_that_of_a_simulation(area):
    rng, areas, planned = np.random.default_rng(0), [], []
    for _ in range(400):
        labels, groups, scores = simulate(100, [area], rng)
        sample = as_sample(labels, groups, scores[:, 0])
        areas.append(auc(labels, sample.probabilities[0]))
        m = (labels == 1).sum()
        variance = planner.hanley_mcneil(area, m, len(labels) - m)
        planned.append(np.sqrt(planner.design_effect(sample) * variance))
    assert np.mean(planned) == pytest.approx(np.std(areas), rel=0.1)


def test_the_demo_needs_some_610_patients_and_12_trainings():
    """Standard error 0.020 at 78 patients, spread of a training 0.017: 0.02 with a power of 80 %."""
    assert planner.needed_patients(78, 0.020, 0.02) == pytest.approx(612, abs=2)
    assert planner.needed_patients(78, 0.020, 0.02, comparisons=5) == pytest.approx(910, abs=10)
    assert np.ceil(planner.needed_seeds(0.017, 0.017, 0.02)) == 12


def test_the_spread_of_both_systems_decides_how_many_trainings_are_needed():
    """A system that varies by 0.013 against one that varies by 0.033, as z² (s₁² + s₂²) / d²."""
    z = norm.ppf(0.975) + norm.ppf(0.8)
    found = planner.needed_seeds(0.013, 0.033, 0.02)
    assert found == pytest.approx(z**2 * (0.013**2 + 0.033**2) / 0.02**2) and np.ceil(found) == 25
    assert planner.needed_seeds(0.033, 0.013, 0.02) == pytest.approx(found)
    rng, n = np.random.default_rng(0), 25
    means = [rng.normal(0.02 * (sd < 0.02), sd, (4000, n)).mean(1) for sd in (0.013, 0.033)]
    z_scores = (means[0] - means[1]) / np.sqrt((0.013**2 + 0.033**2) / n)
    assert np.mean(np.abs(z_scores) > norm.ppf(0.975)) == pytest.approx(0.8, abs=0.03), "the power is reached"
    assert np.isnan(planner.needed_seeds(0.013, np.nan, 0.02))


def test_the_planned_power_is_reached():
    """With the planned number of patients, 80 % of simulated studies find the difference."""
    rng = np.random.default_rng(0)
    labels, groups, scores = simulate(2000, [0.90, 0.85], rng)
    one, two = (as_sample(labels, groups, column) for column in scores.T)
    se = paired_difference(one, two, "auc", resamples=0).se
    n = int(planner.needed_patients(2000, se, 0.05))
    assert 0.3 < planner.influence_correlation(one, two) < 0.9
    found = 0
    for _ in range(150):
        labels, groups, scores = simulate(n, [0.90, 0.85], rng)
        found += paired_difference(*(as_sample(labels, groups, c) for c in scores.T), "auc", resamples=0).p < 0.05
    assert found / 150 == pytest.approx(0.8, abs=0.1)


def test_the_plan_of_a_study(fake_study, runs):
    table = planner.plan_table(runs)
    assert len(table) == 2 * 2 and set(table["system"]) == {"resnet18"} and table["seeds"].isna().all()
    assert (table["patients_corrected"] == table["patients"]).all(), "one comparison"
    write_run(fake_study.run("resnet18", "multi", "1v5", 1))
    assert planner.plan_table(read_runs(fake_study))["seeds"].isna().all(), "the reference was trained once"
    write_run(fake_study.run("hybrid_shared", "multi", "1v5", 1))
    table = planner.plan_table(read_runs(fake_study))
    spreads = table[["sd_seeds", "sd_reference"]].to_numpy()
    assert (spreads > 0).all() and (spreads[:, 0] != spreads[:, 1]).all()
    needed = [planner.needed_seeds(*s, d) for s, d in zip(spreads, table["difference"], strict=True)]
    assert table["seeds"].tolist() == np.ceil(needed).tolist() and planner.plan_table([]).empty


def test_a_sample_without_two_breasts_has_no_design_effect():
    labels, _, scores = simulate(60, [0.8], np.random.default_rng(0))
    alone = as_sample(labels, np.arange(len(labels)), scores[:, 0])
    assert planner.design_effect(alone) == pytest.approx(1)
    twice = Sample(
        np.repeat(labels, 2), np.repeat(alone.probabilities, 2, axis=1), np.repeat(np.arange(len(labels)), 2)
    )
    assert planner.design_effect(twice) == pytest.approx(2, rel=0.02)
