"""Draw findings into a mammogram, and harmless structures that look a little like them.

A finding gathers tissue from its surroundings: a wide dark surround loses what its core gains, so the sum over the
breast does not change. A mean or a coarse thumbnail therefore does not reveal a finding; its local shape does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mammo_utils.synthetic.cases import Finding

if TYPE_CHECKING:
    from mammo_utils.synthetic.anatomy import BreastShape

ROUND = ("FA", "lipoma")


@dataclass(frozen=True)
class LesionOutline:
    """A finding's outline.

    Attributes:
        kind: That of the finding.
        points: (n, 2), x and y in pixels.
    """

    kind: str
    points: np.ndarray


class Window:
    """A square cut-out of the picture around a point, with coordinates in mm relative to it."""

    def __init__(self, x: np.ndarray, y: np.ndarray, centre: tuple[float, float], reach: float) -> None:
        columns = np.flatnonzero(np.abs(x[0] - centre[0]) <= reach)
        rows = np.flatnonzero(np.abs(y[:, 0] - centre[1]) <= reach)
        if not len(rows) or not len(columns):
            rows, columns = np.array([0]), np.array([0])
        self.cut = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        self.dx = x[:, self.cut[1]] - np.float32(centre[0])
        self.dy = y[self.cut[0]] - np.float32(centre[1])
        self.r = np.hypot(self.dx, self.dy)
        self.angle = np.arctan2(self.dy, self.dx)


def add_findings(
    picture: np.ndarray,
    mask: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    breast: BreastShape,
    findings: tuple[Finding, ...],
    rng: np.random.Generator,
    contrast: float,
) -> list[LesionOutline]:
    """Add the findings of a breast to its picture.

    Args:
        picture: float32 (rows, columns), grey levels; changed in place.
        mask: bool (rows, columns), True inside the breast.
        x: Coordinates in mm, (1, columns).
        y: Likewise, (rows, 1).
        breast: Its shape.
        findings: Its lesions.
        rng: Draws them.
        contrast: Factor of their contrast.

    Returns:
        The outline of each finding.
    """
    drawn = []
    steps = np.array([x[0, 1] - x[0, 0], y[1, 0] - y[0, 0]])
    for finding in findings:
        centre = breast.project(finding.place)
        radius = min(finding.radius, 0.19 * breast.reach)
        window = Window(x, y, centre, 4.2 * radius)
        pattern, edge = _draw_finding(window, finding, radius, rng, float(steps.max()))
        _add(picture, mask, window, contrast * pattern, (1.2 if finding.kind == "calc" else 1.8) * radius)
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        away = edge(angles)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        drawn.append(LesionOutline(finding.kind, (np.array(centre) + away) / steps - 0.5))
    return drawn


def add_harmless(
    picture: np.ndarray,
    mask: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    breast: BreastShape,
    rng: np.random.Generator,
) -> None:
    """Add what any breast may have, whatever its label: cysts, nodes, islands of tissue, single calcifications.

    Args:
        picture: float32 (rows, columns), grey levels; changed in place.
        mask: bool (rows, columns), True inside the breast.
        x: Coordinates in mm, (1, columns).
        y: Likewise, (rows, 1).
        breast: Its shape.
        rng: Draws them.
    """
    for _ in range(rng.integers(0, 4)):
        place = (rng.uniform(0.2, 0.75), rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6))
        radius = rng.uniform(4, 11)
        window = Window(x, y, breast.project(place), 4 * radius)
        stretch, turn = rng.uniform(0.75, 1.25), rng.uniform(0, np.pi)
        r = window.r * (1 + (stretch - 1) * np.cos(2 * (window.angle - turn)))
        blob = rng.uniform(12, 34) * np.exp(-(np.square(r / radius) ** rng.uniform(0.8, 1.6)))
        _add(picture, mask, window, blob, 2.2 * radius)
    for _ in range(rng.integers(0, 4)):
        place = (rng.uniform(0.2, 0.8), rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6))
        window = Window(x, y, breast.project(place), 3)
        _add(picture, mask, window, rng.uniform(30, 80) * np.exp(-np.square(window.r / 0.6)), 3)


def _add(picture: np.ndarray, mask: np.ndarray, window: Window, pattern: np.ndarray, around: float) -> None:
    """Add a pattern inside the breast and subtract the same sum around it and in its gaps."""
    inside = mask[window.cut]
    pattern = pattern * inside
    gaps = 1 - np.clip(pattern / (pattern.max() + 1e-6), 0, 1)
    surround = np.exp(-np.square(window.r / around)) * gaps * inside
    total = surround.sum()
    if total > 0:
        picture[window.cut] += pattern - surround * (pattern.sum() / total)


def _draw_finding(window: Window, finding: Finding, radius: float, rng: np.random.Generator, step: float):
    """Draw a finding's pattern in grey levels, and its edge: radius in mm as a function of the angle."""
    s = finding.suspicion
    edge = _draw_edge(radius, 0.05 if finding.kind in ROUND else 0.04 + 0.11 * s, rng)
    if finding.kind == "calc":
        return _draw_calcifications(window, radius, s, rng, step), _draw_edge(1.25 * radius, 0.04, rng)
    if finding.kind == "lipoma":
        away = window.r - edge(window.angle)
        return -22 / (1 + np.exp(away / 0.9)) + 26 * np.exp(-np.square(away / 0.9)), edge
    if finding.kind == "FAD":
        return (22 + 38 * s) * np.exp(-(np.square(window.r / edge(window.angle)) ** 1.2)), edge
    lines = _draw_spicules(window, radius, s, rng) if finding.kind not in ROUND else 0.0
    if finding.kind == "dist":
        return (40 + 60 * s) * lines, _draw_edge(1.5 * radius, 0.04, rng)
    core = 1 / (1 + np.exp(np.clip((window.r - edge(window.angle)) / 0.8, -30, 30)))
    return (28 + 72 * s) * np.maximum(core, lines), edge


def _draw_edge(radius: float, irregular: float, rng: np.random.Generator):
    """Draw a closed curve about a point: radius in mm as a function of the angle."""
    k = np.arange(2, 8)
    size, phase = irregular * rng.standard_normal(6) * (2 / k) ** 0.5, rng.uniform(0, 2 * np.pi, 6)

    def edge(angle: np.ndarray) -> np.ndarray:
        waves = sum(size[i] * np.cos(k[i] * angle + phase[i]) for i in range(6))
        return (radius * np.clip(1 + waves, 0.55, 1.5)).astype(np.float32)

    return edge


def _draw_spicules(window: Window, radius: float, s: float, rng: np.random.Generator) -> np.ndarray:
    """Draw lines that radiate from a mass, 0..1: more, longer and stronger with suspicion."""
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


def _draw_calcifications(window: Window, radius: float, s: float, rng: np.random.Generator, step: float) -> np.ndarray:
    """Draw a cluster of bright grains: few and round if benign, many, uneven and stretched if suspicious."""
    n = round(6 + 40 * s)
    angle, away = rng.uniform(0, 6.28, n), radius * np.sqrt(rng.random(n))
    stretch, turn = 1 - 0.35 * s, rng.uniform(0, 6.28)
    px, py = away * np.cos(angle), away * stretch * np.sin(angle)
    px, py = px * np.cos(turn) - py * np.sin(turn), px * np.sin(turn) + py * np.cos(turn)
    size = np.maximum(rng.uniform(0.5, 0.5 + 0.5 * s, n), 0.6 * step)  # mm; at least what one pixel shows
    grains = np.zeros_like(window.r)
    for i in range(n):
        row = np.exp(-np.square((window.dy - py[i]) / size[i]))
        column = np.exp(-np.square((window.dx - px[i]) / size[i]))
        grains = np.maximum(grains, row * column * np.float32(rng.uniform(0.6, 1)))
    return (80 + 100 * s) * grains
