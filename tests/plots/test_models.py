"""The diagrams' words keep to their places."""

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

from mammo_utils.models.system import build_system
from mammo_utils.plots.models import draw_system


def test_no_word_of_an_architecture_runs_into_a_box():
    system = build_system("resnet18")
    figure = draw_system(system, "resnet18", 64)
    figure.canvas.draw()
    (axis,) = figure.axes
    boxes = [patch.get_window_extent() for patch in axis.patches if isinstance(patch, FancyBboxPatch)]
    texts = {t.get_text(): t.get_window_extent() for t in axis.texts}
    (dropout,) = (extent for text, extent in texts.items() if text.startswith("dropout"))
    assert len(boxes) > 8 and not any(dropout.overlaps(box) for box in boxes)
    plt.close(figure)
