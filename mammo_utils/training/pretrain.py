"""Pretrains the encoders on synthetic patches: `python -m mammo_utils.training.pretrain`.

The paper starts from ImageNet weights (§2.1), which need a network and full-width encoders. The weights that are made
here take their place in studies of the synthetic cohort (`model.weights: patches`): an encoder of a quarter of the
usual width learns to tell a radial structure from one that runs round its core, first in plain patches with the
structure near the middle, then in larger ones, as large as a whole view, with faint structures too. The patches are of
a release of their own; no study holds one of its exams. Starting there, a system has to learn what the study is about:
views, breasts and tasks.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from mammo_utils.config import ModelSettings
from mammo_utils.metrics import auc
from mammo_utils.models.encoders import ENCODERS
from mammo_utils.models.weights import PATCH_FOLDER, PATCH_WIDTH
from mammo_utils.progress import Progress
from mammo_utils.provenance import file_hash
from mammo_utils.training.dataset import DEVIATION, MEAN
from mammo_utils.training.patches import PatchSettings, draw_patches

STAGES = (
    PatchSettings(),
    PatchSettings(side=48, offset=6, difficulty=0.35),
    PatchSettings(side=64, offset=16, difficulty=0.35),
)
HELD_OUT = 6  # one patch in six is held out
BATCH, WEIGHT_DECAY, CLIP = 16, 0.05, 1.0


@dataclass(frozen=True)
class Recipe:
    """How an encoder is pretrained: the highest learning rate, halved from stage to stage, and epochs by stage."""

    learning_rate: float
    epochs: tuple[int, ...]


RECIPES = {
    "resnet18": Recipe(3e-3, (4, 3, 3)),
    "resnet50": Recipe(1e-3, (10, 3, 3)),
    "vssm": Recipe(3e-3, (12, 3, 3)),
    "hybrid": Recipe(3e-3, (4, 3, 3)),
}


def pretrain(
    name: str, patches: list[tuple[np.ndarray, np.ndarray]], recipe: Recipe, seed: int = 0
) -> tuple[nn.Module, list[list[float]]]:
    """Pretrain an encoder on the patches of each stage.

    Args:
        name: Key of `ENCODERS`.
        patches: By stage, patches (n, side, side) uint8 and targets (n) in 0..1.
        recipe: Learning rate and epochs.
        seed: Of the initial weights and of the order of the patches.

    Returns:
        The encoder, and by stage and epoch the AUC on the held-out patches whose target is 0 or 1.
    """
    torch.manual_seed(seed)
    encoder = ENCODERS[name](ModelSettings(width=PATCH_WIDTH))
    model = nn.Sequential(encoder, nn.Linear(encoder.out_features, 1))
    found = []
    for stage, ((images, targets), epochs) in enumerate(zip(patches, recipe.epochs, strict=True)):
        rate = recipe.learning_rate / 2**stage
        progress = Progress(f"{name}, stage {stage + 1}", "epochs")
        found.append(_train_stage(model, images, targets, rate, epochs, seed, progress))
    return encoder, found


def _train_stage(
    model: nn.Module,
    images: np.ndarray,
    targets: np.ndarray,
    learning_rate: float,
    epochs: int,
    seed: int,
    progress: Progress,
) -> list[float]:
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    x = (torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1) / 255 - mean) / deviation
    y = torch.from_numpy(targets.astype(np.float32))
    held_out = np.arange(len(x)) < len(x) // HELD_OUT
    train, scored = np.flatnonzero(~held_out), np.flatnonzero(held_out & np.isin(targets, (0, 1)))
    steps = len(train) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=epochs * steps + 1, pct_start=0.2
    )
    rng, found = np.random.default_rng(seed), []
    for epoch in range(epochs):
        progress(epoch, epochs)
        model.train()
        order = rng.permutation(train)
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            batch = x[chosen]
            for turn in (lambda a: a.flip(3), lambda a: a.flip(2), lambda a: a.transpose(2, 3)):
                batch = turn(batch) if rng.random() < 0.5 else batch
            loss = binary_cross_entropy_with_logits(model(batch)[:, 0], y[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            scores = torch.cat([model(x[scored[i : i + 128]])[:, 0] for i in range(0, len(scored), 128)]).sigmoid()
        found.append(auc(targets[scored].astype(int), np.stack([1 - scores.numpy(), scores.numpy()], axis=1)))
    progress(epochs, epochs)
    return found


def save_encoder(encoder: nn.Module, name: str, folder: Path, facts: dict) -> Path:
    """Write an encoder's weights in half precision.

    Args:
        encoder: The encoder.
        name: Key of `ENCODERS`.
        folder: Where to write.
        facts: How it was trained, written into the file's header.

    Returns:
        The file, whose name ends in the first digits of its SHA-256.
    """
    state = {key: value.half() if value.is_floating_point() else value for key, value in encoder.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    unnamed = folder / f".{name}.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, unnamed, {"facts": json.dumps(facts)})
    return unnamed.rename(folder / f"{name}-{file_hash(unnamed)[:8]}.safetensors")


def main(arguments: list[str] | None = None) -> int:
    """Pretrain the encoders of the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mammo_utils.training.pretrain", description="Pretrain encoders on synthetic patches."
    )
    torch.set_num_threads(1)  # the same numbers on every number of cores
    parser.add_argument("encoders", nargs="*", help=f"of {', '.join(RECIPES)}; all by default")
    parser.add_argument("--out", type=Path, default=PATCH_FOLDER, help="folder of the weights")
    chosen = parser.parse_args(arguments)
    for name in chosen.encoders:
        if name not in RECIPES:
            parser.error(f"there is no encoder {name!r}; accepted are {', '.join(RECIPES)}.")
    patches = [draw_patches(stage, Progress("drawing patches", "exams")) for stage in STAGES]
    for name in chosen.encoders or RECIPES:
        encoder, scores = pretrain(name, patches, RECIPES[name])
        facts = {"encoder": name, "held_out_auc": scores, "torch": torch.__version__, "machine": platform.machine()}
        file = save_encoder(encoder, name, chosen.out, facts)
        print(f"{file.name}: AUC {scores[-1][-1]:.3f} on held-out patches")
    print("Enter the names of new files in mammo_utils/models/weights.py.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
