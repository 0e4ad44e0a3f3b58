"""The systems of Tables 2-4, all from one builder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from mammo_utils.config import ModelSettings
from mammo_utils.models.encoders import Encoder, build_encoder
from mammo_utils.models.fusion import FUSIONS, Fusion
from mammo_utils.models.selective_scan import pick_backend
from mammo_utils.models.ss2d import SS2D
from mammo_utils.vocabulary import SIDES, SYSTEMS, TASK_MODES


class System(nn.Module):
    """Four views in, the diagnosis and the BI-RADS class of each breast out (Figure 1).

    Each view's feature vector goes through the fusion, then dropout, then one linear head per breast and task (one per
    task if the fusion is per breast).

    Args:
        encoders: One for all views (shared), or one for the CC views and one for the MLO views (view-specific).
        fusion: Joins the feature vectors of the four views.
        classes: Number of classes of each active task.
        dropout: Probability of dropout before the heads (§4.3).
        ordinal: Tasks whose classes are ordered. Their heads have one output fewer, see `log_probabilities`.
    """

    def __init__(
        self,
        encoders: Sequence[Encoder],
        fusion: Fusion,
        classes: dict[str, int],
        dropout: float = 0.5,
        ordinal: Collection[str] = (),
    ):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.fusion = fusion
        self.classes, self.ordinal = dict(classes), tuple(ordinal)
        self.dropout = nn.Dropout(dropout)
        outputs = {task: n - (task in self.ordinal) for task, n in classes.items()}
        names = {self._head_name(side, task): n for task, n in outputs.items() for side in SIDES}
        self.heads = nn.ModuleDict({name: nn.Linear(fusion.out_features, n) for name, n in names.items()})

    def forward(self, images: Tensor, present: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Classify both breasts of each exam.

        Args:
            images: (batch, 4, 3, H, W), normalised; absent views are 0.
            present: (batch, 4) bool, preferably on the CPU, because reading it from a GPU waits for the GPU.

        Returns:
            The logits of each active task, (batch, 2, classes) for L and R, and the views' weights, alpha (batch, 4).
        """
        return self.classify(self.encode_views(images, present), present)

    def classify(self, v: Tensor, present: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Fuse encoded views and classify both breasts.

        Args:
            v: (batch, 4, D), what `encode_views` returns.
            present: (batch, 4) bool.

        Returns:
            As `forward`.
        """
        fused, alpha = self.fusion(v, present.to(v.device, non_blocking=True))  # v_fused of Eq. 10
        return self.apply_heads(self.dropout(fused)), alpha

    def apply_heads(self, fused: Tensor) -> dict[str, Tensor]:
        """Logits of each active task, (batch, 2, classes), from the fused views (see `Fusion.join`).

        Those of an ordinal task are log-probabilities, so that a softmax gives its probabilities too.
        """
        logits = {}
        for task in self.classes:
            own = fused.unbind(1) if self.fusion.per_breast else (fused, fused)
            sides = [self.heads[self._head_name(s, task)](x) for s, x in zip(SIDES, own, strict=True)]
            logits[task] = torch.stack(sides, dim=1)  # (batch, classes) each -> (batch, 2, classes)
            if task in self.ordinal:
                logits[task] = log_probabilities(logits[task])
        return logits

    def contributions(self, v: Tensor, alpha: Tensor) -> dict[str, Tensor]:
        """Split the logits of each task exactly into one contribution per view, (batch, 2, 4, classes).

        Ordinal tasks are left out, because their log-probabilities are no sum over the views.

        The heads are linear: a logit is the sum over views of alpha times the head's weights times v, plus the head's
        bias. The mean over classes is subtracted, because it changes no probability; the contributions of a view to
        two classes then differ by its share of their log-odds.

        Args:
            v: (batch, 4, D), what `encode_views` returns; 0 where a view does not count.
            alpha: (batch, 4), the views' weights.
        """
        bias = self.apply_heads(self.fusion.join(torch.zeros_like(v), alpha))
        parts: dict[str, list[Tensor]] = {task: [] for task in self.classes if task not in self.ordinal}
        for i in range(v.shape[1]):
            alone = torch.zeros_like(v)
            alone[:, i] = v[:, i]
            logits = self.apply_heads(self.fusion.join(alone, alpha))
            for task, found in parts.items():
                found.append(logits[task] - bias[task])
        stacked = {task: torch.stack(found, dim=2) for task, found in parts.items()}
        return {task: found - found.mean(-1, keepdim=True) for task, found in stacked.items()}

    def _head_name(self, side: str, task: str) -> str:
        return task if self.fusion.per_breast else f"{side}_{task}"

    def encode_views(self, images: Tensor, present: Tensor) -> Tensor:
        """Encode each view as a vector, (batch, 4, D); views that do not count are skipped and stay 0."""
        counting = self.fusion.counting_views(present.cpu())  # indices are made on the CPU: no wait for the GPU
        numbers = torch.arange(counting.numel()).view_as(counting)  # (batch, 4): place of each view in `flat`
        flat = images.flatten(0, 1)  # (batch, 4, 3, H, W) -> (batch * 4, 3, H, W)
        v = images.new_zeros(len(flat), self.encoders[0].out_features)  # (batch * 4, D)
        n = len(self.encoders)  # view i belongs to encoder i % n: all to the only one, or CC and MLO alternately
        for i, encoder in enumerate(self.encoders):
            chosen = numbers[:, i::n][counting[:, i::n]]  # (views of this encoder,)
            if not len(chosen):
                continue
            all_views = len(chosen) == len(flat)
            chosen = chosen.to(images.device, non_blocking=True)
            encoded = encoder(flat if all_views else flat[chosen])  # (views of this encoder, D)
            v = encoded if all_views else v.to(encoded.dtype).index_copy(0, chosen, encoded)
        return v.unflatten(0, counting.shape)  # (batch * 4, D) -> (batch, 4, D)

    @property
    def backend(self) -> str:
        """The backend that runs the scans on the device of the weights, "none" in a system without scans."""
        setting = next((m.backend for m in self.modules() if isinstance(m, SS2D)), None)
        return "none" if setting is None else pick_backend(setting, next(self.parameters()).device)


def log_probabilities(conditional: Tensor) -> Tensor:
    """Log-probabilities (..., K) of ordered classes from K - 1 conditional logits (..., K - 1), in float32.

    Logit k is that of P(class > k | class >= k), as in CORN (Shi, Cao and Raschka, arXiv:2111.08851): the probability
    of exceeding k is the product of the first k, so it cannot rise with k.
    """
    conditional = conditional.float()
    above = F.logsigmoid(conditional).cumsum(-1)  # log P(class > k), k = 0 ... K - 2
    reached = F.pad(above, (1, 0))  # log P(class >= k), k = 0 ... K - 1
    return reached + F.pad(F.logsigmoid(-conditional), (0, 1))  # the last class cannot be exceeded


def build_system(
    system: str,
    settings: ModelSettings | None = None,
    *,
    task_mode: str = "multi",
    n_birads: int = 2,
    **changes: Any,
) -> System:
    """Build a system, its initial weights drawn from torch's global generator.

    Args:
        system: A key of `SYSTEMS`.
        settings: The study's model settings; the defaults if None.
        task_mode: "multi" for both tasks, or the name of the only one.
        n_birads: Number of BI-RADS classes of the subset.
        **changes: Model settings that replace those of `settings`, such as `missing="masked"`.

    Raises:
        ValueError: A name or value is not accepted; the message names it.
    """
    for name, value, accepted in (("system", system, SYSTEMS), ("task_mode", task_mode, TASK_MODES)):
        if value not in accepted:
            raise ValueError(f"{name} is {value!r}; accepted are {', '.join(accepted)}.")
    try:  # model_copy(update=changes) would accept any name and value
        settings = ModelSettings(**((settings or ModelSettings()).model_dump() | changes))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{first['loc'][0]} is {first['input']!r}: {first['msg']}.") from None
    entry = SYSTEMS[system]
    encoders = [build_encoder(entry.encoder, settings) for _ in range(entry.encoders)]
    fusion = FUSIONS[settings.fusion](encoders[0].out_features, settings.missing)
    classes = {"diagnosis": 2, "birads": n_birads}
    active = classes if task_mode == "multi" else {task_mode: classes[task_mode]}
    ordinal = [task for task in active if task == "birads" and settings.birads_head == "corn"]
    return System(encoders, fusion, active, settings.dropout, ordinal)
