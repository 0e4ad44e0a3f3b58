"""Figures of notebook 06: view weights, removed views, predictions for one exam, and a widget that removes views."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from mammo_utils.config import Training
from mammo_utils.evaluation.view_ablation import predict_with_views
from mammo_utils.plots.style import CHANCE_LINE, COLOURS, draw_intervals, make_panels, show_image, styled
from mammo_utils.training.dataset import ExamSet
from mammo_utils.vocabulary import CLASSES, SIDES, VIEWS

COMBINATIONS = {  # the views that the system receives
    "all views": (True, True, True, True),
    "CC alone": (True, False, True, False),
    "MLO alone": (False, True, False, True),
    "left alone": (True, True, False, False),
    "right alone": (False, False, True, True),
}


@styled
def draw_weights(table: pd.DataFrame, title: str) -> Figure:
    """Draw the mean weight of each view by class and side with 95 % intervals; `table` is made by `weight_table`."""
    labels = {"x": "class of the breast", "y": "mean weight α (Eq. 9)"}
    figure, axes = make_panels(title, ["left breast", "right breast"], (4, 3.4), **labels, sharey=True)
    for axis, side in zip(axes, SIDES, strict=True):
        rows = table[table["side"] == side].set_index("class")
        rows = rows.loc[[name for name in CLASSES if name in rows.index]]
        for offset, view in enumerate(VIEWS):
            x = np.arange(len(rows)) + (offset - 1.5) * 0.2
            axis.bar(x, rows[view], width=0.18, color=COLOURS[view], label=view)
            axis.vlines(x, rows[f"{view}_low"], rows[f"{view}_high"], color="k", linewidth=1)
        axis.axhline(0.25, **CHANCE_LINE)
        axis.set_xticks(range(len(rows)), [f"{name}\nexams: {n}" for name, n in rows["n_exams"].items()])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@styled
def draw_removals(table: pd.DataFrame, title: str) -> Figure:
    """Draw the effects of removing each view; `table` has the rows of `removal_table` of one task and one side each."""
    labels = {
        "auc_change": "change in AUC",
        "change_of_class": "mean change in probability,\nbreasts of the highest class",
        "change_of_others": "mean change in probability,\nother breasts",
    }
    figure, axes = make_panels(title, [""] * 3, (3, 3.4), sharey=True)
    y = table["view"].map(VIEWS.index) + table["side"].map({"L": -0.14, "R": 0.14})
    for axis, (column, label) in zip(axes, labels.items(), strict=True):
        intervals = table[column], table[f"{column}_low"], table[f"{column}_high"]
        draw_intervals(axis, *intervals, y, list(table["side"].map(COLOURS)))
        axis.axvline(0, **CHANCE_LINE)
        axis.set_xlabel(label)
    axes[0].set_yticks(range(len(VIEWS)), [f"without {view}" for view in VIEWS])
    axes[0].invert_yaxis()
    handles = [plt.Line2D([], [], marker="o", color=COLOURS[side]) for side in SIDES]
    figure.legend(handles, ["left breasts", "right breasts"], loc="outside lower center", ncols=2)
    return figure


@styled
def draw_prediction(
    exams: ExamSet,
    position: int,
    visible: Sequence[bool],
    probabilities: Mapping[str, np.ndarray],
    weights: np.ndarray,
    title: str,
) -> Figure:
    """Draw one exam as the system receives it, with the weights of its views and the prediction for each breast.

    Args:
        exams: The exams.
        position: Index of the exam.
        visible: (4,), False for a removed view.
        probabilities: Task -> (2, K) by side.
        weights: (4,) of the views.
        title: Title of the figure.
    """
    names = [f"{view}\nα = {weight:.2f}" for view, weight in zip(VIEWS, weights, strict=True)]
    figure, axes = make_panels(title, [*names, *(f"probability, {task}" for task in probabilities)], (2.1, 2.9))
    for index in range(4):
        _draw_view(axes[index], exams, position, index, bool(visible[index]))
    for axis, (task, values) in zip(axes[4:], probabilities.items(), strict=True):
        classes = ["not\nmalignant", "malignant"] if task == "diagnosis" else [str(c) for c in exams.categories]
        for side, offset, label, row in zip(SIDES, (-0.19, 0.19), exams.labels[task][position], values, strict=True):
            known = "label " + classes[label].replace("\n", " ") if label >= 0 else "no label"
            axis.bar(np.arange(len(row)) + offset, row, 0.36, color=COLOURS[side], label=f"{side}: {known}")
        axis.set_xticks(range(len(classes)), classes, fontsize=7)
        axis.set(ylim=(0, 1.35), yticks=(0, 0.5, 1))
        axis.legend(loc="upper center", fontsize=6.5)
    return figure


def _draw_view(axis: Axes, exams: ExamSet, position: int, index: int, visible: bool) -> None:
    row = int(exams.rows[position, index])
    note = "absent" if row < 0 else "" if visible else "removed"
    image = None if note == "absent" else exams.images[row].cpu().numpy()
    show_image(axis, image // 5 if note == "removed" else image, note=note)
    axis.set_box_aspect(1)
    axis.set_xlabel("mirrored" if VIEWS[index].startswith("R") else "", fontsize=7)  # as right breasts are stored


@styled
def draw_combinations(
    model: nn.Module, exams: ExamSet, position: int, settings: Training, title: str
) -> tuple[Figure, pd.DataFrame]:
    """Draw the weights and predictions for one exam with each of COMBINATIONS of its views.

    Args:
        model: The trained system.
        exams: The exams.
        position: Index of the exam.
        settings: Training settings, for the device and the batch size.
        title: Title of the figure.

    Returns:
        The figure and its numbers: one row per combination, with the weights and the probability of the highest class.
    """
    rows = []
    for name, visible in COMBINATIONS.items():
        probabilities, weights = predict_with_views(model, exams, position, visible, settings)
        row: dict = {"views": name, **{f"α {view}": weight for view, weight in zip(VIEWS, weights, strict=True)}}
        for task, values in probabilities.items():
            highest = "malignant" if task == "diagnosis" else f"BI-RADS {exams.categories[-1]}"
            row |= {f"P({highest}) {side}": values[i, -1] for i, side in enumerate(SIDES)}
        rows.append(row)
    table = pd.DataFrame(rows).set_index("views")
    figure = plt.figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.9))
    for index, axis in enumerate(left.subplots(2, 2).flat):
        _draw_view(axis, exams, position, index, True)
        axis.set_title(VIEWS[index])
    above, below = right.subplots(2, 1, sharex=True)
    weights = table.filter(like="α").rename(columns=lambda name: name.removeprefix("α "))
    weights.plot.bar(ax=above, color=COLOURS, width=0.8)
    above.set(ylabel="weight α", ylim=(0, 1.3), yticks=(0, 0.5, 1))
    points = table.filter(like="P(").melt(var_name="prediction", value_name="probability", ignore_index=False)
    colours = {column: COLOURS[column[-1]] for column in points["prediction"].unique()}
    markers = ["o" if "malignant" in column else "s" for column in colours]
    looks = {"palette": colours, "markers": markers, "linestyles": "none", "errorbar": None, "dodge": 0.4, "ax": below}
    sns.pointplot(points.reset_index(), x="views", y="probability", hue="prediction", **looks)
    below.axhline(0.5, **CHANCE_LINE)
    below.set(xlabel="", ylim=(-0.03, 1.4), yticks=(0, 0.5, 1))
    above.legend(ncols=4, loc="upper center", fontsize=7)
    below.legend(ncols=2, loc="upper center", fontsize=7)
    figure.suptitle(title)
    return figure, table


def explore_views(model: nn.Module, exams: ExamSet, settings: Training, note: str):
    """Make a widget in which one chooses an exam, removes views and sees the prediction and the weights.

    Args:
        model: The trained system.
        exams: The exams to choose from.
        settings: Training settings, for the device and the batch size.
        note: Shown above every figure, such as "synthetic cohort".

    Returns:
        An ipywidgets box.
    """
    import ipywidgets as widgets

    choice = widgets.Dropdown(options=[(name, i) for i, name in enumerate(exams.names)], description="exam")
    boxes = [widgets.Checkbox(value=True, description=view, indent=False) for view in VIEWS]
    picture = widgets.Image(format="png")

    def redraw(_: object = None) -> None:
        present = exams.present[choice.value].tolist()
        for box, available in zip(boxes, present, strict=True):
            box.disabled = not available
        visible = [box.value and not box.disabled for box in boxes]
        title = f"{exams.names[choice.value]} ({note})" + ("" if any(visible) else ": no view, no information")
        prediction = predict_with_views(model, exams, choice.value, visible, settings)
        figure, buffer = draw_prediction(exams, choice.value, visible, *prediction, title), io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
        plt.close(figure)  # else the notebook would show it once more
        picture.value = buffer.getvalue()

    for widget in (choice, *boxes):
        widget.observe(redraw, names="value")
    redraw()
    return widgets.VBox([widgets.HBox([choice, *boxes]), picture])
