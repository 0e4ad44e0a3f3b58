"""Calibration where the truth is known: labels drawn from the probabilities, or from others."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import brier_score_loss, log_loss

from mammo_utils.evaluation import calibration as c
from mammo_utils.evaluation.bootstrap import Sample, interval
from mammo_utils.evaluation.runs import read_runs
from mammo_utils.metrics import auc
from tests.evaluation.fakes import write_run


def drawn(n, temperature=1.0, shift=0.0, seed=0):
    """Breasts whose log-odds are `temperature` times as extreme as they should be, and moved by `shift`."""
    rng = np.random.default_rng(seed)
    true = rng.normal(scale=2, size=n)
    labels = (rng.random(n) < expit(true)).astype(int)
    p = expit(temperature * (true - shift))
    return Sample(labels, np.stack([1 - p, p], axis=-1)[None], np.arange(n))


def test_the_temperature_is_found_and_leaves_the_auc():
    sample = drawn(20_000, temperature=2)
    temperature, shift, reason = c.fit_scaling(sample, "temperature")
    assert temperature == pytest.approx(2, abs=0.1) and shift == 0 and not reason
    scaled = c.scale(sample, temperature, shift)
    assert auc(scaled.labels, scaled.probabilities[0]) == auc(sample.labels, sample.probabilities[0])
    assert c.ece(scaled.labels, scaled.probabilities[0]) <= 0.015 < c.ece(sample.labels, sample.probabilities[0])


def test_a_moved_prior_needs_the_intercept():
    """As class weights move it."""
    sample = drawn(20_000, temperature=1.5, shift=1)
    temperature, shift, _ = c.fit_scaling(sample, "temperature and intercept")
    assert (temperature, shift) == (pytest.approx(1.5, abs=0.1), pytest.approx(1, abs=0.1))
    alone, both = (c.scale(sample, *c.fit_scaling(sample, name)[:2]) for name in c.SCALINGS[1:])
    assert c.ece(both.labels, both.probabilities[0]) <= 0.015 < c.ece(alone.labels, alone.probabilities[0])


def test_calibrated_probabilities_have_no_error_but_chance():
    large, small = drawn(20_000), drawn(100)
    assert c.ece(large.labels, large.probabilities[0]) <= 0.015
    slope, intercept = c.calibration_line(large)
    assert slope.low < 1 < slope.high and intercept == pytest.approx(0, abs=0.05)
    assert c.calibration_line(drawn(20_000, temperature=2))[0].value == pytest.approx(0.5, abs=0.03)
    errors = [c.ece(s.labels, s.probabilities[0]) for s in (drawn(100, seed=seed) for seed in range(100))]
    assert np.mean(errors) == pytest.approx(c.expected_ece(small), abs=0.02) and np.mean(errors) > 0.05


def test_the_metrics_equal_scikit_learns_and_their_definition():
    sample = drawn(200, temperature=1.7)
    labels, p = sample.labels, sample.probabilities[0]
    assert c.METRICS["brier"].value(labels, p) == pytest.approx(brier_score_loss(labels, p[:, 1]))
    assert c.METRICS["log_loss"].value(labels, p) == pytest.approx(log_loss(labels, p[:, 1]))
    order = np.argsort(p[:, 1])
    by_hand = sum(abs(labels[bin].mean() - p[bin, 1].mean()) * len(bin) / 200 for bin in np.split(order, 10))
    assert c.ece(labels, p) == pytest.approx(by_hand)
    found = interval(sample, c.METRICS["brier"], resamples=500)
    assert found.low < found.value < found.high and found.method == "percentile bootstrap"
    se = ((labels - p[:, 1]) ** 2).std() / np.sqrt(200)
    assert found.se == pytest.approx(se, rel=0.1)


def test_the_slopes_interval_is_over_patients():
    sample = drawn(300)
    twice = Sample(
        np.repeat(sample.labels, 2), np.repeat(sample.probabilities, 2, axis=1), np.repeat(np.arange(300), 2)
    )
    once, clustered = c.calibration_line(sample)[0], c.calibration_line(twice)[0]
    assert clustered.se == pytest.approx(once.se, rel=0.01)


def test_stored_probabilities_of_0_and_1_have_finite_log_odds():
    p = np.float32([0, 1, 0.5])
    sample = Sample(np.array([0, 1, 1]), np.stack([1 - p, p], axis=-1)[None], np.arange(3))
    assert np.isfinite(c.log_odds(sample)).all() and c.scale(sample, 2.0, 0.0).probabilities[0, 2, 1] == 0.5


def test_what_cannot_be_fitted_has_a_reason():
    few = drawn(8)
    assert "a fit needs 10" in c.fit_scaling(few, "temperature")[2]
    labels = np.repeat([0, 1], 20)
    perfect = Sample(labels, np.eye(2)[labels][None], np.arange(40))
    assert "separated perfectly" in c.fit_scaling(perfect, "temperature")[2]
    right = drawn(200)
    reversed_ = Sample(1 - right.labels, right.probabilities, right.groups)
    assert "worse than chance" in c.fit_scaling(reversed_, "temperature and intercept")[2]
    assert np.isnan(c.calibration_line(perfect)[0].value)


def test_the_table_of_a_study(fake_study):
    write_run(fake_study.run("resnet18", "multi", "1v5", 0))
    write_run(fake_study.run("resnet18", "birads", "1v5", 0))
    table = c.calibration_table(read_runs(fake_study), fake_study)
    assert table["scaling"].tolist() == list(c.SCALINGS) and (table["temperature"] > 0).all()
    assert table["ece"].notna().all() and table["helped"].iloc[0] == ""
    assert set(table["helped"].iloc[1:]) <= {"yes", "no, worse", "not told apart"}
    assert c.calibration_table([], fake_study).empty
