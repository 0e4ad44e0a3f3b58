"""The drawing style, and the signature that it leaves on a figure."""

import matplotlib.pyplot as plt

from mammo_utils.plots.style import STYLE, make_panels, styled
from mammo_utils.vocabulary import SYSTEMS


def test_drawing_restores_its_settings_but_keeps_what_the_notebook_backend_switches_on():
    @styled
    def draw():
        assert plt.rcParams["font.size"] == STYLE["font.size"]
        plt.rcParams["interactive"] = True  # as the notebook's backend does when the first figure is made
        return plt.figure()

    before = dict(plt.rcParams)
    assert STYLE["font.size"] != before["font.size"]
    was = plt.rcParams["interactive"]
    try:
        plt.close(draw())
        assert plt.rcParams["interactive"], "else a notebook shows its first figure alone"
        assert {**plt.rcParams, "interactive": was} == before
    finally:
        plt.rcParams["interactive"] = was


def test_panels_have_their_names_and_none_is_left_over():
    figure, axes = make_panels("a title", list("abcd"), (1, 1), columns=3)
    assert [axis.get_title() for axis in figure.axes] == [axis.get_title() for axis in axes] == list("abcd")
    assert figure.get_suptitle() == "a title"
    plt.close(figure)


def test_each_system_has_a_colour_of_its_own():
    assert len({entry.colour for entry in SYSTEMS.values()}) == len(SYSTEMS)
