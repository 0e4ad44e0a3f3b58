"""What is measured of a gate, where the answer is known."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mammo_utils.evaluation.gate import (
    CompleteExams,
    agreement,
    complete_exams,
    cross_reading,
    left_weight_auc,
    seed_agreement,
    unseen_auc,
    weight_spread,
)
from tests.evaluation.gates import exams_with_lesions, hand_made_system, predictions_of

ONE_CANCER = np.tile([[1, 0], [0, 1]], (20, 1))
BOOTSTRAP = {"resamples": 100}


def examined(fusion, kind, positive=ONE_CANCER):
    exams, features, _ = exams_with_lesions(positive)
    return complete_exams(*predictions_of(hand_made_system(fusion, kind), exams, features, fusion))


def test_a_gate_that_follows_the_lesion_agrees_with_leaving_views_out():
    exams = examined("gated", "which side")
    assert left_weight_auc(exams, **BOOTSTRAP).value == 1
    found = agreement(exams, "gated", **BOOTSTRAP)
    assert found["top"].value == found["top"].high == 1 and found["top"].low == pytest.approx(
        1 - 3.8415 / 43.8415, abs=1e-4
    )
    spread = weight_spread(exams, "gated")
    assert spread["share_above_95"] == 1 and spread["median_largest"] > 0.99 and spread["entropy"] < 1e-6


def test_a_gate_that_avoids_the_lesion_holds_the_answer_all_the_same():
    exams = examined("gated", "which side")
    turned = CompleteExams(**{**vars(exams), "alpha": (1 - exams.alpha) / 3})
    assert left_weight_auc(turned, **BOOTSTRAP).value == 0
    assert agreement(turned, "gated", **BOOTSTRAP)["top"].value == 0


def test_weights_unrelated_to_the_predictions_agree_by_chance():
    rng, n = np.random.default_rng(0), 400
    alpha = rng.dirichlet(np.ones(4), n)
    names = np.arange(n).astype(str)
    exams = CompleteExams(
        names, names, np.tile([1, 0], (n, 1)), rng.normal(size=(16, n, 2)), alpha, np.zeros((n, 2, 4))
    )
    found = agreement(exams, "gated", resamples=200)
    assert found["top"].value == pytest.approx(0.25, abs=0.08) and found["top"].low < 0.25 < found["top"].high
    assert found["spearman"].value == pytest.approx(0, abs=0.1)
    assert agreement(exams, "per_breast", **BOOTSTRAP)["top"].value == pytest.approx(0.5, abs=0.08)
    spread = weight_spread(CompleteExams(**{**vars(exams), "alpha": np.full((n, 4), 0.25)}), "gated")
    assert spread == {"entropy": pytest.approx(1), "median_largest": 0.25, "share_above_95": 0}
    same = CompleteExams(**{**vars(exams), "alpha": np.full((n, 4), 0.25)})
    assert np.isnan(agreement(same, "gated", **BOOTSTRAP)["top"].value), "equal weights choose no view"


def test_weights_that_turn_round_between_seeds_are_seen(tmp_path):
    exams, features, _ = exams_with_lesions(ONE_CANCER)
    one, views = predictions_of(hand_made_system("gated", "which side"), exams, features, "gated")
    runs = []
    for name, share in (("a", 1), ("b", 1), ("turned", -1), ("other system", 1)):
        spec = SimpleNamespace(
            **vars(one.spec) | {"id": name, "folder": tmp_path / name, "system": name[:5] == "other"}
        )
        vars(spec).update(dict.fromkeys(("task_mode", "subset", "blocks", "fold", "variant"), 0))
        spec.folder.mkdir()
        weights = views.filter(like="weight_")
        views.assign(**(weights if share > 0 else (1 - weights) / 3)).to_parquet(spec.folder / "views.parquet")
        runs.append(replace(one, spec=spec))
    found = seed_agreement(runs).set_index(["run", "other"])["correlation"]
    assert found.to_dict() == {
        ("a", "b"): pytest.approx(1),
        ("a", "turned"): pytest.approx(-1, abs=0.1),  # float32 ties some of the weights near 0
        ("b", "turned"): pytest.approx(-1, abs=0.1),
    }
    assert list(seed_agreement(runs[3:])) == ["run", "other", "n_exams", "correlation"]


def test_a_which_side_switch_reads_one_breast_from_the_other():
    exams = examined("gated", "which side")
    found = cross_reading(exams, **BOOTSTRAP)
    assert found["negative_own"].value == pytest.approx(0, abs=1e-3), "its own views do not matter"
    assert found["negative_other"].value == pytest.approx(10, abs=0.1) and found["positive_own"].value > 9.9
    contributions = exams.contributions  # of the chosen view: +10 to its own breast and -10 to the other
    left = exams.positive[:, 0] == 1
    assert contributions[left, 0, :2].sum(1) == pytest.approx(10, abs=0.1)
    assert contributions[left, 1, :2].sum(1) == pytest.approx(-10, abs=0.1)
    assert abs(contributions[left][:, :, 2:]).max() < 1e-3
    assert unseen_auc(exams, **BOOTSTRAP).value == 1, "it needs no view of the breast itself"


@pytest.mark.parametrize("fusion", ["per_breast", "concat"])
def test_a_breast_read_from_its_own_views_alone_depends_on_nothing_else(fusion):
    exams = examined(fusion, "own views")
    found = cross_reading(exams, **BOOTSTRAP)
    assert found["positive_other"].value == found["negative_other"].value == 0
    assert found["positive_own"].value > 10
    assert (exams.contributions[:, 0, 2:] == 0).all() and (exams.contributions[:, 1, :2] == 0).all()
    assert unseen_auc(exams, **BOOTSTRAP).value == 0.5


def test_breasts_without_a_label_are_not_counted():
    positive = ONE_CANCER.copy()
    positive[:5, 1] = -1
    exams = examined("gated", "which side", positive)
    assert exams.positive[exams.exams == "e0"].tolist() == [[1, -1]]
    found = cross_reading(exams, **BOOTSTRAP)
    # of 37 negative breasts, those of two exams have no finding beside them
    assert found["negative_other"].value == pytest.approx(350 / 37, abs=0.01)
    assert left_weight_auc(exams, **BOOTSTRAP).value == 1
