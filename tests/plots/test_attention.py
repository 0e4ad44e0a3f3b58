"""Figures of recombined exams, contributions, subsets of views and single exams."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mammo_utils.evaluation.gate import complete_exams
from mammo_utils.evaluation.recombination import SWITCH_AUC
from mammo_utils.evaluation.saliency import MAPS
from mammo_utils.evaluation.view_ablation import ExamPrediction
from mammo_utils.plots import attention as draw
from mammo_utils.training.saliency import METHODS
from tests.evaluation.exams import exam_set_of
from tests.evaluation.gates import exams_with_lesions, hand_made_system, predictions_of
from tests.evaluation.test_saliency import maps_of


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def predict(shown):
    """Weights are shared by the views shown; the left breast is malignant if L_CC is shown."""
    weights = np.array(shown) / max(sum(shown), 1)
    left = 0.9 if shown[0] else 0.5
    return ExamPrediction({"diagnosis": np.array([[1 - left, left], [0.5, 0.5]])}, weights, np.ones((2, 4)))


def test_recombination_is_drawn_with_a_row_for_each_run():
    measures = ("auc", "recombined_auc", "both_seen", "one_right", "none_flagged_wrong")
    row = {f"{name}{end}": value for name in measures for end, value in (("", 0.5), ("_low", 0.4), ("_high", 0.6))}
    row |= {f"{name}_alone": 0.3 for name in draw.SHARES}
    table = pd.DataFrame([row | {"run": "a"}, row | {"run": "b", "both_seen": np.nan}])
    figure = draw.draw_recombination(table, {"a": "System A"}, "recombined")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["System A", "b"]
    switches = [axis.lines[0].get_xdata()[0] for axis in figure.axes]
    assert switches == [SWITCH_AUC, 0, 1, 1], "as the titles of the panels name them"


def test_subsets_are_drawn_with_those_of_training_shaded():
    rows = [
        {"run": "a", "views": k, "trained": k == 15, "auc": 0.7, "auc_low": 0.6, "auc_high": 0.8} for k in range(1, 16)
    ]
    figure = draw.draw_subsets(pd.DataFrame(rows), {"a": ("System A", "k"), "gone": ("Gone", "r")}, "subsets")
    assert len(figure.axes[0].patches) == 1 and figure.axes[0].patches[0].get_x() == -0.5, "all four views come first"
    assert [text.get_text() for text in figure.legends[0].texts] == ["System A"]


def test_contributions_are_drawn_beside_the_weights():
    exams, features, _ = exams_with_lesions(np.array([[1, 0], [0, 1], [1, 0], [1, 1]]))
    run = predictions_of(hand_made_system("gated", "which side"), exams, features, "gated")
    figure = draw.draw_contributions(complete_exams(*run), "contributions")
    assert len(figure.axes) == 6
    assert [figure.axes[i].get_ylabel() for i in (0, 3)] == [
        "cancer in the left breast\n(2 exams)",
        "cancer in the right breast\n(1 exams)",
    ]


def test_a_prediction_marks_removed_and_absent_views():
    exams = exam_set_of(12)
    position = int(np.flatnonzero(~exams.present[:, 2].numpy())[0])
    visible = (False, True, False, False)
    figure = draw.draw_prediction(exams, position, visible, predict(visible), "x")
    notes = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert notes == [["removed"], [], [], ["absent"], ["absent"]], "the probabilities stand beside the left views"
    assert figure.axes[1].get_title() == "L-MLO: α = 1.00\nleft +1.0, right +1.0"


def test_combinations_give_one_row_each():
    figure, table = draw.draw_combinations(exam_set_of(4, missing=0.0), 1, predict, "x")
    assert list(table.index) == list(draw.COMBINATIONS)
    assert table.loc["right alone", "α L-CC"] == 0 and table.loc["all views", "α L-CC"] == pytest.approx(0.25)
    assert table.loc["right alone", "P(malignant) L"] == 0.5
    assert figure.get_suptitle() == "x"
    filled = [[bar.get_fill() for bar in bars] for bars in figure.subfigs[1].axes[0].containers]
    assert np.array_equal(np.transpose(filled), list(draw.COMBINATIONS.values())), "a removed view is hollow"


def test_saliency_is_drawn_with_a_panel_for_each_scored_method():
    rows = [
        {"run": run, "method": method, "map": name, "n_views": 0 if method == "grad_cam" else 7}
        | {f"energy{end}": np.nan if method == "grad_cam" else value for end, value in (("", 0.5), ("_low", 0.4))}
        | {"energy_high": 0.6}
        for run in ("a", "b")
        for method in METHODS
        for name in MAPS
    ]
    figure = draw.draw_saliency(pd.DataFrame(rows), {"a": "System A"}, "saliency")
    assert [axis.get_title() for axis in figure.axes] == ["integrated gradients\n(7 views)", "occlusion\n(7 views)"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["System A", "b"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(MAPS.values())


def test_saliency_maps_are_drawn_in_their_own_resolution():
    maps = maps_of(3, cam_side=2)
    figure = draw.draw_saliency_maps(maps, 2, "maps")
    assert len(figure.axes) == 4 * 2
    shown = [axis.images[1].get_array().shape for axis in figure.axes if len(axis.images) > 1]
    assert shown == [(2, 2)] * 2 + [(32, 32)] * 2 + [(8, 8)] * 2
    assert figure.axes[2].get_ylabel() == "Grad-CAM\n2 × 2 cells"
