"""One look for all figures: plain, legible when small, distinguishable by the colour-blind.

Colours are those of Okabe and Ito (2008). Each system has its own in `mammo_utils.vocabulary.SYSTEMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import product
from typing import Any, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mammo_utils.vocabulary import MODE_TITLES, SYSTEMS, VIEWS

DPI = 150
COLOURS = {"normal": "#009E73", "benign": "#E69F00", "malignant": "#D55E00"}
COLOURS |= dict(zip(VIEWS, ("#0072B2", "#56B4E9", "#D55E00", "#E69F00"), strict=True))  # one hue per side
COLOURS |= {"L": COLOURS["L_CC"], "R": COLOURS["R_CC"], "baseline": "#777777", "outline": "#56B4E9"}
CHANCE_LINE = {"color": "0.6", "linewidth": 0.8, "linestyle": ":"}
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters on every machine
    **dict.fromkeys(["font.size", "axes.titlesize", "axes.labelsize"], 9),
    **dict.fromkeys(["xtick.labelsize", "ytick.labelsize", "legend.fontsize"], 8),
    **dict.fromkeys(["legend.frameon", "axes.spines.top", "axes.spines.right"], False),
    "figure.titlesize": 10,
    "figure.dpi": 100,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.4,
    "image.cmap": "gray",
}

Draw = TypeVar("Draw", bound=Callable[..., Any])


def styled(draw: Draw) -> Draw:
    """Decorate a function that returns a figure, or a tuple that starts with one: draw in STYLE and sign the figure.

    The signature, `figure.drawn_by = "module:function"`, is stored with the figure's file by `save_figure`.
    """

    @wraps(draw)
    def draw_in_style(*args: Any, **kwargs: Any) -> Any:
        before = {name: plt.rcParams[name] for name in STYLE}
        plt.rcParams.update(STYLE)
        try:
            result = draw(*args, **kwargs)
        finally:
            # Not by plt.rc_context, which would also reset "interactive": the notebook's backend switches it on when
            # the first figure is made, and without it only that figure would be shown.
            plt.rcParams.update(before)
        figure = result[0] if isinstance(result, tuple) else result
        figure.drawn_by = f"{draw.__module__}:{draw.__qualname__}"
        return result

    return draw_in_style


def make_panels(
    title: str,
    names: Sequence[str],
    size: tuple[float, float],
    columns: int = 99,
    x: str = "",
    y: str = "",
    **options: Any,
) -> tuple[Figure, np.ndarray]:
    """Make a titled figure with one panel per name; return it and its axes, in the order of the names.

    Args:
        title: Title of the figure.
        names: Titles of the panels.
        size: Width and height of a panel in inches.
        columns: Most panels in a row.
        x: Label of the x axes.
        y: Label of the y axes, at the left.
        **options: Passed to `plt.subplots`, such as `sharey`.
    """
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    options |= {"figsize": (size[0] * columns, size[1] * rows), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(rows, columns, **options)
    for axis in axes[:, 0]:
        axis.set_ylabel(y)
    for axis in axes.flat[len(names) :]:
        axis.remove()
    for axis, name in zip(axes.flat, names, strict=False):
        axis.set(title=name, xlabel=x)
    figure.suptitle(title)
    return figure, axes.flat[: len(names)]


def show_image(axis: Axes, image: np.ndarray | None, *, note: str = "") -> None:
    """Show an image without ticks.

    Args:
        axis: Where to draw.
        image: (H, W), uint8 or in [0, 1]; None leaves the panel empty.
        note: Text across the panel.
    """
    axis.set(xticks=[], yticks=[])
    if image is not None:
        axis.imshow(image, vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
    if note:
        colour = "0.5" if image is None else "w"
        axis.text(0.5, 0.5, note, transform=axis.transAxes, ha="center", va="center", color=colour)


def list_systems(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Name the systems of a table for the rows of a figure, in the order of `SYSTEMS`, with what they are trained on.

    Args:
        table: Has the columns `system` and `task_mode`.

    Returns:
        (system, task mode) -> its name, such as "Hybrid (Shared), both tasks".
    """
    found = set(zip(table["system"], table["task_mode"], strict=True))
    return {
        key: f"{SYSTEMS[key[0]].short}, {MODE_TITLES[key[1]]}" for key in product(SYSTEMS, MODE_TITLES) if key in found
    }


def style_line(system: str) -> dict[str, str]:
    """Colour, dashes and label of a system's line; dashes, because some see colours of a pair of systems alike."""
    entry = SYSTEMS[system]
    return {"color": entry.colour, "linestyle": "-" if entry.encoders == 1 else "--", "label": entry.short}


def place_systems(table: pd.DataFrame, keys: Sequence[tuple[str, str]]) -> tuple[np.ndarray, list[str]]:
    """Find the height and the colour of each row of a table in a figure whose rows are `list_systems`: (n,) and n."""
    heights = [keys.index(key) for key in zip(table["system"], table["task_mode"], strict=True)]
    return np.array(heights, dtype=float), [SYSTEMS[system].colour for system in table["system"]]


def name_heights(axis: Axes, names: Sequence[str]) -> None:
    """Write the names of a figure's rows at its left, the first at the top."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)


def write_signed(value: float) -> str:
    """Write a number with its sign and one decimal; what rounds to 0 has no sign."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def fold_name(name: str) -> str:
    """Break a run's title, parts with commas between, into two lines."""
    parts = name.split(", ")
    half = len(parts) // 2
    return ",\n".join(", ".join(part) for part in (parts[:half], parts[half:]) if part)


def draw_intervals(axis: Axes, centres: ArrayLike, low: ArrayLike, high: ArrayLike, y: ArrayLike, colours: Any) -> None:
    """Draw points with horizontal intervals.

    Args:
        axis: Axes to draw on.
        centres: (n,) values of the points.
        low: (n,) lower ends.
        high: (n,) upper ends.
        y: (n,) heights.
        colours: One colour, or one per point.
    """
    axis.hlines(y, low, high, colors=colours)
    axis.scatter(centres, y, 25, colours, zorder=3)


def draw_arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw the arrow of a diagram.

    Args:
        axis: Where to draw.
        start: Point (x, y) in data coordinates.
        end: The arrow's tip likewise.
    """
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.3", "shrinkA": 0, "shrinkB": 0}, zorder=1)
