"""Texts of the diagrams do not overlap boxes."""

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

from mammo_utils.models.system import build_system
from mammo_utils.plots.models import draw_system
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
    assert figure.get_suptitle().startswith("LeNet, 1")
    plt.close(figure)
