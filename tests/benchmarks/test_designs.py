"""The planted study's comparison of designs, and remedies of the shared gate, at tiny size."""

import shutil

import numpy as np
import pytest

from benchmarks import planted, remedies, weights
from benchmarks.designs_page import designs_page
from mammo_utils.config import Synthetic
from mammo_utils.evaluation.gate import CompleteExams
from mammo_utils.evaluation.runs import read_runs
from mammo_utils.synthetic.cases import exams_of
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


def located(alpha, contributions, shown, positive):
    """What `locate_findings` finds for exams given by (E, 4) weights and contributions to the positive breast."""
    n = len(alpha)
    both = np.zeros((n, 2, 4))
    both[np.arange(n), positive.argmax(1)] = contributions
    names = np.arange(n).astype(str)
    exams = CompleteExams(names, names, positive, np.zeros((16, n, 2)), alpha, both)
    return weights.locate_findings(exams, shown)


def test_a_gate_that_follows_the_finding_and_one_that_does_not_are_told_apart():
    rng = np.random.default_rng(0)
    n = 2000
    view = rng.integers(0, 4, n)
    shown = view[:, None] == np.arange(4)
    positive = np.stack([view < 2, view >= 2], 1).astype(int)
    follows, ignores = np.where(shown, 0.7, 0.1), rng.dirichlet(np.ones(4), n)
    found = located(follows, -follows, shown, positive)
    assert found["n"] == n and found["weights"] == pytest.approx([0.7, 0.1, 0.1])
    for name in ("largest_weight", "weight_in_breast", "largest_contribution", "contribution_in_breast"):
        assert found[name][0] == 1
    found = located(ignores, ignores, shown, positive)
    assert found["largest_weight"][:1] == pytest.approx([0.25], abs=0.03)
    assert found["weight_in_breast"][:1] == pytest.approx([0.5], abs=0.04)
    # the other breast of an exam shows a suspicious view, too, and exams with two cancers or none do not count
    positive[:10], positive[10:20] = 1, 0
    shown = shown | shown[:, ::-1]
    assert located(follows, follows, shown, positive)["n"] == n - 20


def test_the_views_that_show_a_cancer_are_those_that_are_drawn(small_study):
    drawn = Synthetic(n_exams=40, seed=3, visible="one")
    study = small_study.model_copy(update={"data": small_study.data.model_copy(update={"synthetic": drawn})})
    shown = weights.shown_views(study)
    assert len(shown) == 40
    for exam in exams_of(40, 3):
        for i, side in enumerate("LR"):
            suspicion = [b.structures and b.structures[0].suspicion for b in exam.breasts if b.side == side]
            assert shown[exam.id][2 * i : 2 * i + 2].sum() == bool(suspicion and suspicion[0]), exam.id
    with pytest.raises(ValueError, match="visible: one"):
        weights.shown_views(small_study)
