"""Draws findings into a mammogram, and benign structures that resemble them.

A finding gathers tissue from its surroundings: a wide dark surround takes away what its core adds, so that the sum
over the breast stays the same. A finding shows in the local shape, not in a mean or a coarse thumbnail.
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

ROUND = ("FA", "lipoma")
Edge = Callable[[np.ndarray], np.ndarray]  # radius in mm of a closed curve as a function of the angle


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
        self.picture, self.mask = canvas.picture[cut], canvas.mask[cut]  # views: `add` changes the canvas
        self.dx = canvas.x[:, cut[1]] - np.float32(centre[0])
        self.dy = canvas.y[cut[0]] - np.float32(centre[1])
        self.r = np.hypot(self.dx, self.dy)
        self.angle = np.arctan2(self.dy, self.dx)

    def add(self, pattern: np.ndarray, around: float) -> None:
        """Add a pattern and subtract its sum within about `around` mm and in its gaps, all inside the breast."""
        pattern = pattern * self.mask
        gaps = 1 - np.clip(pattern / (pattern.max() + 1e-6), 0, 1)
        surround = np.exp(-np.square(self.r / around)) * gaps * self.mask
        total = surround.sum()
        if total > 0:
            self.picture += pattern - surround * (pattern.sum() / total)


def add_findings(canvas: Canvas, findings: tuple[Finding, ...], rng: Generator, contrast: float) -> list[LesionOutline]:
    """Draw the findings of a breast.

    Args:
        canvas: The mammogram, changed in place.
        findings: The lesions.
        rng: Source of their shapes.
        contrast: Factor of their grey levels.

    Returns:
        The outline of each finding.
    """
    outlines = []
    steps = np.array([canvas.x[0, 1] - canvas.x[0, 0], canvas.y[1, 0] - canvas.y[0, 0]])  # mm per pixel
    for finding in findings:
        centre = canvas.project(finding.position)
        radius = min(finding.radius, 0.19 * canvas.reach)
        window = Window(canvas, centre, 4.2 * radius)
        pattern, edge = _draw_finding(window, finding, radius, rng, float(steps.max()))
        window.add(contrast * pattern, (1.2 if finding.kind == "calc" else 1.8) * radius)
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        away = edge(angles)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        outlines.append(LesionOutline(finding.kind, (np.array(centre) + away) / steps - 0.5))
    return outlines


def add_benign_structures(canvas: Canvas, rng: Generator) -> None:
    """Draw what a breast of any label may have: cysts, nodes, islands of tissue and single calcifications."""
    for _ in range(rng.integers(0, 4)):
        position = (rng.uniform(0.2, 0.75), rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6))
        radius = rng.uniform(4, 11)
        window = Window(canvas, canvas.project(position), 4 * radius)
        stretch, turn = rng.uniform(0.75, 1.25), rng.uniform(0, np.pi)
        r = window.r * (1 + (stretch - 1) * np.cos(2 * (window.angle - turn)))
        blob = rng.uniform(12, 34) * np.exp(-(np.square(r / radius) ** rng.uniform(0.8, 1.6)))
        window.add(blob, 2.2 * radius)
    for _ in range(rng.integers(0, 4)):
        position = (rng.uniform(0.2, 0.8), rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6))
        window = Window(canvas, canvas.project(position), 3)
        window.add(rng.uniform(30, 80) * np.exp(-np.square(window.r / 0.6)), 3)


def _draw_finding(
    window: Window, finding: Finding, radius: float, rng: Generator, step: float
) -> tuple[np.ndarray, Edge]:
    """The pattern of a finding in grey levels, and its edge."""
    s = finding.suspicion
    edge = _sample_edge(radius, 0.05 if finding.kind in ROUND else 0.04 + 0.11 * s, rng)
    if finding.kind == "calc":
        return _draw_calcifications(window, radius, s, rng, step), _sample_edge(1.25 * radius, 0.04, rng)
    if finding.kind == "lipoma":
        away = window.r - edge(window.angle)
        return -22 / (1 + np.exp(away / 0.9)) + 26 * np.exp(-np.square(away / 0.9)), edge
    if finding.kind == "FAD":
        return (22 + 38 * s) * np.exp(-(np.square(window.r / edge(window.angle)) ** 1.2)), edge
    lines = _draw_spicules(window, radius, s, rng) if finding.kind not in ROUND else 0.0
    if finding.kind == "dist":
        return (40 + 60 * s) * lines, _sample_edge(1.5 * radius, 0.04, rng)
    core = 1 / (1 + np.exp(np.clip((window.r - edge(window.angle)) / 0.8, -30, 30)))
    return (28 + 72 * s) * np.maximum(core, lines), edge


def _sample_edge(radius: float, irregular: float, rng: Generator) -> Edge:
    k = np.arange(2, 8)
    size, phase = irregular * rng.standard_normal(6) * (2 / k) ** 0.5, rng.uniform(0, 2 * np.pi, 6)

    def edge(angle: np.ndarray) -> np.ndarray:
        waves = sum(size[i] * np.cos(k[i] * angle + phase[i]) for i in range(6))
        return (radius * np.clip(1 + waves, 0.55, 1.5)).astype(np.float32)

    return edge


def _draw_spicules(window: Window, radius: float, s: float, rng: Generator) -> np.ndarray:
    """Lines that radiate from a mass, 0..1; more numerous, longer and stronger with suspicion."""
    n = round(3 + 9 * s)
    angles = 2 * np.pi * (np.arange(n) + rng.uniform(-0.3, 0.3, n)) / n + rng.uniform(0, 6.28)
    lines = np.zeros_like(window.r)
    for angle in angles:
        length = radius * (1.2 + s * rng.uniform(0.6, 1.6))
        along = window.dx * np.cos(angle) + window.dy * np.sin(angle)
        across = window.dy * np.cos(angle) - window.dx * np.sin(angle)
        across = across - rng.normal(0, 0.006) * along * along
        taper = np.clip((length - along) / (length - 0.4 * radius), 0, 1) * (along > 0)
        lines = np.maximum(lines, taper * np.exp(-np.square(across / 1.5)))
    return (0.3 + 0.7 * s) * lines


def _draw_calcifications(window: Window, radius: float, s: float, rng: Generator, step: float) -> np.ndarray:
    """A cluster of bright grains, 80..180 grey levels: few and round if benign; many, uneven and elongated if not."""
    n = round(6 + 40 * s)
    angle, away = rng.uniform(0, 6.28, n), radius * np.sqrt(rng.random(n))
    stretch, turn = 1 - 0.35 * s, rng.uniform(0, 6.28)
    px, py = away * np.cos(angle), away * stretch * np.sin(angle)
    px, py = px * np.cos(turn) - py * np.sin(turn), px * np.sin(turn) + py * np.cos(turn)
    size = np.maximum(rng.uniform(0.5, 0.5 + 0.5 * s, n), 0.6 * step)  # mm; at least what a pixel can show
    grains = np.zeros_like(window.r)
    for i in range(n):
        row = np.exp(-np.square((window.dy - py[i]) / size[i]))
        column = np.exp(-np.square((window.dx - px[i]) / size[i]))
        grains = np.maximum(grains, row * column * np.float32(rng.uniform(0.6, 1)))
    return (80 + 100 * s) * grains
