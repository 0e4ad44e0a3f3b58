"""Fusion of the four views' feature vectors (§2.2): gated attention (Eq. 8-10) and two baselines.

Every fusion takes v (batch, 4, D), views in the order of `vocabulary.VIEWS`, and `present` (batch, 4) bool. It returns
the fused vector and the weight of each view, alpha (batch, 4); the weights of an exam add up to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Fusion(nn.Module):
    """Concatenation, (batch, 4D): all views that count have equal weights, and their features stay unscaled.

    Args:
        features: D, the length of a view's feature vector.
        missing: "zeros", as in the paper: an absent view counts like any other one. "masked", not in the paper: the
            weight of an absent view is exactly 0, and its features have no influence.
    """

    def __init__(self, features: int, missing: str = "zeros"):
        super().__init__()
        if missing not in ("zeros", "masked"):
            raise ValueError(f"missing is {missing!r}; it must be 'zeros' or 'masked'.")
        self.masked, self.out_features = missing == "masked", 4 * features

    def counting_views(self, present: Tensor) -> Tensor:
        """Return which views count, (batch, 4) bool."""
        return present if self.masked else torch.ones_like(present)

    def forward(self, v: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse the views: (batch, 4, D) -> (batch, out_features) and alpha (batch, 4)."""
        counting = self.counting_views(present)
        v = v.masked_fill(~counting[:, :, None], 0.0)
        alpha = counting / counting.sum(1, keepdim=True).clamp_min(1)
        return v.flatten(1), alpha.to(v.dtype)  # (batch, 4D), (batch, 4)


class MeanFusion(Fusion):
    """The mean of the views that count, (batch, D)."""

    def __init__(self, features: int, missing: str = "zeros"):
        super().__init__(features, missing)
        self.out_features = features

    def forward(self, v: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse the views: (batch, 4, D) -> (batch, D) and alpha (batch, 4)."""
        concatenated, alpha = super().forward(v, present)
        return (concatenated.view_as(v) * alpha[:, :, None]).sum(1), alpha  # (batch, 4, D) -> (batch, D)


class GatedFusion(Fusion):
    """Gated attention (Eq. 8-10): a two-layer MLP on all four views weights them; output (batch, 4D).

    The paper does not state the size of the hidden layer, `hidden`.
    """

    def __init__(self, features: int, missing: str = "zeros", hidden: int = 256):
        super().__init__(features, missing)
        self.mlp = nn.Sequential(nn.Linear(4 * features, hidden), nn.ReLU(), nn.Linear(hidden, 4))

    def forward(self, v: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse the views: (batch, 4, D) -> v_fused (batch, 4D) and alpha (batch, 4)."""
        counting = self.counting_views(present)
        v = v.masked_fill(~counting[:, :, None], 0.0)
        logits = self.mlp(v.flatten(1))  # v_global (batch, 4D) -> (batch, 4); Eq. 8 and the MLP of Eq. 9
        logits = logits.float().masked_fill(~counting, float("-inf"))
        empty = ~counting.any(1, keepdim=True)  # exams without a view, whose softmax would be NaN
        alpha = torch.softmax(logits.masked_fill(empty, 0.0), dim=1).masked_fill(empty, 0.0).to(v.dtype)
        return (alpha[:, :, None] * v).flatten(1), alpha  # Eq. 10: (batch, 4, D) -> (batch, 4D)


FUSIONS = {"gated": GatedFusion, "concat": Fusion, "mean": MeanFusion}  # by the setting `model.fusion`
