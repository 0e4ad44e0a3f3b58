"""One look for all figures: plain, legible when small, distinguishable by the colour-blind.

Colours are those of Okabe and Ito (2008). Each system has its own in `mammo_utils.vocabulary.SYSTEMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mammo_utils.vocabulary import VIEWS

DPI = 150
CLASS_COLOURS = {"normal": "#009E73", "benign": "#E69F00", "malignant": "#D55E00"}
VIEW_COLOURS = dict(zip(VIEWS, ("#0072B2", "#56B4E9", "#D55E00", "#E69F00"), strict=True))  # one hue per side
SIDE_COLOURS = {"L": VIEW_COLOURS["L_CC"], "R": VIEW_COLOURS["R_CC"]}
BASELINE_COLOUR = "#777777"
CHANCE_LINE = {"color": "0.6", "linewidth": 0.8, "linestyle": ":"}
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
    """Apply STYLE, then restore the settings that it changed and no others.

    `plt.rc_context` would also restore "interactive", which the notebook's backend switches on when the first
    figure is made; without it, only that figure would be shown.
    """
    before = {name: plt.rcParams[name] for name in STYLE}
    plt.rcParams.update(STYLE)
    try:
        yield
    finally:
        plt.rcParams.update(before)


def styled(draw: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate a function that returns a figure, or a tuple that starts with one: draw in STYLE and sign the figure.

    The signature, `figure.drawn_by = "module:function"`, is stored with the figure's file by `save_figure`.
    """

    @wraps(draw)
    def draw_in_style(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with in_style():
            result = draw(*args, **kwargs)
        figure = result[0] if isinstance(result, tuple) else result
        figure.drawn_by = f"{draw.__module__}:{draw.__qualname__}"
        return result

    return draw_in_style


def make_panels(
    title: str, names: Sequence[str], width: float, height: float, columns: int = 99, **options: Any
) -> tuple[Figure, np.ndarray]:
    """Make a titled figure with one panel per name; return it and its axes, in the order of the names.

    Args:
        title: Title of the figure.
        names: Titles of the panels.
        width: Width of a panel in inches.
        height: Height of a panel in inches.
        columns: Most panels in a row.
        **options: Passed to `plt.subplots`, such as `sharey`.
    """
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)
    for axis in axes.flat[len(names) :]:
        axis.remove()
    for axis, name in zip(axes.flat, names, strict=False):
        axis.set_title(name)
    figure.suptitle(title)
    return figure, axes.flat[: len(names)]


def show_image(axis: Axes, image: np.ndarray | None, *, note: str = "") -> None:
    """Show an image, uint8 or in [0, 1], without ticks and with a note across it; None leaves the panel empty."""
    axis.set(xticks=[], yticks=[])
    if image is not None:
        axis.imshow(image, vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
    if note:
        colour = "0.5" if image is None else "w"
        axis.text(0.5, 0.5, note, transform=axis.transAxes, ha="center", va="center", color=colour)


def draw_intervals(axis: Axes, centres: ArrayLike, low: ArrayLike, high: ArrayLike, y: ArrayLike, colours: Any) -> None:
    """Draw points at heights `y` with their horizontal intervals; `colours` is one colour or one per point."""
    axis.hlines(y, low, high, colors=colours)
    axis.scatter(centres, y, 25, colours, zorder=3)


def draw_arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw the arrow of a diagram."""
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.3", "shrinkA": 0, "shrinkB": 0}, zorder=1)
