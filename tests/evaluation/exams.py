"""Small random exams as tensors."""

import numpy as np
import torch

from mammo_utils.training.dataset import ExamSet


def exam_set_of(n, seed=0, *, signal="none", size=16, missing=0.3, categories=(1, 5)) -> ExamSet:
    """Make n exams of random images, whose diagnosis is visible in one way or not at all.

    `signal` is "none", "mean" (the views of a malignant breast are brighter), "corner" (their corner is brighter and
    the rest darker, with the same mean) or "availability" (the right views are present only if the left breast is
    malignant).
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, 2))
    sides = rng.random(n) >= missing
    if signal == "availability":
        sides = labels[:, 0] == 1
    present = np.stack([np.ones(n, bool)] * 2 + [sides] * 2, axis=1)
    labels[~sides, 1] = -1
    rows = np.full((n, 4), -1)
    rows[present] = np.arange(present.sum())
    images = rng.integers(90, 110, (present.sum(), size, size))
    for (exam, view), row in np.ndenumerate(rows):
        if row >= 0 and labels[exam, view // 2] == 1:
            if signal == "mean":
                images[row] += 20
            if signal == "corner":
                images[row] -= 2
                images[row, : size // 4, : size // 4] += 32
    names = tuple(f"S1-{seed}{i:03d}" for i in range(n))
    labels = torch.from_numpy(labels)
    return ExamSet(
        names,
        names,
        torch.from_numpy(images.astype(np.uint8)),
        torch.from_numpy(rows),
        {"diagnosis": labels, "birads": labels.clone()},
        categories,
        torch.device("cpu"),
    )
