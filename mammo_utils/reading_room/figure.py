"""The static twin of the reading room, for pages without a kernel."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mammo_utils.plots.style import CHANCE_LINE, COLOURS, styled, write_signed
from mammo_utils.vocabulary import SIDES, VIEW_TITLES, VIEWS

HANGING = ("R_CC", "L_CC", "R_MLO", "L_MLO")  # chest walls meet in the middle


@styled
def draw_room(exam: dict[str, Any], about: dict[str, Any], title: str) -> Figure:
    """Draw an exam as the reading room opens it: what each view weighs and contributes, and each run's probabilities.

    Weights and contributions to the log-odds of the left and right breast are those of the first run, from all views.

    Args:
        exam: What `Room.payload` returned.
        about: What `Room.about` returned.
        title: Title of the figure.
    """
    runs = [run for run in about["runs"] if run["id"] in exam["runs"]]
    figure = plt.figure(figsize=(9.6, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    left.set_facecolor("black")
    full = exam["runs"][runs[0]["id"]][str(_present(exam))]
    for axis, name in zip(left.subplots(2, 2).flat, HANGING, strict=True):
        _draw_view(axis, exam["views"][VIEWS.index(name)], name, full, VIEWS.index(name))
    axes = right.subplots(1, 2, sharey=True)
    for axis, side in zip(axes, (1, 0), strict=True):
        words = exam["labels"][side].replace(", ", "\n")
        axis.set_title(f"{'left' if side == 0 else 'right'} breast\n{words}", fontsize=8)
        axis.axvline(0.5, **CHANCE_LINE)
        axis.set(xlim=(0, 1), xlabel="probability of\nthe last class", xticks=(0, 0.5, 1))
        if not any(view["image"] for view, name in zip(exam["views"], VIEWS, strict=True) if name[0] == SIDES[side]):
            axis.text(0.5, 0.5, "no image,\nno prediction", transform=axis.transAxes, ha="center", va="center")
            continue
        for row, run in enumerate(runs):
            p = next(iter(exam["runs"][run["id"]][str(_present(exam))]["tasks"].values()))[side][-1]
            axis.barh(row, p, color=run["colour"], height=0.62)
            axis.text(min(p + 0.02, 0.86), row, f"{p:.2f}", va="center", fontsize=7)
    axes[0].set_yticks(range(len(runs)), [run["title"].replace(" (", "\n(") for run in runs], fontsize=7)
    axes[0].set_ylim(len(runs) - 0.5, -0.5)
    figure.suptitle(title)
    return figure


def _present(exam: dict[str, Any]) -> int:
    """The subset of views that the exam has."""
    return sum(1 << i for i, view in enumerate(exam["views"]) if view["image"])


def _draw_view(axis: Axes, view: dict[str, Any], name: str, prediction: dict[str, Any], index: int) -> None:
    """One view with outlines; right breasts are stored mirrored and are turned back by the x axis."""
    axis.set(xticks=[], yticks=[], facecolor="black")
    axis.set_anchor("W" if name[0] == "L" else "E")  # chest walls meet in the middle
    axis.spines[:].set_visible(True)
    axis.spines[:].set_color("0.35")
    outer = {"transform": axis.transAxes, "color": "w", "fontsize": 7, "va": "top"}
    place = {"x": 0.97, "ha": "right"} if name[0] == "L" else {"x": 0.03, "ha": "left"}
    if not view["image"]:
        axis.set_box_aspect(1.2)
        axis.text(0.5, 0.5, f"{VIEW_TITLES[name]}\nno image", **outer | {"ha": "center", "color": "0.6"})
        return
    image = np.frombuffer(view["image"], np.uint8).reshape(view["side"], -1)
    axis.imshow(image, extent=(0, 1, 1, 0), vmin=0, vmax=255, aspect=1 / view["aspect"], interpolation="bilinear")
    for line in view["outlines"]:
        axis.fill(*np.array(line["points"]).T, fill=False, edgecolor=COLOURS["outline"], linewidth=1.2)
    axis.set(xlim=(1, 0) if name[0] == "R" else (0, 1), ylim=(1, 0))
    left, right = (of[index] for of in prediction["shares"])
    contributions = "" if left is None else f"\nleft {write_signed(left)}, right {write_signed(right)}"
    weight = f"α = {prediction['weights'][index]:.2f}"
    axis.text(s=f"{VIEW_TITLES[name]}\n{weight}{contributions}", y=0.97, **place, **outer)
