"""Pictures of notebook 05: curves, confusions, comparisons; each from predictions and tables, none by training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mammo_utils.evaluation.bootstrap import LEVEL, Sample, group_weights
from mammo_utils.evaluation.paper import METRIC_NAMES, SYSTEM_NAMES
from mammo_utils.evaluation.runs import RunResult
from mammo_utils.metrics import scored_classes
from mammo_utils.plots.style import BASELINE_COLOUR, SYSTEM_COLOURS, styled
from mammo_utils.vocabulary import TASKS

MODE_LINES = {"multi": "-", "diagnosis": "--", "birads": ":"}
GRID = np.linspace(0, 1, 101)  # false positive rates at which curves are averaged


@styled
def draw_roc(samples: Mapping[str, Sample], aucs: Mapping[str, str], title: str, *, resamples: int) -> Figure:
    """One panel a system: its ROC curve with the pointwise 95 % band over patients, the others thin behind it.

    samples: system -> its answers; aucs: system -> the AUC and interval as text. With more than two classes
    the curve is the mean of the one-vs-rest curves; with more than one seed, the mean over seeds.
    """
    columns = min(3, len(samples))
    lines = -(-len(samples) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(2.6 * columns, 2.7 * lines + 0.3),
        sharex=True,
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    curves = {system: roc_curve(s, np.ones((1, len(s.labels))))[0] for system, s in samples.items()}
    for axis, (system, answers) in zip(axes.flat, samples.items(), strict=False):
        drawn = roc_curve(answers, group_weights(answers.groups, resamples, seed=0))
        drawn = drawn[~np.isnan(drawn).any(1)]
        colour = SYSTEM_COLOURS[system]
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle=":")
        for other, curve in curves.items():
            if other != system:
                axis.plot(GRID, curve, color="0.8", linewidth=0.7)
        if len(drawn):
            low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
            axis.fill_between(GRID, low, high, color=colour, alpha=0.25, linewidth=0)
        axis.plot(GRID, curves[system], color=colour)
        axis.set(title=SYSTEM_NAMES[system], xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axis.text(0.97, 0.05, f"AUC {aucs[system]}", ha="right", transform=axis.transAxes, fontsize=7.5)
    _labels_outside(axes, len(samples), "false positive rate", "true positive rate")
    figure.suptitle(title)
    return figure


def roc_curve(answers: Sample, weights: np.ndarray) -> np.ndarray:
    """True positive rate at GRID for each row of weights (R, n) -> (R, 101); NaN where a class has no weight.

    Mean over the scored classes (one-vs-rest) and over training seeds; linear between the curve's corners.
    """
    curves = [
        _binary_curve(answers.labels == k, layer[:, k], weights)
        for layer in answers.probabilities
        for k in scored_classes(layer)
    ]
    return np.mean(curves, axis=0)


def _binary_curve(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])  # after the last of equal scores
    up = (weights * positive)[:, order].cumsum(1)[:, ends]
    down = (weights * ~positive)[:, order].cumsum(1)[:, ends]
    curves = np.full((len(weights), len(GRID)), np.nan)
    for row, (u, d) in enumerate(zip(up, down, strict=True)):
        if u[-1] and d[-1]:
            curves[row] = np.interp(GRID, np.r_[0, d / d[-1]], np.r_[0, u / u[-1]])
    curves[:, 0] = np.where(np.isnan(curves[:, 0]), np.nan, 0)
    return curves


@styled
def draw_confusions(samples: Mapping[str, Sample], names: Sequence[str], title: str) -> Figure:
    """One matrix a system: breasts by label (rows) and answer (columns), the share of the label as shade.

    names: of the classes, in order. With more than one seed the counts are means over seeds.
    """
    columns = min(3, len(samples))
    lines = -(-len(samples) // columns)
    side = 1.1 + 0.45 * len(names)
    figure, axes = plt.subplots(
        lines, columns, figsize=(side * columns + 0.6, side * lines + 0.5), layout="constrained", squeeze=False
    )
    for axis, (system, answers) in zip(axes.flat, samples.items(), strict=False):
        counts = confusion(answers)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (i, j), count in np.ndenumerate(counts):
            text = f"{count:.0f}" if len(answers.probabilities) == 1 else f"{count:.1f}"
            axis.text(
                j,
                i,
                f"{text}\n{shares[i, j]:.0%}",
                ha="center",
                va="center",
                fontsize=7,
                color="w" if shares[i, j] > 0.6 else "k",
            )
        ticks = range(len(names))
        axis.set(title=SYSTEM_NAMES[system].replace("Hybrid ResNet-VSSM", "Hybrid"), xticks=ticks, yticks=ticks)
        axis.set_xticklabels(names, fontsize=7)
        axis.set_yticklabels(names, fontsize=7, rotation=90, va="center")
        axis.spines[:].set_visible(False)
    _labels_outside(axes, len(samples), "answer", "label", ticks=False)
    figure.suptitle(title)
    return figure


def confusion(answers: Sample) -> np.ndarray:
    """(K, K) breasts with label i answered j (highest probability), averaged over training seeds."""
    n_classes = answers.probabilities.shape[2]
    predicted = answers.probabilities.argmax(2)  # (S, n)
    index = answers.labels * n_classes + predicted
    counts = [np.bincount(row, minlength=n_classes**2).reshape(n_classes, n_classes) for row in index]
    return np.mean(counts, axis=0)


@styled
def draw_training(runs: Sequence[RunResult], title: str) -> Figure:
    """Loss and validation AUC by epoch, one line a run, coloured by system and dashed by task mode; the epoch
    that was kept is a dot."""
    tasks = [t for t in TASKS if any(f"validation_{t}_auc" in run.epochs for run in runs)]
    figure, axes = plt.subplots(1, 1 + len(tasks), figsize=(3 * (1 + len(tasks)), 3.4), layout="constrained")
    for run in runs:
        look = {"color": SYSTEM_COLOURS[run.spec.system], "linestyle": MODE_LINES[run.spec.task_mode]}
        for axis, column in zip(axes, ["loss", *(f"validation_{task}_auc" for task in tasks)], strict=True):
            if column in run.epochs:
                axis.plot(run.epochs["epoch"], run.epochs[column], **look)
                kept = run.epochs[run.epochs["epoch"] == run.metrics["best_epoch"]]
                axis.plot(kept["epoch"], kept[column], "o", color=look["color"], markersize=4)
    axes[0].set(ylabel="training loss (Eq. 11)")
    for axis, task in zip(axes[1:], tasks, strict=True):
        axis.axhline(0.5, color="0.7", linewidth=0.8, linestyle=":")
        axis.set(ylabel=f"validation AUC, {task}", ylim=(min(0.35, axis.get_ylim()[0]), 1.02))
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    systems = [s for s in SYSTEM_NAMES if any(run.spec.system == s for run in runs)]
    handles = [plt.Line2D([], [], color=SYSTEM_COLOURS[s], label=SYSTEM_NAMES[s]) for s in systems]
    modes = [m for m in MODE_LINES if any(run.spec.task_mode == m for run in runs)]
    if len(modes) > 1:
        handles += [plt.Line2D([], [], color="k", linestyle=MODE_LINES[m], label=f"task mode {m}") for m in modes]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    figure.suptitle(title)
    return figure


@styled
def draw_against_paper(results: pd.DataFrame, baselines: pd.DataFrame, ours: str) -> Figure:
    """The AUCs of a subset's systems with intervals (dots), the paper's (diamonds) and the shortcuts (grey).

    results: rows of one subset with metric auc and side both; baselines: likewise; ours: the data set that our
    values are on, for the legend. The two are on different data: they stand side by side, not against each other.
    """
    panels = list(results[["task_mode", "task"]].drop_duplicates().itertuples(index=False, name=None))
    rows = [*SYSTEM_NAMES, *(baselines["baseline"].unique() if len(baselines) else [])]
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(2.2 + 2.6 * len(panels), 0.6 + 0.3 * len(rows)),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for axis, (mode, task) in zip(axes[0], panels, strict=True):
        shown = results[(results["task_mode"] == mode) & (results["task"] == task)].set_index("system")
        beside = baselines[baselines["task"] == task].set_index("baseline") if len(baselines) else baselines
        for height, name in enumerate(rows):
            found = shown if name in shown.index else beside if len(beside) and name in beside.index else None
            if found is None:
                continue
            row, colour = found.loc[name], SYSTEM_COLOURS.get(name, BASELINE_COLOUR)
            axis.plot([row["low"], row["high"]], [height, height], color=colour)
            axis.plot(row["value"], height, "o", color=colour, markersize=5)
            if pd.notna(row.get("sd_seeds")):
                ends = [row["value"] - row["sd_seeds"], row["value"] + row["sd_seeds"]]
                axis.plot(ends, [height, height], color=colour, linewidth=6, alpha=0.35, solid_capstyle="butt")
            if "paper" in row and pd.notna(row["paper"]):
                axis.plot(row["paper"], height - 0.22, "D", color="k", markersize=3.5, markerfacecolor="none")
        axis.axvline(0.5, color="0.7", linewidth=0.8, linestyle=":")
        axis.set(title=f"{task} ({'multi-task' if mode == 'multi' else 'single-task'})", xlabel="AUC")
    axes[0, 0].set_yticks(range(len(rows)), [SYSTEM_NAMES.get(row, row) for row in rows])
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.6)
    handles = [
        plt.Line2D([], [], color="k", marker="o", markersize=5, label=f"ours, {ours}, 95 % over patients"),
        plt.Line2D(
            [],
            [],
            color="k",
            marker="D",
            markersize=3.5,
            linestyle="",
            markerfacecolor="none",
            label="paper, TOMPEI-CMMD",
        ),
    ]
    if results["sd_seeds"].notna().any():
        seeds = results["n_seeds"].max()
        thick = {"color": "k", "linewidth": 6, "alpha": 0.35}
        handles.append(plt.Line2D([], [], **thick, label=f"± 1 standard deviation over {seeds} seeds"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


@styled
def draw_blocks(blocks: pd.DataFrame, title: str) -> Figure:
    """The AUC by number of blocks with its 95 % interval over patients (bars) and, of several seeds, their standard
    deviation (band); one panel a task mode and task. blocks: rows of one subset of evidence.tables.blocks_table."""
    panels = list(blocks[["task_mode", "task"]].drop_duplicates().itertuples(index=False, name=None))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(0.8 + 2.8 * len(panels), 2.8), sharey=True, layout="constrained", squeeze=False
    )
    for axis, (mode, task) in zip(axes[0], panels, strict=True):
        rows = blocks[(blocks["task_mode"] == mode) & (blocks["task"] == task)]
        for shift, (system, found) in enumerate(rows.groupby("system", sort=False)):
            found, colour = found.sort_values("blocks"), SYSTEM_COLOURS[system]
            x = found["blocks"] + 0.12 * shift
            reach = [found["value"] - found["low"], found["high"] - found["value"]]
            axis.errorbar(x, found["value"], reach, color=colour, marker="o", markersize=4, label=SYSTEM_NAMES[system])
            spread = found["sd_seeds"].fillna(0)
            axis.fill_between(x, found["value"] - spread, found["value"] + spread, color=colour, alpha=0.2, linewidth=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.axhline(0.5, color="0.7", linewidth=0.8, linestyle=":")
        axis.set(title=f"{task} ({'multi-task' if mode == 'multi' else 'single-task'})", xlabel="blocks")
    axes[0, 0].set_ylabel("AUC")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.suptitle(title)
    return figure


@styled
def draw_comparisons(comparisons: pd.DataFrame, title: str) -> Figure:
    """Paired differences in AUC with their 95 % intervals, one panel a task; left of 0 the reference is better."""
    tasks = list(comparisons["task"].unique())
    names = (comparisons["system"] + " " + comparisons["task_mode"] + "\nless " + comparisons["reference"]).unique()
    figure, axes = plt.subplots(
        1,
        len(tasks),
        figsize=(2.4 + 2.8 * len(tasks), 0.8 + 0.42 * len(names)),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        for row in comparisons[comparisons["task"] == task].itertuples():
            height = list(names).index(f"{row.system} {row.task_mode}\nless {row.reference}")
            axis.plot([row.low, row.high], [height, height], color=SYSTEM_COLOURS[row.system])
            axis.plot(row.difference, height, "o", color=SYSTEM_COLOURS[row.system], markersize=5)
        axis.axvline(0, color="0.5", linewidth=0.8)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.set(title=task, xlabel=f"difference in {METRIC_NAMES['auc']}")
    axes[0, 0].set_yticks(range(len(names)), names, fontsize=7)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle(title)
    return figure


def _labels_outside(axes: np.ndarray, used: int, x: str, y: str, ticks: bool = True) -> None:
    """Labels on the outer panels only; panels beyond `used` are taken away."""
    columns = axes.shape[1]
    for number, axis in enumerate(axes.flat):
        axis: Axes
        if number >= used:
            axis.set_visible(False)
            continue
        if number % columns == 0:
            axis.set_ylabel(y)
        if number + columns >= used:
            axis.set_xlabel(x)
            if ticks:
                axis.tick_params(labelbottom=True)
