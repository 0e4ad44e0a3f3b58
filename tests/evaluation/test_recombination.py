"""Exams of two patients: a which-side switch fails on them, a system that reads each breast does not."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mammo_utils.evaluation.bootstrap import Interval
from mammo_utils.evaluation.recombination import (
    SWITCH_AUC,
    TRUTHS,
    Breasts,
    _share,
    controls,
    draw_pairs,
    find_both_seen,
    recombine,
    state_recombination,
    state_weights,
)
from mammo_utils.metrics import auc, softmax
from tests.evaluation.gates import exams_with_lesions, hand_made_system

ONE_CANCER = np.tile([[1, 0], [0, 1]], (20, 1))
OPTIONS = {"resamples": 100, "n": 50}
OPEN = "it cannot be said whether both of two cancers are flagged in most exams recombined to have two"
RUN, NAME = "hybrid_shared-birads-1to5-seed0", "Hybrid (Shared), BI-RADS alone, BI-RADS 1 to 5, seed 0"


def test_pairs_are_of_two_patients_with_the_truth_asked_for():
    _, _, breasts = exams_with_lesions(np.array([[1, 0], [0, 1], [0, 0], [-1, 1]]))
    breasts = replace(breasts, groups=np.array(list("aabc")), seen=np.array([[1, 1], [1, 1], [0, 1], [1, 1]], bool))
    pairs = draw_pairs(breasts, 100)
    assert {truth: {tuple(pair) for pair in found.tolist()} for truth, found in pairs.items()} == {
        (0, 0): {(1, 2)},  # 0 and 1 are of one patient; the left breast of 2 was not seen, that of 3 has no label
        (0, 1): {(1, 3)},
        (1, 0): {(0, 2)},
        (1, 1): {(0, 3)},
    }
    none = Breasts(np.array(["a", "b"]), np.array([[1, 1], [1, 1]]), np.ones((2, 2), bool))
    assert set(draw_pairs(none, 5)) == {(1, 1)} and set(pairs) == set(TRUTHS)


def test_a_which_side_switch_never_sees_two_cancers_nor_none():
    _, features, breasts = exams_with_lesions(ONE_CANCER)
    found = recombine(hand_made_system("gated", "which side"), features, breasts, "diagnosis", **OPTIONS)
    assert found["auc"].value == 1, "the usual exams do not show it"
    assert found["one_right"].value == 1 and found["both_seen"].value == 0
    # the weaker of two findings scores above the negative breasts of exams with one, and below those of exams with none
    assert found["recombined_auc"].value == pytest.approx(0.875, abs=0.01) and found["auc_change"].high < 0
    assert found["n_breasts"] == 80 and found["n"] == 50
    alone = [found[f"{name}_alone"] for name in ("both_seen", "none_flagged_wrong", "one_right")]
    assert alone == [1, 0, 1], "in their own exams, no breast is missed and none flagged wrongly"


def test_a_switch_with_two_scores_has_the_stated_auc():
    truth = np.repeat(TRUTHS, 2, axis=0)
    high = truth > truth[:, ::-1]  # the positive breast of exams with one
    high[truth[:, 0] == truth[:, 1]] = [[1, 0], [0, 1]] * 2  # either breast of the others, as often
    odds = np.where(high, 1.0, -1.0).ravel()
    assert auc(truth.ravel(), softmax(np.stack([0 * odds, odds], 1))) == SWITCH_AUC


def test_breasts_flagged_by_themselves_are_the_yardstick():
    """Noise makes errors: the shares that independent breasts would have follow from sensitivity and specificity."""
    rng = np.random.default_rng(2)
    _, features, breasts = exams_with_lesions(rng.integers(0, 2, (80, 2)))
    noise = 0.7 * torch.randn(80, 4, 2, generator=torch.Generator().manual_seed(1))
    noisy = replace(features, views=features.views + noise)
    found = recombine(hand_made_system("per_breast", "own views"), noisy, breasts, "diagnosis", resamples=20, n=400)
    for name in ("both_seen", "none_flagged_wrong", "one_right"):
        assert 0.05 < found[f"{name}_alone"] < 0.95
        assert found[name].value == pytest.approx(found[f"{name}_alone"], abs=0.06)


def test_without_a_positive_breast_there_is_no_yardstick_for_two():
    _, features, breasts = exams_with_lesions(np.zeros((6, 2), int))
    found = recombine(hand_made_system("per_breast", "own views"), features, breasts, "diagnosis", **OPTIONS)
    assert np.isnan(found["both_seen_alone"]) and found["none_flagged_wrong_alone"] == 0


@pytest.mark.parametrize("fusion", ["per_breast", "concat"])
def test_a_system_that_reads_each_breast_is_right_about_recombined_exams(fusion):
    _, features, breasts = exams_with_lesions(ONE_CANCER)
    found = recombine(hand_made_system(fusion, "own views"), features, breasts, "diagnosis", **OPTIONS)
    values = {name: value.value for name, value in found.items() if isinstance(value, Interval)}
    assert values.pop("none_flagged_wrong") == 0
    assert values == {"auc": 1, "recombined_auc": 1, "auc_change": 0, "both_seen": 1, "one_right": 1}


def test_a_per_breast_system_scores_a_breast_the_same_whatever_the_other_one_is():
    """So that recombination changes its AUC by the draws alone."""
    rng = np.random.default_rng(1)
    _, features, breasts = exams_with_lesions(rng.integers(0, 2, (60, 2)))
    noisy = replace(
        features, views=features.views + 0.7 * torch.randn(60, 4, 2, generator=torch.Generator().manual_seed(0))
    )
    model = hand_made_system("per_breast", "own views")
    found = recombine(model, noisy, breasts, "diagnosis", resamples=200, n=200)
    assert 0.7 < found["auc"].value < 0.95
    assert found["recombined_auc"].value == pytest.approx(found["auc"].value, abs=0.03)
    assert found["auc_change"].low < 0 < found["auc_change"].high
    assert found["recombined_auc"].low < found["recombined_auc"].value < found["recombined_auc"].high
    for name in ("auc", "recombined_auc", "auc_change"):
        assert np.isnan(found[name].low_all), "one training has no spread"
        assert (found[name].resamples, found[name].dropped) == (200, 0)


def test_the_sentences_name_what_the_tables_hold():
    table = pd.DataFrame(
        {
            "run": ["a", "b"],
            "design": ["the paper's design", "model.fusion=per_breast"],
            "task": "diagnosis",
            "both_seen": [0.0, 0.75],
            "both_seen_low": [0.0, 0.6],
            "both_seen_high": [0.13, 0.9],
            "both_seen_alone": [0.41, 0.5],
            "none_flagged_wrong": [0.6, 0.1],
            "none_flagged_wrong_alone": [0.2, 0.3],
            "auc_change": [-0.2, 0.01],
            "auc_change_high": [-0.1, 0.05],
            "fixed_change": [0.02, np.nan],
            "fixed_change_low": [0.01, np.nan],
            "fixed_change_high": [0.05, np.nan],
        }
    )
    one, both, none, yardstick, lower = state_recombination(table)
    assert one.startswith(
        "With the paper's design, at least one of two cancers is missed in most exams recombined to have two: "
    )
    assert one.endswith("both are flagged in 0% of them (1 run; 95 % limits: 0% to 13%).")
    assert both.startswith("With model.fusion=per_breast, both of two cancers are flagged in most exams")
    assert none.startswith("1 of 2 runs flag a breast in more than half of the recombined exams without a cancer: in ")
    assert none.endswith("in 10.0% to 60.0% of them.")
    assert "would be flagged in 41% to 50% of exams, and a breast in 20% to 30% of those without" in yardstick
    assert lower.startswith("In 1 of 2 runs, the AUC of the same breasts is lower") and "most in a: by -0.200" in lower
    one, none, _, lower = state_recombination(table.assign(task=["birads", "diagnosis"], run=[RUN, "b"]))
    assert "per_breast" in one and none.startswith("0 of 1 runs") and "most in b: by" in lower
    gates = pd.DataFrame({"left_weight_auc": [0.02, 0.9], "top": [0.2, 1.0], "top_low": [0.1, 0.9], "chance": 0.25})
    gates = gates.assign(left_weight_auc_low=[0.0, 0.45], left_weight_auc_high=[0.1, 1.0])
    answer, top, equal = state_weights(gates, table)
    assert "an AUC of 0.02 to 0.90. The interval lies above 0.5 in 0 of 2 runs" in answer
    assert "below 0.5 in 1, whose gate favours the other one, and includes 0.5 in 1." in answer
    assert "20% to 100%" in top and "picked at random in 1 of 2 runs" in top
    assert equal.endswith("by +0.020; the interval of the change lies below 0 in 0 of 1 runs and above 0 in 1.")
    nothing = pd.DataFrame()
    assert state_recombination(nothing) == ["No run has exams that can be recombined."]
    assert state_weights(nothing, nothing) == ["No run has a gate and exams with four views."]


@pytest.mark.parametrize(
    ("ends", "answer"),
    [
        (
            [(0.0, 0.1), (0.0, 0.4)],
            "at least one of two cancers is missed in most exams recombined to have two: both are",
        ),
        ([(0.6, 0.9), (0.8, 1.0)], "both of two cancers are flagged in most exams recombined to have two: both are"),
        ([(0.6, 0.9), (0.0, 0.1)], f"{OPEN} (1 of 2 runs flag both, 1 miss at least one)"),
        ([(0.3, 0.7), (0.0, 0.1)], f"{OPEN} (0 of 2 runs flag both, 1 miss at least one)"),
    ],
)
def test_the_finding_is_what_the_intervals_allow(ends, answer):
    low, high = np.transpose(ends)
    table = pd.DataFrame({"both_seen": (low + high) / 2, "both_seen_low": low, "both_seen_high": high})
    table = table.assign(run="a", design="the paper's design", task="diagnosis")
    (row,) = find_both_seen(table).to_dict("records")
    assert row["finding"].startswith(f"With the paper's design, {answer}") and row["runs"] == 2
    assert (row["low"], row["high"]) == (low.min(), high.max())
    assert row["left_out"] == "" and "Left out" not in row["finding"]
    other = pd.concat([table, table[:1].assign(task="birads", run=RUN, both_seen=1.0)])
    (row,) = find_both_seen(other).to_dict("records")
    assert row["runs"] == 2 and row["finding"].endswith(f"Left out, because not trained on the diagnosis: {NAME}.")
    assert find_both_seen(table.assign(task="birads")).empty and find_both_seen(pd.DataFrame()).empty


def test_a_few_hits_do_not_make_the_interval_of_a_share_shorter_than_none_does():
    """One hit in 200 exams of 25 patients: the resampled share alone would end at 3 %, that of no hit at 13 %."""
    rng = np.random.default_rng(0)
    weights = rng.multinomial(25, np.full(25, 1 / 25), 300)[:, rng.integers(0, 25, 200)]
    none, one = _share(np.zeros(200, bool), weights, 25), _share(np.arange(200) == 0, weights, 25)
    assert none.low == 0 and one.low > 0 and one.high > none.high == pytest.approx(3.8415 / 28.8415, abs=1e-3)
    half = _share(np.arange(200) % 2 == 0, weights, 25)
    assert half.low < 0.4 and half.high > 0.6 and half.method == "Wilson"


def test_the_interval_is_as_wide_as_new_patients_vary():
    """Both patients of a recombined exam are drawn: the left one alone would give 0.7 of the width."""
    model, values, widths = hand_made_system("per_breast", "own views"), [], []
    generator = torch.Generator().manual_seed(0)
    for trial in range(80):
        _, features, breasts = exams_with_lesions(np.random.default_rng(trial).integers(0, 2, (40, 2)), trial)
        noise = 0.7 * torch.randn(40, 4, 2, generator=generator)
        noisy = replace(features, views=features.views + noise)
        found = recombine(model, noisy, breasts, "diagnosis", resamples=100, n=150)["recombined_auc"]
        values.append(found.value)
        widths.append(found.high - found.low)
    assert np.mean(widths) / (2 * 1.96 * np.std(values)) == pytest.approx(1, abs=0.2)


def test_a_share_of_0_or_1_has_an_interval_with_a_width():
    """The score interval of no hits in n patients ends at z²/(n + z²), Wilson 1927."""
    _, features, breasts = exams_with_lesions(ONE_CANCER)
    none = recombine(hand_made_system("gated", "which side"), features, breasts, "diagnosis", **OPTIONS)["both_seen"]
    assert (none.value, none.low) == (0, 0) and 0.15 < none.high < 0.25, "some 17 to 20 patients a side"
    all_of_them = recombine(hand_made_system("concat", "own views"), features, breasts, "diagnosis", **OPTIONS)[
        "both_seen"
    ]
    assert (all_of_them.value, all_of_them.high) == (1, 1) and 0.75 < all_of_them.low < 0.85


def test_controls_change_the_answer_of_a_gate_that_matters_alone():
    _, features, breasts = exams_with_lesions(ONE_CANCER)
    found = controls(hand_made_system("gated", "which side"), features, breasts, "diagnosis", resamples=100)
    assert found["gate_auc"].value == 1 and found["fixed_change"].value == -0.5
    assert -0.8 < found["permuted_change"].value < -0.2 and found["random_change"].value < -0.2
    found = controls(hand_made_system("per_breast", "own views"), features, breasts, "diagnosis", resamples=100)
    assert [found[name].value for name in ("fixed_change", "permuted_change", "random_change")] == [0, 0, 0]


def test_the_random_gates_leave_the_global_stream_alone():
    _, features, breasts = exams_with_lesions(ONE_CANCER)
    model = hand_made_system("gated", "which side")
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    one = controls(model, features, breasts, "diagnosis", resamples=20)
    assert torch.equal(torch.rand(3), expected)
    again = controls(model, features, breasts, "diagnosis", resamples=20)
    assert repr(one) == repr(again)  # NaN differs from itself
