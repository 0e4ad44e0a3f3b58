"""Draws findings, and decoys that are made of the same parts.

Every breast has one structure: a core, some lines around it, or grains along such lines. Number, place, length, width,
curvature and grey level of the parts have one distribution whatever the label; only the direction of a line depends on
it. In a cancer the lines point to the centre (spicules, distortion, branching calcifications), otherwise they run round
it (whorled tissue, rim calcifications). The distribution of the lines over the distance from the centre is the same in
both cases, so that neither a histogram nor a texture nor a blurred image shows which one it is.
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
CORE_LEVELS = {"FAD": (12, 24), "dist": (0, 0), "calc": (0, 0)}  # grey levels; other kinds: MASS_LEVELS
MASS_LEVELS = (22, 48)
LINE_LEVELS = (26, 40)
LINE_LENGTHS = (13.0, 20.0)  # mm


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
        share: Probability that a line is radial, 0..1.

    Returns:
        The outline of each.
    """
    outlines = []
    steps = np.array([canvas.x[0, 1] - canvas.x[0, 0], canvas.y[1, 0] - canvas.y[0, 0]])  # mm per pixel
    for finding in structures:
        centre = canvas.project(finding.position)
        radius = min(finding.radius, 0.1 * canvas.reach)
        window = Window(canvas, centre, radius + 2 * LINE_LENGTHS[1])
        edge = _sample_edge(radius, 0.08, rng)
        core = 1 / (1 + np.exp(np.clip((window.r - edge(window.angle)) / 1.2, -30, 30)))
        pattern = rng.uniform(*CORE_LEVELS.get(finding.kind, MASS_LEVELS)) * core
        pattern += _draw_lines(window, radius, share, rng, float(steps.max()) if finding.kind == "calc" else 0)
        window.picture += contrast * pattern
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        wide = 1.0 if finding.kind in ("mass", "FA", "lipoma", "FAD") else 2.0  # the others have no core
        away = wide * edge(angles)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        outlines.append(LesionOutline(finding.kind, (np.array(centre) + away) / steps - 0.5))
    return outlines


def _sample_edge(radius: float, irregular: float, rng: Generator) -> Edge:
    k = np.arange(2, 8)
    size, phase = irregular * rng.standard_normal(6) * (2 / k) ** 0.5, rng.uniform(0, 2 * np.pi, 6)

    def edge(angle: np.ndarray) -> np.ndarray:
        waves = sum(size[i] * np.cos(k[i] * angle + phase[i]) for i in range(6))
        return radius * np.clip(1 + waves, 0.55, 1.5)

    return edge


SPOKES, TURN, SPREAD, PLACE, WIDTHS = 8, 0.15, 4.0, 0.12, (1.3, 1.8)


def _draw_lines(window: Window, radius: float, share: float, rng: Generator, grain: float) -> np.ndarray:
    """Lines around a centre, or grains along them if `grain` (mm per pixel) is not 0; in grey levels."""
    n = SPOKES
    place = 2 * np.pi * (np.arange(n) + rng.uniform(-PLACE, PLACE, n)) / n + rng.uniform(-TURN, TURN)
    length = rng.uniform(*LINE_LENGTHS, n)
    middle = radius + length / 2 + rng.uniform(0, SPREAD, n)
    pitch = np.where(rng.random(n) < share, 0, np.pi / 2) + rng.normal(0, 0.08, n)
    # a radial line covers `length` of radii; one that runs round is put at any of them
    middle += rng.uniform(-0.5, 0.5, n) * length * (1 - np.abs(np.cos(pitch)))
    bend, width = rng.normal(0, 0.006, n), rng.uniform(*WIDTHS, n)
    level = rng.uniform(*LINE_LEVELS, n)
    picture = np.zeros_like(window.r)
    for i in range(n):
        dx, dy = window.dx - middle[i] * np.cos(place[i]), window.dy - middle[i] * np.sin(place[i])
        turn = place[i] + pitch[i]
        along = dx * np.cos(turn) + dy * np.sin(turn)
        across = dy * np.cos(turn) - dx * np.sin(turn) - bend[i] * along * along
        if not grain:
            ends = np.exp(-np.minimum((2 * along / length[i]) ** 6, 30))
            picture += level[i] * ends * np.exp(-np.minimum(np.square(across / width[i]), 30))
            continue
        size = max(0.6 * grain, 0.7)
        for at in np.arange(-0.45, 0.46, 0.14) * length[i] + rng.uniform(-0.6, 0.6, 7):
            away = np.square(along - at) + np.square(across + rng.normal(0, 0.4))
            picture += level[i] * rng.uniform(1.5, 3.5) * np.exp(-np.minimum(away / size**2, 30))
    return picture
