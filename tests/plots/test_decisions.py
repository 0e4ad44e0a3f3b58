"""Figures of notebook 07 show the numbers that they are given."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection

from mammo_utils.evaluation.bootstrap import Sample
from mammo_utils.plots import decisions as draw
from tests.evaluation.test_calibration import drawn


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_a_calibrated_system_lies_on_the_diagonal_and_its_counts_are_shown():
    sample = drawn(5000)
    (axis,) = draw.draw_reliability({"resnet18": (sample, None)}, "one").axes
    (points,) = (c for c in axis.collections if len(c.get_offsets()) == 10)
    np.testing.assert_allclose(*points.get_offsets().T, atol=0.06)
    assert sum(int(text.get_text() or 0) for text in axis.texts) == 5000


def test_operating_points_are_drawn_at_their_values():
    row = {"system": "resnet18", "task_mode": "multi", "seed": 0, "aim": 0.9, "specificity": 0.88, "sensitivity": 0.8}
    row |= {
        f"{name}_{end}": row[name] + shift
        for name in ("specificity", "sensitivity")
        for end, shift in (("low", -0.1), ("high", 0.1))
    }
    other = row | {"task_mode": "diagnosis", "specificity": 0.7}
    (axis,) = draw.draw_operating_points(pd.DataFrame([other, row]), "one").axes
    drawn_at = [c.get_offsets().tolist() for c in axis.collections if isinstance(c, PathCollection)]
    assert np.round(drawn_at, 6).tolist() == [[[0.7, 0.7], [0.88, -0.3]], [[0.8, 1.12], [0.8, 0.12]]]
    assert [text.get_text() for text in axis.get_yticklabels()] == [
        "ResNet-18, both tasks",
        "ResNet-18, diagnosis alone",
    ]


def test_perfect_probabilities_have_the_net_benefit_of_the_prevalence():
    labels = np.repeat([0, 1], [60, 40])
    sample = Sample(labels, np.eye(2)[labels][None], np.arange(100))
    here, screening = draw.draw_net_benefit({"resnet18": sample}, 0.01, "one").axes
    np.testing.assert_allclose(here.lines[0].get_ydata(), 0.4)
    np.testing.assert_allclose(screening.lines[0].get_ydata(), 0.01)


def test_failures_show_the_views_of_their_exam():
    store = SimpleNamespace(
        settings={"size": 8},
        images=np.arange(3, dtype=np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8),
        index=pd.DataFrame({"columns": [8] * 3, "flipped": False, "left": 0, "top": 0, "width": 8, "height": 8}),
        rows_of=lambda exams: np.array([[0, 1, -1, -1]]) if exams == ["a"] else np.array([[-1, -1, 2, -1]]),
    )
    square = "[[1, 1], [3, 1], [3, 3]]"
    lesions = pd.DataFrame([{"exam": "a", "side": "L", "view": "L_MLO", "kind": "mass", "points": square}])
    rows = [
        {"kind": "false negative", "rank": 1, "exam": "a", "side": "L", "p": 0.01}
        | {"from_L_CC": -3.25, "from_L_MLO": 0.04, "from_R_CC": -1.0, "from_R_MLO": 0.0},
        {"kind": "false positive", "rank": 1, "exam": "b", "side": "R", "p": 0.99},
    ]
    axes = draw.draw_failures(pd.DataFrame(rows), store, SimpleNamespace(lesions=lesions), "one").axes
    shown = [axis.images[0].get_array().max() if axis.images else None for axis in axes]
    assert shown == [0, 1, None, None, None, None, 2, None]
    assert [len(axis.patches) for axis in axes] == [0, 1, 0, 0, 0, 0, 0, 0]
    assert [axis.get_title() for axis in axes[:2]] == ["L-CC −3.2", "L-MLO 0.0"]
    assert axes[6].get_title() == "R-CC", "a run without contributions"
    assert axes[0].get_ylabel() == "1. false negative\na left\nP = 0.010"


def test_subgroups_sets_heads_and_plans_are_drawn():
    group = {"attribute": "age", "group": "unknown", "n_patients": 9, "n_positive": 5, "n_negative": 4, "value": 0.8}
    group |= {"low": 0.7, "high": 0.9, "answer": "told apart"}
    table = pd.DataFrame([group | {"measure": "AUC"}, group | {"measure": "sensitivity", "value": np.nan}])
    one, two = draw.draw_subgroups(table, "one").axes
    assert one.get_yticklabels()[0].get_text() == "age: unknown (9; 5 / 4)" and two.get_xlabel() == "sensitivity"
    row = {"system": "resnet18", "task_mode": "multi", "coverage": 0.9, "low": 0.8, "high": 0.95, "mean_size": 1.25}
    row |= {"n_breasts": 40}
    sets = pd.DataFrame([row | {"category": "all"}, row | {"category": "5"}])
    assert [axis.texts[0].get_text() for axis in draw.draw_conformal(sets, "one").axes] == ["1.25"] * 2
    heads = {"resnet18": (np.array([0.1, 0.9]), np.array([1.5, 4.5]), np.array([0, 1]))}
    (axis,) = draw.draw_heads(heads, "one").axes
    assert [c.get_offsets().tolist() for c in axis.collections] == [[[0.1, 1.5]], [[0.9, 4.5]]]
    plan = pd.DataFrame([{"task": "diagnosis", "system": "resnet18", "n_patients": 78, "se_difference": 0.02}])
    (axis,) = draw.draw_plan(plan, "one").axes
    assert axis.lines[0].get_ydata()[10] == pytest.approx(612, abs=2), "at a difference of 0.02"
