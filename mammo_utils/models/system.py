"""The six systems of Tables 2-4, from one builder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mammo_utils.config import ModelSettings
from mammo_utils.models.encoders import ENCODERS, Encoder
from mammo_utils.models.fusion import FUSIONS, Fusion
from mammo_utils.models.selective_scan import BACKENDS, pick_backend
from mammo_utils.models.ss2d import SS2D
from mammo_utils.vocabulary import SIDES, SYSTEMS, TASK_MODES


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
    settings: ModelSettings | None = None,
    *,
    task_mode: str = "multi",
    n_birads: int = 2,
    **changes: Any,
) -> System:
    """Build one of SYSTEMS, its weights drawn from torch's global generator.

    Args:
        system: Name of the system.
        settings: The study's model settings; the defaults if None.
        task_mode: "multi" for both tasks, or the one task.
        n_birads: BI-RADS classes of the subset.
        **changes: Model settings that replace those of `settings`, such as ``missing="masked"``.

    Raises:
        ValueError: A value is not accepted; the message names it.
    """
    settings = (settings or ModelSettings()).model_copy(update=changes)
    for name, value, accepted in (
        ("system", system, SYSTEMS),
        ("task_mode", task_mode, TASK_MODES),
        ("fusion", settings.fusion, FUSIONS),
        ("backend", settings.backend, BACKENDS),
    ):
        if value not in accepted:
            raise ValueError(f"{name} is {value!r}; accepted are {', '.join(accepted)}.")
    if unknown := set(changes) - set(ModelSettings.model_fields):
        raise ValueError(f"There is no model setting {sorted(unknown)[0]!r}.")
    entry = SYSTEMS[system]
    encoders = [ENCODERS[entry.encoder](settings) for _ in range(entry.encoders)]
    fusion = FUSIONS[settings.fusion](encoders[0].features, settings.missing)
    classes = {"diagnosis": 2, "birads": n_birads}
    return System(
        encoders, fusion, classes if task_mode == "multi" else {task_mode: classes[task_mode]}, settings.dropout
    )
