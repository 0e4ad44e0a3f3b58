"""Figures of a record: scans beside their alternatives, and training steps in parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.steps import PARTS
from mammo_utils.plots.style import styled
from mammo_utils.vocabulary import SYSTEMS

OURS, OTHERS, FLOOR = "#D55E00", "#777777", "#0072B2"


@styled
def draw_scans(record: Mapping[str, Any]) -> Figure:
    """Draw the time of each scan and SS2D beside its alternatives and its lower bound, forward and backward.

    One panel per shape. Text beside each point: how many times slower than the first it is, and its peak memory in
    units of its input. The dashed line is the floor, the larger of the times of the exponentials and of the bytes.
    """
    scan, ss2d = "selective scan, B={batch} D={channels} N={states} L={length}", "SS2D, {channels} channels, "
    panels = [(scan, part, 1) for part in record["scans"]]
    panels += [(ss2d + "{side} × {side} tokens, {dtype}", part, 2) for part in record["ss2d"]]
    rows = max(1, (len(panels) + 1) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(11, 0.6 + 1.8 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, part, n_ours) in zip(axes.flat, panels, strict=False):
        _draw_comparison(axis, part, n_ours)
        axis.set_title(title.format(**part))
    figure.supxlabel(
        "milliseconds, forward and backward; × how many times the first; peak memory in inputs: a scan's u or SS2D's "
        "image",
        fontsize=8,
    )
    figure.suptitle(f"Scans beside their alternatives, {_describe_machine(record)}")
    return figure


def _draw_comparison(axis: Axes, part: Mapping[str, Any], n_ours: int) -> None:
    """Draw one panel; the first `n_ours` rows are this study's own."""
    rows, places = part["rows"], np.arange(len(part["rows"]))
    times = np.array([row["forward_backward_ms"] for row in rows])
    colours = [OURS if i < n_ours else OTHERS for i in places]
    floor = max(part["floor"]["exponentials_ms"], part["floor"]["bytes_ms"])
    axis.hlines(places, floor, times, color=colours, linewidth=3)
    axis.scatter(times, places, color=colours, s=40, zorder=3)
    for place, time, row in zip(places, times, rows, strict=True):
        text = f"  {time:,.{0 if time >= 10 else 2}f} ms   ×{row['times_slower']:.1f}"
        axis.text(time, place, f"{text}   {row['peak_memory_in_input']:.0f} inputs", va="center", fontsize=8)
    axis.axvline(floor, color=FLOOR, linestyle="--", linewidth=1)
    axis.text(floor, len(rows) - 0.45, f" floor {floor:.2g} ms", color=FLOOR, fontsize=7, va="bottom")
    low, high = min(floor, times.min()) / 1.5, times.max()
    axis.set(xscale="log", xlim=(low, low * (high / low) ** 2), ylim=(len(rows) - 0.4, -0.6))
    axis.set_yticks(places, [row["name"] for row in rows])
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.xaxis.set_minor_formatter("")


@styled
def draw_steps(record: Mapping[str, Any]) -> Figure:
    """Draw the parts of each system's training step, forward and backward together, in milliseconds per exam."""
    steps = record["steps"]
    parts = pd.concat([pd.DataFrame(s["parts"]).assign(system=s["system"], batch=s["batch"]) for s in steps])
    parts["ms"] = (parts["forward_ms"] + parts["backward_ms"]) / parts["batch"]
    table = parts.pivot(index="system", columns="part", values="ms").fillna(0.0)
    table = table.loc[[s["system"] for s in steps], [part for part in PARTS if part in table]]
    table = table.rename(index={system: SYSTEMS[system].short for system in table.index}).rename_axis("")
    figure, axis = plt.subplots(figsize=(8.5, 1.9 + 0.4 * len(steps)), layout="constrained")
    table.plot.barh(stacked=True, color=PARTS, width=0.65, ax=axis)
    for place, (end, step) in enumerate(zip(table.sum(axis=1), steps, strict=True)):
        axis.text(end, place, f" {end:,.0f} ms, peak {step['peak_memory_mb']:.0f} MB", va="center")
    axis.set(ylim=(len(steps) - 0.5, -0.5), xlim=(0, 1.3 * table.sum(axis=1).max()), xlabel="milliseconds an exam")
    axis.get_legend().remove()
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    sizes = "{size} px, batches of {batch}".format(**steps[0])
    figure.suptitle(f"A training step in parts, forward and backward: {sizes}, {_describe_machine(record)}")
    return figure


def _describe_machine(record: Mapping[str, Any]) -> str:
    facts = record["environment"]
    number = facts.get("threads") if facts["device"] == "cpu" else None
    threads = f", {number} thread{'s' if number > 1 else ''}" if number else ""
    return f"{facts['device']}{threads}, torch {facts['versions']['torch']}"
