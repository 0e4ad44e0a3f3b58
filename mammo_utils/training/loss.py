"""The loss of Eq. 11-13."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def class_weights(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Inverse class frequency over labels of any shape (-1 absent), with mean 1 over the classes that occur.

    §4.1. Returns (classes,) float32; a class that does not occur weighs 0.
    """
    counts = torch.bincount(labels[labels >= 0], minlength=classes).float()
    inverse = torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0)
    return inverse * (counts > 0).sum() / inverse.sum().clamp(min=torch.finfo(torch.float32).tiny)


def task_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, whole: torch.Tensor | None = None
) -> torch.Tensor:
    """Eq. 12 and 13: the weighted cross-entropy of the left and of the right head, averaged.

    logits (B, 2, K), labels (B, 2) with -1 for a breast to be left out, weights (K,). Each side's mean runs
    over its labelled breasts; a side without any adds 0. Of one part of a batch, `whole` are the labels of all
    of it, over which the mean runs: the losses of the parts then add up to the loss of the batch.
    """
    present = labels >= 0
    loss = F.cross_entropy(logits.float().transpose(1, 2), labels, weights, ignore_index=-1, reduction="none")
    if whole is not None:
        labels, present = whole, whole >= 0
    weight = weights[labels.clamp(min=0)] * present  # (B, 2)
    total = weight.sum(0)  # a side each
    return (loss.sum(0) / torch.where(total > 0, total, 1)).mean()


def total_loss(
    logits: dict[str, torch.Tensor],
    labels: dict[str, torch.Tensor],
    weights: dict[str, torch.Tensor],
    task_weights: dict[str, float],
    whole: dict[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Eq. 11; with one active task that task's loss alone, its weight 1. whole: see :func:`task_loss`."""
    losses = {task: task_loss(logits[task], labels[task], weights[task], (whole or labels)[task]) for task in logits}
    if len(losses) == 1:
        return next(iter(losses.values()))
    return sum(task_weights[task] * loss for task, loss in losses.items())
