"""The planted study's comparison of designs, and remedies of the shared gate, at tiny size."""

import shutil

import numpy as np
import pytest

from benchmarks import planted, remedies
from benchmarks.designs_page import designs_page
from mammo_utils.evaluation.runs import read_runs
from tests.conftest import CHECKOUT


def test_designs_are_compared_with_the_papers_and_an_interrupted_measurement_continues(
    small_study, in_small_project, tmp_path, monkeypatch
):
    questions = {
        "fusion": ("diagnosis", [planted.PAPER, ("mean", "hybrid_shared", "multi", ("model.fusion=mean",))]),
        "tasks": ("birads", [planted.PAPER, ("alone", "hybrid_shared", "birads", ())]),
    }
    monkeypatch.setattr(planted, "QUESTIONS", questions)
    trained, original = [], planted.train_and_predict
    monkeypatch.setattr(planted, "train_and_predict", lambda *a: trained.append(a[0]) or original(*a))
    file = tmp_path / "samples.json"
    found = planted.compare_designs(small_study, [0, 1], file)
    assert [(run.model.fusion, run.task_mode, run.seed) for run in trained] == [
        ("gated", "multi", 0),
        ("gated", "multi", 1),
        ("mean", "multi", 0),
        ("mean", "multi", 1),
        ("gated", "multi", 0),
        ("gated", "multi", 1),
        ("gated", "birads", 0),
        ("gated", "birads", 1),
    ]
    for answer in found["questions"].values():
        first, second = answer["rows"]
        assert "difference" not in first
        assert second["difference"][0] == pytest.approx(second["auc"][0] - first["auc"][0])
        assert second["auc"][0] == pytest.approx(np.mean(second["auc_of_seeds"]))
    again = planted.compare_designs(small_study, [0, 1], file)
    assert len(trained) == 8 and again["questions"] == found["questions"]


def test_each_remedy_is_a_variant_whose_recombined_exams_are_scored(
    small_study, in_small_project, tmp_path, monkeypatch
):
    # in a project of its own, because other tests list the runs of the small one
    shutil.copytree(small_study.folder, tmp_path / "results" / "small", ignore=shutil.ignore_patterns("runs"))
    monkeypatch.setenv("MAMMO_PROJECT", str(tmp_path))
    chosen = {name: remedies.REMEDIES[name] for name in ("the paper's design", "a gate for each breast")}
    monkeypatch.setattr(remedies, "REMEDIES", chosen)
    grid = small_study.grid.model_copy(update={"systems": ("hybrid_shared",), "subsets": ("1v5",), "seeds": (0,)})
    study = small_study.model_copy(update={"grid": grid})
    found = remedies.compare_remedies(study)
    assert [(row["system"], row["remedy"]) for row in found["rows"]] == [("hybrid_shared", name) for name in chosen]
    fusions = {run.spec.model.fusion for run in read_runs(study)}
    assert fusions == {"gated", "per_breast"}


def test_the_page_of_designs_is_that_of_the_records():
    """`python -m benchmarks.designs_page` writes it."""
    assert (CHECKOUT / "docs" / "designs.md").read_text(encoding="utf-8") == designs_page()
