"""Draws findings, and decoys that are made of the same parts.

Every breast has one structure: a core and a few strands around it, or grains along such strands. Number, place, length,
width and grey level of these parts have one distribution whatever the label. Only the direction of a strand depends on
it: in a cancer the strands point to the core (spicules, branching calcifications), otherwise they run round it (the rim
of a cyst, rim calcifications).

A strand that runs round the core is a radial one after a quarter turn about its own middle, and the strands lie so far
apart that neither touches another. A statistic that looks at less than two strands at once therefore cannot tell a
cancer from a healthy breast: grey levels, histograms, gradients, textures, extremes, areas and file sizes all are such
statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator

from mammo_utils.synthetic.cases import Finding

if TYPE_CHECKING:
    from mammo_utils.synthetic.anatomy import Canvas

Edge = Callable[[np.ndarray], np.ndarray]  # radius in mm of a closed curve as a function of the angle
CORE_LEVELS, STRAND_LEVELS = (60, 85), (115, 145)  # grey levels
STRANDS, RING, JITTER = 5, 3.3, 0.1  # number; radius of the ring of their middles, in radii of the core; radians
LENGTH, WIDTH = 2.5, 0.54  # of a strand, in radii of the core


@dataclass(frozen=True)
class LesionOutline:
    """The outline of a finding.

    Attributes:
        kind: The finding's kind.
        points: (n, 2), x and y in pixels.
    """

    kind: str
    points: np.ndarray


class Window:
    """A square part of a canvas around a point, with coordinates relative to the point in mm."""

    def __init__(self, canvas: Canvas, centre: tuple[float, float], reach: float) -> None:
        columns = np.flatnonzero(np.abs(canvas.x[0] - centre[0]) <= reach)
        rows = np.flatnonzero(np.abs(canvas.y[:, 0] - centre[1]) <= reach)
        if not len(rows) or not len(columns):
            rows, columns = np.array([0]), np.array([0])
        cut = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        self.picture = canvas.picture[cut]  # a view: a change of it changes the canvas
        self.dx = canvas.x[:, cut[1]] - centre[0]
        self.dy = canvas.y[cut[0]] - centre[1]
        self.r = np.hypot(self.dx, self.dy)
        self.angle = np.arctan2(self.dy, self.dx)


def add_structures(
    canvas: Canvas, structures: tuple[Finding, ...], rng: Generator, contrast: float, share: float
) -> list[LesionOutline]:
    """Draw the structures of a breast, findings or decoys.

    Args:
        canvas: The mammogram, changed in place.
        structures: What to draw.
        rng: Source of their shapes.
        contrast: Factor of their grey levels.
        share: Probability that a strand is radial, 0..1.

    Returns:
        The outline of each.
    """
    if not structures:
        return []
    outlines = []
    steps = np.array([canvas.x[0, 1] - canvas.x[0, 0], canvas.y[1, 0] - canvas.y[0, 0]])  # mm per pixel
    radius = min(structures[0].radius, 0.068 * canvas.reach)  # of the core; all structures of a breast lie on one
    strands = _sample_strands(radius, share, rng)
    for finding in structures:
        centre = canvas.project(finding.position)
        window = Window(canvas, centre, (RING + LENGTH) * radius)
        edge = _sample_edge(0.75 * radius, 0.08, rng)
        core = 1 / (1 + np.exp(np.clip((window.r - edge(window.angle)) / 1.2, -30, 30)))
        pattern = rng.uniform(*CORE_LEVELS) * core
        if finding.kind == "calc":
            pattern += _draw_grains(window, strands, rng, max(0.6 * float(steps.max()), 0.4 * WIDTH * radius))
        else:
            pattern += _draw_strands(window, strands)
        window.picture += contrast * pattern
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        away = 5 * edge(angles)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = (np.array(centre) + away) / steps - 0.5
        corner = np.array(canvas.picture.shape[::-1]) - 0.5
        outlines.append(LesionOutline(finding.kind, np.clip(points, -0.5, corner)))
    return outlines


def _sample_edge(radius: float, irregular: float, rng: Generator) -> Edge:
    k = np.arange(2, 8)
    size, phase = irregular * rng.standard_normal(6) * (2 / k) ** 0.5, rng.uniform(0, 2 * np.pi, 6)

    def edge(angle: np.ndarray) -> np.ndarray:
        waves = sum(size[i] * np.cos(k[i] * angle + phase[i]) for i in range(6))
        return radius * np.clip(1 + waves, 0.55, 1.5)

    return edge


@dataclass(frozen=True)
class _Strand:
    """A strand: its middle (x, y) relative to the core, direction, length, width (mm) and grey level."""

    x: float
    y: float
    turn: float
    length: float
    width: float
    level: float

    def locate(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of a window's pixels along and across the strand, in mm."""
        dx, dy = window.dx - self.x, window.dy - self.y
        return dx * np.cos(self.turn) + dy * np.sin(self.turn), dy * np.cos(self.turn) - dx * np.sin(self.turn)


def _sample_strands(radius: float, share: float, rng: Generator) -> list[_Strand]:
    strands = []
    first = rng.uniform(0, 2 * np.pi)
    for i in range(STRANDS):
        place = first + 2 * np.pi * i / STRANDS + rng.uniform(-JITTER, JITTER)
        away, length, width = radius * np.array([RING, LENGTH, WIDTH]) * rng.uniform(0.93, 1.07, 3)
        turn = place + rng.normal(0, 0.06) + (0 if rng.random() < share else np.pi / 2)
        level = rng.uniform(*STRAND_LEVELS)
        strands.append(_Strand(away * np.cos(place), away * np.sin(place), turn, length, width, level))
    return strands


def _draw_strands(window: Window, strands: list[_Strand]) -> np.ndarray:
    """Grey levels of plain strands."""
    picture = np.zeros_like(window.r)
    for strand in strands:
        along, across = strand.locate(window)
        ends = np.exp(-np.minimum((2 * along / strand.length) ** 4, 30))
        picture += strand.level * ends * np.exp(-np.minimum(np.square(across / strand.width), 30))
    return picture


def _draw_grains(window: Window, strands: list[_Strand], rng: Generator, size: float) -> np.ndarray:
    """Grey levels of grains of `size` mm along strands."""
    picture = np.zeros_like(window.r)
    for strand in strands:
        along, across = strand.locate(window)
        for at in np.linspace(-0.42, 0.42, 5) * strand.length + rng.uniform(-0.5, 0.5, 5):
            squared = np.square(along - at) + np.square(across - rng.normal(0, 0.2 * strand.width))
            picture += strand.level * rng.uniform(1.0, 1.6) * np.exp(-np.minimum(squared / size**2, 30))
    return picture
