"""Pictures of notebook 06: weights of the views, views taken away, one exam, and the explorer that toggles views."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from mammo_utils.config import Training
from mammo_utils.evaluation.view_ablation import predict_with_views
from mammo_utils.plots.style import styled
from mammo_utils.training.dataset import ExamSet
from mammo_utils.vocabulary import CLASSES, SIDES, VIEWS

VIEW_COLOURS = dict(zip(VIEWS, ("#0072B2", "#56B4E9", "#D55E00", "#E69F00"), strict=True))  # a hue a side
SIDE_COLOURS = {"L": VIEW_COLOURS["L_CC"], "R": VIEW_COLOURS["R_CC"]}
COMBINATIONS = {  # of the static twin: which views are shown
    "all views": (True, True, True, True),
    "CC alone": (True, False, True, False),
    "MLO alone": (False, True, False, True),
    "left alone": (True, True, False, False),
    "right alone": (False, False, True, True),
}


@styled
def draw_weights(table: pd.DataFrame, title: str) -> Figure:
    """Mean weight of each view by class and side (evidence.views.weight_table), with 95 % intervals."""
    figure, axes = plt.subplots(1, len(SIDES), figsize=(8, 3.4), sharey=True, layout="constrained")
    for axis, side in zip(axes, SIDES, strict=True):
        rows = table[table["side"] == side].set_index("class")
        classes = [name for name in CLASSES if name in rows.index]
        for offset, view in enumerate(VIEWS):
            x = np.arange(len(classes)) + (offset - 1.5) * 0.2
            values = rows.loc[classes]
            axis.bar(x, values[view], width=0.18, color=VIEW_COLOURS[view], label=view)
            axis.vlines(x, values[f"{view}_low"], values[f"{view}_high"], color="k", linewidth=1)
        axis.axhline(0.25, color="0.5", linewidth=0.8, linestyle=":")
        ticks = [f"{name}\nexams: {rows.loc[name, 'n_exams']}" for name in classes]
        axis.set_xticks(range(len(classes)), ticks)
        axis.set_xlabel(f"class of the {'left' if side == 'L' else 'right'} breast")
    axes[0].set_ylabel("mean weight α (Eq. 9)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.suptitle(title)
    return figure


@styled
def draw_removals(table: pd.DataFrame, title: str) -> Figure:
    """Effect of removing each view on the AUC (left) and on the probability of the highest class (right).

    table: rows of one task of evidence.views.removal_table with the sides L and R.
    """
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), sharey=True, layout="constrained")
    columns = {
        "auc_change": "change in AUC",
        "change_of_class": "mean change in probability,\nbreasts of the highest class",
        "change_of_others": "mean change in probability,\nother breasts",
    }
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        for shift, side in ((-0.14, "L"), (0.14, "R")):
            rows = table[table["side"] == side]
            heights = [VIEWS.index(view) + shift for view in rows["view"]]
            colour = SIDE_COLOURS[side]
            axis.hlines(heights, rows[f"{column}_low"], rows[f"{column}_high"], color=colour)
            axis.plot(rows[column], heights, "o", color=colour, markersize=5, label=f"breasts {side}")
        axis.axvline(0, color="0.5", linewidth=0.8)
        axis.set_xlabel(label)
    axes[0].set_yticks(range(len(VIEWS)), [f"without {view}" for view in VIEWS])
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.suptitle(title)
    return figure


@styled
def draw_exam(
    exams: ExamSet,
    position: int,
    shown: Sequence[bool],
    probabilities: Mapping[str, np.ndarray],
    weights: np.ndarray,
    title: str,
) -> Figure:
    """One exam as the system saw it: its views with their weights, and what it answered for each breast.

    shown: (4,) bool; probabilities: task -> (2, K) by side; weights: (4,). Right breasts are stored flipped.
    """
    figure, axes = plt.subplots(
        1, 4 + len(probabilities), figsize=(7.2 + 2 * len(probabilities), 2.9), layout="constrained"
    )
    for index, view in enumerate(VIEWS):
        _draw_view(axes[index], exams, position, index, bool(shown[index]))
        axes[index].set_title(f"{view}\nα = {weights[index]:.2f}")
    for axis, (task, values) in zip(axes[4:], probabilities.items(), strict=True):
        _draw_answers(axis, exams, position, task, values)
    figure.suptitle(title)
    return figure


def _draw_view(axis: Axes, exams: ExamSet, position: int, index: int, shown: bool) -> None:
    row = int(exams.rows[position, index])
    if row >= 0:
        image = exams.images[row].cpu().numpy()
        axis.imshow(image if shown else image // 5, vmin=0, vmax=255, cmap="gray")
    note = "" if row >= 0 and shown else "removed" if row >= 0 else "absent"
    if note:
        axis.text(0.5, 0.5, note, transform=axis.transAxes, ha="center", color="w" if row >= 0 else "k")
    axis.set(xticks=[], yticks=[], aspect="equal", box_aspect=1)
    axis.set_xlabel("mirrored" if VIEWS[index].startswith("R") else "", fontsize=7)  # the store has them so


def _draw_answers(axis: Axes, exams: ExamSet, position: int, task: str, values: np.ndarray) -> None:
    names = ["not\nmalignant", "malignant"] if task == "diagnosis" else [str(c) for c in exams.categories]
    for offset, side in enumerate(SIDES):
        label = int(exams.labels[task][position, offset])
        known = f"label {names[label]}".replace("\n", " ") if label >= 0 else "no label"
        x = np.arange(len(names)) + (offset - 0.5) * 0.38
        axis.bar(x, values[offset], width=0.36, color=SIDE_COLOURS[side], label=f"{side}: {known}")
    axis.set_xticks(range(len(names)), names, fontsize=7)
    axis.set(ylim=(0, 1.35), yticks=(0, 0.5, 1), title="probability, " + task)
    axis.legend(loc="upper center", fontsize=6.5)


@styled
def draw_combinations(
    model: nn.Module, exams: ExamSet, position: int, settings: Training, title: str
) -> tuple[Figure, pd.DataFrame]:
    """The explorer's static twin: one exam answered with all of its views and with some.

    Returns the figure and its numbers: one row a combination, weights and the highest class's probability.
    """
    rows = []
    for name, shown in COMBINATIONS.items():
        probabilities, weights = predict_with_views(model, exams, position, shown, settings)
        row: dict = {"shown": name, **{f"α {view}": w for view, w in zip(VIEWS, weights, strict=True)}}
        for task, values in probabilities.items():
            highest = "malignant" if task == "diagnosis" else f"BI-RADS {exams.categories[-1]}"
            row |= {f"P({highest}) {side}": values[i, -1] for i, side in enumerate(SIDES)}
        rows.append(row)
    table = pd.DataFrame(rows).set_index("shown")
    answers = [column for column in table if column.startswith("P(")]
    figure = plt.figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.9))
    for index, axis in enumerate(left.subplots(2, 2).flat):
        _draw_view(axis, exams, position, index, True)
        axis.set_title(VIEWS[index])
    above, below = right.subplots(2, 1, sharex=True)
    x = np.arange(len(table))
    for index, view in enumerate(VIEWS):
        above.bar(x + (index - 1.5) * 0.2, table[f"α {view}"], width=0.18, color=VIEW_COLOURS[view], label=view)
    above.set(ylabel="weight α", ylim=(0, 1.3), yticks=(0, 0.5, 1))
    above.legend(ncols=4, loc="upper center", fontsize=7)
    for number, column in enumerate(answers):
        task, side = column.rsplit(" ", 1)
        marker = "o" if "malignant" in column else "s"
        beside = x + (number - (len(answers) - 1) / 2) * 0.12  # so that none hides another
        below.plot(beside, table[column], marker, color=SIDE_COLOURS[side], label=f"{task}, breast {side}", alpha=0.9)
    below.axhline(0.5, color="0.7", linewidth=0.8, linestyle=":")
    below.set(ylabel="probability", ylim=(-0.03, 1.4), yticks=(0, 0.5, 1))
    below.set_xticks(x, table.index)
    below.legend(ncols=2, loc="upper center", fontsize=7)
    figure.suptitle(title)
    return figure, table


def explore_views(model: nn.Module, exams: ExamSet, settings: Training, note: str):
    """A widget: choose an exam, tick the views that the system may see, read probabilities and weights.

    note: shown above every picture, such as "synthetic cohort". Returns an ipywidgets box.
    """
    import ipywidgets as widgets

    choice = widgets.Dropdown(options=[(name, i) for i, name in enumerate(exams.names)], description="exam")
    boxes = [widgets.Checkbox(value=True, description=view, indent=False) for view in VIEWS]
    picture = widgets.Image(format="png")

    def redraw(_: object = None) -> None:
        present = exams.present[choice.value].tolist()
        for box, there in zip(boxes, present, strict=True):
            box.disabled = not there
        shown = [box.value and there for box, there in zip(boxes, present, strict=True)]
        probabilities, weights = predict_with_views(model, exams, choice.value, shown, settings)
        title = f"{exams.names[choice.value]} ({note})" + ("" if any(shown) else ": nothing shown, nothing known")
        figure = draw_exam(exams, choice.value, shown, probabilities, weights, title)
        picture.value = as_png(figure)

    for widget in (choice, *boxes):
        widget.observe(redraw, names="value")
    redraw()
    return widgets.VBox([widgets.HBox([choice, *boxes]), picture])


def as_png(figure: Figure) -> bytes:
    """The figure as PNG bytes; it is closed, so that the notebook does not show it again."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()
