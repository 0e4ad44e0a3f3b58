"""One look for all figures: plain, legible when small, told apart by the colour-blind too.

The colours are those of Okabe and Ito (2008), one a system; related systems have neighbouring hues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import matplotlib.pyplot as plt

DPI = 150
SYSTEM_COLOURS = {
    "resnet18": "#56B4E9",
    "resnet50": "#0072B2",
    "vssm_shared": "#009E73",
    "vssm_view_specific": "#CC79A7",
    "hybrid_shared": "#D55E00",
    "hybrid_view_specific": "#E69F00",
}
CLASS_COLOURS = {"normal": "#009E73", "benign": "#E69F00", "malignant": "#D55E00"}
BASELINE_COLOUR = "#777777"

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters on every machine
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.titlesize": 10,
    "figure.dpi": 100,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.4,
    "image.cmap": "gray",
}

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@contextmanager
def in_style() -> Iterator[None]:
    """Draw in STYLE, then put back its settings and no others.

    plt.rc_context would put back all of them, "interactive" too, which the notebook's backend switches on when
    the first figure is made: only that one would be shown.
    """
    before = {name: plt.rcParams[name] for name in STYLE}
    plt.rcParams.update(STYLE)
    try:
        yield
    finally:
        plt.rcParams.update(before)


def styled(draw: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate a drawing function: it draws in STYLE, leaves matplotlib's settings alone and signs its figure."""

    @wraps(draw)
    def drawn(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with in_style():
            result = draw(*args, **kwargs)
        figure = result[0] if isinstance(result, tuple) else result
        figure.drawn_by = f"{draw.__module__}:{draw.__qualname__}"  # kept with the figure's file, see save_figure
        return result

    return drawn
