"""Intervals of samples: pairs, seeds, the percentile bootstrap and what has no interval."""

import time

import numpy as np
import pytest
from scipy.stats import norm

from mammo_utils.evaluation.bootstrap import (
    Sample,
    group_weights,
    interval,
    mean_interval,
    paired_difference,
)
from mammo_utils.metrics import auc, f1_macro, weighted_f1_macro
from tests.test_metrics import answers


def binary(scores):
    return np.stack([1 - scores, scores], axis=-1)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_weighted_f1_equals_scikit_learn_on_the_resampled_breasts(k):
    labels, p = answers(90, k, seed=k)
    weights = group_weights(np.repeat(np.arange(45), 2), 30, seed=1)
    fast_f1 = weighted_f1_macro(labels, p, weights)
    for row, counts in enumerate(weights.astype(int)):
        drawn = np.repeat(np.arange(90), counts)
        assert fast_f1[row] == pytest.approx(f1_macro(labels[drawn], p[drawn]), abs=1e-12)


def test_a_patient_is_drawn_with_all_breasts_and_as_many_patients_as_exist():
    groups = np.repeat([f"p{i}" for i in range(20)], 2)
    weights = group_weights(groups, 200, seed=0)
    assert (weights[:, 0::2] == weights[:, 1::2]).all() and (weights[:, 0::2].sum(1) == 20).all()
    assert not np.array_equal(weights, group_weights(groups, 200, seed=1))
    assert np.array_equal(weights, group_weights(groups, 200, seed=0))


def test_duplicated_breasts_do_not_narrow_the_percentile_interval():
    """Counting each breast twice adds no information: the interval over patients does not change, a naive one over
    breasts shrinks by a factor of about the root of two."""
    labels, p = answers(80, 2)
    once = interval(Sample(labels, p[None], np.arange(80)), "f1_macro", resamples=1000, seed=0)
    twice_labels, twice_p = np.repeat(labels, 2), np.repeat(p, 2, axis=0)
    clustered = interval(
        Sample(twice_labels, twice_p[None], np.repeat(np.arange(80), 2)), "f1_macro", resamples=1000, seed=0
    )
    naive = interval(Sample(twice_labels, twice_p[None], np.arange(160)), "f1_macro", resamples=1000, seed=0)
    assert (clustered.low, clustered.high) == pytest.approx((once.low, once.high), abs=1e-12)
    assert once.method == "percentile bootstrap" and 1.25 < (once.high - once.low) / (naive.high - naive.low) < 1.6


def test_a_paired_difference_is_tighter_than_two_intervals_and_0_for_the_same_predictions():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 2, 100), np.repeat(np.arange(50), 2)
    scores = norm.cdf(1.2 * labels + rng.normal(size=100))
    near = np.clip(scores + rng.normal(scale=0.02, size=100), 0, 1)
    system, reference = (Sample(labels, binary(s)[None], groups) for s in (near, scores))
    difference = paired_difference(system, reference, "auc", resamples=500, seed=0)
    single = interval(system, "auc", resamples=500, seed=0)
    assert difference.value == pytest.approx(auc(labels, binary(near)) - auc(labels, binary(scores)), abs=1e-12)
    assert difference.high - difference.low < (single.high - single.low) / 3
    same = paired_difference(system, system, "auc", resamples=100, seed=0)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="same breasts"):
        paired_difference(system, Sample(1 - labels, binary(near)[None], groups), "auc", resamples=10, seed=0)


def test_seeds_are_averaged_on_the_same_resamples():
    labels, p = answers(60, 2)
    _, q = answers(60, 2, seed=5)
    groups = np.arange(60)
    both = interval(Sample(labels, np.stack([p, q]), groups), "auc", resamples=50, seed=0)
    assert both.value == pytest.approx((auc(labels, p) + auc(labels, q)) / 2)


def test_seeds_widen_a_percentile_interval_too():
    labels, p = answers(120, 2)
    _, q = answers(120, 2, seed=5)
    both, alone = (Sample(labels, np.stack(layers), np.arange(120)) for layers in ([p, q], [p]))
    found = interval(both, "f1_macro", resamples=200, seed=0)
    assert found.low_all < found.low < found.high < found.high_all
    assert np.isnan(interval(alone, "f1_macro", resamples=200, seed=0).low_all)
    difference = paired_difference(both, alone, "f1_macro", resamples=200, seed=0)
    assert np.isnan(difference.low_all) and 0 < difference.p <= 1


@pytest.mark.parametrize("metric", ["auc", "f1_macro"])
def test_fewer_than_five_patients_of_a_class_have_no_interval(metric):
    rng = np.random.default_rng(0)
    labels, scores = np.r_[np.ones(8, int), np.zeros(30, int)], rng.random(38)
    groups = np.r_[np.repeat(np.arange(4), 2), np.arange(4, 34)]  # eight positives of four patients
    found = interval(Sample(labels, binary(scores)[None], groups), metric, resamples=100, seed=0)
    assert np.isnan(found.low) and found.value > 0 and found.reason == "a class has 4 patients; an interval needs 5"
    groups[0] = 99
    found = interval(Sample(labels, binary(scores)[None], groups), metric, resamples=1000, seed=0)
    assert found.low < found.value < found.high and not found.reason
    if metric == "f1_macro":
        assert found.resamples + found.dropped == 1000 and found.dropped < 40


def test_degenerate_samples_have_no_interval_but_a_reason():
    one_class = interval(Sample(np.zeros(9, int), np.full((1, 9, 2), 0.5), np.arange(9)), "auc", resamples=20, seed=0)
    assert np.isnan([one_class.value, one_class.low]).all() and one_class.reason == "no breast of class 1 of 2"
    one_patient = interval(Sample(np.array([0, 1]), np.eye(2)[None], np.array([3, 3])), "auc", resamples=20, seed=0)
    assert one_patient.value == 1 and np.isnan(one_patient.high) and one_patient.reason.startswith("a class has 1 pat")
    nobody = interval(Sample(np.array([], int), np.empty((1, 0, 2)), np.array([])), "f1_macro", resamples=20, seed=0)
    assert np.isnan(nobody.low) and nobody.reason == "no labelled breast"
    assert mean_interval(np.array([]), np.array([]), resamples=5, seed=0).reason == "nothing to average"
    assert mean_interval(np.ones(2), np.array([1, 1]), resamples=5, seed=0).reason == "one patient has no spread"


def test_the_mean_over_patients_has_the_width_of_its_standard_error():
    rng = np.random.default_rng(0)
    values = rng.normal(size=200)
    found = mean_interval(values, np.arange(200), resamples=2000, seed=0)
    assert (found.high - found.low) / (2 * 1.96 * values.std() / np.sqrt(200)) == pytest.approx(1, abs=0.1)


def test_a_thousand_resamples_of_a_hundred_breasts_take_less_than_a_second():
    labels, p = answers(100, 5)
    sample = Sample(labels, p[None], np.repeat(np.arange(50), 2))
    start = time.perf_counter()
    interval(sample, "auc", resamples=1000, seed=0)
    interval(sample, "f1_macro", resamples=1000, seed=0)
    assert time.perf_counter() - start < 1
