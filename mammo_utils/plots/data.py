"""Figures of the data: exams, their labels, preprocessing, and the leakage of a split by image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mammo_utils.data.cohort import Cohort
from mammo_utils.images.preprocess import PixelError, read_pixels, rescale
from mammo_utils.plots.style import CHANCE_LINE, CLASS_COLOURS, SIDE_COLOURS, make_panels, show_image, styled
from mammo_utils.vocabulary import CLASSES, DENSITIES, SIDES, VIEWS

OUTLINE_COLOUR = "#56B4E9"


def read_exam(cohort: Cohort, exam: str) -> dict[str, np.ndarray]:
    """Read the original images of an exam in [0, 1], by view, right breasts not flipped; skip undecodable ones."""
    images = {}
    for row in cohort.images[(cohort.images["exam"] == exam) & (cohort.images["status"] == "used")].to_dict("records"):
        try:
            images[row["view"]] = rescale(*read_pixels(cohort.folder / row["path"]))
        except PixelError:
            continue
    return images


def read_outlines(cohort: Cohort, exam: str) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Read the outlined lesions of an exam: view -> (kind, points (n, 2) in pixels of the original image)."""
    outlines: dict[str, list[tuple[str, np.ndarray]]] = {}
    for row in cohort.lesions[cohort.lesions["exam"] == exam].to_dict("records"):
        outlines.setdefault(row["view"], []).append((row["kind"], np.array(json.loads(row["points"]))))
    return outlines


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
    hanging = {view: view for view in ("R_CC", "L_CC", "R_MLO", "L_MLO")}
    hanging |= {f"{side}_CC": f"{label}\n{side}_CC" for side, label in (labels or {}).items()}
    figure, axes = make_panels(title, list(hanging.values()), 2.7, 3.4, columns=2)
    for axis, view in zip(axes, hanging, strict=True):
        show_image(axis, images.get(view), note="" if view in images else "absent")
        for kind, points in (outlines or {}).get(view, []) if view in images else []:
            _draw_outline(axis, points)
            top = points[points[:, 1].argmin()]
            axis.annotate(kind, top, color=OUTLINE_COLOUR, fontsize=7, ha="center", va="bottom")
    return figure


def _draw_outline(axis: Axes, points: np.ndarray) -> None:
    axis.fill(*points.T, fill=False, edgecolor=OUTLINE_COLOUR, linewidth=1)


@styled
def draw_distributions(exams: pd.DataFrame, title: str) -> Figure:
    """Draw Figure 4 of the paper and more: breasts by class, BI-RADS and density, exams by number of views."""
    fields = ("class", "birads", "density")
    sides = [exams[[f"{side}_{name}" for name in fields]].set_axis(fields, axis=1).assign(side=side) for side in SIDES]
    breasts = pd.concat(sides, ignore_index=True)
    figure, axes = make_panels(title, ["diagnosis", "BI-RADS by diagnosis", "density", "views present"], 2.8, 2.8)
    sides = {"hue": "side", "hue_order": SIDES, "palette": SIDE_COLOURS, "saturation": 1}
    sns.countplot(breasts, x="class", order=CLASSES, **sides, ax=axes[0])
    counts = pd.crosstab(breasts["birads"], breasts["class"]).reindex(range(1, 6), columns=CLASSES, fill_value=0)
    counts.plot.bar(stacked=True, color=CLASS_COLOURS, width=0.8, rot=0, ax=axes[1])
    sns.countplot(breasts, x="density", order=DENSITIES, color="0.6", ax=axes[2])
    sns.countplot(x=exams[list(VIEWS)].sum(axis=1), color="0.6", ax=axes[3])
    for axis, (x, y) in zip(axes, (("", "breasts"), ("BI-RADS", ""), ("", ""), ("views", "exams")), strict=True):
        axis.set(xlabel=x, ylabel=y)
        if axis is not axes[1]:
            for bars in axis.containers:
                axis.bar_label(bars, fontsize=6.5)
    axes[2].tick_params(axis="x", rotation=25)
    for axis in axes[:2]:  # room for the legend
        axis.set_ylim(top=1.25 * axis.get_ylim()[1])
        axis.legend(ncols=3, loc="upper center", fontsize=7, handlelength=1, columnspacing=1)
    return figure


@styled
def draw_steps(
    images: Sequence[tuple[str, np.ndarray]], title: str, outlines: Sequence[Sequence[np.ndarray]] = ()
) -> Figure:
    """Draw images side by side in their own proportions.

    Args:
        images: Caption and (rows, columns), uint8 or in [0, 1], of each image.
        title: Title of the figure.
        outlines: For each image the lesions to draw, points (n, 2) in its pixels.
    """
    figure, axes = make_panels(title, [caption for caption, _ in images], 2.5, 3.4)
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
    """Draw a contact sheet.

    Args:
        images: (n, S, S), uint8 or in [0, 1].
        captions: One per image.
        title: Title of the figure.
        columns: Images in a row.
        width: Width of an image in inches.
    """
    figure, axes = make_panels(title, captions, width, width + 0.25, columns=columns)
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
    figure, axes = make_panels(title, list(panels.values()), 3.5, 2.8, sharey=True)
    for axis, label in zip(axes, panels, strict=True):
        scores = rows[rows["label"] == label]
        order = ["by image", "by patient"]
        sns.swarmplot(scores, x="split", y="auc", order=order, size=3, color="0.6", ax=axis)
        for x, mean in enumerate(scores.groupby("split")["auc"].mean().reindex(order)):
            axis.hlines(mean, x - 0.25, x + 0.25, color=CLASS_COLOURS["malignant"], linewidth=2.5)
            axis.text(x + 0.28, mean, f"{mean:.2f}", va="center", fontsize=8)
        axis.axhline(0.5, **CHANCE_LINE)
        axis.set(xlabel="split", ylabel="AUC on the test part", xlim=(-0.5, 1.6))
    return figure
