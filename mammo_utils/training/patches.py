"""Cuts patches around the structures of synthetic mammograms, on which encoders are pretrained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from mammo_utils.images.preprocess import resize
from mammo_utils.io import available_cpus, map_processes
from mammo_utils.synthetic.anatomy import draw_exam
from mammo_utils.synthetic.cases import Exam, Settings, appearances, exams_of


@dataclass(frozen=True)
class PatchSettings:
    """What patches are cut from and how.

    Attributes:
        image: Pixels per side of the mammogram, which is stretched to a square as the demo's are.
        side: Pixels per side of a patch.
        offset: Largest distance, in pixels along either axis, of the structure from the middle of the patch.
        difficulty: As in `Settings`.
        n_exams: Number of exams whose mammograms are cut.
        seed: Of the release. Exams of another seed are other exams.
    """

    image: int = 64
    side: int = 32
    offset: int = 4
    difficulty: float = 0.0
    n_exams: int = 2000
    seed: int = 1_000_003


def draw_patches(
    settings: PatchSettings, progress: Callable[[int, int], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the patches of a release, one around the structure of each view.

    Args:
        settings: What to cut.
        progress: Called with (exams done, exams).

    Returns:
        Patches (n, side, side) uint8, and the probability (n) that a strand of the patch is radial: 1 in plain cancers
        and 0 in healthy breasts.
    """
    exams = exams_of(settings.n_exams, settings.seed)
    found = []
    cuts = map_processes(partial(_cut_exam, settings=settings), exams, workers=available_cpus())
    for done, patches in enumerate(cuts):
        if progress:
            progress(done, len(exams))
        found += patches
    if progress:
        progress(len(exams), len(exams))
    return np.array([patch for patch, _ in found]), np.array([share for _, share in found])


def _cut_exam(exam: Exam, settings: PatchSettings) -> list[tuple[np.ndarray, float]]:
    drawing = Settings(rows=144, columns=120, seed=settings.seed, difficulty=settings.difficulty)
    # as findings, decoys have outlines, too
    shown = tuple(replace(breast, findings=breast.structures, decoys=()) for breast in exam.breasts)
    exam = replace(exam, breasts=shown)
    rng = np.random.default_rng([settings.seed, exam.number, 8])
    found = []
    for view, (picture, outlines) in draw_exam(exam, drawing).items():
        share, _ = appearances(exam, drawing)[view]
        image = np.pad(resize(picture, settings.image), settings.side)
        scale = settings.image / np.array(picture.shape[::-1])
        centre = np.rint((outlines[0].points.mean(0) + 0.5) * scale).astype(int)
        x, y = centre - settings.side // 2 + rng.integers(-settings.offset, settings.offset + 1, 2) + settings.side
        found.append((image[y : y + settings.side, x : x + settings.side], share))
    return found
