"""The way from what was found to what is used, drawn as CONSORT draws the participants of a trial."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from mammo_utils.data.cohort import EXCLUDED, Cohort
from mammo_utils.images.preprocess import PixelError, read_pixels, rescale, resize
from mammo_utils.plots.style import styled

WIDTH = 80  # letters of a line in a box at the side
LINE, BOX, GAP = 0.16, 0.38, 0.14  # inches: a line, half a box in the middle, the room below it
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
    """The table of :func:`mammo_utils.data.exclusions.flow`: down the middle what is left, at the side what leaves."""
    found, leaving = rows.iloc[0], rows.iloc[1:]
    blocks = [(step, block, side_text(block)) for step, block in leaving.groupby("step", sort=False)]
    heights = [LINE * (text.count("\n") + 1) + 0.3 for _, _, text in blocks]
    height = 2 * (BOX + GAP) + sum(heights) + len(blocks) * 2 * (BOX + GAP)
    figure, axis = plt.subplots(figsize=(9, height), layout="constrained")
    axis.set(xlim=(0, 9), ylim=(height, 0))
    axis.axis("off")

    def box(x: float, y: float, text: str, colour: str, *, align: str) -> None:
        style = {"boxstyle": "round,pad=0.4", "facecolor": colour, "edgecolor": "0.5", "linewidth": 0.8}
        axis.text(x, y, text, ha=align, va="center", fontsize=8, bbox=style, zorder=3)

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.4"}, zorder=1)

    centre, y = 1.2, BOX + GAP
    box(centre, y, "found\n" + counts(found, ""), "#E5E5E5", align="center")
    for (step, block, text), room in zip(blocks, heights, strict=True):
        middle, below = y + BOX + GAP + room / 2, y + 2 * (BOX + GAP) + room
        arrow((centre, y + BOX), (centre, below - BOX))
        arrow((centre, middle), (2.75, middle))
        box(2.85, middle, f"{STEPS.get(step, step)}: set aside\n{text}", "#FBE3D6", align="left")
        y = below
        box(centre, y, f"left after {step}\n" + counts(block.iloc[-1], "_left"), "#DCEBF7", align="center")
    figure.suptitle(title)
    return figure


def counts(row: pd.Series, ending: str) -> str:
    return "\n".join(f"{row[name + ending]:,} {name}" for name in ("images", "breasts", "exams"))


def side_text(block: pd.DataFrame) -> str:
    """One line a reason, the numbers first; nothing is said of what does not leave here."""
    lines = []
    for row in block.to_dict("records"):
        numbers = [f"{row[name]:,} {name[:-1] if row[name] == 1 else name}" for name in ("images", "breasts", "exams")]
        numbers = [text for text in numbers if not text.startswith("0 ")]
        lines += textwrap.wrap(f"{', '.join(numbers)}: {row['reason']}", WIDTH, subsequent_indent="    ")
    return "\n".join(lines)


def gallery(cohort: Cohort, limit: int = 16, size: int = 96) -> tuple[pd.DataFrame, list]:
    """Thumbnails of images that were set aside and can be decoded, at most `limit`, spread over the reasons.

    Returns their rows of the table images and as many arrays (size, size) uint8.
    """
    rows = cohort.images[cohort.images["status"] == EXCLUDED]
    turn = rows.groupby(rows["reason"].str.split(": ").str[0]).cumcount()  # the first of each reason, then the second
    kept, pictures = [], []
    for index in turn.sort_values(kind="stable").index:
        if len(kept) == limit:
            break
        try:
            pictures.append(resize(rescale(*read_pixels(cohort.folder / rows.at[index, "path"])), size))
        except PixelError:
            continue
        kept.append(index)
    return rows.loc[kept], pictures
