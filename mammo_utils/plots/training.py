"""Pictures of a training: its batches and its curves."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from mammo_utils.training.dataset import DEVIATION, MEAN
from mammo_utils.vocabulary import VIEWS


def draw_batch(before: torch.Tensor, after: torch.Tensor, title: str) -> Figure:
    """The views of one exam as stored (top) and as one training step sees them (bottom).

    before, after: (4, 3, S, S), normalised as the model takes them; an absent view is shown empty.
    """
    figure, axes = plt.subplots(2, 4, figsize=(8, 4.6), layout="constrained")
    for row, (images, name) in enumerate(((before, "stored"), (after, "augmented"))):
        for axis, image, view in zip(axes[row], images, VIEWS, strict=True):
            absent = bool((image == 0).all())
            grey = torch.ones_like(image[0]) if absent else image[0] * DEVIATION[0] + MEAN[0]
            axis.imshow(grey, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[], title=f"{view}{' (absent)' if absent else ''}" if row == 0 else "")
        axes[row, 0].set_ylabel(name)
    figure.suptitle(title)
    return figure


def draw_curves(rows: list[dict[str, Any]], title: str) -> Figure:
    """Loss and validation AUCs by epoch; `rows` as :func:`mammo_utils.training.loop.train` returns them."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    left.plot(epochs, [row["loss"] for row in rows], color="black")
    left.set(xlabel="epoch", ylabel="training loss (Eq. 11)")
    for task in ("diagnosis", "birads"):
        if rows and f"validation_{task}_auc" in rows[0]:
            right.plot(epochs, [row[f"validation_{task}_auc"] for row in rows], label=task)
    right.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    right.set(xlabel="epoch", ylabel="validation AUC", ylim=(0, 1.02))
    right.legend(loc="lower right", frameon=False)
    figure.suptitle(title)
    return figure
