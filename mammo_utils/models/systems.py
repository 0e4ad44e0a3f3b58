"""The six systems of Tables 2-4, from one builder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mammo_utils.config import ModelSettings
from mammo_utils.models.encoders import VSSM, Encoder, Hybrid, ResNet
from mammo_utils.models.fusion import FUSIONS, Fusion, GatedFusion
from mammo_utils.models.selective_scan import BACKENDS, pick_backend
from mammo_utils.models.ss2d import SS2D

SYSTEMS = ("resnet18", "resnet50", "vssm_shared", "vssm_view_specific", "hybrid_shared", "hybrid_view_specific")
TASK_MODES = ("multi", "diagnosis", "birads")
SIDES = ("L", "R")


class System(nn.Module):
    """Four views in, a diagnosis and a BI-RADS class of each breast out.

    encoders: one for all views, or two, for CC and for MLO. Each view's feature goes through the fusion, then
    dropout, then one linear head per breast and task.

    `classes` names the active tasks with their numbers of classes.
    """

    def __init__(self, encoders: Sequence[Encoder], fusion: Fusion, classes: dict[str, int], dropout: float = 0.5):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.fusion = fusion
        self.classes = dict(classes)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict(
            {f"{side}_{task}": nn.Linear(fusion.features, n) for task, n in classes.items() for side in SIDES}
        )

    def forward(self, images: Tensor, present: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """images (batch, 4, 3, H, W), normalised, absent views 0; present (batch, 4) bool, on the host best.

        Returns the logits of each active task, (batch, 2, classes) for L and R, and the views' weights (batch, 4).
        """
        v = self.features(images, present)
        fused, weights = self.fusion(v, present.to(v.device, non_blocking=True))
        fused = self.dropout(fused)
        logits = {
            task: torch.stack([self.heads[f"{side}_{task}"](fused) for side in SIDES], dim=1) for task in self.classes
        }
        return logits, weights

    def features(self, images: Tensor, present: Tensor) -> Tensor:
        """The vector of each view, (batch, 4, D); where the fusion masks, an absent view is not encoded and is 0."""
        counts = self.fusion.counts(present.cpu())  # on the host: the device is not waited for
        n = len(self.encoders)  # view i belongs to encoder i % n: all to the one, or CC, MLO, CC, MLO
        numbers = torch.arange(counts.numel()).view_as(counts)
        flat = images.flatten(0, 1)
        v = images.new_zeros(len(flat), self.encoders[0].features)
        for i, encoder in enumerate(self.encoders):
            at = numbers[:, i::n][counts[:, i::n]]
            if not len(at):
                continue
            at, all_views = at.to(images.device, non_blocking=True), len(at) == len(flat)
            encoded = encoder(flat if all_views else flat[at])
            v = encoded if all_views else v.to(encoded.dtype).index_copy(0, at, encoded)
        return v.unflatten(0, counts.shape)

    @property
    def backend(self) -> str:
        """The backend that runs the scans where the weights lie now; "none" without scans."""
        asked = next((m.backend for m in self.modules() if isinstance(m, SS2D)), None)
        return "none" if asked is None else pick_backend(asked, next(self.parameters()).device)


def build_system(
    system: str,
    *,
    task_mode: str = "multi",
    n_birads: int = 2,
    fusion: str = "gated",
    missing: str = "zeros",
    weights: str | Path | None = None,
    resnet_cut: str = "layer2",
    blocks: int | None = None,
    widths: Sequence[int] | None = None,
    patch: int = 4,
    dropout: float = 0.5,
    backend: str = "auto",
    gate_hidden: int = 256,
    block: str = "shuffle",
) -> System:
    """Build one of ``SYSTEMS``, its weights drawn from torch's generator.

    task_mode: both tasks, or one of them. n_birads: BI-RADS classes of the subset. fusion: ``gated`` (Eq. 8-10),
    ``concat`` or ``mean``. missing: see :mod:`mammo_utils.models.fusion`. weights: ImageNet weights of the ResNet
    part, see :func:`~mammo_utils.models.weights.load_resnet_weights`; the VSSM has none (§4.3). resnet_cut: where
    the hybrid leaves ResNet-18. blocks, widths: of the VSSM part; by default 4 blocks (hybrid: 2). patch: pixels
    a side of the VSSM's patches. backend: of the selective scan. block: variant of the SS-Conv-SSM block.
    Raises ValueError with one sentence for a value that is not accepted.
    """
    for name, value, accepted in (
        ("system", system, SYSTEMS),
        ("task_mode", task_mode, TASK_MODES),
        ("fusion", fusion, tuple(FUSIONS)),
        ("backend", backend, BACKENDS),
    ):
        if value not in accepted:
            raise ValueError(f"{name} is {value!r}; accepted are {', '.join(accepted)}.")

    def encoder() -> Encoder:
        if system.startswith("resnet"):
            return ResNet(int(system.removeprefix("resnet")), weights)
        if system.startswith("vssm"):
            return VSSM(blocks or 4, widths, patch, block, backend)
        return Hybrid(blocks or 2, widths, resnet_cut, weights, block, backend)

    encoders = [encoder() for _ in range(2 if system.endswith("view_specific") else 1)]
    options = {"hidden": gate_hidden} if FUSIONS[fusion] is GatedFusion else {}
    classes = {"diagnosis": 2, "birads": n_birads}
    return System(
        encoders,
        FUSIONS[fusion](encoders[0].features, missing, **options),
        classes if task_mode == "multi" else {task_mode: classes[task_mode]},
        dropout,
    )


def system_of(system: str, model: ModelSettings, **options: Any) -> System:
    """:func:`build_system` by a study's model settings; `options` as there, taking the place of the settings'."""
    settings = {
        "fusion": model.fusion,
        "missing": model.missing,
        "weights": model.weights or None,
        "resnet_cut": model.resnet_cut,
        "blocks": model.hybrid_blocks if system.startswith("hybrid") else model.vssm_blocks,
        "block": model.block,
        "dropout": model.dropout,
        "backend": model.backend,
    }
    return build_system(system, **(settings | options))
