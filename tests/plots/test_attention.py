"""Figures of view weights and removed views, and the widget that removes views."""

import io

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mammo_utils.config import Training
from mammo_utils.evaluation.view_ablation import predict_with_views, removal_table, remove_views
from mammo_utils.plots import attention as draw
from tests.evaluation.exams import LooksAtOneView, exam_set_of

SETTINGS = Training(device="cpu")
VIEWS = ("L_CC", "L_MLO", "R_CC", "R_MLO")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_weights_are_drawn_for_the_classes_present():
    row = {"class": "malignant", "side": "L", "n_exams": 5}
    row |= {f"{view}{end}": 0.25 for view in VIEWS for end in ("", "_low", "_high")}
    figure = draw.draw_weights(pd.DataFrame([row, {**row, "side": "R", "class": "benign"}]), "weights")
    assert [axis.get_xticklabels()[0].get_text() for axis in figure.axes] == ["malignant\nexams: 5", "benign\nexams: 5"]


def test_removals_are_drawn():
    table = removal_table(
        remove_views(LooksAtOneView(0), exam_set_of(30, signal="mean"), SETTINGS), resamples=20, seed=0
    )
    assert len(draw.draw_removals(table[table["side"] != "both"], "removed").axes) == 3


def test_a_prediction_marks_removed_and_absent_views():
    exams = exam_set_of(12)
    position = int(np.flatnonzero(~exams.present[:, 2].numpy())[0])
    visible = (False, True, False, False)
    figure = draw.draw_prediction(
        exams, position, visible, *predict_with_views(LooksAtOneView(0), exams, position, visible, SETTINGS), "x"
    )
    notes = [[text.get_text() for text in axis.texts] for axis in figure.axes[:4]]
    assert notes == [["removed"], [], ["absent"], ["absent"]]


def test_combinations_give_one_row_each():
    figure, table = draw.draw_combinations(LooksAtOneView(0), exam_set_of(4, missing=0.0), 1, SETTINGS, "x")
    assert list(table.index) == list(draw.COMBINATIONS)
    assert table.loc["right alone", "α L_CC"] == 0 and table.loc["all views", "α L_CC"] == pytest.approx(0.25)
    assert table.loc["right alone", "P(malignant) L"] == 0.5
    assert figure.get_suptitle() == "x"


def test_the_widget_redraws_when_it_is_changed():
    exams = exam_set_of(12)
    box = draw.explore_views(LooksAtOneView(0), exams, SETTINGS, "made up")
    choice, *ticks = box.children[0].children
    picture = box.children[1]
    assert isinstance(picture, ipywidgets.Image)
    seen = [picture.value]
    ticks[0].value = False
    seen.append(picture.value)
    choice.value = int(np.flatnonzero(~exams.present[:, 2].numpy())[0])
    seen.append(picture.value)
    assert len(set(seen)) == 3 and [tick.disabled for tick in ticks] == [False, False, True, True]
    assert Image.open(io.BytesIO(seen[-1])).format == "PNG"
    assert not plt.get_fignums(), "figures are closed"
