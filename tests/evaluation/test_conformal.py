"""Conformal sets hold what they promise on exchangeable breasts."""

import numpy as np
import pytest

from mammo_utils.evaluation.bootstrap import Sample
from mammo_utils.evaluation.conformal import (
    conformal_quantile,
    conformal_sets,
    conformal_table,
    one_breast_a_patient,
)
from mammo_utils.evaluation.runs import read_runs
from tests.evaluation.fakes import write_run


def draw(n, rng):
    """Breasts whose labels are drawn with other probabilities than the predicted ones."""
    p = rng.dirichlet(np.ones(5), n)
    wrong = p**0.5 / (p**0.5).sum(1, keepdims=True)
    labels = (rng.random((n, 1)) > wrong.cumsum(1)).sum(1).clip(max=4)
    return Sample(labels, p[None], np.arange(n))


def test_coverage_of_exchangeable_draws():
    """n = 200, 1,000 draws; the promise is at least 0.90, and at most 1 / (n + 1) more without the filled gaps."""
    rng, found = np.random.default_rng(0), []
    for _ in range(1000):
        quantile = conformal_quantile(draw(200, rng))
        new = draw(20, rng)
        raw = 1 - new.probabilities[0] <= quantile
        found.append(raw[np.arange(20), new.labels].mean())
    assert np.mean(found) == pytest.approx(0.90, abs=3 * np.std(found) / np.sqrt(1000) + 1 / 201)


def test_sets_are_contiguous_and_never_empty():
    p = np.array([[0.45, 0.1, 0.45], [0.4, 0.3, 0.3], [0.05, 0.9, 0.05]])
    assert conformal_sets(p, 0.6).tolist() == [[True, True, True], [True, False, False], [False, True, False]]
    assert conformal_sets(p, 0.0).sum(1).tolist() == [1, 1, 1]
    assert conformal_sets(p, np.inf).all()


def test_the_quantile_needs_enough_breasts():
    labels = np.zeros(8, int)
    few = Sample(labels, np.stack([np.linspace(0.1, 0.8, 8)] * 2, axis=-1)[None], np.arange(8))
    assert conformal_quantile(few) == np.inf
    p = np.linspace(0.1, 0.9, 9)
    nine = Sample(np.zeros(9, int), np.stack([p, 1 - p], axis=-1)[None], np.arange(9))
    assert conformal_quantile(nine) == pytest.approx(0.9), "the ninth of nine"


def test_one_breast_a_patient_is_drawn():
    groups = np.repeat(np.arange(50), 2)
    sample = Sample(np.tile([0, 1], 50), np.full((1, 100, 2), 0.5), groups)
    drawn = one_breast_a_patient(sample)
    assert sorted(drawn.groups) == list(range(50)) and 10 < drawn.labels.sum() < 40


def test_the_table_of_a_study(fake_study):
    for subset, mode in (("1to5", "multi"), ("1v5", "multi"), ("1v5", "diagnosis")):
        write_run(fake_study.run("resnet18", mode, subset, 0))
    table = conformal_table(read_runs(fake_study), fake_study)
    assert table["category"].tolist() == ["all", "1", "5", "all", "1", "2", "3", "4", "5"]
    every = table[table["category"] == "all"]
    assert (every["low"] < every["coverage"]).all() and (every["mean_size"] >= 1).all()
    parts = table[(table["category"] != "all") & (table["subset"] == "1to5")]
    assert parts["n_breasts"].sum() == every["n_breasts"].iloc[1] and parts["coverage"].isna().sum() == 1
    assert conformal_table([], fake_study).empty
