"""Pictures of notebook 03: scan paths, discretisations, what a pixel sees, the gate, and the architectures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import nn

from mammo_utils.models.costs import Layer, trace_layers
from mammo_utils.models.ss2d import PATHS, SSConvSSM, four_paths
from mammo_utils.models.system import System
from mammo_utils.plots.style import styled
from mammo_utils.vocabulary import VIEWS

COLOURS = {
    "view": "#E5E5E5",
    "cnn": "#BBDCF2",
    "scan": "#F6C9AE",
    "merge": "#F3E3A4",
    "fusion": "#CFE8D5",
    "head": "#E3CFE6",
}
KINDS = {"PatchEmbedding": "patch embed", "PatchMerging": "patch merging", "SSConvSSM": "SS-Conv- SSM block"}


@styled
def draw_paths(image: np.ndarray, rows: int, columns: int, title: str) -> Figure:
    """The four paths of SS2D over an image cut into rows x columns tokens; colour runs from first to last step."""
    figure, axes = plt.subplots(1, len(PATHS), figsize=(10, 3), layout="constrained")
    height, width = image.shape
    for axis, name, path in zip(axes, PATHS, four_paths(rows, columns).numpy(), strict=True):
        axis.imshow(image, cmap="gray", extent=(-0.5, columns - 0.5, rows - 0.5, -0.5), alpha=0.6)
        y, x = np.divmod(path, columns)
        steps = np.linspace(0, 1, len(path))
        for i in range(len(path) - 1):
            jump = abs(x[i + 1] - x[i]) + abs(y[i + 1] - y[i]) > 1
            style = {"linewidth": 0.5, "linestyle": ":"} if jump else {"linewidth": 1.6}
            axis.plot(x[i : i + 2], y[i : i + 2], color=plt.cm.plasma(steps[i]), **style)
        axis.scatter(x, y, c=steps, cmap="plasma", s=8, zorder=3)
        inside = (16 if x[0] == 0 else -16, 9 if y[0] else -13)
        axis.annotate("start", (x[0], y[0]), textcoords="offset points", xytext=inside, ha="center", color="#00C8C8")
        axis.set(title=name, xticks=[], yticks=[], aspect=height / width * columns / rows)
    figure.suptitle(title)
    return figure


@styled
def draw_discretisations(
    products: np.ndarray, factors: Mapping[str, np.ndarray], responses: Mapping, title: str
) -> Figure:
    """Left: the input's factor B-bar / (delta B) over -delta A; right: the output for one pulse by each form.

    factors: name -> values at `products`; responses: name -> (L,) output of a scan.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    styles = ("-", "--")
    for (name, values), style in zip(factors.items(), styles, strict=True):
        left.plot(products, values, style, label=name)
    left.axvspan(0.001, 0.1, color="0.9", label="Δ at the start, first state")
    left.set(xscale="log", xlabel="−ΔA", ylabel=r"$\bar B\,/\,(\Delta B)$", ylim=(0, 1.1))
    left.legend(loc="lower left")
    for (name, values), style in zip(responses.items(), styles, strict=True):
        right.plot(values, style, label=name)
    right.set(xlabel="step", ylabel="y")
    right.legend()
    figure.suptitle(title)
    return figure


@styled
def draw_receptive_fields(fields: Mapping[str, np.ndarray], title: str) -> Figure:
    """How much each pixel of the image moves the map's centre, of the largest; white where it has no influence."""
    figure, axes = plt.subplots(1, len(fields), figsize=(2.5 * len(fields) + 0.8, 2.9), layout="constrained")
    for axis, (name, field) in zip(np.atleast_1d(axes), fields.items(), strict=True):
        relative = np.ma.masked_less_equal(field / field.max(), 0)
        shown = axis.imshow(relative, norm=LogNorm(1e-5, 1), cmap="magma_r")
        axis.set(xticks=[], yticks=[], title=name)
        axis.set_xlabel(f"{(field > 0).mean():.0%} of the pixels count")
    figure.colorbar(shown, ax=axes, label="|∂ centre / ∂ pixel|, of its maximum", shrink=0.8)
    figure.suptitle(title)
    return figure


@styled
def draw_gate(contributions: Mapping[str, np.ndarray], title: str) -> Figure:
    """Weights of the views in a few cases: name -> alpha (4,)."""
    figure, axes = plt.subplots(
        1, len(contributions), figsize=(2.1 * len(contributions), 2.4), sharey=True, layout="constrained"
    )
    for axis, (name, alpha) in zip(np.atleast_1d(axes), contributions.items(), strict=True):
        axis.bar(VIEWS, alpha, color=["#0072B2", "#56B4E9", "#D55E00", "#E69F00"])
        axis.axhline(0.25, color="0.5", linewidth=0.8, linestyle=":")
        axis.set(title=name, ylim=(0, 1))
        axis.tick_params(axis="x", rotation=60)
    np.atleast_1d(axes)[0].set_ylabel("weight α")
    figure.suptitle(title)
    return figure


# --- architectures --------------------------------------------------------------------------------------


@styled
def draw_system(system: System, name: str, size: int) -> Figure:
    """A diagram in the manner of the paper's Figures 1-3, its boxes and numbers read from the built modules."""
    encoder = system.encoders[0]
    parts = grouped(trace_layers(encoder, size))
    figure, axis = plt.subplots(figsize=(11, 4.2), layout="constrained")
    axis.set(xlim=(0, 110), ylim=(0, 42))
    axis.axis("off")
    for i, view in enumerate(VIEWS):
        box(axis, (1, 32 - 9.5 * i, 9, 6), f"{view}\n3×{size}×{size}", "view")
    x0, step = 16, 52 / len(parts)
    twice = len(system.encoders) == 2
    if twice:
        axis.add_patch(
            FancyBboxPatch((x0 - 1.2, 7.5), 53.6, 26, boxstyle="round,pad=0.4", fill=False, linestyle="--", color="0.5")
        )
    what = f"encoder {'of CC and, again, one of MLO' if twice else 'shared by the four views'}"
    parameters = count(encoder)
    axis.text(
        x0 + 26,
        37,
        f"{what}: {parameters / 1e6:.2f} million parameters{' each' if twice else ''}",
        ha="center",
        fontsize=9,
    )
    for i, part in enumerate(parts):
        channels, rows, columns = part.shape
        text = f"{part.name}\n\n{channels}×\n{rows}×{columns}\n\n{thousands(part.parameters)}"
        box(axis, (x0 + i * step, 9.5, step - 1.3, 22), text, colour_of(part), fontsize=7.5)
        if i:
            arrow(axis, (x0 + i * step - 1.3, 20.5), (x0 + i * step, 20.5))
    for i in range(4):
        arrow(axis, (10, 35 - 9.5 * i), (x0 - (1.8 if twice else 0), 24 - 2.3 * i))
    features, fused = encoder.out_features, system.fusion.out_features
    box(axis, (70.5, 14, 8.5, 13), f"mean over\npixels\n\n4 × {features}", "view")
    arrow(axis, (x0 + 52 - 1.3, 20.5), (70.5, 20.5))
    box(
        axis,
        (82, 12, 11, 17),
        f"{type(system.fusion).__name__}\nα: 4 weights\n\nfused {fused}\n\n{thousands(count(system.fusion))}",
        "fusion",
    )
    arrow(axis, (79, 20.5), (82, 20.5))
    for i, (head, module) in enumerate(system.heads.items()):
        y = 20.5 + (len(system.heads) / 2 - i - 0.5) * 9
        box(axis, (98, y - 3, 11, 6), f"{head.replace('_', ' ')}\n{module.in_features} → {module.out_features}", "head")
        arrow(axis, (93, 20.5), (98, y))
    axis.text(87.5, 9, f"dropout {system.dropout.p:g}", ha="center", fontsize=8)  # below the fusion, beside the heads
    figure.suptitle(
        f"{name}, {count(system) / 1e6:.2f} million parameters: channels, rows, columns and parameters of each step"
    )
    return figure


@styled
def draw_block(block: SSConvSSM, title: str) -> Figure:
    """The block of Figure 2: its convolved and its scanned half, read from the built module."""
    figure, axis = plt.subplots(figsize=(11, 3.6), layout="constrained")
    axis.set(xlim=(0, 110), ylim=(0, 36))
    axis.axis("off")
    half, inner = block.ss2d.in_proj.in_features, block.ss2d.D.shape[1]
    box(axis, (0.5, 14, 8, 8), f"input\n{2 * half}", "view")
    upper = []
    for module in block.convolutions:
        size = getattr(module, "kernel_size", (None,))[0]
        upper.append({"BatchNorm2d": "batch\nnorm", "ReLU": "ReLU"}.get(type(module).__name__, f"conv\n{size}×{size}"))
    lower = [
        "layer\nnorm",
        f"linear\n{half} → 2×{inner}\n(x, z)",
        "depthwise\nconv 3×3\nof x",
        "SiLU",
        f"{len(PATHS)} scans\n{block.ss2d.states} states\nsummed",
        "layer\nnorm",
        "times\nSiLU(z)",
        f"linear\n{inner} → {half}",
    ]
    for texts, y, colour in ((upper, 23, "cnn"), (lower, 3, "scan")):
        step = 76 / len(texts)
        for i, text in enumerate(texts):
            box(axis, (13 + i * step, y, step - 1.6, 9), text, colour, fontsize=7.5)
            if i:
                arrow(axis, (13 + i * step - 1.6, y + 4.5), (13 + i * step, y + 4.5))
        arrow(axis, (8.5, 18), (13, y + 4.5))
        arrow(axis, (13 + 76 - 1.6, y + 4.5), (92, 18))
    axis.text(13, 33.2, f"convolved half, {half} channels", fontsize=8)
    axis.text(13, 13.2, f"scanned half, {half} channels: SS2D", fontsize=8)
    end = "channels\nshuffled" if block.mix is None else "conv\n1×1"
    box(axis, (92, 13, 9, 10), f"joined,\n{end}", "merge")
    arrow(axis, (101, 18), (104, 18))
    axis.text(106.5, 18, "⊕", ha="center", va="center", fontsize=16)
    axis.plot([4.5, 4.5, 106.5], [14, 1, 1], color="0.3", linewidth=0.9)  # the input, added at the end
    arrow(axis, (106.5, 1), (106.5, 16))
    figure.suptitle(title)
    return figure


def grouped(parts: Sequence[Layer]) -> list[Layer]:
    """The ResNet's first four steps as one; names as a reader knows them."""
    stem = [part for part in parts if part.name in ("conv1", "bn1", "relu", "maxpool")]
    drawn = [Layer("conv 7×7,\nmax pool", "stem", stem[-1].shape, sum(p.parameters for p in stem))] if stem else []
    for part in parts:
        if part not in stem:
            text = KINDS.get(part.kind, part.name).replace(" ", "\n")
            drawn.append(
                Layer(text if part.kind in KINDS else f"ResNet\n{part.name}", part.kind, part.shape, part.parameters)
            )
    return drawn


def colour_of(part: Layer) -> str:
    return {"SSConvSSM": "scan", "PatchMerging": "merge", "PatchEmbedding": "merge"}.get(part.kind, "cnn")


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def thousands(n: int) -> str:
    return f"{n / 1e6:.2f} M" if n >= 1e6 else f"{n / 1e3:.1f} k"


def box(axis: Axes, place: tuple[float, float, float, float], text: str, colour: str, fontsize: float = 7.5) -> None:
    """A rounded box at (x, y, width, height) with centred text."""
    x, y, width, height = place
    style = "round,pad=0,rounding_size=0.8"
    axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=COLOURS[colour], edgecolor="0.4"))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=fontsize)


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.annotate(
        "", end, start, arrowprops={"arrowstyle": "->", "color": "0.3", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    )
