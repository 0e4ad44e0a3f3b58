"""Exams as tensors on the training device, and the batches drawn from them.

The images stay the store's uint8 (one byte a pixel) and become floats batch by batch. All randomness is a
function of (seed, epoch): the order of the exams and, for each exam, how its views are augmented, so that an
epoch is the same whatever came before it, and whatever the batch size.
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

from mammo_utils.config import Augmentation
from mammo_utils.images.store import Store
from mammo_utils.training.augment import affine_parameters, sample_affine
from mammo_utils.vocabulary import SIDES, VIEWS

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, per channel, for intensities in [0, 1]
DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Batch:
    """B exams; the views and the sides in the order of VIEWS and SIDES.

    images: (B, 4, 3, S, S) float32, normalised; an absent view is exactly 0
    present: (B, 4) bool, on the host, so that nobody waits for the device to know which views there are
    labels: task -> (B, 2) int64 class index, -1 absent; "birads" counts within the subset's categories
    exams: (B,) int64, positions in the ExamSet, on the host
    whole, whole_exams: labels and exams of the batch that this one is a part of, or its own
    """

    images: torch.Tensor
    present: torch.Tensor
    labels: dict[str, torch.Tensor]
    exams: torch.Tensor
    whole: dict[str, torch.Tensor]
    whole_exams: torch.Tensor

    def split(self, size: int) -> Iterator[Batch]:
        """The batch in parts of at most `size` exams."""
        for start in range(0, len(self.exams), size):
            part = slice(start, start + size)
            labels = {task: values[part] for task, values in self.labels.items()}
            yield replace(
                self, images=self.images[part], present=self.present[part], labels=labels, exams=self.exams[part]
            )


@dataclass(frozen=True)
class ExamSet:
    """E exams of one part of the split, ready to be drawn from.

    images: (n, S, S) uint8, every image of the store, on the device or mapped from its file; on the host: rows
    (E, 4) int64 into it, -1 absent; labels: task -> (E, 2) int64; groups: one an exam (patients joined by twin
    images share one).
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

    def batch(
        self,
        exams: torch.Tensor,
        augmentation: torch.Tensor | None = None,
        whole: torch.Tensor | None = None,
        grey: torch.Tensor | None = None,
    ) -> Batch:
        """Gather exams (B,), augmented by the affine maps of all exams, (E, 4, 2, 3), if given.

        whole: the exams of the batch that these are a part of. grey: what :meth:`read` returned for `exams`, if that
        was done before. Nothing here waits for the device.
        """
        exams = exams.cpu()
        present = self.present[exams]
        grey = (self.read(exams) if grey is None else grey).to(self.device, non_blocking=True)
        grey = grey.float() / 255
        if augmentation is not None and len(exams):
            maps = augmentation[exams].to(self.device, non_blocking=True)
            grey = sample_affine(grey.flatten(0, 1), maps.flatten(0, 1)).unflatten(0, present.shape)
        mean, deviation = _imagenet(self.device)
        images = (grey.unsqueeze(2) - mean) / deviation  # (B, 4, 3, S, S): grey in each channel, §4.2
        images = images * present.to(self.device, non_blocking=True)[..., None, None, None]
        whole = exams if whole is None else whole
        labels = self._labels(exams)
        return Batch(images, present, labels, exams, labels if whole is exams else self._labels(whole), whole)

    def read(self, exams: torch.Tensor) -> torch.Tensor:
        """The stored views of exams (B,), (B, 4, S, S) uint8, where the images lie; an absent one holds anything."""
        rows = self.rows[exams].clamp(min=0)
        grey = self.images[rows.to(self.images.device, non_blocking=True)]
        # only from pinned memory does a copy to a GPU not wait
        return grey.pin_memory() if self.device.type == "cuda" and grey.device.type == "cpu" else grey

    def _ahead(self, parts: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Each part's exams and their stored views, read by a thread while the part before is worked on.

        Where the images lie on the device, or that is the processor itself, nothing is gained.
        """
        if self.images.device.type == self.device.type:
            yield from ((exams, None) for exams in parts)
            return
        with ThreadPoolExecutor(1) as reader:
            waiting: deque = deque()
            for exams in parts:
                waiting.append((exams, reader.submit(self.read, exams)))
                if len(waiting) > 1:
                    exams, grey = waiting.popleft()
                    yield exams, grey.result()
            yield from ((exams, grey.result()) for exams, grey in waiting)

    def _labels(self, exams: torch.Tensor) -> dict[str, torch.Tensor]:
        return {task: labels[exams].to(self.device, non_blocking=True) for task, labels in self.labels.items()}

    def in_order(self, batch_size: int, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Every exam once, as it is; of a share (i, n) every n-th batch from the i-th on."""
        for exams, grey in self._ahead(torch.arange(len(self)).split(batch_size)[share[0] :: share[1]]):
            yield self.batch(exams, grey=grey)

    def epoch(
        self, seed: int, epoch: int, batch_size: int, augmentation: Augmentation, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Every exam once, shuffled and augmented: a function of (seed, epoch) alone; of a share (i, n) every n-th
        exam of each batch from the i-th on, maybe none."""
        generator = torch.Generator().manual_seed(derive_seed("batches", seed, epoch))
        order = torch.randperm(len(self), generator=generator)
        maps = affine_parameters(len(self), augmentation, generator)
        batches = order.split(batch_size)
        mine = self._ahead(exams[share[0] :: share[1]] for exams in batches)
        for whole, (exams, grey) in zip(batches, mine, strict=True):
            yield self.batch(exams, maps, whole, grey)


@lru_cache
def _imagenet(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, DEVIATION))


def derive_seed(purpose: str, *numbers: int) -> int:
    """A seed that differs by purpose and by every number: independent streams for order, dropout, weights."""
    words = [int.from_bytes(purpose.encode(), "little"), *numbers]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def place_images(store: Store, device: torch.device | str, where: str = "auto") -> torch.Tensor:
    """The store's images, (n, S, S) uint8: on the ``device``, or a ``mapped`` file from which each batch is read.

    By ``auto`` they lie on a GPU where they take less than half of its free memory, else in the file.
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
    """Exams (rows of the exam table) with their images and labels, for batches on a device.

    images: the store's, where :func:`place` has put them, so that several sets share them; else they stay mapped.
    """
    device = torch.device(device)
    images = place_images(store, device, "mapped") if images is None else images
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
        rows=torch.from_numpy(rows),
        labels={
            "diagnosis": torch.from_numpy(diagnosis),
            "birads": torch.from_numpy(birads.reshape(diagnosis.shape)),
        },
        categories=tuple(categories),
        device=device,
    )
