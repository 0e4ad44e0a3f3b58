"""The flow from the files found to the exams used, drawn as CONSORT draws the participants of a trial."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mammo_utils.data.cohort import EXCLUDED, Cohort
from mammo_utils.images.preprocess import PixelError, read_pixels, rescale, resize
from mammo_utils.plots.style import draw_arrow, styled

WIDTH = 80  # characters per line in a box at the side
LINE, HALF_BOX, GAP = 0.16, 0.38, 0.14  # inches
COUNTED = ("images", "breasts", "exams")
STEPS = {
    "reading": "reading files and tags",
    "corrections": "known errors",
    "labels": "labels",
    "cohort": "the study's cohort",
    "pixels": "decoding pixels",
    "duplicates": "duplicates",
    "subset": "the run's subset",
}


@styled
def draw_flow(rows: pd.DataFrame, title: str) -> Figure:
    """Draw the table of `mammo_utils.data.exclusions.exclusion_flow`: what remains in the middle, exclusions beside."""
    blocks = [(step, block, _list_reasons(block)) for step, block in rows.iloc[1:].groupby("step", sort=False)]
    heights = [LINE * (text.count("\n") + 1) + 0.3 for _, _, text in blocks]
    height = 2 * (HALF_BOX + GAP) * (1 + len(blocks)) + sum(heights)
    figure, axis = plt.subplots(figsize=(9, height), layout="constrained")
    axis.set(xlim=(0, 9), ylim=(height, 0))
    axis.axis("off")

    def draw_box(x: float, y: float, text: str, colour: str, align: str) -> None:
        style = {"boxstyle": "round,pad=0.4", "facecolor": colour, "edgecolor": "0.5", "linewidth": 0.8}
        axis.text(x, y, text, ha=align, va="center", fontsize=8, bbox=style, zorder=3)

    centre, y = 1.2, HALF_BOX + GAP
    draw_box(centre, y, "found\n" + _list_counts(rows.iloc[0], ""), "#E5E5E5", "center")
    for (step, block, text), room in zip(blocks, heights, strict=True):
        middle, below = y + HALF_BOX + GAP + room / 2, y + 2 * (HALF_BOX + GAP) + room
        draw_arrow(axis, (centre, y + HALF_BOX), (centre, below - HALF_BOX))
        draw_arrow(axis, (centre, middle), (2.75, middle))
        draw_box(2.85, middle, f"{STEPS.get(step, step)}: excluded\n{text}", "#FBE3D6", "left")
        draw_box(centre, below, f"left after {step}\n" + _list_counts(block.iloc[-1], "_left"), "#DCEBF7", "center")
        y = below
    figure.suptitle(title)
    return figure


def _list_counts(row: pd.Series, ending: str) -> str:
    return "\n".join(f"{row[name + ending]:,} {name}" for name in COUNTED)


def _list_reasons(block: pd.DataFrame) -> str:
    """One line per reason, the numbers first; zeros are left out."""
    lines = []
    for row in block.to_dict("records"):
        numbers = [f"{row[name]:,} {name[:-1] if row[name] == 1 else name}" for name in COUNTED if row[name]]
        lines += textwrap.wrap(f"{', '.join(numbers)}: {row['reason']}", WIDTH, subsequent_indent="    ")
    return "\n".join(lines)


def sample_excluded(cohort: Cohort, limit: int = 16, size: int = 96) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Make thumbnails of at most `limit` excluded images that can be decoded, spread over the reasons.

    Returns:
        Their rows of the table `images`, and an array (size, size) uint8 for each.
    """
    rows = cohort.images[cohort.images["status"] == EXCLUDED]
    turn = rows.groupby(rows["reason"].str.split(": ").str[0]).cumcount()  # the first of each reason, then the second
    kept, thumbnails = [], []
    for index in turn.sort_values(kind="stable").index:
        if len(kept) == limit:
            break
        try:
            thumbnails.append(resize(rescale(*read_pixels(cohort.folder / rows.at[index, "path"])), size))
        except PixelError:
            continue
        kept.append(index)
    return rows.loc[kept], thumbnails
