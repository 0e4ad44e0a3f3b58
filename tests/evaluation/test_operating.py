"""Operating points where the answer is known."""

import numpy as np
import pytest

from mammo_utils.evaluation import operating as o
from mammo_utils.evaluation.bootstrap import Sample
from mammo_utils.evaluation.levels import exam_sample
from mammo_utils.evaluation.runs import read_runs
from mammo_utils.metrics import softmax
from tests.evaluation.fakes import write_run


def sample_of(labels, p):
    p = np.asarray(p, float)
    return Sample(np.asarray(labels), np.stack([1 - p, p], axis=-1)[None], np.arange(len(p)))


def test_the_lowest_threshold_with_the_specificity():
    negatives = np.arange(1, 21) / 40
    sample = sample_of([0] * 20 + [1] * 2, [*negatives, 0.455, 0.9])
    threshold = o.choose_threshold(sample, 0.9)
    assert threshold == negatives[17]
    rates = o.rates_at(sample, threshold)
    assert rates["specificity"][0] == 0.9 and rates["sensitivity"][0] == 1.0
    assert rates["ppv"][0] == 0.5 and rates["recall_rate"][0] == pytest.approx(4 / 22)
    assert o.rates_at(sample, np.nextafter(threshold, 0))["specificity"][0] < 0.9, "none is lower"
    assert np.isnan(o.choose_threshold(sample_of([0] * 9, np.zeros(9)), 0.9))
    tied = sample_of([0] * 20, [0.1] * 15 + [0.7] * 5)
    assert o.rates_at(tied, o.choose_threshold(tied, 0.9))["specificity"][0] == 1, "ties are on one side"


def test_a_probability_rounded_to_1_is_above_another_one():
    """A negative with log-odds of 37 sets the threshold; positives with 39 and 45 are recalled."""
    odds = np.array([*np.linspace(-5, 30, 19), 37, 39, 45, -9, -9])
    labels = np.array([0] * 20 + [1, 1, 0, 0])
    p = softmax(np.stack([0 * odds, odds], axis=1))
    assert (p[19:22, 1] == 1).all()
    breasts = Sample(labels, p[None], np.arange(24))
    exams = exam_sample(breasts.select([*range(20), 20, 22, 21, 23]), np.array([*range(20), 20, 20, 21, 21]), "max")
    for validation, sample in ((breasts, breasts), (exams, exams)):
        threshold = o.choose_threshold(validation, 1.0)
        assert threshold > 1, "a score"
        rates = o.rates_at(sample, threshold)
        assert rates["sensitivity"][0] == rates["specificity"][0] == 1
    mean = exam_sample(breasts.select([20, 22]), np.array([0, 0]), "mean")
    np.testing.assert_allclose(mean.probabilities[0, 0], p[[20, 22]].mean(0))


def test_the_ppv_at_another_prevalence():
    assert o.ppv_at(0.9, 0.9, 0.01) == pytest.approx(0.0833, abs=5e-5)
    assert o.ppv_at(1, 1, 0.01) == 1 and np.isnan(o.ppv_at(0, 1, 0.01))


def test_the_net_benefit():
    labels = np.repeat([0, 1], [70, 30])
    thresholds = np.linspace(0.01, 0.99, 50)
    np.testing.assert_allclose(o.net_benefit(sample_of(labels, labels), thresholds), 0.3)
    np.testing.assert_allclose(o.net_benefit(sample_of(labels, labels), thresholds, 0.01), 0.01)
    everyone = o.net_benefit(sample_of(labels, np.ones(100)), thresholds)
    np.testing.assert_allclose(everyone, o.recall_all(thresholds, 0.3))
    rng = np.random.default_rng(0)
    p = rng.random(100)
    (found,) = o.net_benefit(sample_of(labels, p), np.array([0.2]))
    by_hand = ((p >= 0.2) & (labels == 1)).sum() / 100 - ((p >= 0.2) & (labels == 0)).sum() / 100 * 0.2 / 0.8
    assert found == pytest.approx(by_hand)


def test_a_moved_prior_is_bayes_theorem():
    odds = 0.7 / 0.3 * (0.01 / 0.99) / (0.4 / 0.6)
    assert o.move_prior(np.array([0.7]), 0.4, 0.01).item() == pytest.approx(odds / (1 + odds))


def test_the_tables_of_a_study(fake_study):
    write_run(fake_study.run("resnet18", "multi", "1v5", 0))
    write_run(fake_study.run("resnet18", "birads", "1v5", 0))
    points = o.operating_table(read_runs(fake_study))
    assert len(points) == 4 and set(points["level"]) == {"breast", "exam"}
    assert (points["specificity_validation"] >= points["aim"]).all() and not points["reason"].any()
    breast = points.query("level == 'breast' and aim == 0.9").iloc[0]
    assert breast["sensitivity_low"] < breast["sensitivity"] < breast["sensitivity_high"]
    assert breast["n_positive"] + breast["n_negative"] == 91
    moved = o.prevalence_table(points)
    assert len(moved) == 12
    row = moved.iloc[1]
    assert row["ppv"] == pytest.approx(row["found_per_1000"] / row["recalled_per_1000"])
    assert (moved["ppv_low"] < moved["ppv"]).all() and (moved["ppv"] <= moved["ppv_high"]).all()
    assert o.prevalence_table(o.operating_table([])).empty
