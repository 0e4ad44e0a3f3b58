"""The AUC by breast and by exam, where both are known."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from mammo_utils.evaluation.bootstrap import Sample
from mammo_utils.evaluation.levels import (
    LEVELS,
    exam_sample,
    levels_table,
    pair_wins,
    pairs_table,
    state_levels,
    state_pairs,
)
from mammo_utils.evaluation.runs import read_runs
from mammo_utils.metrics import auc
from mammo_utils.plots.results import draw_levels
from tests.evaluation.fakes import write_run


def breasts_of(labels, p):
    """A sample of exams with two breasts each: labels and p are (exams, 2)."""
    p, exams = np.ravel(p), np.repeat(np.arange(len(labels)), 2)
    return Sample(np.ravel(labels), np.stack([1 - p, p], axis=-1)[None], exams), exams


def test_two_equal_breasts_are_as_good_as_their_exam():
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 2, 80), 2).reshape(-1, 2)
    p = np.repeat(rng.random(80), 2).reshape(-1, 2)
    breasts, exams = breasts_of(labels, p)
    for rule in ("max", "mean", "noisy-or"):
        found = exam_sample(breasts, exams, rule)
        assert len(found.labels) == 80
        assert auc(found.labels, found.probabilities[0]) == pytest.approx(auc(labels.ravel(), breasts.probabilities[0]))


def test_a_scorer_of_sides_is_perfect_within_exams_and_blind_between_them():
    """It answers which breast is worse, never whether one is malignant; half of the exams have one cancer."""
    rng, areas = np.random.default_rng(0), []
    for _ in range(20):
        left = rng.random(400)
        labels = np.where(rng.random((400, 1)) < 0.5, np.stack([left > 0.5, left <= 0.5], axis=-1), 0)
        breasts, exams = breasts_of(labels, np.stack([left, 1 - left], axis=-1))
        found = exam_sample(breasts, exams, "max")
        areas.append(auc(found.labels, found.probabilities[0]))
        wins = pair_wins(breasts, exams)["within"][0]
        assert wins.all() and len(wins) == found.labels.sum()
    assert np.mean(areas) == pytest.approx(0.5, abs=0.05)


def test_the_two_kinds_of_pairs_make_up_the_auc():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (60, 2))
    breasts, exams = breasts_of(labels, rng.random((60, 2)).round(1))
    found = pair_wins(breasts, exams)
    wins = np.concatenate([wins for wins, _ in found.values()])
    assert wins.mean() == pytest.approx(auc(breasts.labels, breasts.probabilities[0]))
    assert len(wins) == labels.sum() * (labels == 0).sum()
    assert sorted(found["within"][1]) == np.flatnonzero(labels.sum(1) == 1).tolist(), "one pair of each such patient"


def test_the_probability_of_the_higher_of_two_draws():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(5), 2)
    sample = Sample(np.array([1, 3]), p[None], np.array([0, 0]))
    found = exam_sample(sample, np.array(["a", "a"]), "noisy-or")
    assert found.labels.tolist() == [3] and found.probabilities[0].sum() == pytest.approx(1)
    draws = np.maximum(*(rng.choice(5, 200_000, p=row) for row in p))
    np.testing.assert_allclose(found.probabilities[0, 0], np.bincount(draws, minlength=5) / 200_000, atol=0.005)
    two = Sample(np.array([0, 1]), np.array([[[0.9, 0.1], [0.6, 0.4]]]), np.array([0, 0]))
    assert exam_sample(two, np.array([7, 7]), "noisy-or").probabilities[0, 0, 1] == pytest.approx(1 - 0.9 * 0.6)
    assert exam_sample(two, np.array([7, 7]), "max").probabilities[0, 0, 1] == 0.4
    assert exam_sample(two, np.array([7, 7]), "mean").probabilities[0, 0, 1] == pytest.approx(0.25)
    with pytest.raises(ValueError, match="'max' does not aggregate 5 classes; accepted are: noisy-or"):
        exam_sample(sample, np.array(["a", "a"]), "max")


def test_the_levels_of_a_study(fake_study):
    for system, subset in (("resnet18", "1v5"), ("hybrid_shared", "1v5"), ("resnet18", "1to5")):
        write_run(fake_study.run(system, "multi", subset, 0))
    runs = read_runs(fake_study)
    table = levels_table(runs, fake_study)
    row = table.query("system == 'resnet18' and subset == '1v5' and task == 'diagnosis'").set_index(["level", "rule"])
    assert len(row) == 7 and set(row.index.get_level_values(0)) == set(LEVELS)
    counts = {level: sum(map(int, row.at[(level, rule), "n_by_class"].split(" / "))) for level, rule in row.index}
    assert counts == {"breast": 91, "exam": 60, "exam of two breasts": 31}
    assert set(table.query("subset == '1to5' and task == 'birads' and level != 'breast'")["rule"]) == {"noisy-or"}
    pairs = pairs_table(runs)
    assert len(pairs) == 2 * 5 and pairs["value"].between(0, 1).all(), "of the five tasks with two classes"
    within, between = (pairs[pairs["pairs"] == kind] for kind in ("within", "between"))
    assert (within["low"] < within["value"]).all() and (within["value"] <= within["high"]).all()
    assert between["low"].isna().all(), "each breast is in many pairs"
    values = table[table["task"] == "diagnosis"].set_index(["level", "rule", "subset", "system"])["value"].sort_index()
    breasts, exams, two = (values[key] for key in (("breast", ""), ("exam", "max"), ("exam of two breasts", "max")))
    two_sentence, mean_sentence = state_levels(table)
    assert f"AUC of {two.min():.3f} to {two.max():.3f} (rule max)" in two_sentence
    assert f"of the breasts in {(two < breasts).sum()} of 3 systems and than that" in two_sentence
    assert f"all exams in {(two < exams).sum()}" in two_sentence
    assert ("raise it" in two_sentence) == (two < exams).all()
    assert f"lower than with max in {(values['exam', 'mean'] < exams).sum()} of 3 systems" in mean_sentence
    lower = (within["value"].to_numpy() < between["value"].to_numpy())[(within["task"] == "diagnosis").to_numpy()].sum()
    assert state_pairs(pairs)[0] == (
        f"Diagnosis: the AUC within exams is lower than between exams in {lower} of 3 systems."
    )
    assert state_levels(table[:0]) == state_pairs(pairs[:0]) == []
    rows = table[(table["subset"] == "1v5") & table["rule"].isin(["", "max"])]
    figure = draw_levels(rows, "made up")
    assert len(figure.axes) == 2 and [t.get_text() for t in figure.legends[0].get_texts()] == ["breasts", "exams"]
    plt.close("all")
    assert levels_table([], fake_study).empty and pairs_table([]).empty
