"""Fusion of the four views' feature vectors (§2.2): gated attention (Eq. 8-10), and alternatives to it.

Every fusion takes v (batch, 4, D), views in the order of `vocabulary.VIEWS`, and `present` (batch, 4) bool. It returns
the fused vector and the weight of each view, alpha (batch, 4). The fused vector is linear in each weighted view, so
that the logits are a sum of one contribution per view (`System.contributions`).

The paper's gate has one softmax over the four views of both breasts. If nearly every exam with four views has a cancer
in one breast, it can be trained to answer which side it is on, from a view of either side. `PerBreastFusion` and
`SigmoidFusion` are alternatives without that competition between the breasts; neither is in the paper.
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

    gated = False  # whether the weights depend on the views
    per_breast = False  # whether each breast has a fused vector of its own, and both share one head per task

    def __init__(self, features: int, missing: str = "zeros"):
        super().__init__()
        if missing not in ("zeros", "masked"):
            raise ValueError(f"missing is {missing!r}; it must be 'zeros' or 'masked'.")
        self.masked, self.out_features = missing == "masked", 4 * features

    def forward(self, v: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse the views: (batch, 4, D) -> the fused vector (see `join`) and alpha (batch, 4)."""
        v = v.masked_fill(~self.counting_views(present)[:, :, None], 0.0)
        alpha = self.weights(v, present)
        return self.join(v, alpha), alpha

    def counting_views(self, present: Tensor) -> Tensor:
        """Return which views count, (batch, 4) bool."""
        return present if self.masked else torch.ones_like(present)

    def weights(self, v: Tensor, present: Tensor) -> Tensor:
        """Weigh the views: v (batch, 4, D), 0 where a view does not count -> alpha (batch, 4), which sums to 1."""
        counting = self.counting_views(present)
        return (counting / counting.sum(1, keepdim=True).clamp_min(1)).to(v.dtype)

    def join(self, v: Tensor, alpha: Tensor) -> Tensor:
        """Join the views v (batch, 4, D) with the weights alpha (batch, 4) into (batch, out_features)."""
        return v.flatten(1)  # (batch, 4D)


class MeanFusion(Fusion):
    """The mean of the views that count, (batch, D)."""

    def __init__(self, features: int, missing: str = "zeros"):
        super().__init__(features, missing)
        self.out_features = features

    def join(self, v: Tensor, alpha: Tensor) -> Tensor:
        """Average the views v (batch, 4, D) with the weights alpha (batch, 4) into (batch, D)."""
        return (v * alpha[:, :, None]).sum(1)


class GatedFusion(Fusion):
    """Gated attention (Eq. 8-10): a two-layer MLP on all four views weights them; output (batch, 4D).

    The paper does not state the size of the hidden layer, `hidden`.
    """

    gated = True

    def __init__(self, features: int, missing: str = "zeros", hidden: int = 256):
        super().__init__(features, missing)
        self.mlp = nn.Sequential(nn.Linear(4 * features, hidden), nn.ReLU(), nn.Linear(hidden, 4))

    def weights(self, v: Tensor, present: Tensor) -> Tensor:
        """Eq. 8 and 9: v (batch, 4, D), 0 where a view does not count -> alpha (batch, 4), which sums to 1."""
        return _softmax(self.mlp(v.flatten(1)), self.counting_views(present)).to(v.dtype)  # v_global (batch, 4D)

    def join(self, v: Tensor, alpha: Tensor) -> Tensor:
        """Eq. 10: v (batch, 4, D) and alpha (batch, 4) -> v_fused (batch, 4D)."""
        return (alpha[:, :, None] * v).flatten(1)


class SigmoidFusion(GatedFusion):
    """The paper's gate with a sigmoid for each view in place of the softmax. It is not in the paper.

    The weights are between 0 and 1 and are not normalised: a view keeps its weight whatever that of the others is.
    """

    def weights(self, v: Tensor, present: Tensor) -> Tensor:
        """Weigh each view by itself: v (batch, 4, D) -> alpha (batch, 4), 0 where a view does not count."""
        alpha = torch.sigmoid(self.mlp(v.flatten(1)).float())
        return alpha.masked_fill(~self.counting_views(present), 0.0).to(v.dtype)


class PerBreastFusion(Fusion):
    """A gate on each breast's own CC and MLO view, the same for both breasts; output (batch, 2, 2D). Not in the paper.

    The weights of each breast sum to 1. One head per task reads both breasts, so that neither a weight nor a
    contribution comes from the other breast. Right breasts are stored mirrored, hence alike.
    """

    gated = per_breast = True

    def __init__(self, features: int, missing: str = "zeros", hidden: int = 256):
        super().__init__(features, missing)
        self.mlp = nn.Sequential(nn.Linear(2 * features, hidden), nn.ReLU(), nn.Linear(hidden, 2))
        self.out_features = 2 * features

    def weights(self, v: Tensor, present: Tensor) -> Tensor:
        """Weigh the views of each breast: v (batch, 4, D), 0 where a view does not count -> alpha (batch, 4)."""
        breasts = v.view(-1, 2 * v.shape[2])  # (batch * 2, 2D): L and R in turn
        counting = self.counting_views(present).reshape(-1, 2)
        return _softmax(self.mlp(breasts), counting).view(-1, 4).to(v.dtype)

    def join(self, v: Tensor, alpha: Tensor) -> Tensor:
        """Join the views of each breast: v (batch, 4, D) and alpha (batch, 4) -> (batch, 2, 2D)."""
        return (alpha[:, :, None] * v).unflatten(1, (2, 2)).flatten(2)


def _softmax(logits: Tensor, counting: Tensor) -> Tensor:
    """Softmax over the views that count, float32; all 0 where none counts, where a softmax would be NaN."""
    logits = logits.float().masked_fill(~counting, float("-inf"))
    empty = ~counting.any(1, keepdim=True)
    return torch.softmax(logits.masked_fill(empty, 0.0), dim=1).masked_fill(empty, 0.0)


FUSIONS = {  # by the setting `model.fusion`
    "gated": GatedFusion,
    "concat": Fusion,
    "mean": MeanFusion,
    "per_breast": PerBreastFusion,
    "sigmoid": SigmoidFusion,
}
