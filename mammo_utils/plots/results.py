"""Figures of training and of notebook 05: curves, confusion matrices and comparisons of systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import confusion_matrix

from mammo_utils.evaluation.bootstrap import LEVEL, Sample, group_weights
from mammo_utils.evaluation.runs import RunResult
from mammo_utils.metrics import METRICS, rank_scores, scored_classes
from mammo_utils.plots.data import draw_sheet
from mammo_utils.plots.style import (
    CHANCE_LINE,
    COLOURS,
    draw_intervals,
    list_systems,
    make_panels,
    name_heights,
    place_systems,
    styled,
)
from mammo_utils.training.dataset import DEVIATION, MEAN
from mammo_utils.vocabulary import MODE_TITLES, REFERENCE, SYSTEMS, TASK_TITLES, VIEW_TITLES, VIEWS

MODE_DASHES = dict(zip(MODE_TITLES.values(), ("", (4, 2), (1, 1)), strict=True))
GRID = np.linspace(0, 1, 101)  # false positive rates at which curves are averaged


@styled
def draw_roc(
    samples: Mapping[str, Sample], aucs: Mapping[str, str], title: str, *, resamples: int, seed: int
) -> Figure:
    """Draw one panel per system: its ROC curve with the pointwise 95 % band over patients, the others thin behind it.

    Args:
        samples: System -> its predictions.
        aucs: System -> its AUC and interval as text.
        title: Title of the figure.
        resamples: Bootstrap resamples of the band.
        seed: Of the resamples.
    """
    names = [SYSTEMS[system].short for system in samples]
    labels = {"x": "false positive rate", "y": "true positive rate"}
    figure, axes = make_panels(title, names, (2.6, 3.4), columns=3, **labels, sharey=True)
    curves = {system: roc_curve(sample, np.ones((1, len(sample.labels))))[0] for system, sample in samples.items()}
    for axis, (system, sample) in zip(axes, samples.items(), strict=True):
        colour = SYSTEMS[system].colour
        axis.axline((0, 0), slope=1, **CHANCE_LINE)
        axis.plot(GRID, np.stack(list(curves.values()), axis=1), color="0.8", linewidth=0.7)
        resampled = roc_curve(sample, group_weights(sample.groups, resamples, seed))
        resampled = resampled[~np.isnan(resampled).any(1)]
        if len(resampled):
            low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
            axis.fill_between(GRID, low, high, color=colour, alpha=0.25, linewidth=0)
        axis.plot(GRID, curves[system], color=colour)
        axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axis.text(0.97, 0.05, f"AUC {aucs[system]}", ha="right", transform=axis.transAxes, fontsize=7.5)
    handles = [Line2D([], [], color="k", label="the system")]
    if len(samples) > 1:
        handles.append(Line2D([], [], color="0.8", label="the other systems"))
    handles.append(Line2D([], [], color="k", alpha=0.25, linewidth=6, label="95 % band over patients"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def roc_curve(sample: Sample, weights: np.ndarray) -> np.ndarray:
    """Compute ROC curves for weighted breasts: weights (R, n) -> true positive rates at GRID, (R, 101).

    A curve is the mean over the scored classes (one-vs-rest) and over trainings, linear between corners; it is
    NaN where a class has no weight.
    """
    curves = [
        _binary_curve(sample.labels == k, rank_scores(probabilities, k), weights)
        for probabilities in sample.probabilities
        for k in scored_classes(probabilities)
    ]
    return np.mean(curves, axis=0)


def _binary_curve(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])  # the last of each run of equal scores
    true_positives = (weights * positive)[:, order].cumsum(1)[:, ends]
    false_positives = (weights * ~positive)[:, order].cumsum(1)[:, ends]
    curves = np.full((len(weights), len(GRID)), np.nan)
    for curve, hits, alarms in zip(curves, true_positives, false_positives, strict=True):
        if hits[-1] and alarms[-1]:
            curve[:] = np.interp(GRID, np.r_[0, alarms / alarms[-1]], np.r_[0, hits / hits[-1]])
            curve[0] = 0
    return curves


@styled
def draw_confusions(samples: Mapping[str, Sample], classes: Sequence[str], title: str) -> Figure:
    """Draw one confusion matrix per system; counts are means over trainings, shades are shares of the label.

    Args:
        samples: System -> its predictions.
        classes: Names of the classes, in order.
        title: Title of the figure.
    """
    names = [SYSTEMS[system].short for system in samples]
    side = 1.3 + 0.45 * len(classes)
    figure, axes = make_panels(title, names, (side, side), columns=3)
    for axis, sample in zip(axes, samples.values(), strict=True):
        counts = confusion(sample)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        decimals = 0 if len(sample.probabilities) == 1 else 1
        texts = [f"{count:.{decimals}f}\n{share:.0%}" for count, share in zip(counts.flat, shares.flat, strict=True)]
        looks = {"fmt": "", "cmap": "Blues", "vmin": 0, "vmax": 1, "cbar": False, "square": True}
        sns.heatmap(shares, annot=np.reshape(texts, shares.shape), annot_kws={"size": 7}, ax=axis, **looks)
        axis.set(xlabel="predicted class", ylabel="true class" if axis.get_subplotspec().is_first_col() else "")
        axis.set_xticklabels(classes, fontsize=7)
        axis.set_yticklabels(classes, fontsize=7, rotation=90, va="center")
    return figure


def confusion(sample: Sample) -> np.ndarray:
    """Count breasts by label (rows) and most probable class (columns), averaged over trainings: (K, K)."""
    classes = range(sample.probabilities.shape[2])
    return np.mean([confusion_matrix(sample.labels, p.argmax(1), labels=classes) for p in sample.probabilities], axis=0)


@styled
def draw_training(runs: Sequence[RunResult], title: str) -> Figure:
    """Draw loss and validation AUC by epoch, one line per training; a dot marks the epoch whose weights were kept."""
    present = {run.spec.system for run in runs}
    colours = {entry.title: entry.colour for system, entry in SYSTEMS.items() if system in present}
    tables = [
        run.epochs.assign(
            **{"run": run.id, "system": SYSTEMS[run.spec.system].title, "colour": SYSTEMS[run.spec.system].colour},
            **{"trained on": MODE_TITLES[run.spec.task_mode], "kept": run.epochs["epoch"] == run.metrics["best_epoch"]},
        )
        for run in runs
    ]
    modes = [title for mode, title in MODE_TITLES.items() if any(run.spec.task_mode == mode for run in runs)]
    looks = {"hue": "system", "palette": colours, "hue_order": list(colours)}
    looks |= {"style": "trained on", "style_order": modes, "dashes": MODE_DASHES, "linewidth": 0.9}
    return _draw_epochs(pd.concat(tables), title, **looks)


@styled
def draw_curves(rows: list[dict[str, Any]], title: str) -> Figure:
    """Draw the training loss and the validation AUCs of one run by epoch.

    Args:
        rows: What `train` returned for each epoch.
        title: Title of the figure.
    """
    figure = _draw_epochs(pd.DataFrame(rows).assign(run="", colour="k", kept=False), title, color="k", marker="o")
    for axis in figure.axes:
        axis.xaxis.get_major_locator().set_params(min_n_ticks=1)  # there may be a single epoch
    return figure


def _draw_epochs(table: pd.DataFrame, title: str, **looks: Any) -> Figure:
    names = {"loss": "training loss (Eq. 11)"}
    names |= {f"validation_{task}_auc": f"{title}, validation AUC" for task, title in TASK_TITLES.items()}
    names = {column: name for column, name in names.items() if column in table}
    about = [column for column in ("epoch", "run", "system", "trained on", "colour", "kept") if column in table]
    long = table.rename(columns=names).melt(about, list(names.values()), "curve", "value")
    shape = {"col": "curve", "units": "run", "estimator": None, "height": 2.8, "facet_kws": {"sharey": False}}
    grid = sns.relplot(long, kind="line", x="epoch", y="value", **shape, **looks).set_titles("").set_ylabels("")
    for name, axis in grid.axes_dict.items():
        kept = long[long["kept"] & (long["curve"] == name)]
        axis.scatter(kept["epoch"], kept["value"], 16, kept["colour"], zorder=3)
        axis.set_ylabel(name)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if name != names["loss"]:
            axis.axhline(0.5, **CHANCE_LINE)
    grid.figure.set_layout_engine("constrained")
    if grid.legend:  # below, because the mark of the synthetic cohort is at the right edge
        sns.move_legend(grid, "outside lower center", ncols=4)
        grid.figure.set_size_inches(2.8 * len(names), 3.4)
    grid.figure.suptitle(title)
    return grid.figure


@styled
def draw_batch(before: torch.Tensor, after: torch.Tensor, title: str) -> Figure:
    """Draw the views of one exam as stored (top) and as one training step receives them (bottom), absent ones empty.

    Args:
        before: (4, 3, S, S), normalised as for the model; an absent view is all zeros.
        after: The same, augmented.
        title: Title of the figure.
    """
    images = torch.cat([before, after])  # (8, 3, S, S)
    absent = (images == 0).flatten(1).all(1)  # (8,)
    grey = (images[:, 0] * DEVIATION[0] + MEAN[0]).masked_fill(absent[:, None, None], 1)  # (8, S, S)
    names = [f"{view}, {state}" for state in ("stored", "augmented") for view in VIEW_TITLES.values()]
    captions = [f"{name} (absent)" if gone else name for name, gone in zip(names, absent, strict=True)]
    return draw_sheet(grey.numpy(), captions, title, columns=len(VIEWS), width=2)


@styled
def draw_systems(results: pd.DataFrame, baselines: pd.DataFrame, title: str, *, paper: bool) -> Figure:
    """Draw the AUCs of the systems with intervals, and those of the shortcut baselines (grey).

    Args:
        results: Rows of one subset of `results_table` with metric "auc" and side "both".
        baselines: The same of the shortcut baselines; may be empty.
        title: Title of the figure.
        paper: Whether the paper's values, which are on real data, are drawn beside them (diamonds).
    """
    names = list_systems(results)
    shortcuts = list(baselines["baseline"].unique()) if len(baselines) else []
    panels, size = dict(tuple(results.groupby("task", sort=False))), (3.3, 0.9 + 0.3 * (len(names) + len(shortcuts)))
    figure, axes = make_panels(title, [TASK_TITLES[t] for t in panels], size, x="AUC", sharey=True, sharex=True)
    for axis, (task, rows) in zip(axes, panels.items(), strict=True):
        y, colours = place_systems(rows, list(names))
        draw_intervals(axis, rows["value"], rows["low"], rows["high"], y, colours)
        low, high = rows["value"] - rows["sd_seeds"], rows["value"] + rows["sd_seeds"]
        axis.hlines(y, low, high, colors=colours, linewidth=6, alpha=0.35)
        if paper:
            axis.scatter(rows["paper"], y - 0.25, 14, marker="D", facecolor="none", edgecolor="k")
        if len(baselines):
            grey = baselines[baselines["task"] == task]
            y = [len(names) + shortcuts.index(name) for name in grey["baseline"]]
            draw_intervals(axis, grey["value"], grey["low"], grey["high"], y, COLOURS["baseline"])
        axis.axvline(0.5, **CHANCE_LINE)
    name_heights(axes[0], [*names.values(), *shortcuts])
    black = {"color": "k", "markersize": 5}
    handles = [Line2D([], [], **black, marker="o", label="AUC, 95 % interval over patients; grey: shortcuts")]
    if paper:
        handles.append(Line2D([], [], **black, marker="D", mfc="none", linestyle="", label="paper, TOMPEI-CMMD"))
    if results["sd_seeds"].notna().any():
        label = f"± 1 standard deviation over {results['n_seeds'].max()} trainings"
        handles.append(Line2D([], [], color="k", linewidth=6, alpha=0.35, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=1)
    return figure


@styled
def draw_blocks(blocks: pd.DataFrame, title: str) -> Figure:
    """Draw AUCs by number of blocks with 95 % intervals over patients (bars) and the spread over trainings (bands)."""
    panels = {
        f"{TASK_TITLES[task]}, trained on {MODE_TITLES[mode]}": rows
        for (mode, task), rows in blocks.groupby(["task_mode", "task"], sort=False)
    }
    figure, axes = make_panels(title, list(panels), (3.2, 3), x="blocks", y="AUC", sharey=True)
    for axis, rows in zip(axes, panels.values(), strict=True):
        for shift, (system, line) in enumerate(rows.groupby("system", sort=False)):
            line, entry = line.sort_values("blocks"), SYSTEMS[system]
            x = line["blocks"] + 0.12 * shift
            axis.plot(x, line["value"], color=entry.colour, marker="o", markersize=4, label=entry.title)
            axis.vlines(x, line["low"], line["high"], color=entry.colour)
            low, high = (line["value"] + sign * line["sd_seeds"].fillna(0) for sign in (-1, 1))
            axis.fill_between(x, low, high, color=entry.colour, alpha=0.2, linewidth=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.axhline(0.5, **CHANCE_LINE)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def draw_comparisons(comparisons: pd.DataFrame, title: str) -> Figure:
    """Draw paired differences in AUC with 95 % intervals, one panel per task; left of 0 the reference is better."""
    tasks = [task for task in TASK_TITLES if task in set(comparisons["task"])]
    labels = comparisons.apply(_name_comparison, axis=1)
    names, x = list(labels.unique()), f"difference in {METRICS['auc'].title}\n← worse than the reference    better →"
    size, panels = (3.6, 1 + 0.42 * len(names)), [TASK_TITLES[task] for task in tasks]
    figure, axes = make_panels(title, panels, size, x=x, sharey=True, sharex=True)
    for axis, task in zip(axes, tasks, strict=True):
        rows = comparisons[comparisons["task"] == task]
        y = [names.index(label) for label in labels[rows.index]]
        colours = [SYSTEMS[system].colour for system in rows["system"]]
        draw_intervals(axis, rows["difference"], rows["low"], rows["high"], y, colours)
        axis.axvline(0, **CHANCE_LINE)
        axis.xaxis.set_major_locator(MaxNLocator(5))
    axes[0].set_yticks(range(len(names)), names, fontsize=7)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def _name_comparison(row: pd.Series) -> str:
    """What is compared; the reference only where it is not REFERENCE trained on the same tasks."""
    system, (reference, mode) = SYSTEMS[row["system"]].short, row["reference"].split(" ")
    if (reference, mode) == (REFERENCE, row["task_mode"]):
        return system
    other = MODE_TITLES[mode] if reference == row["system"] else f"{SYSTEMS[reference].short}, {MODE_TITLES[mode]}"
    return f"{system}, {MODE_TITLES[row['task_mode']]}\nminus {other}"


@styled
def draw_levels(levels: pd.DataFrame, title: str) -> Figure:
    """Draw the AUC of each system by breast (filled) and by exam (hollow), with 95 % intervals over patients.

    Args:
        levels: Rows of one subset of `levels_table`, with one rule of aggregation per task.
        title: Title of the figure.
    """
    panels, names = dict(tuple(levels.groupby("task", sort=False))), list_systems(levels)
    size = (3.3, 1.1 + 0.4 * len(names))
    figure, axes = make_panels(title, [TASK_TITLES[t] for t in panels], size, x="AUC", sharey=True, sharex=True)
    for axis, rows in zip(axes, panels.values(), strict=True):
        for key, pair in rows.groupby(["system", "task_mode"], sort=False):
            colour, y = SYSTEMS[key[0]].colour, list(names).index(key) + 0.15 * np.array([-1, 1])
            pair = pair.set_index("level").reindex(["breast", "exam"])
            axis.hlines(y, pair["low"], pair["high"], colors=colour, alpha=0.6)
            axis.plot(pair["value"], y, color=colour, linewidth=1)
            axis.scatter(pair["value"], y, 25, [colour, "w"], edgecolors=colour, zorder=3)
        axis.axvline(0.5, **CHANCE_LINE)
    name_heights(axes[0], list(names.values()))
    black = {"color": "k", "marker": "o", "markersize": 5, "linestyle": ""}
    handles = [Line2D([], [], **black, label="breasts"), Line2D([], [], **black, mfc="w", label="exams")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


@styled
def draw_ordinal(ordinal: pd.DataFrame, title: str) -> Figure:
    """Draw the shares of BI-RADS answers that are exact, one step off and further off, one bar per system and answer.

    Args:
        ordinal: Rows of one subset of `ordinal_table`.
        title: Title of the figure.
    """
    answers = ordinal["answer"].unique()
    names = {(*key, answer): f"{name}, {answer}" for key, name in list_systems(ordinal).items() for answer in answers}
    figure, axes = make_panels(title, [""], (7, 1.2 + 0.28 * len(names)), x="share of breasts")
    shares, left = ordinal.set_index(["metric", "system", "task_mode", "answer"])["value"], np.zeros(len(names))
    for metric, label, grey in (
        ("exact", "exact", "0.3"),
        ("adjacent", "one step off", "0.6"),
        ("off", "further off", "0.85"),
    ):
        width = shares.loc[metric].reindex(list(names)).fillna(0).to_numpy()
        axes[0].barh(range(len(names)), width, left=left, color=grey, label=label)
        left += width
    axes[0].set_xlim(0, 1)
    name_heights(axes[0], list(names.values()))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
