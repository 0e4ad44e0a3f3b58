"""Exams as tensors on the training device, and the batches drawn from them.

Images stay the store's uint8, one byte a pixel, and become floats batch by batch. All randomness is a function of
(seed, epoch): the order of the exams and the augmentation of each exam's views. An epoch is therefore the same
whatever came before it and whatever the batch size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from mammo_utils.config import Training
from mammo_utils.images.store import Store
from mammo_utils.training.augment import draw_affine_maps, sample_affine
from mammo_utils.vocabulary import SIDES, VIEWS

MEAN = (0.485, 0.456, 0.406)  # ImageNet, per channel, for intensities in [0, 1]
DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Batch:
    """B exams, with views in the order of VIEWS and sides in the order of SIDES.

    Attributes:
        images: (B, 4, 3, S, S) float32, normalised; an absent view is exactly 0.
        present: (B, 4) bool, on the CPU to avoid a GPU synchronisation.
        labels: Task -> (B, 2) int64 class index, -1 absent; "birads" is an index into the subset's categories.
        exams: (B,) int64 positions in the ExamSet, on the CPU.
        full_labels: Labels of the full batch if this is a micro-batch, else its own.
        full_exams: Positions of the full batch likewise.
    """

    images: torch.Tensor
    present: torch.Tensor
    labels: dict[str, torch.Tensor]
    exams: torch.Tensor
    full_labels: dict[str, torch.Tensor]
    full_exams: torch.Tensor

    def split(self, size: int) -> Iterator[Batch]:
        """The batch as micro-batches of at most `size` exams."""
        for start in range(0, len(self.exams), size):
            part = slice(start, start + size)
            labels = {task: values[part] for task, values in self.labels.items()}
            yield replace(
                self, images=self.images[part], present=self.present[part], labels=labels, exams=self.exams[part]
            )


@dataclass(frozen=True)
class ExamSet:
    """E exams of one part of the split.

    Attributes:
        names: Research IDs.
        groups: The patient of each exam; patients joined by duplicate images share one.
        images: (n, S, S) uint8, every image of the store, on the device or mapped from its file.
        rows: (E, 4) int64 rows of `images`, -1 for an absent view; on the CPU.
        labels: Task -> (E, 2) int64; on the CPU.
        categories: BI-RADS categories of the subset.
        device: Where batches are made.
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
        """(E, 4) bool."""
        return self.rows >= 0

    def batch(
        self,
        exams: torch.Tensor,
        augmentation: torch.Tensor | None = None,
        full_exams: torch.Tensor | None = None,
        pixels: torch.Tensor | None = None,
    ) -> Batch:
        """Make one batch on the device, without waiting for it.

        Args:
            exams: (B,) positions.
            augmentation: Affine maps of all exams, (E, 4, 2, 3); none if None.
            full_exams: Positions of the full batch if `exams` are a share of it.
            pixels: What `read` returned for `exams`, if it has been called already.
        """
        exams = exams.cpu()
        present = self.present[exams]
        pixels = (self.read(exams) if pixels is None else pixels).to(self.device, non_blocking=True)
        grey = pixels.float() / 255  # (B, 4, S, S)
        if augmentation is not None and len(exams):
            maps = augmentation[exams].to(self.device, non_blocking=True)
            grey = sample_affine(grey.flatten(0, 1), maps.flatten(0, 1)).unflatten(0, present.shape)
        mean, deviation = _imagenet_statistics(self.device)
        images = (grey.unsqueeze(2) - mean) / deviation  # (B, 4, 3, S, S): grey in each channel, §4.2
        images = images * present.to(self.device, non_blocking=True)[..., None, None, None]
        full_exams = exams if full_exams is None else full_exams
        labels = self._labels(exams)
        full_labels = labels if full_exams is exams else self._labels(full_exams)
        return Batch(images, present, labels, exams, full_labels, full_exams)

    def read(self, exams: torch.Tensor) -> torch.Tensor:
        """Stored views of exams (B,): (B, 4, S, S) uint8 on the images' device; absent views are arbitrary."""
        rows = self.rows[exams].clamp(min=0)
        pixels = self.images[rows.to(self.images.device, non_blocking=True)]
        # only a copy from pinned memory to a GPU is asynchronous
        return pixels.pin_memory() if self.device.type == "cuda" and pixels.device.type == "cpu" else pixels

    def in_order(self, batch_size: int, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Every exam once, in order, without augmentation.

        Args:
            batch_size: Exams per batch.
            share: (rank, number of processes n): this process gets batches rank, rank + n, ...
        """
        for exams, pixels in self._read_ahead(torch.arange(len(self)).split(batch_size)[share[0] :: share[1]]):
            yield self.batch(exams, pixels=pixels)

    def epoch(self, seed: int, epoch: int, settings: Training, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Every exam once, shuffled and augmented: a function of (seed, epoch) alone.

        Args:
            seed: The run's seed.
            epoch: From 1.
            settings: Exams per full batch, the ranges of the augmentation, and the probabilities that breasts are
                recombined and that views are dropped.
            share: (rank, number of processes n): this process gets exams rank, rank + n, ... of each batch, which may
                be none.
        """
        generator = torch.Generator().manual_seed(derive_seed("batches", seed, epoch))
        order = torch.randperm(len(self), generator=generator)
        maps = draw_affine_maps(len(self), settings.augmentation, generator)
        batches = order.split(settings.batch_size)
        shown = self
        if settings.recombine:
            shown = shown.recombine(batches, settings.recombine, _generator("recombine", seed, epoch))
        if settings.view_dropout:
            shown = shown.drop_views(settings.view_dropout, _generator("view_dropout", seed, epoch))
        own = shown._read_ahead(exams[share[0] :: share[1]] for exams in batches)
        for full_exams, (exams, pixels) in zip(batches, own, strict=True):
            yield shown.batch(exams, maps, full_exams, pixels)

    def recombine(self, batches: Iterable[torch.Tensor], probability: float, generator: torch.Generator) -> ExamSet:
        """Exchange right breasts, with their labels, between the complete exams of a batch. Not in the paper.

        Afterwards the two breasts of an exam are of two patients, so that one no longer predicts the other.

        Args:
            batches: Positions of the exams of each batch.
            probability: That the exams of a batch exchange their right breasts; then each complete one gets another's.
            generator: Of the draws, one per batch.
        """
        source = torch.arange(len(self))  # the exam that an exam's right breast comes from
        complete = self.present.all(1)
        for exams in batches:
            if torch.rand((), generator=generator) < probability:
                exchanged = exams[complete[exams]]
                source[exchanged] = exchanged.roll(1)
        rows = torch.cat([self.rows[:, :2], self.rows[source, 2:]], dim=1)
        labels = {task: torch.stack([of[:, 0], of[source, 1]], dim=1) for task, of in self.labels.items()}
        return replace(self, rows=rows, labels=labels)

    def drop_views(self, probability: float, generator: torch.Generator) -> ExamSet:
        """Drop present views at random, never all of an exam. Not in the paper.

        A breast that has lost both views loses its labels, as absent breasts have none: otherwise the system would
        learn to read them from the other breast.

        Args:
            probability: That a view is dropped.
            generator: Of the draws.
        """
        draws = torch.rand(self.rows.shape, generator=generator).masked_fill(~self.present, -1)
        kept = draws >= probability
        kept |= draws == draws.max(1, keepdim=True).values  # if all would be dropped, the highest draw stays
        rows = torch.where(kept & self.present, self.rows, -1)
        lost = (rows < 0).unflatten(1, (2, 2)).all(2)  # (E, 2)
        return replace(self, rows=rows, labels={task: of.masked_fill(lost, -1) for task, of in self.labels.items()})

    def _read_ahead(self, parts: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yield each part's exams and stored views; a thread reads the next part meanwhile.

        If the images are on the training device already, nothing is read ahead and the views are None.
        """
        if self.images.device.type == self.device.type:
            yield from ((exams, None) for exams in parts)
            return
        with ThreadPoolExecutor(1) as reader:
            waiting: deque = deque()
            for exams in parts:
                waiting.append((exams, reader.submit(self.read, exams)))
                if len(waiting) > 1:
                    exams, pixels = waiting.popleft()
                    yield exams, pixels.result()
            yield from ((exams, pixels.result()) for exams, pixels in waiting)

    def _labels(self, exams: torch.Tensor) -> dict[str, torch.Tensor]:
        return {task: labels[exams].to(self.device, non_blocking=True) for task, labels in self.labels.items()}


def _generator(purpose: str, *numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(purpose, *numbers))


@lru_cache
def _imagenet_statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, DEVIATION))


def derive_seed(purpose: str, *numbers: int) -> int:
    """A seed for one purpose: independent random streams for the order of exams, dropout and weights."""
    words = [int.from_bytes(purpose.encode(), "little"), *numbers]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def place_images(store: Store, device: torch.device | str, where: str = "auto") -> torch.Tensor:
    """The store's images, (n, S, S) uint8, on the device or mapped from their file.

    Args:
        store: The image store.
        device: The training device.
        where: "device", "mapped" (each batch is read from the file), or "auto": on a GPU if they fill less than half
            of its free memory, else mapped.
    """
    device, images = torch.device(device), torch.from_numpy(store.images)
    if where == "auto" and device.type == "cuda":
        where = "device" if images.nbytes < torch.cuda.mem_get_info(device)[0] / 2 else "mapped"
    if where == "device":
        return images.clone() if device.type == "cpu" else images.to(device)
    return images


def make_exam_set(
    exams: pd.DataFrame,
    groups: pd.Series,
    store: Store,
    categories: tuple[int, ...],
    device: torch.device | str,
    images: torch.Tensor | None = None,
) -> ExamSet:
    """Exams with their images and labels, ready for batches on a device.

    Args:
        exams: Rows of the exam table.
        groups: Exam -> patient group.
        store: The image store.
        categories: BI-RADS categories of the subset.
        device: The training device.
        images: What `place_images` returned, so that several sets share it; mapped from the file if None.
    """
    device = torch.device(device)
    images = place_images(store, device, "mapped") if images is None else images
    names = list(exams.index)
    diagnosis = exams[[f"{side}_diagnosis" for side in SIDES]].to_numpy(np.int64)
    birads = exams[[f"{side}_birads" for side in SIDES]].to_numpy(np.int64)
    index = {category: position for position, category in enumerate(categories)}
    birads = np.vectorize(lambda category: index.get(category, -1), otypes=[np.int64])(birads)
    rows = np.where(exams[list(VIEWS)].to_numpy(bool), store.rows_of(names), -1)
    labels = {"diagnosis": diagnosis, "birads": birads.reshape(diagnosis.shape)}
    return ExamSet(
        names=tuple(names),
        groups=tuple(groups.loc[names]),
        images=images,
        rows=torch.from_numpy(rows),
        labels={task: torch.from_numpy(values) for task, values in labels.items()},
        categories=tuple(categories),
        device=device,
    )
