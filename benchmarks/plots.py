"""Pictures of the speed ledger (``python -m benchmarks``): scans beside their alternatives, steps in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mammo_utils.plots.style import styled

OURS, OTHERS, FLOOR = "#D55E00", "#777777", "#0072B2"
PART_COLOURS = {  # ResNet blue from its stem on, what belongs to scans orange and red
    "batch and augmentation": "#333333",
    "ResNet stem": "#C6DDEE",
    "ResNet layer1": "#8FBFE0",
    "ResNet layer2": "#56A0D3",
    "ResNet layer3": "#2B7BB9",
    "ResNet layer4": "#0B4F8A",
    "patches": "#F0E442",
    "convolved halves": "#009E73",
    "scanned halves but scans": "#E69F00",
    "four scans": "#D55E00",
    "gate, heads, loss, sums": "#CC79A7",
    "clipping and optimiser": "#AAAAAA",
}


@styled
def draw_scans(record: Mapping[str, Any]) -> Figure:
    """Milliseconds forward and backward of each scan and SS2D of a ledger's record, one panel a shape.

    Beside each point how many times slower than the first it is, and its peak memory in units of its input; the
    dashed line is the floor, the exponentials or the bytes that must be computed or moved, whichever is more.
    """
    panels = [("B={batch} D={channels} N={states} L={length}".format(**p), p, 1) for p in record["scans"]]
    panels += [("{channels} channels, {side} × {side} tokens, {dtype}".format(**p), p, 2) for p in record["ss2d"]]
    rows = max(1, (len(panels) + 1) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(11, 0.6 + 1.8 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, part, ours) in zip(axes.flat, panels, strict=False):
        comparison(axis, part, ours)
        axis.set_title(("selective scan, " if "length" in part else "SS2D, ") + title)
    figure.supxlabel(
        "milliseconds, forward and backward; × how many times the first; peak memory in units of the input, a scan's u "
        "or SS2D's image",
        fontsize=8,
    )
    figure.suptitle(f"Scans beside their alternatives, {machine(record)}")
    return figure


def comparison(axis: Axes, part: Mapping[str, Any], ours: int) -> None:
    """One panel; the first `ours` rows are this study's own."""
    rows, places = part["rows"], np.arange(len(part["rows"]))
    times = np.array([row["forward_backward_ms"] for row in rows])
    colours = [OURS if i < ours else OTHERS for i in places]
    floor = max(part["floor"]["exponentials_ms"], part["floor"]["bytes_ms"])
    axis.hlines(places, floor, times, color=colours, linewidth=3)
    axis.scatter(times, places, color=colours, s=40, zorder=3)
    for place, row in zip(places, rows, strict=True):
        time = row["forward_backward_ms"]
        text = f"  {time:,.{0 if time >= 10 else 2}f} ms   ×{row['times_slower']:.1f}"
        axis.text(time, place, f"{text}   {row['peak_memory_in_input']:.0f} in", va="center", fontsize=8)
    axis.axvline(floor, color=FLOOR, linestyle="--", linewidth=1)
    axis.text(floor, len(rows) - 0.45, f" floor {floor:.2g} ms", color=FLOOR, fontsize=7, va="bottom")
    low, high = min(floor, times.min()) / 1.5, times.max()
    axis.set(xscale="log", xlim=(low, low * (high / low) ** 2), ylim=(len(rows) - 0.4, -0.6))
    axis.set_yticks(places, [row["name"] for row in rows])
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.xaxis.set_minor_formatter("")


@styled
def draw_steps(record: Mapping[str, Any]) -> Figure:
    """Where one training step of each system goes: forward and backward of each part, milliseconds an exam."""
    rows: Sequence[Mapping[str, Any]] = record["steps"]
    figure, axis = plt.subplots(figsize=(10, 0.9 + 0.45 * len(rows)), layout="constrained")
    left = np.zeros(len(rows))
    for part, colour in PART_COLOURS.items():
        found = [{p["part"]: p["forward_ms"] + p["backward_ms"] for p in row["parts"]} for row in rows]
        width = np.array([f.get(part, 0.0) / row["batch"] for f, row in zip(found, rows, strict=True)])
        if width.any():
            axis.barh(range(len(rows)), width, left=left, color=colour, label=part, height=0.65)
            left += width
    for place, (row, end) in enumerate(zip(rows, left, strict=True)):
        axis.text(end, place, f" {end:,.0f} ms, peak {row['peak_memory_mb']:.0f} MB", va="center")
    axis.set_yticks(range(len(rows)), [row["system"] for row in rows])
    axis.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, 1.3 * left.max()), xlabel="milliseconds an exam")
    axis.legend(ncols=1, bbox_to_anchor=(1.0, 1.02), loc="upper left", fontsize=7)
    first = rows[0]
    figure.suptitle(
        f"A training step in parts, forward and backward: {first['size']} px, batches of {first['batch']}, "
        f"{machine(record)}"
    )
    return figure


def machine(record: Mapping[str, Any]) -> str:
    """Device, threads and torch of a record, for a title."""
    facts = record["environment"]
    threads = f", {facts['threads']} threads" if facts.get("threads") and facts["device"] == "cpu" else ""
    return f"{facts['device']}{threads}, torch {facts['versions']['torch']}"
