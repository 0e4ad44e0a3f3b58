"""Draws findings, and decoys that are made of the same parts.

Every breast has one structure: a core and arcs of tissue around it, or grains along such arcs. Number, place, size and
grey level of these parts have one distribution whatever the label. Only the bend of an arc depends on it: in a cancer
the arcs are arched (tissue that is pulled up), otherwise they sag (as the sediment of a cyst, the "teacup" sign).

A sagging arc is an arched one upside down. The structure of a healthy breast is therefore distributed as the mirror
image of a cancer's, and a statistic that is blind to top and bottom cannot tell them apart: grey levels, histograms,
gradients, textures, extremes, areas and spectra all are. The profile across an arc is symmetric, so that the signed
gradients are balanced too.
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
ARC_LEVELS = (50, 75)
ARCS, EXTENT = 8, 3.3  # number, and how far from the centre they lie, in radii of the core
BOWS, WIDTHS = (9.0, 12.0), (2.2, 2.8)  # mm


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
        share: Probability that an arc is arched, 0..1.

    Returns:
        The outline of each.
    """
    outlines = []
    steps = np.array([canvas.x[0, 1] - canvas.x[0, 0], canvas.y[1, 0] - canvas.y[0, 0]])  # mm per pixel
    for finding in structures:
        centre = canvas.project(finding.position)
        radius = min(finding.radius, 0.1 * canvas.reach)
        window = Window(canvas, centre, EXTENT * radius + 1.5 * BOWS[1] + 3)
        edge = _sample_edge(radius, 0.08, rng)
        core = 1 / (1 + np.exp(np.clip((window.r - edge(window.angle)) / 1.2, -30, 30)))
        pattern = rng.uniform(*CORE_LEVELS.get(finding.kind, MASS_LEVELS)) * core
        pattern += _draw_arcs(window, radius, share, rng, float(steps.max()) if finding.kind == "calc" else 0)
        window.picture += contrast * pattern
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        away = 0.9 * EXTENT * edge(angles)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
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


def _draw_arcs(window: Window, radius: float, share: float, rng: Generator, grain: float) -> np.ndarray:
    """Arcs around a centre, or grains along them if `grain` (mm per pixel) is not 0; in grey levels."""
    picture = np.zeros_like(window.r)
    for _ in range(ARCS):
        place, away = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1) ** 0.5 * EXTENT * radius
        bow, width, level = rng.uniform(*BOWS), rng.uniform(*WIDTHS), rng.uniform(*ARC_LEVELS)
        turn, half = rng.normal(0, 0.3), rng.uniform(1.1, 1.4)  # radians
        up = 1 if rng.random() < share else -1
        dx = window.dx - away * np.cos(place)
        dy = up * (window.dy - away * np.sin(place))  # with `up` the picture of the arc is turned upside down
        dx, dy = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        dy = dy - 0.7 * bow  # so that the arc's mean is at its place
        angle = np.arctan2(dx, -dy)  # 0 at the arc's middle, which is above the centre of its circle
        if not grain:
            across = np.square((np.hypot(dx, dy) - bow) / width)
            ends = np.exp(-np.minimum((angle / half) ** 8, 30))
            picture += level * ends * np.exp(-np.minimum(across, 30))
            continue
        size = max(0.6 * grain, 0.7)
        for at in np.linspace(-half, half, 9) + rng.uniform(-0.08, 0.08, 9):
            away2 = np.square(dx - bow * np.sin(at)) + np.square(dy + bow * np.cos(at))
            picture += level * rng.uniform(1.0, 2.6) * np.exp(-np.minimum(away2 / size**2, 30))
    return picture
