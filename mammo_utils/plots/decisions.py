"""Figures of notebook 07: calibration, operating points, subgroups, failures and plans."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from mammo_utils.data.cohort import Cohort
from mammo_utils.evaluation.bootstrap import Sample
from mammo_utils.evaluation.calibration import equal_count_bins
from mammo_utils.evaluation.conformal import ALPHA
from mammo_utils.evaluation.failures import KINDS
from mammo_utils.evaluation.intervals import wilson_interval
from mammo_utils.evaluation.operating import net_benefit, recall_all
from mammo_utils.evaluation.planner import needed_patients
from mammo_utils.images.store import Store, to_store
from mammo_utils.plots.data import read_outlines
from mammo_utils.plots.style import (
    CHANCE_LINE,
    COLOURS,
    draw_intervals,
    list_systems,
    make_panels,
    name_heights,
    place_systems,
    show_image,
    style_line,
    styled,
    write_signed,
)
from mammo_utils.vocabulary import SIDE_NAMES, SYSTEMS, TASK_TITLES, VIEW_TITLES, VIEWS


@styled
def draw_reliability(samples: Mapping[str, tuple[Sample, Sample | None]], title: str) -> Figure:
    """Draw the share of malignant breasts by predicted probability, one panel per system.

    Bins have equal counts; a bar is Wilson's 95 % interval over patients. Below, the counts by probability.

    Args:
        samples: System -> its breasts as trained (filled) and scaled on validation (hollow), None if there is no fit.
        title: Title of the figure.
    """
    names = [SYSTEMS[system].short for system in samples]
    labels = {"x": "predicted P(malignant)", "y": "share malignant"}
    width = max(2.5, 6 / min(3, len(names)))  # all panels together are wider than the legend
    figure, axes = make_panels(title, names, (width, 2.8), columns=3, **labels, sharey=True)
    for axis, (system, pair) in zip(axes, samples.items(), strict=True):
        colour = SYSTEMS[system].colour
        axis.axline((0, 0), slope=1, **CHANCE_LINE)
        for sample, face in zip(pair, (colour, "w"), strict=True):
            if sample is None or not len(sample.labels):
                continue
            p, bins = sample.probabilities[0, :, 1], equal_count_bins(sample.probabilities[0, :, 1])
            points = []
            for number in np.unique(bins):
                own = bins == number
                points.append((p[own].mean(), *wilson_interval(sample.labels[own] == 1, sample.groups[own])))
            x, y, low, high = np.transpose(points)
            axis.vlines(x, low, high, colors=colour, linewidth=0.8, linestyles="solid" if face != "w" else "dotted")
            axis.plot(x, y, color=colour, linewidth=0.8, linestyle="-" if face != "w" else ":")
            axis.scatter(x, y, 18, face, edgecolors=colour, zorder=3)
        counts, edges = np.histogram(pair[0].probabilities[0, :, 1], np.linspace(0, 1, 11))
        axis.bar(edges[:-1], -0.2 * counts / max(counts.max(), 1), 0.095, align="edge", color="0.8")
        for count, edge in zip(counts, edges, strict=False):
            axis.text(edge + 0.05, -0.21, count or "", ha="center", va="top", fontsize=6)
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.32, 1.04), yticks=[0, 0.5, 1])
    black = {"color": "k", "marker": "o", "markersize": 5, "linestyle": ""}
    handles = [Line2D([], [], **black, label="as trained")]
    handles.append(Line2D([], [], **black, mfc="w", label="temperature and intercept, fitted on validation"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


@styled
def draw_operating_points(points: pd.DataFrame, title: str) -> Figure:
    """Draw what becomes of each aimed specificity: sensitivity and specificity with Wilson's 95 % intervals.

    Args:
        points: Rows of one subset and level of `operating_table`.
        title: Title of the figure.
    """
    aims, names = sorted(points["aim"].unique()), list_systems(points)
    panels = [f"aim: specificity {aim:.2f}" for aim in aims]
    size = (3.6, 1.1 + 0.4 * len(names))
    figure, axes = make_panels(title, panels, size, x="share of breasts", sharey=True, sharex=True)
    markers = {"specificity": "o", "sensitivity": "^"}
    for axis, aim in zip(axes, aims, strict=True):
        axis.axvline(aim, **CHANCE_LINE)
        for name, marker in markers.items():
            for place, (_, rows) in enumerate(points[points["aim"] == aim].groupby("seed")):
                y, colours = place_systems(rows, list(names))
                y += (0.12 if name == "sensitivity" else -0.3) + 0.09 * place  # trainings below each other
                axis.hlines(y, rows[f"{name}_low"], rows[f"{name}_high"], colors=colours)
                axis.scatter(rows[name], y, 28, colours, marker=marker, zorder=3)
    ends = points[[f"{name}_low" for name in markers]].min().min()
    axes[0].set_xlim(min(0.5, ends - 0.02), 1.02)  # shared
    name_heights(axes[0], list(names.values()))
    handles = [Line2D([], [], color="k", marker=m, linestyle="", label=name) for name, m in markers.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


@styled
def draw_net_benefit(samples: Mapping[str, Sample], prevalence: float, title: str) -> Figure:
    """Draw the net benefit by threshold, at the sample's prevalence and at another one.

    Args:
        samples: System -> its breasts, of one training.
        prevalence: The other prevalence of malignant breasts.
        title: Title of the figure.
    """
    own = float(np.mean(next(iter(samples.values())).labels == 1))
    panels = {own: np.linspace(0.01, 0.99, 99), prevalence: np.linspace(0.1, 5, 99) * prevalence}
    names = [f"prevalence {own:.0%}, as here", f"prevalence {prevalence:.1%}"]
    labels = {"x": "threshold probability", "y": "net benefit per breast"}
    figure, axes = make_panels(title, names, (3.4, 2.8), **labels)
    for axis, (share, thresholds) in zip(axes, panels.items(), strict=True):
        for system, sample in samples.items():
            benefit = net_benefit(sample, thresholds, None if share == own else share)
            axis.plot(thresholds, benefit, **style_line(system), linewidth=1)
        axis.plot(thresholds, recall_all(thresholds, share), color="0.5", linestyle="-.", label="recall all")
        axis.axhline(0, color="0.5", linestyle=":", label="recall none")
        axis.set_ylim(-0.1 * share, 1.05 * share)
        axis.xaxis.set_major_formatter(PercentFormatter(1, 0))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@styled
def draw_failures(failures: pd.DataFrame, store: Store, cohort: Cohort, title: str) -> Figure:
    """Draw the views of the worst failures as the system receives them: misses at the left, false alarms at the right.

    The number above a view is its contribution to the log-odds of the breast in question; above 0 it raises
    P(malignant). The outline of a lesion is drawn where the cohort has one. Right breasts are flipped, as in the store.

    Args:
        failures: Rows of one training of `failures_table`.
        store: The study's prepared images.
        cohort: The study's cohort, for the outlines.
        title: Title of the figure.
    """
    most, size = failures.groupby("kind").size().max(), store.settings["size"]
    shape = {"figsize": (9.6, 0.35 + 1.3 * most), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(most, 2 * len(VIEWS), **shape)
    for axis in axes.flat:
        axis.axis("off")
    for row in failures.itertuples():
        place = axes[row.rank - 1, KINDS.index(row.kind) * len(VIEWS) :][: len(VIEWS)]
        outlines = read_outlines(cohort, row.exam)
        for axis, view, number in zip(place, VIEWS, store.rows_of([row.exam])[0], strict=True):
            axis.axis("on")
            show_image(axis, store.images[number] if number >= 0 else None, note="" if number >= 0 else "absent")
            axis.set_box_aspect(1)
            plt.setp(axis.spines.values(), visible=False)
            for _, points in outlines.get(view, []) if number >= 0 else []:
                axis.fill(*to_store(points, store.index.iloc[number], size).T, fill=False, edgecolor=COLOURS["outline"])
            if view[0] == row.side:
                plt.setp(axis.spines.values(), visible=True, color=COLOURS["malignant"], linewidth=1.5)
            share = np.nan if number < 0 else getattr(row, f"from_{view}", np.nan)
            name = VIEW_TITLES[view] if np.isnan(share) else f"{VIEW_TITLES[view]} {write_signed(share)}"
            axis.set_title(name, fontsize=7, pad=2)
        label = f"{row.rank}. {row.kind}\n{row.exam} {SIDE_NAMES[row.side]}\nP = {row.p:.3f}"
        place[0].set_ylabel(label, fontsize=7, rotation=0, ha="right", va="center")
    figure.suptitle(title)
    return figure


@styled
def draw_subgroups(subgroups: pd.DataFrame, title: str) -> Figure:
    """Draw AUC and sensitivity by subgroup with 95 % intervals; the numbers are patients, positives and negatives.

    Args:
        subgroups: Rows of one training of `subgroup_table`.
        title: Title of the figure.
    """
    measures = list(subgroups["measure"].unique())
    most = subgroups["measure"].value_counts().max()
    figure, axes = make_panels(title, measures, (4.4, 1 + 0.26 * most))
    for axis, measure in zip(axes, measures, strict=True):
        rows = subgroups[subgroups["measure"] == measure].reset_index(drop=True)
        colours = np.where(rows["answer"] == "told apart", COLOURS["malignant"], "0.2")
        draw_intervals(axis, rows["value"], rows["low"], rows["high"], rows.index, colours)
        counts = [
            f"{row.n_patients}" + (f"; {row.n_positive} / {row.n_negative}" if row.n_negative else "")
            for row in rows.itertuples()
        ]
        names = [f"{row.attribute}: {row.group} ({n})" for row, n in zip(rows.itertuples(), counts, strict=True)]
        axis.set_yticks(rows.index, names, fontsize=7)
        axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel=measure, title="")
        axis.set_xlim(min(0.5, *rows["low"].dropna() - 0.02) if rows["low"].notna().any() else 0.5, 1.02)
        for number in rows.index[rows["low"].isna()]:
            axis.text(1, number, "too few for an interval", fontsize=6.5, color="0.5", ha="right", va="center")
        for number in np.flatnonzero(rows["attribute"] != rows["attribute"].shift())[1:]:
            axis.axhline(number - 0.5, color="0.85", linewidth=0.8)
    return figure


@styled
def draw_conformal(conformal: pd.DataFrame, title: str) -> Figure:
    """Draw coverage with Wilson's 95 % interval by BI-RADS category, and the mean size of the sets as text.

    Args:
        conformal: Rows of one subset of `conformal_table`.
        title: Title of the figure.
    """
    categories, names = list(conformal["category"].unique()), list_systems(conformal)
    most = conformal.groupby("category")["n_breasts"].max()
    panels = [f"{'all' if c == 'all' else f'BI-RADS {c}'} ({most[c]} breasts)" for c in categories]
    size, x = (3.0, 1.1 + 0.35 * len(names)), "coverage | categories in a set"
    figure, axes = make_panels(title, panels, size, columns=3, x=x, sharey=True)
    lowest = min(0.5, conformal["low"].min() - 0.02)
    for axis, category in zip(axes, categories, strict=True):
        rows = conformal[conformal["category"] == category].drop_duplicates(["system", "task_mode"])
        y, colours = place_systems(rows, list(names))
        draw_intervals(axis, rows["coverage"], rows["low"], rows["high"], y, colours)
        axis.axvline(1 - ALPHA, **CHANCE_LINE)
        for height, size in zip(y, rows["mean_size"], strict=True):
            axis.text(1.05, height, f"{size:.2f}", fontsize=7, va="center")
        axis.axvline(1.03, color="0.8", linewidth=0.8)
        axis.set(xlim=(lowest, 1.2), xticks=[tick for tick in (0.4, 0.6, 0.8, 1) if tick > lowest])
    name_heights(axes[0], list(names.values()))
    return figure


@styled
def draw_heads(samples: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], title: str) -> Figure:
    """Draw the expected BI-RADS category of each breast by its P(malignant), one panel per system.

    Args:
        samples: System -> P(malignant) (n,), expected category (n,), and label of the diagnosis (n,).
        title: Title of the figure.
    """
    names = [SYSTEMS[system].short for system in samples]
    labels = {"x": "P(malignant)", "y": "expected BI-RADS"}
    size = (4, 3) if len(names) == 1 else (2.3, 2.3)
    figure, axes = make_panels(title, names, size, columns=3, **labels, sharey=True)
    for axis, (p, expected, label) in zip(axes, samples.values(), strict=True):
        for value, name, colour in ((0, "not malignant", COLOURS["normal"]), (1, "malignant", COLOURS["malignant"])):
            axis.scatter(p[label == value], expected[label == value], 10, colour, alpha=0.6, label=name)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def draw_plan(plan: pd.DataFrame, title: str) -> Figure:
    """Draw the patients needed to tell each system apart from the reference, by the true difference in AUC.

    Args:
        plan: Rows of one subset and task mode of `plan_table`.
        title: Title of the figure.
    """
    tasks = list(plan["task"].unique())
    differences = np.linspace(0.01, 0.1, 91)
    labels = {"x": "true difference in AUC", "y": "test patients"}
    panels = [TASK_TITLES[task] for task in tasks]
    figure, axes = make_panels(title, panels, (3.4, 2.9), **labels, sharey=True)
    for axis, task in zip(axes, tasks, strict=True):
        for row in plan[plan["task"] == task].drop_duplicates("system").itertuples():
            needed = [needed_patients(row.n_patients, row.se_difference, d) for d in differences]
            axis.plot(differences, needed, **style_line(row.system))
        n = plan["n_patients"].max()
        axis.axhline(n, color="0.4", linestyle="-.", label=f"this study ({n} patients)")
        axis.set_yscale("log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
