"""Texts of the diagrams do not overlap boxes; the memory of a scan is what its steps keep."""

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

from mammo_utils.models.system import build_system
from mammo_utils.plots.models import draw_memory, draw_system, explore_memory
from mammo_utils.vocabulary import SYSTEMS, SystemEntry


def test_the_dropout_of_a_system_overlaps_no_box():
    system = build_system("resnet18")
    figure = draw_system(system, "resnet18", 64)
    figure.canvas.draw()
    (axis,) = figure.axes
    boxes = [patch.get_window_extent() for patch in axis.patches if isinstance(patch, FancyBboxPatch)]
    texts = {t.get_text(): t.get_window_extent() for t in axis.texts}
    (dropout,) = (extent for text, extent in texts.items() if text.startswith("dropout"))
    assert len(boxes) > 8 and not any(dropout.overlaps(box) for box in boxes)
    plt.close(figure)


def test_a_system_added_to_the_registry_alone_is_drawn(monkeypatch):
    monkeypatch.setitem(SYSTEMS, "lenet", SystemEntry("LeNet", "#123456", "resnet18", 1, 1e-4, "Is it better?"))
    figure = draw_system(build_system("lenet"), "lenet", 64)
    assert figure.get_suptitle().startswith("LeNet: 1")
    plt.close(figure)


def test_a_large_step_at_the_marks_alone_keeps_the_last_marked_impulse():
    figure = draw_memory([0.1, 9.0], "made up")
    ends = [{line.get_label(): line.get_ydata()[-1] for line in axis.lines} for axis in figure.axes]
    plt.close(figure)
    assert abs(ends[1]["y, Δ where marked"] - 0.3) < 1e-3 > abs(ends[1]["y, Δ at every position"])
    assert ends[0]["y, Δ where marked"] < 0.2


def test_the_slider_redraws_the_memory():
    slider, picture = explore_memory("made up").children
    before = bytes(picture.value)
    slider.value = 5.0
    assert before.startswith(b"\x89PNG") and bytes(picture.value) != before and not plt.get_fignums()
