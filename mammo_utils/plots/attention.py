"""Figures of notebook 06: recombined exams, contributions, subsets of views, saliency maps, and single exams."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mammo_utils.evaluation.gate import CompleteExams
from mammo_utils.evaluation.recombination import SWITCH_AUC
from mammo_utils.evaluation.saliency import MAPS
from mammo_utils.evaluation.view_ablation import ExamPrediction
from mammo_utils.plots.style import (
    CHANCE_LINE,
    COLOURS,
    draw_intervals,
    fold_name,
    make_panels,
    show_image,
    styled,
    write_signed,
)
from mammo_utils.training.dataset import ExamSet
from mammo_utils.training.saliency import METHODS, SaliencyMaps
from mammo_utils.training.views import VIEW_SUBSETS, shown_views
from mammo_utils.vocabulary import SIDE_NAMES, SIDES, TASK_TITLES, VIEW_TITLES, VIEWS

HIGHLIGHT = ListedColormap(["#F0E442"])  # stands out on grey for the colour-blind too

COMBINATIONS = {  # the views that the system receives
    "all views": (True, True, True, True),
    "CC alone": (True, False, True, False),
    "MLO alone": (False, True, False, True),
    "left alone": (True, True, False, False),
    "right alone": (False, False, True, True),
}
SHARES = {  # of the recombined exams -> title
    "both_seen": "two cancers:\nboth flagged",
    "one_right": "one cancer:\nit alone flagged",
    "none_flagged_wrong": "no cancer:\nany flagged",
}


# --- all runs -------------------------------------------------------------------------------------------


@styled
def draw_recombination(table: pd.DataFrame, names: Mapping[str, str], title: str) -> Figure:
    """Draw what recombining the breasts of two patients changes, one line per run.

    Args:
        table: Made by `recombination_table`.
        names: Run -> its label.
        title: Title of the figure.
    """
    panels = ["AUC of the breasts", *SHARES.values()]
    figure, axes = make_panels(title, panels, (2.3, 1.4 + 0.32 * len(table)), sharey=True)
    y = np.arange(len(table))
    for column, grey, face in (("auc", "0.6", "w"), ("recombined_auc", "k", "k")):
        axes[0].hlines(y, table[f"{column}_low"], table[f"{column}_high"], colors=grey)
        axes[0].scatter(table[column], y, 28, face, edgecolors="k", zorder=3)
    axes[0].set_xlabel("AUC")
    switch = dict(zip(SHARES, (0, 1, 1), strict=True))
    for axis, column in zip(axes[1:], SHARES, strict=True):
        draw_intervals(axis, table[column], table[f"{column}_low"], table[f"{column}_high"], y, "k")
        axis.scatter(table[f"{column}_alone"], y, 28, "w", marker="D", edgecolors="k", zorder=2)
        axis.set(xlim=(-0.04, 1.04), xlabel="share of exams")
    for axis, at in zip(axes, (SWITCH_AUC, *switch.values()), strict=True):
        axis.axvline(at, color="#D55E00", linewidth=0.8, linestyle="--", zorder=0)
    black = {"color": "k", "markersize": 5, "linestyle": ""}
    handles = [Line2D([], [], **black, marker="o", label="recombined exams")]
    handles.append(Line2D([], [], **black, marker="o", mfc="w", label="the same breasts in their own exams"))
    handles.append(Line2D([], [], **black, marker="D", mfc="w", label="if each breast were flagged by itself"))
    handles.append(Line2D([], [], color="#D55E00", linestyle="--", linewidth=0.8, label="a “which side?” switch"))
    axes[0].set_yticks(y, [fold_name(names.get(run, run)) for run in table["run"]], fontsize=7)
    axes[0].set_ylim(len(table) - 0.5, -0.5)
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


@styled
def draw_subsets(table: pd.DataFrame, looks: Mapping[str, tuple[str, str]], title: str) -> Figure:
    """Draw the AUC from each of the 15 subsets of views, with the views of each as dots below.

    Args:
        table: Rows of `subset_table` of one task.
        looks: Run -> its label and colour.
        title: Title of the figure.
    """
    order = sorted(VIEW_SUBSETS, key=lambda subset: (-subset.bit_count(), subset))
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(8.5, 4.8), sharex=True, layout="constrained", height_ratios=(3, 1)
    )
    runs = [run for run in looks if run in set(table["run"])]
    for i, run in enumerate(runs):
        rows = table[table["run"] == run].set_index("views").loc[order]
        x = np.arange(len(order)) + (i - (len(runs) - 1) / 2) * 0.7 / max(len(runs), 2)
        label, colour = looks[run]
        above.vlines(x, rows["auc_low"], rows["auc_high"], colors=colour, linewidth=1, alpha=0.6)
        above.plot(x, rows["auc"], "o", color=colour, markersize=4, label=label)
    above.axhline(0.5, **CHANCE_LINE)
    above.set_ylabel("AUC, exams with four views")
    shown = np.array([shown_views(subset).numpy() for subset in order])  # (15, 4)
    trained = table.groupby("views")["trained"].any()
    for column, subset in enumerate(order):
        rows = np.flatnonzero(shown[column])
        below.plot([column] * len(rows), rows, color="k", linewidth=1)
        if trained.get(subset, False):
            for axis in (above, below):
                axis.axvspan(column - 0.5, column + 0.5, color="#F0E442", alpha=0.35, linewidth=0)
    for view in range(len(VIEWS)):
        faces = np.where(shown[:, view], "k", "0.9")
        below.scatter(np.arange(len(order)), [view] * len(order), 34, faces, zorder=3)
    below.set_yticks(range(len(VIEWS)), VIEW_TITLES.values())
    below.set(
        ylim=(3.6, -0.6), xticks=[], xlim=(-0.6, len(order) - 0.4), xlabel="shaded: subsets that occur in training"
    )
    below.spines[:].set_visible(False)
    figure.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(title)
    return figure


@styled
def draw_saliency(table: pd.DataFrame, names: Mapping[str, str], title: str) -> Figure:
    """Draw the energy of the saliency maps beside that of the maps they are compared with, one line per run.

    Args:
        table: Made by `saliency_table`, not divided further; methods without a scored view are left out.
        names: Run -> its label.
        title: Title of the figure.
    """
    scored = table[table["n_views"] > 0]
    methods = [method for method in METHODS if method in set(scored["method"])]
    runs = list(dict.fromkeys(scored["run"]))
    panels = [f"{METHODS[m]}\n({scored.loc[scored['method'] == m, 'n_views'].max()} views)" for m in methods]
    figure, axes = make_panels(title, panels, (3.2, 1.9 + 0.32 * len(runs)), sharey=True, x="share in the lesion")
    looks = {"trained": ("o", "k"), "random": ("o", "w"), "other": ("x", "k")}
    looks |= {"brightest": ("^", "#E69F00"), "centre": ("s", "#56B4E9"), "uniform": ("|", "k")}
    for axis, method in zip(axes, methods, strict=True):
        for name, (marker, colour) in looks.items():
            rows = scored[(scored["method"] == method) & (scored["map"] == name)]
            y = np.array([runs.index(run) for run in rows["run"]])
            if name in ("trained", "random"):
                y = y + (-0.12 if name == "trained" else 0.12)
                axis.hlines(y, rows["energy_low"], rows["energy_high"], colors="k" if name == "trained" else "0.6")
            edge = {"edgecolors": "k", "linewidths": 0.8} if marker in "os^" else {}
            axis.scatter(rows["energy"], y, 26, colour, marker, zorder=3, label=MAPS[name], **edge)
        axis.set_xlim(-0.03, 1.03)
    axes[0].set_yticks(range(len(runs)), [fold_name(names.get(run, run)) for run in runs], fontsize=7)
    axes[0].set_ylim(len(runs) - 0.5, -0.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=3)
    return figure


# --- one run ----------------------------------------------------------------------------------------------


@styled
def draw_saliency_maps(maps: SaliencyMaps, limit: int, title: str) -> Figure:
    """Draw the maps of the first views in their own resolution, positive values in yellow, beside the outlined lesion.

    Args:
        maps: The maps of a run.
        limit: The largest number of views, one column each.
        title: Title of the figure.
    """
    n, side = min(limit, len(maps.exams)), maps.images.shape[1]
    figure, axes = plt.subplots(1 + len(METHODS), n, figsize=(1.8 * n + 1, 7.4), layout="constrained", squeeze=False)
    for row, method in enumerate([None, *METHODS]):
        cells = "{}\n{} × {} cells".format(METHODS[method], *maps.maps[method].shape[1:]) if method else "the view"
        axes[row, 0].set_ylabel(cells)
        for column, axis in enumerate(axes[row]):
            show_image(axis, maps.images[column])
            if method:
                values = np.maximum(maps.maps[method][column], 0)
                values = values / values.max() if values.any() else values
                extent = (-0.5, side - 0.5, side - 0.5, -0.5)
                axis.imshow(np.ones_like(values), alpha=0.85 * values, cmap=HIGHLIGHT, extent=extent)
            else:
                view = VIEW_TITLES[maps.views[column]]
                axis.set_title(f"{maps.exams[column]} {view}\n{maps.kinds[column]}", fontsize=7)
            if maps.masks[column].any() and not maps.masks[column].all():
                axis.contour(maps.masks[column], levels=[0.5], colors=COLOURS["outline"], linewidths=1)
    figure.suptitle(title)
    return figure


@styled
def draw_contributions(exams: CompleteExams, title: str) -> Figure:
    """Draw the weights of the views beside their contributions to each breast's log-odds, for exams with one cancer.

    Args:
        exams: Exams with four views.
        title: Title of the figure.
    """
    panels = ["weight α (the paper's Eq. 9)"]
    panels += [f"contribution to the {side}\nbreast's log-odds" for side in SIDE_NAMES.values()]
    figure, axes = plt.subplots(2, 3, figsize=(8, 4.6), sharey="col", layout="constrained")
    known = exams.positive.min(1) >= 0
    for row, name in enumerate(("left", "right")):
        chosen = known & (exams.positive[:, row] == 1) & (exams.positive[:, 1 - row] == 0)
        axes[row, 0].set_ylabel(f"cancer in the {name} breast\n({chosen.sum()} exams)")
        values = (exams.alpha, exams.contributions[:, 0], exams.contributions[:, 1])
        for axis, panel, of_views in zip(axes[row], panels, values, strict=True):
            if row == 0:
                axis.set_title(panel)
            if panel != panels[0]:
                axis.axhline(0, color="0.6", linewidth=0.8)
            spread = np.linspace(-0.25, 0.25, max(chosen.sum(), 1))[: chosen.sum()]
            for i, view in enumerate(VIEWS):
                axis.plot(i + spread, of_views[chosen, i], ".", color=COLOURS[view], markersize=4, alpha=0.6)
                if chosen.any():
                    axis.hlines(of_views[chosen, i].mean(), i - 0.35, i + 0.35, colors="k", linewidth=1.5)
            axis.set_xticks(range(len(VIEWS)), VIEW_TITLES.values())
            axis.axvspan(2 * row - 0.5, 2 * row + 1.5, color="0.92", zorder=0, linewidth=0)  # the views with the cancer
    ends = [axis.get_ylim() for axis in axes[:, 1:].flat]  # one scale for both breasts
    plt.setp(axes[:, 1:], ylim=(min(low for low, _ in ends), max(high for _, high in ends)))
    figure.suptitle(title)
    return figure


# --- one exam ---------------------------------------------------------------------------------------------


@styled
def draw_prediction(
    exams: ExamSet, position: int, visible: Sequence[bool], prediction: ExamPrediction, title: str
) -> Figure:
    """Draw one exam as the system receives it, with what each view weighs and contributes, and the predictions.

    Args:
        exams: The exams.
        position: Index of the exam.
        visible: (4,), False for a removed view.
        prediction: From the visible views.
        title: Title of the figure.
    """
    names = [
        f"{VIEW_TITLES[view]}: α = {weight:.2f}\n"
        + ("" if np.isnan(left) else f"left {write_signed(left)}, right {write_signed(right)}")
        for view, weight, left, right in zip(VIEWS, prediction.weights, *prediction.contributions, strict=True)
    ]
    # two views of a breast and the probabilities of a task in each row
    tasks = list(prediction.probabilities)
    panels = dict(enumerate(names)) | {task: f"Probability, {TASK_TITLES[task]}" for task in tasks}
    order = [0, 1, *tasks[:1], 2, 3, *tasks[1:]]
    figure, drawn = make_panels(title, [panels[key] for key in order], (2.6, 3), columns=3)
    axes = dict(zip(order, drawn, strict=True))
    for index in range(4):
        _draw_view(axes[index], exams, position, index, bool(visible[index]))
    for task, values in prediction.probabilities.items():
        axis = axes[task]
        classes = ["not\nmalignant", "malignant"] if task == "diagnosis" else [str(c) for c in exams.categories]
        for side, offset, label, row in zip(SIDES, (-0.19, 0.19), exams.labels[task][position], values, strict=True):
            known = "label " + classes[label].replace("\n", " ") if label >= 0 else "no label"
            known = f"{SIDE_NAMES[side]} breast: {known}"
            axis.bar(np.arange(len(row)) + offset, row, 0.36, color=COLOURS[side], label=known)
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
    exams: ExamSet, position: int, predict: Callable[[Sequence[bool]], ExamPrediction], title: str
) -> tuple[Figure, pd.DataFrame]:
    """Draw the weights and predictions for one exam from all of its views and from some of them.

    Args:
        exams: The exams.
        position: Index of the exam.
        predict: The views shown -> the prediction for this exam.
        title: Title of the figure.

    Returns:
        The figure and its numbers: one row per combination, with the weights and the probability of the highest class.
    """
    rows = []
    for name, visible in COMBINATIONS.items():
        found = predict(visible)
        weights = zip(VIEW_TITLES.values(), found.weights, strict=True)
        row: dict = {"views": name, **{f"α {view}": weight for view, weight in weights}}
        for task, values in found.probabilities.items():
            highest = "malignant" if task == "diagnosis" else f"BI-RADS {exams.categories[-1]}"
            row |= {f"P({highest}) {side}": values[i, -1] for i, side in enumerate(SIDES)}
        rows.append(row)
    table = pd.DataFrame(rows).set_index("views")
    figure = plt.figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.9))
    for index, axis in enumerate(left.subplots(2, 2).flat):
        _draw_view(axis, exams, position, index, True)
        axis.set_title(VIEW_TITLES[VIEWS[index]])
    above, below = right.subplots(2, 1, sharex=True)
    weights = table.filter(like="α").rename(columns=lambda name: name.removeprefix("α "))
    weights.plot.bar(ax=above, color=[COLOURS[view] for view in VIEWS], width=0.8)
    for view, bars in zip(VIEWS, above.containers, strict=True):  # a removed view keeps its weight: hollow
        for bar, shown in zip(bars, COMBINATIONS.values(), strict=True):
            bar.set(edgecolor=COLOURS[view], fill=shown[VIEWS.index(view)])
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
