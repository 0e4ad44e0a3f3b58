"""Draws the bright and the dense structures that a breast of any label may have.

Cysts, islands of tissue, lymph nodes, round and vessel calcifications, clips, skin markers and skin folds. They are
drawn without regard to the label and reach the full brightness, as on real mammograms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator

from mammo_utils.synthetic.findings import Window

if TYPE_CHECKING:
    from mammo_utils.synthetic.anatomy import Canvas


def add_harmless_structures(canvas: Canvas, rng: Generator) -> None:
    """Draw them; the same `rng` gives the same structures in both views of a breast."""
    draw = (
        (_add_blob, rng.integers(1, 5)),
        (_add_round_calcification, rng.integers(0, 5)),
        (_add_calcified_vessel, rng.random() < 0.25),
        (_add_clip, rng.integers(1, 4) * (rng.random() < 0.15)),
        (_add_node, rng.integers(1, 3) * (rng.random() < 0.35)),
        (_add_marker, rng.random() < 0.12),
        (_add_fold, rng.random() < 0.12),
    )
    for add, times in draw:
        for _ in range(int(times)):
            add(canvas, rng)


def _window(canvas: Canvas, rng: Generator, reach: float) -> Window:
    position = (rng.uniform(0.15, 0.8), rng.uniform(-0.65, 0.65), rng.uniform(-0.65, 0.65))
    return Window(canvas, canvas.project(position), reach)


def _rotate(window: Window, turn: float) -> tuple[np.ndarray, np.ndarray]:
    along = window.dx * np.cos(turn) + window.dy * np.sin(turn)
    return along, window.dy * np.cos(turn) - window.dx * np.sin(turn)


def _bell(squared: np.ndarray) -> np.ndarray:
    return np.exp(-np.minimum(squared, 30))


def _add_blob(canvas: Canvas, rng: Generator) -> None:
    """A cyst or an island of tissue."""
    radius = rng.uniform(4, 12)
    window = _window(canvas, rng, 3 * radius)
    along, across = _rotate(window, rng.uniform(0, np.pi))
    squared = np.square(along / radius) + np.square(across / (radius * rng.uniform(0.5, 1)))
    window.picture += rng.uniform(12, 45) * _bell(squared ** rng.uniform(0.8, 2))


def _add_round_calcification(canvas: Canvas, rng: Generator) -> None:
    """Round, at times large, with or without a lucent centre."""
    radius = rng.uniform(0.7, 2.2)
    window = _window(canvas, rng, 9)
    ball = _bell((window.r / radius) ** 4)
    window.picture += rng.uniform(60, 150) * (ball - rng.uniform(0, 0.7) * _bell(np.square(2 * window.r / radius)))


def _add_calcified_vessel(canvas: Canvas, rng: Generator) -> None:
    """Two broken parallel lines along a vessel."""
    length = rng.uniform(15, 40)
    window = _window(canvas, rng, length)
    along, across = _rotate(window, rng.uniform(-0.6, 0.6))
    across = across - 2 * np.sin(along / rng.uniform(5, 9))
    walls = _bell(np.square((np.abs(across) - 1.2) / 0.6)) * (np.abs(along) < length / 2)
    broken = np.clip(1.5 * np.sin(along / rng.uniform(0.8, 1.6) + rng.uniform(0, 6)), 0, 1)
    window.picture += rng.uniform(40, 110) * walls * broken


def _add_clip(canvas: Canvas, rng: Generator) -> None:
    """A surgical clip: a short metal bar."""
    window = _window(canvas, rng, 6)
    along, across = _rotate(window, rng.uniform(0, np.pi))
    bar = _bell((along / rng.uniform(1.3, 2.2)) ** 6) * _bell((across / 0.6) ** 4)
    window.picture += rng.uniform(120, 220) * bar


def _add_node(canvas: Canvas, rng: Generator) -> None:
    """A lymph node: an oval with a fatty hilum, in the upper outer part."""
    position = (rng.uniform(0.1, 0.45), rng.uniform(0.3, 0.7), rng.uniform(0.4, 0.8))
    radius, slim = rng.uniform(4, 8), rng.uniform(0.5, 0.75)
    window = Window(canvas, canvas.project(position), 3 * radius)
    along, across = _rotate(window, rng.uniform(0, np.pi))
    body = _bell((np.square(along / radius) + np.square(across / (radius * slim))) ** 3)
    hilum = _bell(np.square((along - 0.3 * radius) / (0.4 * radius)) + np.square(across / (0.3 * radius)))
    window.picture += rng.uniform(35, 80) * (body - 0.7 * hilum)


def _add_marker(canvas: Canvas, rng: Generator) -> None:
    """A metal ball on the skin; in projection it lies near the skin or on the tissue."""
    window = _window(canvas, rng, 6)
    window.picture += 220 * _bell((window.r / rng.uniform(0.9, 1.4)) ** 4)


def _add_fold(canvas: Canvas, rng: Generator) -> None:
    """A skin fold: a long bright arc near the chest wall."""
    at = (rng.uniform(0, 0.2) * canvas.reach, canvas.nipple + rng.choice([-1, 1]) * rng.uniform(0.4, 0.8) * canvas.down)
    window = Window(canvas, at, rng.uniform(20, 45))
    along, across = _rotate(window, rng.uniform(-0.7, 0.7))
    across = across - rng.uniform(-0.01, 0.01) * along**2
    window.picture += (
        rng.uniform(20, 60)
        * _bell(np.square(across / rng.uniform(0.8, 1.6)))
        * _bell(np.square(along / rng.uniform(15, 25)))
    )
