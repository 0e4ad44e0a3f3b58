"""Figures of notebook 03: scan paths, discretisations, memory, receptive fields, the gate, and the architectures."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import nn

from mammo_utils.models.costs import Layer, trace_layers
from mammo_utils.models.selective_scan import selective_scan
from mammo_utils.models.ss2d import PATHS, SSConvSSM, four_paths
from mammo_utils.models.system import System
from mammo_utils.plots.style import CHANCE_LINE, COLOURS, draw_arrow, make_panels, styled
from mammo_utils.vocabulary import SIDE_NAMES, SYSTEMS, TASK_TITLES, VIEW_TITLES, VIEWS

VIEW, CNN, SCAN, MERGE, FUSION, HEAD = "#E5E5E5", "#BBDCF2", "#F6C9AE", "#F3E3A4", "#CFE8D5", "#E3CFE6"
KINDS = {  # of a vision state space encoder's steps: name and colour
    "PatchEmbedding": ("patch\nembed-\nding", MERGE),
    "PatchMerging": ("patch\nmerging", MERGE),
    "SSConvSSM": ("SS-Conv-\nSSM\nblock", SCAN),
}
STEM = ("conv1", "bn1", "relu", "maxpool")
GAP = 1.4  # between boxes of a row


@styled
def draw_paths(image: np.ndarray, rows: int, columns: int, title: str) -> Figure:
    """Draw the four paths of SS2D over an image; colour runs from first to last step.

    Args:
        image: (H, W).
        rows: Rows of tokens into which the image is cut.
        columns: Columns of tokens.
        title: Title of the figure.
    """
    figure, axes = make_panels(title, PATHS, (2.5, 3))
    steps = np.linspace(0, 1, rows * columns)
    for axis, path in zip(axes, four_paths(rows, columns).numpy(), strict=True):
        axis.imshow(image, extent=(-0.5, columns - 0.5, rows - 0.5, -0.5), alpha=0.6)
        y, x = np.divmod(path, columns)
        for i in range(len(path) - 1):
            jump = abs(x[i + 1] - x[i]) + abs(y[i + 1] - y[i]) > 1
            style = {"linewidth": 0.5, "linestyle": ":"} if jump else {"linewidth": 1.6}
            axis.plot(x[i : i + 2], y[i : i + 2], color=plt.cm.plasma(steps[i]), **style)
        axis.scatter(x, y, c=steps, cmap="plasma", s=8, zorder=3)
        inwards = (16 if x[0] == 0 else -16, 9 if y[0] else -13)
        label = {"ha": "center", "bbox": {"facecolor": "w", "edgecolor": "none", "alpha": 0.8, "pad": 1}}
        axis.annotate("start", (x[0], y[0]), textcoords="offset points", xytext=inwards, **label)
        axis.set(xticks=[], yticks=[], aspect=image.shape[0] / image.shape[1] * columns / rows)
    return figure


@styled
def draw_discretisations(
    products: np.ndarray, factors: Mapping[str, np.ndarray], responses: Mapping[str, np.ndarray], title: str
) -> Figure:
    """Draw the factor of the input over -ΔA (left) and the response to one pulse (right) for each discretisation.

    Args:
        products: Values of -ΔA.
        factors: Name -> B-bar / (ΔB) at `products`.
        responses: Name -> (L,) output of a scan.
        title: Title of the figure.
    """
    figure, (left, right) = make_panels(title, ["", ""], (4, 3))
    for factor, response, style in zip(factors, responses, ("-", "--"), strict=True):
        left.plot(products, factors[factor], style, label=factor)
        right.plot(responses[response], style, label=response)
    left.axvspan(0.001, 0.1, color="0.9", label="initial Δ, first state")
    left.set(xscale="log", xlabel="−ΔA", ylabel=r"$\bar B\,/\,(\Delta B)$", ylim=(0, 1.1))
    left.legend(loc="lower left")
    right.set(xlabel="step", ylabel="y")
    right.legend()
    return figure


@styled
def draw_memory(steps: Sequence[float], title: str) -> Figure:
    """Draw what a scan of one state (A = −1) keeps of an impulse train, in one panel for each step size Δ.

    One scan takes the step Δ at every position; the selective one at the marked impulses alone, and 0 elsewhere.

    Args:
        steps: Values of Δ.
        title: Title of the figure.
    """
    u = np.zeros(60)
    u[4::9] = (1.0, 0.5, 0.8, 0.3, 0.9, 0.6, 0.4)
    marked = np.zeros(60, bool)
    marked[[4, 31]] = True
    width = max(3.6, 7 / len(steps))  # at least that of the legend
    figure, axes = make_panels(title, [f"Δ = {s:.3g}" for s in steps], (width, 2.6), x="position t", sharey=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    for axis, step in zip(axes, steps, strict=True):
        axis.vlines(np.flatnonzero(u), 0, u[u > 0], color="0.75", linewidth=2, label="input x")
        axis.vlines(np.flatnonzero(marked), 0, u[marked], color=COLOURS["R_CC"], linewidth=2, label="marked input")
        for where, colour, label in ((True, "L_CC", "y, Δ at every position"), (marked, "R_CC", "y, Δ where marked")):
            inputs = (torch.from_numpy(values)[None, None] for values in (u, np.where(where, step, np.zeros(60))))
            y = selective_scan(*inputs, -one, one, one, backend="reference", discretisation="exact")[0, 0]
            axis.plot(y, color=COLOURS[colour], drawstyle="steps-post", label=label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def explore_memory(title: str):
    """Make a slider of Δ over `draw_memory`; an ipywidgets box, which needs a running kernel."""
    import ipywidgets as widgets

    slider = widgets.FloatLogSlider(value=0.3, base=10, min=-2, max=1, step=0.05, description="Δ")
    picture = widgets.Image(format="png", layout={"align_self": "flex-start"})  # else stretched to the page

    def redraw(_: object = None) -> None:
        buffer = io.BytesIO()
        figure = draw_memory([slider.value], title)
        figure.savefig(buffer, format="png", dpi=100)
        plt.close(figure)  # else the notebook would show it once more
        picture.value = buffer.getvalue()

    slider.observe(redraw, names="value")
    redraw()
    return widgets.VBox([slider, picture])


@styled
def draw_receptive_fields(fields: Mapping[str, np.ndarray], title: str) -> Figure:
    """Draw each pixel's influence on the centre of a model's map, relative to the largest; black means none."""
    figure, axes = make_panels(title, list(fields), (2.8, 2.9))
    for axis, field in zip(axes, fields.values(), strict=True):
        relative = np.ma.masked_less_equal(field / field.max(), 0)
        picture = axis.imshow(relative, norm=LogNorm(1e-5, 1), cmap="magma")
        axis.set_facecolor("k")
        axis.set(xticks=[], yticks=[], xlabel=f"{(field > 0).mean():.0%} of the pixels have influence")
    figure.colorbar(picture, ax=axes, label="|∂ centre / ∂ pixel| / maximum", shrink=0.8)
    return figure


@styled
def draw_gate(weights: Mapping[str, np.ndarray], title: str) -> Figure:
    """Draw the gate's weights of the four views in each case."""
    figure, axes = make_panels(title, list(weights), (2.7, 2.2), columns=3, y="weight α", sharey=True)
    for axis, alpha in zip(axes, weights.values(), strict=True):
        axis.bar(VIEW_TITLES.values(), alpha, color=[COLOURS[view] for view in VIEWS])
        axis.axhline(0.25, **CHANCE_LINE)
        axis.set_ylim(0, 1)
        axis.tick_params(axis="x", rotation=60)
    return figure


# --- architectures --------------------------------------------------------------------------------------


@styled
def draw_system(system: System, name: str, size: int, width: float = 1.0) -> Figure:
    """Draw a system as in the paper's Figures 1–3, its boxes and numbers read from the built modules.

    Args:
        system: The built system.
        name: Its name in SYSTEMS.
        size: Side of the input images in pixels.
        width: Its share of the paper's channels.
    """
    encoder, fusion, two = system.encoders[0], system.fusion, len(system.encoders) == 2
    figure, axis = _make_canvas(42)
    parts = _group_parts(trace_layers(encoder, size))
    texts = [f"{text}\n\n{p.shape[0]}×\n{p.shape[1]}×{p.shape[2]}\n\n{_format(p.parameters)}" for text, _, p in parts]
    _draw_row(axis, 16, 66.7, 9.5, 22, texts, [colour for _, colour, _ in parts])
    for i, view in enumerate(VIEWS):
        _draw_box(axis, 1, 32 - 9.5 * i, 9, 6, f"{VIEW_TITLES[view]}\n3×{size}×{size}", VIEW)
        draw_arrow(axis, (10, 35 - 9.5 * i), (14.2 if two else 16, 24 - 2.3 * i))
    if two:
        frame = {"boxstyle": "round,pad=0.4", "fill": False, "linestyle": "--", "color": "0.5"}
        axis.add_patch(FancyBboxPatch((14.8, 7.5), 53.6, 26, **frame))
    sharing = "one encoder for CC and one for MLO" if two else "one encoder shared by the four views"
    parameters = f"{_format(_count(encoder))} parameters{' each' if two else ''}"
    axis.text(42, 37, f"{sharing}: {parameters}", ha="center", fontsize=9)
    kind = re.sub(r"(?<!^)(?=[A-Z])", "\n", type(fusion).__name__).lower()  # GatedFusion: "gated fusion"
    fused = f"{kind}\nα: 4 weights\n\nfused {fusion.out_features}\n\n{_format(_count(fusion))}"
    draw_arrow(axis, (66.7, 20.5), (70.5, 20.5))
    _draw_box(axis, 70.5, 14, 8.5, 13, f"mean over\npixels\n\n4 × {encoder.out_features}", VIEW)
    draw_arrow(axis, (79, 20.5), (82, 20.5))
    _draw_box(axis, 82, 12, 11, 17, fused, FUSION)
    axis.text(87.5, 9, f"dropout {system.dropout.p:g}", ha="center", fontsize=8)
    for i, (head, module) in enumerate(system.heads.items()):
        y = 20.5 + (len(system.heads) / 2 - i - 0.5) * 9
        draw_arrow(axis, (93, 20.5), (98, y))
        title = " ".join((SIDE_NAMES | TASK_TITLES).get(word, word) for word in head.split("_"))
        text = f"{title}\n{module.in_features} → {module.out_features}"
        _draw_box(axis, 98, y - 3, 11, 6, text, HEAD)
    share = "" if width == 1 else f", with {width:g} of the paper's channels"
    about = "Channels, rows, columns and parameters of each step"
    figure.suptitle(f"{SYSTEMS[name].title}{share}: {_format(_count(system))} parameters\n{about}")
    return figure


@styled
def draw_block(block: SSConvSSM, title: str) -> Figure:
    """Draw the block of Figure 2, its convolved and its scanned half, read from the built module."""
    figure, axis = _make_canvas(36)
    half, inner = block.ss2d.in_proj.in_features, block.ss2d.D.shape[1]
    convolutions = []
    for module in block.convolutions:
        size = getattr(module, "kernel_size", (None,))[0]
        known = {"BatchNorm2d": "batch\nnorm", "ReLU": "ReLU"}
        convolutions.append(known.get(type(module).__name__, f"conv\n{size}×{size}"))
    scans = ["layer\nnorm", f"linear\n{half} → 2×{inner}\n(x, z)", "depthwise\nconv 3×3\nof x", "SiLU"]
    scans += [f"{len(PATHS)} scans\n{block.ss2d.states} states\nsummed", "layer\nnorm", "times\nSiLU(z)"]
    scans += [f"linear\n{inner} → {half}"]
    _draw_box(axis, 0.5, 14, 8, 8, f"input\n{2 * half}", VIEW)
    for name, texts, y, colour in (("convolved half", convolutions, 23, CNN), ("scanned half", scans, 3, SCAN)):
        _draw_row(axis, 13, 87.4, y, 9, texts, [colour] * len(texts))
        draw_arrow(axis, (8.5, 18), (13, y + 4.5))
        draw_arrow(axis, (87.4, y + 4.5), (92, 18))
        axis.text(13, y + 10.2, f"{name}, {half} channels{': SS2D' if texts is scans else ''}", fontsize=8)
    mixing = "channels\nshuffled" if block.mix is None else "conv\n1×1"
    _draw_box(axis, 92, 13, 9, 10, f"joined,\n{mixing}", MERGE)
    draw_arrow(axis, (101, 18), (104, 18))
    axis.text(106.5, 18, "⊕", ha="center", va="center", fontsize=16)
    axis.plot([4.5, 4.5, 106.5], [14, 1, 1], color="0.3", linewidth=0.9)  # the input, added at the end
    draw_arrow(axis, (106.5, 1), (106.5, 16))
    figure.suptitle(title)
    return figure


def _group_parts(parts: Sequence[Layer]) -> list[tuple[str, str, Layer]]:
    """Text, colour and part of each box; the first four steps of a ResNet are one box."""
    stem = [part for part in parts if part.name in STEM]
    grouped = []
    if stem:
        whole = Layer("stem", "stem", stem[-1].shape, sum(part.parameters for part in stem))
        grouped.append(("conv 7×7,\nmax pool", CNN, whole))
    return grouped + [(*KINDS.get(p.kind, (f"ResNet\n{p.name}", CNN)), p) for p in parts if p not in stem]


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _format(n: int) -> str:
    return f"{n / 1e6:.2f} M" if n >= 1e6 else f"{n / 1e3:.1f} k"


def _make_canvas(height: float) -> tuple[Figure, Axes]:
    figure, axis = plt.subplots(figsize=(11, height / 10), layout="constrained")
    axis.set(xlim=(0, 110), ylim=(0, height))
    axis.axis("off")
    return figure, axis


def _draw_row(
    axis: Axes, left: float, right: float, y: float, height: float, texts: Sequence[str], colours: Sequence[str]
) -> None:
    """Boxes of equal width from left to right, with arrows between."""
    width = (right - left + GAP) / len(texts) - GAP
    for i, (text, colour) in enumerate(zip(texts, colours, strict=True)):
        x = left + i * (width + GAP)
        _draw_box(axis, x, y, width, height, text, colour)
        if i:
            draw_arrow(axis, (x - GAP, y + height / 2), (x, y + height / 2))


def _draw_box(axis: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    style = "round,pad=0,rounding_size=0.8"
    axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor="0.4"))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=7.5)
