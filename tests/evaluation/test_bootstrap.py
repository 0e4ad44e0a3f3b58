"""The bootstrap over patients: its fast metrics, its width, its coverage."""

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
from mammo_utils.metrics import auc, f1_macro, weighted_auc, weighted_f1_macro
from tests.test_metrics import answers


def binary(scores):
    return np.stack([1 - scores, scores], axis=-1)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_weighted_metrics_equal_scikit_learn_on_the_resampled_breasts(k):
    labels, p = answers(90, k, seed=k)
    weights = group_weights(np.repeat(np.arange(45), 2), 30, seed=1)
    fast_auc, fast_f1 = weighted_auc(labels, p, weights), weighted_f1_macro(labels, p, weights)
    for row, counts in enumerate(weights.astype(int)):
        drawn = np.repeat(np.arange(90), counts)
        assert fast_auc[row] == pytest.approx(auc(labels[drawn], p[drawn]), abs=1e-12)
        assert fast_f1[row] == pytest.approx(f1_macro(labels[drawn], p[drawn]), abs=1e-12)


def test_a_patient_is_drawn_with_all_breasts_and_as_many_patients_as_exist():
    groups = np.repeat([f"p{i}" for i in range(20)], 2)
    weights = group_weights(groups, 200, seed=0)
    assert (weights[:, 0::2] == weights[:, 1::2]).all() and (weights[:, 0::2].sum(1) == 20).all()
    assert not np.array_equal(weights, group_weights(groups, 200, seed=1))
    assert np.array_equal(weights, group_weights(groups, 200, seed=0))


def test_duplicated_breasts_do_not_narrow_the_interval():
    """Counting each breast twice adds no information: the interval over patients does not change, a naive one over
    breasts shrinks by a factor of about the root of two."""
    labels, p = answers(80, 2)
    once = interval(Sample(labels, p[None], np.arange(80)), "auc", resamples=1000, seed=0)
    twice_labels, twice_p = np.repeat(labels, 2), np.repeat(p, 2, axis=0)
    clustered = interval(
        Sample(twice_labels, twice_p[None], np.repeat(np.arange(80), 2)), "auc", resamples=1000, seed=0
    )
    naive = interval(Sample(twice_labels, twice_p[None], np.arange(160)), "auc", resamples=1000, seed=0)
    assert (clustered.low, clustered.high) == pytest.approx((once.low, once.high), abs=1e-12)
    ratio = (clustered.high - clustered.low) / (naive.high - naive.low)
    assert 1.25 < ratio < 1.6


def test_coverage_of_the_true_auc_is_near_95_percent():
    """Two breasts of a patient share a part of their score; the AUC of the population is known."""
    shift, shared, hits, n = 1.0, 0.6, 0, 300
    truth = norm.cdf(shift / np.sqrt(2))
    for trial in range(n):
        rng = np.random.default_rng(trial)
        labels = rng.integers(0, 2, (60, 2))
        noise = np.sqrt(shared) * rng.normal(size=(60, 1)) + np.sqrt(1 - shared) * rng.normal(size=(60, 2))
        scores = norm.cdf(shift * labels + noise).ravel()
        sample = Sample(labels.ravel(), binary(scores)[None], np.repeat(np.arange(60), 2))
        found = interval(sample, "auc", resamples=300, seed=trial)
        hits += found.low <= truth <= found.high
    assert 0.91 <= hits / n <= 0.98, (
        hits / n
    )  # 0.95 less three standard errors of 300 trials, and the bias of percentile intervals


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
    assert (same.value, same.low, same.high) == (0, 0, 0) and "no width" in same.reason
    with pytest.raises(ValueError, match="same breasts"):
        paired_difference(system, Sample(1 - labels, binary(near)[None], groups), "auc", resamples=10, seed=0)


def test_seeds_are_averaged_on_the_same_resamples():
    labels, p = answers(60, 2)
    _, q = answers(60, 2, seed=5)
    groups = np.arange(60)
    both = interval(Sample(labels, np.stack([p, q]), groups), "auc", resamples=50, seed=0)
    assert both.value == pytest.approx((auc(labels, p) + auc(labels, q)) / 2)


def test_resamples_without_a_class_are_left_out_and_counted():
    labels = np.r_[1, 1, np.zeros(30, int)]
    rng = np.random.default_rng(0)
    found = interval(Sample(labels, binary(rng.random(32))[None], np.arange(32)), "auc", resamples=1000, seed=0)
    assert found.resamples + found.dropped == 1000
    assert 60 < found.dropped < 220  # (30 / 32) ** 32 = 0.127 of the resamples
    assert found.low <= found.value <= found.high


def test_degenerate_samples_have_no_interval_but_a_reason():
    one_class = interval(Sample(np.zeros(9, int), np.full((1, 9, 2), 0.5), np.arange(9)), "auc", resamples=20, seed=0)
    assert np.isnan([one_class.value, one_class.low]).all() and one_class.reason == "no breast of class 1 of 2"
    one_patient = interval(Sample(np.array([0, 1]), np.eye(2)[None], np.array([3, 3])), "auc", resamples=20, seed=0)
    assert one_patient.value == 1 and np.isnan(one_patient.high) and one_patient.reason == "one patient has no spread"
    nobody = interval(Sample(np.array([], int), np.empty((1, 0, 2)), np.array([])), "f1_macro", resamples=20, seed=0)
    assert np.isnan(nobody.low) and nobody.reason == "no labelled breast"
    assert mean_interval(np.array([]), np.array([]), resamples=5, seed=0).reason == "nothing to average"
    rare = Sample(np.array([0, 1]), np.eye(2)[None], np.array(["a", "b"]))  # half of the resamples have one class
    assert interval(rare, "auc", resamples=1000, seed=0).resamples in (0, *range(500, 600))


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
