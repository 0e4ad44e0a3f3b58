"""The ablations of training and the AUC, at tiny size."""

import numpy as np
import pytest

from benchmarks import ablations
from benchmarks.epochs import list_variants
from mammo_utils.config import Evaluation


def test_each_ablation_is_compared_with_the_first_on_the_same_patients(small_study, in_small_project, monkeypatch):
    spec = next(run for run in small_study.runs() if run.id == "resnet18-multi-1v5-seed0")
    trained = []
    original = ablations.train_and_predict
    monkeypatch.setattr(ablations, "train_and_predict", lambda *a: trained.append(a[0]) or original(*a))
    found = ablations.compare_ablations(spec, [0, 1], Evaluation(resamples=50))
    assert [row["name"] for row in found["rows"]] == [name for name, *_ in list_variants()]
    assert len(found["rows"]) == 6
    assert found["rows"][0]["difference"][0] == 0 and found["exams"] > 0 and found["breasts"] > 0
    for value, low, high in (row["auc"] for row in found["rows"]):
        assert low <= value <= high or (np.isnan(low) and found["exams"] < 10), "too few patients for an interval"
    first, last = found["rows"][0]["auc"][0], found["rows"][-1]["auc"][0]
    assert found["rows"][-1]["difference"][0] == pytest.approx(last - first)
    assert [s.training.precision for s in trained] == ["float32"] * 6 + ["bfloat16"] * 6
    assert [s.training.channels_last for s in trained] == [False] * 2 + [True] * 10
    assert [s.training.store for s in trained] == ["device"] * 8 + ["mapped"] * 2 + ["device"] * 2
    assert [s.model.missing for s in trained] == ["zeros"] * 10 + ["masked"] * 2
    assert [s.seed for s in trained] == [0, 1] * 6
    for row in found["rows"]:
        assert row["auc"][0] == pytest.approx(sum(row["auc_of_seeds"]) / 2)
    assert found["rows"][0]["auc_of_seeds"][0] != found["rows"][0]["auc_of_seeds"][1]
    all_on, from_file = found["rows"][3:5]
    assert all_on["auc_of_seeds"] == from_file["auc_of_seeds"], "the place of the images changes no bit"
    assert [s.training.compile for _, s in ablations.vary(spec, compiled=True)] == [False] * 6 + [True]
