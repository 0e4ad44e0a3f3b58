"""Figures of the data: exams, labels, preprocessing, leakage, and the flow from files found to exams used."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mammo_utils.data.cohort import EXCLUDED, Cohort
from mammo_utils.data.folders import path_below
from mammo_utils.images.grey import PixelError, read_pixels, rescale
from mammo_utils.images.preprocess import resize
from mammo_utils.plots.style import CHANCE_LINE, COLOURS, draw_arrow, make_panels, show_image, styled
from mammo_utils.synthetic import anatomy
from mammo_utils.synthetic.cases import Breast, Exam, Finding, Settings
from mammo_utils.vocabulary import CLASSES, DENSITIES, SIDES, VIEW_TITLES, VIEWS

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


def read_exam(cohort: Cohort, exam: str) -> dict[str, np.ndarray]:
    """Read the original images of an exam in [0, 1], by view, right breasts not flipped; skip undecodable ones."""
    images = {}
    for row in cohort.images[(cohort.images["exam"] == exam) & (cohort.images["status"] == "used")].to_dict("records"):
        try:
            images[row["view"]] = rescale(read_pixels(path_below(cohort.folder, row["path"])))
        except PixelError:
            continue
    return images


def read_outlines(cohort: Cohort, exam: str) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Read the outlined lesions of an exam: view -> (kind, points (n, 2) in pixels of the original image)."""
    lesions = cohort.lesions[cohort.lesions["exam"] == exam]
    return {
        view: [(kind, np.array(json.loads(points))) for kind, points in zip(rows["kind"], rows["points"], strict=True)]
        for view, rows in lesions.groupby("view", sort=False)
    }


def describe_breast(exam: pd.Series, side: str) -> str:
    """Describe the labels of one breast in one line."""
    if not exam[f"{side}_class"] and exam[f"{side}_birads"] < 0:
        return "no label"
    birads = exam[f"{side}_birads"]
    words = [exam[f"{side}_class"] or "class unknown", f"BI-RADS {birads}" if birads > 0 else "BI-RADS unknown"]
    return ", ".join([*words, exam[f"{side}_density"] or "density unknown"])


@styled
def draw_exam(
    images: Mapping[str, np.ndarray],
    title: str,
    labels: Mapping[str, str] | None = None,
    outlines: Mapping[str, Sequence[tuple[str, np.ndarray]]] | None = None,
) -> Figure:
    """Draw the four views as radiologists hang them: the right breast on the left, CC above MLO.

    Args:
        images: View -> (rows, columns), uint8 or in [0, 1].
        title: Title of the figure.
        labels: Side -> one line.
        outlines: View -> (kind, points (n, 2) in pixels) of each lesion.
    """
    hanging = {view: VIEW_TITLES[view] for view in ("R_CC", "L_CC", "R_MLO", "L_MLO")}
    hanging |= {f"{side}_CC": f"{label}\n{side}-CC" for side, label in (labels or {}).items()}
    figure, axes = make_panels(title, list(hanging.values()), (2.7, 3.4), 2)
    for axis, view in zip(axes, hanging, strict=True):
        show_image(axis, images.get(view), note="" if view in images else "absent")
        for kind, points in (outlines or {}).get(view, []) if view in images else []:
            _draw_outline(axis, points)
            top = points[points[:, 1].argmin()]
            axis.annotate(kind, top, color=COLOURS["outline"], fontsize=7, ha="center", va="bottom")
    return figure


def _draw_outline(axis: Axes, points: np.ndarray) -> None:
    axis.fill(*points.T, fill=False, edgecolor=COLOURS["outline"], linewidth=1)


@styled
def draw_distributions(exams: pd.DataFrame, title: str) -> Figure:
    """Draw the paper's Figure 4 and more: breasts by class, BI-RADS and density, exams by number of views."""
    fields = ("class", "birads", "density")
    sides = [exams[[f"{side}_{name}" for name in fields]].set_axis(fields, axis=1).assign(side=side) for side in SIDES]
    breasts = pd.concat(sides, ignore_index=True)
    figure, axes = make_panels(title, ["Diagnosis", "BI-RADS by diagnosis", "Density", "Views present"], (2.8, 2.8))
    looks = {"color": COLOURS, "width": 0.8, "rot": 0}
    counts = pd.crosstab(breasts["class"], breasts["side"]).reindex(CLASSES, columns=SIDES, fill_value=0)
    counts.plot.bar(**looks, ax=axes[0])
    counts = pd.crosstab(breasts["birads"], breasts["class"]).reindex(range(1, 6), columns=CLASSES, fill_value=0)
    counts.plot.bar(**looks, stacked=True, ax=axes[1])
    sns.countplot(breasts, x="density", order=DENSITIES, color="0.6", ax=axes[2])
    sns.countplot(x=exams[list(VIEWS)].sum(axis=1), color="0.6", ax=axes[3])
    for axis, (x, y) in zip(axes, (("", "breasts"), ("BI-RADS", ""), ("", ""), ("views", "exams")), strict=True):
        axis.set(xlabel=x, ylabel=y)
        if axis is not axes[1]:
            for bars in axis.containers:
                axis.bar_label(bars, fontsize=6)
    axes[2].tick_params(axis="x", rotation=25)
    for axis in axes[2:]:  # room for the numbers
        axis.set_ylim(top=1.08 * axis.get_ylim()[1])
    for axis in axes[:2]:  # room for the legend
        axis.set_ylim(top=1.25 * axis.get_ylim()[1])
        axis.legend(ncols=3, loc="upper center", fontsize=7, handlelength=1, columnspacing=1)
    return figure


@styled
def draw_steps(
    images: Sequence[tuple[str, np.ndarray]], title: str, outlines: Sequence[Sequence[np.ndarray]] = ()
) -> Figure:
    """Draw one image in several steps or forms, in its own proportions, with its size in pixels and its lesions.

    Args:
        images: Caption and (rows, columns), uint8 or in [0, 1], of each image.
        title: Title of the figure.
        outlines: For each image the lesions to draw, points (n, 2) in its pixels.
    """
    figure, axes = make_panels(title, [caption for caption, _ in images], (2.5, 3.4))
    for axis, (_, image), lesions in zip(axes, images, outlines or [()] * len(images), strict=True):
        show_image(axis, image)
        for points in lesions:
            _draw_outline(axis, points)
        axis.set_xlabel(f"{image.shape[0]} × {image.shape[1]}", fontsize=7)
    return figure


@styled
def draw_sheet(
    images: np.ndarray, captions: Sequence[str], title: str, columns: int = 8, width: float = 1.35
) -> Figure:
    """Draw images side by side in rows, each with its name above.

    Args:
        images: (n, S, S), uint8 or in [0, 1].
        captions: One per image.
        title: Title of the figure.
        columns: Images in a row.
        width: Width of an image in inches.
    """
    figure, axes = make_panels(title, captions, (width, width + 0.25), columns)
    for axis, image in zip(axes, images, strict=True):
        show_image(axis, image)
        axis.title.set_fontsize(6.5)
        axis.axis("off")
    return figure


@styled
def draw_leakage(rows: pd.DataFrame, title: str) -> Figure:
    """Draw the AUC of one quick model split by image and by patient: one point per repeat, a bar at their mean."""
    panels = {"label": "a breast of the patient is malignant", "coin": "a coin tossed for each patient"}
    panels = {label: question for label, question in panels.items() if label in set(rows["label"])}
    figure, axes = make_panels(title, list(panels.values()), (3.5, 2.8), sharey=True)
    for axis, label in zip(axes, panels, strict=True):
        scores = rows[rows["label"] == label]
        order = ["by image", "by patient"]
        sns.swarmplot(scores, x="split", y="auc", order=order, size=3, color="0.6", ax=axis)
        for x, mean in enumerate(scores.groupby("split")["auc"].mean().reindex(order)):
            axis.hlines(mean, x - 0.25, x + 0.25, color=COLOURS["malignant"], linewidth=2.5)
            axis.text(x + 0.28, mean, f"{mean:.2f}", va="center", fontsize=8)
        axis.axhline(0.5, **CHANCE_LINE)
        axis.set(xlabel="split", ylabel="AUC on the test part", xlim=(-0.5, 1.6))
    return figure


# --- the synthetic cohort -------------------------------------------------------------------------------


def sample_structures(settings: Settings) -> tuple[list[str], np.ndarray]:
    """Cut out the structure of a cancer, and below it that of a healthy breast: the same breast three times each.

    The strands are plain, are grains, and are plain with the median of the cohort's contrasts.

    Args:
        settings: What the cohort is drawn with.

    Returns:
        A caption for each picture, and the pictures (6, S, S) uint8; S is a quarter of the images' rows, 54 mm.
    """
    captions, pictures, half = [], [], settings.rows // 8
    median = max(1 - settings.difficulty, 0.0)  # of 1 - 2 * difficulty * u, at least 0
    for suspicion, label in ((1.0, "cancer"), (0.0, "no cancer")):
        for kind, factor in (("mass", 1.0), ("calc", 1.0), ("mass", median)):
            finding = Finding(kind, suspicion, 6.0, (0.45, 0.1, 0.25))
            breast = Breast("L", "Malignant", "Malignant", 5, "scattered", "mass", None, (finding,))
            look = replace(settings, contrast=factor * settings.contrast, difficulty=0.0, visible="both", null=False)
            image, (outline,) = anatomy.draw_exam(Exam(0, "", 50, "scattered", (breast,)), look)["L", "MLO"]
            x, y = np.rint(outline.points.mean(0)).astype(int) + half
            pictures.append(np.pad(image, half)[y - half : y + half, x - half : x + half])
            captions.append(f"{label}, {'grains' if kind == 'calc' else 'strands'}\ncontrast {factor:.2g}")
    return captions, np.stack(pictures)


# --- exclusions -----------------------------------------------------------------------------------------


@styled
def draw_flow(rows: pd.DataFrame, title: str) -> Figure:
    """Draw what remains after each step, from top to bottom, and the exclusions beside it."""
    blocks = [(step, block, _list_reasons(block)) for step, block in rows.iloc[1:].groupby("step", sort=False)]
    heights = [LINE * (text.count("\n") + 1) + 0.3 for _, _, text in blocks]
    height = 2 * (HALF_BOX + GAP) * (1 + len(blocks)) + sum(heights)
    widest = max((len(line) for _, _, text in blocks for line in text.split("\n")), default=0)
    width = min(9, 3.2 + 0.075 * widest)  # inches, at 8 points
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    axis.set(xlim=(0, width), ylim=(height, 0))
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
    """Make thumbnails of excluded images that can be decoded, spread over the reasons.

    Args:
        cohort: The cohort.
        limit: Most thumbnails.
        size: Side of a thumbnail in pixels.

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
            thumbnails.append(resize(rescale(read_pixels(cohort.folder / rows.at[index, "path"])), size))
        except PixelError:
            continue
        kept.append(index)
    return rows.loc[kept], thumbnails
