"""Fusion of the four views' features, §2.2: gated attention (Eq. 8-10), and two plain baselines.

Each takes v (batch, 4, D), views in the order L_CC, L_MLO, R_CC, R_MLO, and present (batch, 4) bool, and returns
the fused vector and the views' weights (batch, 4), which add up to 1. With ``missing="masked"`` an absent view's
weight is exactly 0 and its feature has no influence; with ``"zeros"`` (the paper) absence is not looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MISSING = ("zeros", "masked")


class Fusion(nn.Module):
    """Concatenation: every view as it is. The weights are equal, of those views that count."""

    def __init__(self, features: int, missing: str = "zeros"):
        super().__init__()
        if missing not in MISSING:
            raise ValueError(f"missing is {missing!r}; it must be 'zeros' or 'masked'.")
        self.masked, self.features = missing == "masked", 4 * features

    def counts(self, present: Tensor) -> Tensor:
        """Which views count, (batch, 4) bool."""
        return present if self.masked else torch.ones_like(present)

    def forward(self, v: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        counts = self.counts(present)
        v = v.masked_fill(~counts[:, :, None], 0.0)
        weights = counts / counts.sum(1, keepdim=True).clamp_min(1)
        return v.flatten(1), weights.to(v.dtype)


class MeanFusion(Fusion):
    """The mean of the views that count, (batch, D)."""

    def __init__(self, features: int, missing: str = "zeros"):
        super().__init__(features, missing)
        self.features = features

    def forward(self, v: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        flat, weights = super().forward(v, present)
        return (flat.view_as(v) * weights[:, :, None]).sum(1), weights


class GatedFusion(Fusion):
    """alpha = softmax(MLP(concat(v))), and the views scaled by it, concatenated (batch, 4D)."""

    def __init__(self, features: int, missing: str = "zeros", hidden: int = 256):
        super().__init__(features, missing)
        self.mlp = nn.Sequential(nn.Linear(4 * features, hidden), nn.ReLU(), nn.Linear(hidden, 4))

    def forward(self, v: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        counts = self.counts(present)
        v = v.masked_fill(~counts[:, :, None], 0.0)
        logits = self.mlp(v.flatten(1))  # Eq. 8, 9
        logits = logits.float().masked_fill(~counts, float("-inf"))
        none = ~counts.any(1, keepdim=True)
        alpha = torch.softmax(logits.masked_fill(none, 0.0), dim=1).masked_fill(none, 0.0).to(v.dtype)
        return (alpha[:, :, None] * v).flatten(1), alpha  # Eq. 10


FUSIONS = {"gated": GatedFusion, "concat": Fusion, "mean": MeanFusion}
