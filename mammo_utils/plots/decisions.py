"""Figures of notebook 07: calibration, operating points and net benefit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from mammo_utils.evaluation.bootstrap import Sample
from mammo_utils.evaluation.calibration import equal_count_bins
from mammo_utils.evaluation.intervals import wilson_interval
from mammo_utils.evaluation.operating import net_benefit, recall_all
from mammo_utils.plots.style import CHANCE_LINE, make_panels, styled
from mammo_utils.vocabulary import SYSTEMS


@styled
def draw_reliability(samples: Mapping[str, tuple[Sample, Sample | None]], title: str) -> Figure:
    """Draw the share of malignant breasts by predicted probability, one panel per system.

    Bins have equal counts; a bar is Wilson's 95 % interval over patients. Below, the counts by probability.

    Args:
        samples: System -> its breasts as trained (filled) and scaled on validation (hollow), None if there is no fit.
        title: Title of the figure.
    """
    names = [SYSTEMS[system].title.replace("Hybrid ResNet-VSSM", "Hybrid") for system in samples]
    labels = {"x": "predicted P(malignant)", "y": "share malignant"}
    figure, axes = make_panels(title, names, (2.5, 2.8), columns=3, **labels, sharey=True)
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
    aims = sorted(points["aim"].unique())
    names = [system for system in SYSTEMS if system in set(points["system"])]
    panels = [f"aim: specificity {aim:.2f}" for aim in aims]
    size = (3.6, 0.9 + 0.4 * len(names))
    figure, axes = make_panels(title, panels, size, x="share of breasts", sharey=True)
    markers = {"specificity": "o", "sensitivity": "^"}
    for axis, aim in zip(axes, aims, strict=True):
        axis.axvline(aim, **CHANCE_LINE)
        for name, marker in markers.items():
            for _, rows in points[points["aim"] == aim].groupby("seed"):
                y = np.array([names.index(system) for system in rows["system"]])
                y = y + (0.15 if name == "sensitivity" else -0.15)
                colours = [SYSTEMS[system].colour for system in rows["system"]]
                axis.hlines(y, rows[f"{name}_low"], rows[f"{name}_high"], colors=colours)
                axis.scatter(rows[name], y, 28, colours, marker=marker, zorder=3)
        axis.set_xlim(right=1.02)
    axes[0].set_yticks(range(len(names)), [SYSTEMS[name].title for name in names])
    axes[0].set_ylim(len(names) - 0.5, -0.5)
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
    labels = {"x": "threshold probability", "y": "net benefit"}
    figure, axes = make_panels(title, names, (3.4, 2.8), **labels)
    for axis, (share, thresholds) in zip(axes, panels.items(), strict=True):
        for system, sample in samples.items():
            benefit = net_benefit(sample, thresholds, None if share == own else share)
            axis.plot(thresholds, benefit, color=SYSTEMS[system].colour, label=SYSTEMS[system].title, linewidth=1)
        axis.plot(thresholds, recall_all(thresholds, share), color="0.5", linestyle="--", label="recall all")
        axis.axhline(0, color="0.5", linestyle=":", label="recall none")
        axis.set_ylim(-0.1 * share, 1.05 * share)
        axis.xaxis.set_major_formatter(PercentFormatter(1, 0))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
