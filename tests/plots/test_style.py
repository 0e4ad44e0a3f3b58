import matplotlib.pyplot as plt

from mammo_utils.plots.style import STYLE, styled


def test_drawing_leaves_the_settings_alone_and_keeps_what_the_notebook_switches_on():
    @styled
    def draw():
        assert plt.rcParams["font.size"] == STYLE["font.size"]
        plt.rcParams["interactive"] = True  # as the notebook's backend does when the first figure is made

    before = {name: plt.rcParams[name] for name in STYLE}
    was = plt.rcParams["interactive"]
    try:
        draw()
        assert plt.rcParams["interactive"], "else a notebook shows its first picture alone"
        assert {name: plt.rcParams[name] for name in STYLE} == before
    finally:
        plt.rcParams["interactive"] = was
