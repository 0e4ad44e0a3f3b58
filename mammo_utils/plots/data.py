"""Pictures of the data: exams, their labels, and what preprocessing does to them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mammo_utils.data.cohort import Cohort
from mammo_utils.images.preprocess import PixelError, read_pixels, rescale
from mammo_utils.plots.style import CLASS_COLOURS, styled
from mammo_utils.vocabulary import CLASSES, DENSITIES, SIDES, VIEWS

OUTLINE = "#56B4E9"


def read_exam(cohort: Cohort, exam: str) -> dict[str, np.ndarray]:
    """View -> the original image in [0, 1] as it is stored, right breasts not flipped; bad images are left out."""
    images = {}
    for row in cohort.images[(cohort.images["exam"] == exam) & (cohort.images["status"] == "used")].to_dict("records"):
        try:
            images[row["view"]] = rescale(*read_pixels(cohort.folder / row["path"]))
        except PixelError:
            continue
    return images


def outlines_of(cohort: Cohort, exam: str) -> dict[str, list[tuple[str, np.ndarray]]]:
    """View -> (kind, points (n, 2) in pixels of the original image) of each outlined lesion."""
    found: dict[str, list[tuple[str, np.ndarray]]] = {}
    for row in cohort.lesions[cohort.lesions["exam"] == exam].to_dict("records"):
        found.setdefault(row["view"], []).append((row["kind"], np.array(json.loads(row["points"]))))
    return found


def label_of(exam: pd.Series, side: str) -> str:
    """What is known of one breast, as one line."""
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
    """The four views as a reader hangs them, right breast at the left: R_CC, L_CC above R_MLO, L_MLO.

    images: view -> (rows, columns), [0, 1] or uint8; labels: side -> a line; outlines: view -> (kind, points).
    """
    figure, axes = plt.subplots(2, 2, figsize=(5.4, 6.8), layout="constrained")
    for axis, view in zip(axes.flat, ("R_CC", "L_CC", "R_MLO", "L_MLO"), strict=True):
        axis.set(xticks=[], yticks=[])
        if view in images:
            image = images[view]
            axis.imshow(image, vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
            for kind, points in (outlines or {}).get(view, []):
                axis.fill(*points.T, fill=False, edgecolor=OUTLINE, linewidth=1)
                axis.annotate(kind, points[points[:, 1].argmin()], color=OUTLINE, fontsize=7, ha="center", va="bottom")
        else:
            axis.text(0.5, 0.5, "absent", ha="center", va="center", transform=axis.transAxes, color="0.5")
            for spine in axis.spines.values():
                spine.set(color="0.8")
        top = (labels or {}).get(view[0], "") if view.endswith("_CC") else ""
        axis.set_title(f"{top}\n{view}" if top else view)
    figure.suptitle(title)
    return figure


@styled
def draw_distributions(exams: pd.DataFrame, title: str) -> Figure:
    """Figure 4 of the paper and two more: breasts by class, BI-RADS and density, exams by views present."""
    figure, axes = plt.subplots(1, 4, figsize=(10.5, 2.8), layout="constrained")
    x = np.arange(len(CLASSES))
    for shift, side in ((-0.2, "L"), (0.2, "R")):
        counts = [int((exams[f"{side}_class"] == name).sum()) for name in CLASSES]
        colours = [CLASS_COLOURS[name] for name in CLASSES]
        bars = axes[0].bar(x + shift, counts, 0.38, color=colours, alpha=1 if side == "L" else 0.6)
        axes[0].bar_label(bars, [f"{side} {n}" for n in counts], fontsize=6.5)
    axes[0].set(xticks=x, xticklabels=CLASSES, ylabel="breasts", title="diagnosis")
    bottom = np.zeros(5)
    for name in CLASSES:
        counts = np.zeros(5)
        for side in SIDES:
            of_class = exams.loc[exams[f"{side}_class"] == name, f"{side}_birads"]
            counts += [(of_class == category).sum() for category in range(1, 6)]
        axes[1].bar(range(1, 6), counts, bottom=bottom, color=CLASS_COLOURS[name], label=name)
        bottom += counts
    axes[1].set(xticks=range(1, 6), xlabel="BI-RADS", title="BI-RADS by diagnosis")
    axes[1].legend()
    densities = pd.concat([exams[f"{side}_density"] for side in SIDES]).value_counts()
    axes[2].bar(DENSITIES, [densities.get(name, 0) for name in DENSITIES], color="0.6")
    axes[2].tick_params(axis="x", rotation=25)
    axes[2].set(title="density")
    present = exams[list(VIEWS)].sum(axis=1).value_counts().sort_index()
    bars = axes[3].bar([str(n) for n in present.index], present.to_numpy(), color="0.6")
    axes[3].bar_label(bars, fontsize=7)
    axes[3].set(xlabel="views present", ylabel="exams", title="availability")
    figure.suptitle(title)
    return figure


@styled
def draw_steps(
    pictures: Sequence[tuple[str, np.ndarray]],
    title: str,
    outlines: Sequence[Sequence[np.ndarray]] = (),
) -> Figure:
    """Pictures side by side, each (caption, (rows, columns) in [0, 1] or uint8), in their own proportions.

    outlines: for each picture the lesions to draw on it, points (n, 2) in its pixels.
    """
    figure, axes = plt.subplots(1, len(pictures), figsize=(2.5 * len(pictures), 3.4), layout="constrained")
    for i, (axis, (caption, image)) in enumerate(zip(np.atleast_1d(axes), pictures, strict=True)):
        axis.imshow(image, vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
        for points in outlines[i] if outlines else ():
            axis.fill(*points.T, fill=False, edgecolor=OUTLINE, linewidth=1)
        axis.set(xticks=[], yticks=[])
        axis.set_title(caption)
        axis.set_xlabel(f"{image.shape[0]} x {image.shape[1]}", fontsize=7)
    figure.suptitle(title)
    return figure


@styled
def draw_sheet(images: np.ndarray, captions: Sequence[str], title: str, columns: int = 8) -> Figure:
    """A contact sheet: images (n, S, S) uint8, a caption each."""
    lines = -(-len(images) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(1.35 * columns, 1.55 * lines + 0.4), layout="constrained")
    for axis in np.atleast_1d(axes).flat:
        axis.axis("off")
    for axis, image, caption in zip(np.atleast_1d(axes).flat, images, captions, strict=False):
        axis.imshow(image, vmin=0, vmax=255)
        axis.set_title(caption, fontsize=6.5)
    figure.suptitle(title)
    return figure


@styled
def draw_leakage(rows: pd.DataFrame, title: str) -> Figure:
    """AUC of one quick model, split by image and by patient: a point a repeat, a bar their mean.

    rows: as :func:`mammo_utils.evaluation.leakage.leakage` gives them.
    """
    panels = {"label": "a breast of the patient is malignant", "coin": "a coin tossed for each patient"}
    panels = {label: question for label, question in panels.items() if label in set(rows["label"])}
    size = {"figsize": (3.5 * len(panels), 2.8), "layout": "constrained"}
    figure, axes = plt.subplots(1, len(panels), sharey=True, squeeze=False, **size)
    for axis, (label, question) in zip(axes[0], panels.items(), strict=True):
        for x, split in enumerate(("by image", "by patient")):
            scores = rows.loc[(rows["split"] == split) & (rows["label"] == label), "auc"].to_numpy()
            axis.scatter(x + np.linspace(-0.15, 0.15, len(scores)), scores, s=9, color="0.6")
            axis.hlines(scores.mean(), x - 0.25, x + 0.25, color=CLASS_COLOURS["malignant"], linewidth=2.5)
            axis.text(x + 0.28, scores.mean(), f"{scores.mean():.2f}", va="center", fontsize=8)
        axis.axhline(0.5, color="0.3", linewidth=0.8, linestyle=":")
        axis.set(xticks=[0, 1], xticklabels=["split by image", "split by patient"], xlim=(-0.5, 1.6), title=question)
    axes[0, 0].set(ylabel="AUC on the tested part")
    figure.suptitle(title)
    return figure
