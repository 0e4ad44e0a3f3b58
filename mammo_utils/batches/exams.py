"""Exams as tensors on the training device, and the batches drawn from them.

The images stay the store's uint8 (one byte a pixel) and become floats batch by batch. All randomness is a
function of (seed, epoch): the order of the exams and, for each exam, how its views are augmented, so that an
epoch is the same whatever came before it, and whatever the batch size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from mammo_utils.batches.augment import affine_parameters, sample_affine
from mammo_utils.config import Augmentation
from mammo_utils.data.exams import SIDES, VIEWS
from mammo_utils.images.store import Store

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, per channel, for intensities in [0, 1]
DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Batch:
    """B exams; the views and the sides in the order of VIEWS and SIDES.

    images: (B, 4, 3, S, S) float32, normalised; an absent view is exactly 0
    present: (B, 4) bool
    labels: task -> (B, 2) int64 class index, -1 absent; "birads" counts within the subset's categories
    exams: (B,) int64, positions in the ExamSet
    """

    images: torch.Tensor
    present: torch.Tensor
    labels: dict[str, torch.Tensor]
    exams: torch.Tensor

    def split(self, size: int) -> Iterator[Batch]:
        """The batch in parts of at most `size` exams."""
        for start in range(0, len(self.exams), size):
            part = slice(start, start + size)
            labels = {task: values[part] for task, values in self.labels.items()}
            yield Batch(self.images[part], self.present[part], labels, self.exams[part])


@dataclass(frozen=True)
class ExamSet:
    """E exams of one part of the split, ready to be drawn from.

    images: (n, S, S) uint8, every image of the store; rows: (E, 4) int64 into it, -1 absent;
    labels: task -> (E, 2) int64; groups: one an exam (patients joined by twin images share one).
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    images: torch.Tensor
    rows: torch.Tensor
    labels: dict[str, torch.Tensor]
    categories: tuple[int, ...]
    device: torch.device

    def __len__(self) -> int:
        return len(self.names)

    @property
    def present(self) -> torch.Tensor:
        return self.rows >= 0

    def batch(self, exams: torch.Tensor, augmentation: torch.Tensor | None = None) -> Batch:
        """Gather exams (B,), augmented by the affine maps of all exams, (E, 4, 2, 3), if given."""
        rows = self.rows[exams]  # (B, 4)
        present = rows >= 0
        grey = self.images[rows.clamp(min=0).to(self.images.device)].to(self.device)  # (B, 4, S, S) uint8
        grey = grey.float() / 255
        if augmentation is not None:
            maps = augmentation[exams]
            grey = sample_affine(grey.flatten(0, 1), maps.flatten(0, 1)).unflatten(0, rows.shape)
        mean = torch.tensor(MEAN, device=self.device).view(3, 1, 1)
        deviation = torch.tensor(DEVIATION, device=self.device).view(3, 1, 1)
        images = (grey.unsqueeze(2) - mean) / deviation  # (B, 4, 3, S, S): grey in each channel, §4.2
        images = images * present[..., None, None, None]
        return Batch(images, present, {task: labels[exams] for task, labels in self.labels.items()}, exams)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every exam once, as it is."""
        for exams in torch.arange(len(self), device=self.device).split(batch_size):
            yield self.batch(exams)

    def epoch(self, seed: int, epoch: int, batch_size: int, augmentation: Augmentation) -> Iterator[Batch]:
        """Every exam once, shuffled and augmented: a function of (seed, epoch) alone."""
        generator = torch.Generator().manual_seed(stream("batches", seed, epoch))
        order = torch.randperm(len(self), generator=generator).to(self.device)
        maps = affine_parameters(len(self), augmentation, generator).to(self.device)
        for exams in order.split(batch_size):
            yield self.batch(exams, maps)


def stream(purpose: str, *numbers: int) -> int:
    """A seed that differs by purpose and by every number: independent streams for order, dropout, weights."""
    words = [int.from_bytes(purpose.encode(), "little"), *numbers]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def exam_set(
    exams: pd.DataFrame,
    groups: pd.Series,
    store: Store,
    categories: tuple[int, ...],
    device: torch.device | str,
) -> ExamSet:
    """Put exams (rows of the exam table) with their images and labels on a device.

    The images go to the device too where they take less than half of its free memory; else they stay a
    memory map from which each batch is read.
    """
    device = torch.device(device)
    images = torch.from_numpy(store.images)
    if device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        images = images.to(device)
    names = list(exams.index)
    diagnosis = exams[[f"{side}_diagnosis" for side in SIDES]].to_numpy(np.int64)
    birads = exams[[f"{side}_birads" for side in SIDES]].to_numpy(np.int64)
    index = {category: position for position, category in enumerate(categories)}
    birads = np.vectorize(lambda category: index.get(category, -1), otypes=[np.int64])(birads)
    rows = store.rows_of(names)
    rows = np.where(exams[list(VIEWS)].to_numpy(bool), rows, -1)
    return ExamSet(
        names=tuple(names),
        groups=tuple(groups.loc[names]),
        images=images,
        rows=torch.from_numpy(rows).to(device),
        labels={
            "diagnosis": torch.from_numpy(diagnosis).to(device),
            "birads": torch.from_numpy(birads.reshape(diagnosis.shape)).to(device),
        },
        categories=tuple(categories),
        device=device,
    )
