"""What a run keeps of its views: their encoded features, and predictions from every subset of them.

Everything that is examined after training, from a removed view to two patients' breasts in one exam, is computed from
these files. The encoders run once; the gate and the heads, which cost little, run once for each subset of the views.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mammo_utils.config import Training
from mammo_utils.io import display_path
from mammo_utils.models.system import System
from mammo_utils.training.dataset import Batch, ExamSet
from mammo_utils.training.distributed import rank_and_size, sum_over_ranks
from mammo_utils.training.memory import autocast, with_oom_backoff
from mammo_utils.training.predict import breast_table
from mammo_utils.vocabulary import VIEWS

VIEW_SUBSETS = range(1, 2 ** len(VIEWS))  # bit i stands for VIEWS[i]: 1 is L_CC alone, 15 all four views
ALL_VIEWS = VIEW_SUBSETS[-1]


@dataclass(frozen=True)
class Features:
    """The encoded views of E exams, as the fusion receives them.

    Attributes:
        exams: Research IDs.
        present: (E, 4) bool.
        views: (E, 4, D) float32. An absent view holds the feature of a zero image, or 0 with missing="masked".
        blank: (4, D), what an absent view holds.
    """

    exams: tuple[str, ...]
    present: torch.Tensor
    views: torch.Tensor
    blank: torch.Tensor

    def show(self, shown: torch.Tensor) -> torch.Tensor:
        """The views (E, 4, D) with those blanked that are present but not shown; `shown` is (4,) or (E, 4) bool."""
        return torch.where((self.present & ~shown)[:, :, None], self.blank, self.views)


def shown_views(subset: int) -> torch.Tensor:
    """Which views are in a subset, (4,) bool."""
    return torch.tensor([bool(subset >> i & 1) for i in range(len(VIEWS))])


def count_subsets(present: torch.Tensor) -> dict[int, int]:
    """How many exams have exactly the views of each subset that occurs; `present` is (E, 4) bool."""
    subsets, counts = (present.long() @ (1 << torch.arange(len(VIEWS)))).unique(return_counts=True)
    return dict(zip(subsets.tolist(), counts.tolist(), strict=True))


@torch.no_grad()
def encode(model: System, exams: ExamSet, settings: Training, micro: int = 0) -> Features:
    """Encode every view of every exam once, without augmentation.

    Args:
        model: The system; switched to eval mode, in which a view's feature does not depend on the other exams.
        exams: The exams.
        settings: Batch size and precision.
        micro: Exams per micro-batch to start with; 0 for a whole batch.
    """
    model.eval()
    views = torch.zeros(len(exams), len(VIEWS), model.encoders[0].out_features, device=exams.device)
    for batch in exams.in_order(settings.batch_size, rank_and_size()):

        def attempt(micro: int, batch: Batch = batch) -> None:
            for part in batch.split(micro):
                with autocast(exams.device, settings):
                    encoded = model.encode_views(part.images, part.present)
                views[int(part.exams[0]) : int(part.exams[-1]) + 1] = encoded.float()

        _, micro = with_oom_backoff(attempt, micro or settings.batch_size, batch)
    nothing = torch.zeros(1, len(VIEWS), 3, *exams.images.shape[-2:], device=exams.device)
    with autocast(exams.device, settings):
        blank = model.encode_views(nothing, torch.zeros(1, len(VIEWS), dtype=torch.bool))[0].float()
    # each process filled the rows of its own batches and left 0 elsewhere
    return Features(exams.names, exams.present.cpu(), sum_over_ranks(views).cpu(), blank.cpu())


@torch.no_grad()
def classify(
    model: System, v: torch.Tensor, present: torch.Tensor, batch_size: int
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]:
    """Classify encoded exams, in float32 whatever the precision of the encoders.

    Args:
        model: The system in eval mode.
        v: (E, 4, D), see `Features`.
        present: (E, 4) bool.
        batch_size: Exams at a time.

    Returns:
        Task -> logits (E, 2, K); view weights (E, 4); task -> contribution of each view to the logits (E, 2, 4, K),
        of the tasks that `System.contributions` splits.
    """
    device, found = next(model.heads.parameters()).device, []
    for views, there in zip(v.split(batch_size), present.split(batch_size), strict=True):
        views = views.to(device)
        logits, alpha = model.classify(views, there)
        found.append((logits, alpha, model.contributions(views, alpha)))
    logits, weights, parts = zip(*found, strict=True)

    def join(values: tuple[dict[str, torch.Tensor], ...]) -> dict[str, np.ndarray]:
        return {task: torch.cat([of[task] for of in values]).cpu().numpy() for task in values[0]}

    return join(logits), torch.cat(weights).cpu().numpy(), join(parts)


def subset_predictions(
    model: System, exams: ExamSet, part: str, features: Features, settings: Training
) -> pd.DataFrame:
    """Predict every exam from each non-empty subset of its present views; the others count as absent.

    Args:
        model: The system in eval mode.
        exams: The exams.
        part: Their part of the split.
        features: What `encode` returned for them.
        settings: Batch size.

    Returns:
        Rows of `predict.breast_table` for both breasts of each exam and each subset, named by the column `views` (see
        `VIEW_SUBSETS`); and `<task>_from_<view>_<class>`, the contribution of each view to each logit.
    """
    tables = []
    for subset in VIEW_SUBSETS:
        shown = shown_views(subset)
        has_them = (features.present | ~shown).all(1).numpy()
        if has_them.any():
            # all exams in the same batches, so that the full subset gives the bits of `predictions.parquet`
            found = classify(model, features.show(shown), features.present & shown, settings.batch_size)
            table = breast_table(exams, part, *found)
            names = {name for name, kept in zip(exams.names, has_them, strict=True) if kept}
            tables.append(table[table["exam"].isin(names)].assign(views=subset))
    return pd.concat(tables, ignore_index=True)


def save_features(features: Features, path: Path) -> None:
    """Write the features as safetensors; the IDs of the exams are in the file's metadata."""
    tensors = {"present": features.present.to(torch.uint8), "views": features.views, "blank": features.blank}
    save_file({k: t.contiguous() for k, t in tensors.items()}, path, {"exams": json.dumps(features.exams)})


def load_features(path: Path) -> Features:
    """Read the features of a run. Raises ValueError, naming the file, if it holds something else."""
    try:
        with safe_open(path, "pt") as file:
            exams = json.loads((file.metadata() or {})["exams"])
            present, views, blank = (file.get_tensor(name) for name in ("present", "views", "blank"))
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{display_path(path)} holds no features of views ({error}); train the run again.") from None
    n, shape = len(exams), tuple(views.shape)
    if shape[:2] != (n, len(VIEWS)) or present.shape != shape[:2] or blank.shape != shape[1:]:
        raise ValueError(f"{display_path(path)} holds features of other shapes {shape}; train the run again.")
    return Features(tuple(map(str, exams)), present.bool(), views.float(), blank.float())
