"""The loss of Eq. 11-13, and CORN's in place of the cross-entropy for ordered categories."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch.nn import functional as F


def class_weights(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Inverse class frequencies (§4.1), (classes,) float32, with mean 1 over the classes that occur.

    A class that does not occur has weight 0. `labels` may have any shape; -1 means absent.
    """
    counts = torch.bincount(labels[labels >= 0], minlength=classes).float()
    inverse = torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0)
    return inverse * (counts > 0).sum() / inverse.sum().clamp(min=torch.finfo(torch.float32).tiny)


def task_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    full_labels: torch.Tensor | None = None,
    ordinal: bool = False,
) -> torch.Tensor:
    """Weighted cross-entropy of the left and the right head, averaged (Eq. 12 and 13).

    Each side's mean runs over its labelled breasts; a side without any adds 0. CORN's loss (Shi, Cao and Raschka,
    arXiv:2111.08851) is the sum of the binary cross-entropies of a breast's conditional logits. By the chain rule that
    sum is the cross-entropy of its class; only the mean differs, which runs over all conditional logits. A breast has
    one for each class up to its own, except the last.

    Args:
        logits: (B, 2, K), sides L and R.
        labels: (B, 2) class indices, -1 for a breast without a label.
        weights: (K,) class weights.
        full_labels: Labels of the full batch if `labels` are those of a micro-batch. The means then run over the full
            batch, so that the losses of its micro-batches add up to its loss.
        ordinal: Whether the mean is CORN's; the logits are then those of `models.system.log_probabilities`.
    """
    present = labels >= 0
    loss = F.cross_entropy(logits.float().transpose(1, 2), labels, weights, ignore_index=-1, reduction="none")  # (B, 2)
    if full_labels is not None:
        labels, present = full_labels, full_labels >= 0
    weight = weights[labels.clamp(min=0)] * present  # (B, 2)
    if ordinal:
        weight = weight * (labels + 1).clamp(max=logits.shape[2] - 1)
    total = weight.sum(0)  # (2,), one denominator per side
    return (loss.sum(0) / torch.where(total > 0, total, 1)).mean()


def total_loss(
    logits: dict[str, torch.Tensor],
    labels: dict[str, torch.Tensor],
    weights: dict[str, torch.Tensor],
    task_weights: dict[str, float],
    full_labels: dict[str, torch.Tensor] | None = None,
    ordinal: Collection[str] = (),
) -> torch.Tensor:
    """The weighted sum of the task losses (Eq. 11); with one active task, that task's loss with weight 1.

    Args:
        logits: Active task -> (B, 2, K).
        labels: Task -> (B, 2).
        weights: Task -> (K,) class weights.
        task_weights: Task -> its weight in the sum.
        full_labels: Task -> labels of the full batch, see `task_loss`.
        ordinal: Tasks with ordered classes, see `task_loss`.
    """
    full = full_labels or labels
    losses = {
        task: task_loss(logits[task], labels[task], weights[task], full[task], task in ordinal) for task in logits
    }
    if len(losses) == 1:
        return next(iter(losses.values()))
    return sum(task_weights[task] * loss for task, loss in losses.items())
