"""Draws the mammograms of a synthetic exam: outline, fat, fibroglandular tissue, ducts, vessels, muscle and skin.

Lengths are in mm. Every breast is drawn as a left one, with the chest wall at the left edge. Tissue is a random field
with a power-law spectrum (mammograms have about 1/f^3, Burgess 1999), thresholded so that the share of dense tissue
follows the density class. All arithmetic is in float64: processors differ by some 1e-13 grey levels there, which no
rounding to whole grey levels shows; in float32 one pixel in some million differed.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from scipy import fft

from mammo_utils.synthetic.cases import (
    MLO_LIFT,
    PROJECTIONS,
    Breast,
    Exam,
    Settings,
    appearances,
    replace_findings,
)
from mammo_utils.synthetic.findings import LesionOutline, add_structures
from mammo_utils.synthetic.harmless import add_harmless_structures
from mammo_utils.vocabulary import SIDES

HEIGHT, WIDTH = 2294 * 0.094090909, 1914 * 0.094090909  # mm of the real detector image: 215.8 x 180.1
DENSE_SHARE = {"fatty": -1.7, "scattered": -0.8, "heterogeneous dense": 0.2, "extremely dense": 1.2}
FAT, GLAND, MUSCLE, SKIN = 52.0, 48.0, 52.0, 28.0  # grey levels: fat, and what each other tissue adds to it


class _Body:
    """What both breasts of a patient share; lengths in mm."""

    def __init__(self, rng: Generator) -> None:
        self.reach = float(np.clip(rng.normal(92, 13), 66, 128))  # from chest wall to nipple
        self.half = float(np.clip(0.86 * self.reach + rng.normal(4, 5), 58, 96))  # half the width in CC
        self.nipple = float(HEIGHT / 2 + rng.normal(0, 5))  # from the top edge to the nipple in CC
        # where the pectoral muscle meets the top and the left edge in MLO, and how far its edge bulges
        self.muscle = (float(rng.uniform(34, 62)), float(rng.uniform(95, 150)), float(rng.uniform(0.8, 2.0)))
        self.gland = (float(rng.uniform(0.42, 0.52)), float(rng.uniform(0.9, 1.1)))  # centre / reach, relative extent
        self.brightness = float(np.clip(rng.normal(1, 0.12), 0.75, 1.3))
        self.contrast = float(rng.normal(1, 0.1))


class Canvas:
    """The mammogram of one breast while it is drawn: outline, grey levels and coordinates; lengths in mm."""

    def __init__(self, shape: tuple[int, int], body: _Body, projection: str, rng: Generator) -> None:
        self.projection = projection
        self.reach = body.reach * rng.normal(1, 0.025)  # from chest wall to nipple
        half = body.half * rng.normal(1, 0.03)
        self.nipple = body.nipple + rng.normal(0, 3)  # from the top edge to the nipple
        if projection == "CC":  # extent of the breast above and below the nipple
            self.up, self.down = half * rng.normal(1, 0.03), half * rng.normal(1, 0.03)
        else:
            self.up, self.down = half * rng.uniform(1.85, 2.1), 0.95 * half
            self.nipple += rng.uniform(8, 18)
        rows, columns = shape
        self.y = ((np.arange(rows) + 0.5) * (HEIGHT / rows))[:, None]  # (rows, 1)
        self.x = ((np.arange(columns) + 0.5) * (WIDTH / columns))[None, :]  # (1, columns)
        extent = np.where(self.y < self.nipple, self.up, self.down)
        dy = np.abs(self.y - self.nipple) / extent
        level = np.square(self.x / self.reach) + dy**2.2  # 1 on the skin
        level *= 1 - 0.09 * np.exp(-np.square((self.y - self.nipple) / 4.5))  # the nipple
        self.mask = level < 1  # the breast
        # distance from the skin, to first order: (1 - level) / |gradient of level|
        self.inward = (1 - level) / np.hypot(2 * self.x / self.reach**2, 2.2 * dy**1.2 / extent + 1e-3)
        self.picture = np.zeros(shape)  # grey levels

    def project(self, position: tuple[float, float, float]) -> tuple[float, float]:
        """Return (x, y) in mm of a position (depth, lateral, up).

        Depth is the same in both projections. Lateral is up in CC; in MLO both `up` and, less, `lateral` are.
        """
        depth, lateral, upper = position
        lift = lateral if self.projection == "CC" else MLO_LIFT[0] * upper + MLO_LIFT[1] * lateral
        half = min(self.up, 1.25 * self.down) if lift > 0 else self.down
        return depth * self.reach, self.nipple - lift * half


def draw_exam(exam: Exam, settings: Settings) -> dict[tuple[str, str], tuple[np.ndarray, list[LesionOutline]]]:
    """Draw an exam: (side, projection) -> the stored image, uint8 (rows, columns), and outlines in its pixels."""
    shape = (settings.rows, settings.columns)
    if settings.null:
        exam = replace_findings(exam, settings)
    body = _Body(_make_rng(exam, settings, 2))
    looks = appearances(exam, settings)
    drawn = {}
    for p, projection in enumerate(PROJECTIONS):
        shared = _sample_spectrum(shape, _make_rng(exam, settings, 3, p))  # common to both breasts
        for breast in exam.breasts:
            image, outlines = _draw_breast(
                exam, breast, projection, body, shared, settings, looks[breast.side, projection]
            )
            if breast.side == "R":  # stored with the chest wall at the right edge
                image = np.ascontiguousarray(image[:, ::-1])
                corner = np.array([settings.columns - 1, 0])
                outlines = [LesionOutline(outline.kind, corner + outline.points * [-1, 1]) for outline in outlines]
            drawn[breast.side, projection] = (image, outlines)
    return drawn


def _make_rng(exam: Exam, settings: Settings, *stream: int) -> Generator:
    return np.random.default_rng([settings.seed, exam.number, *stream])


def _sample_spectrum(shape: tuple[int, int], rng: Generator) -> np.ndarray:
    """White complex noise, the half spectrum (rows, columns // 2 + 1) of a real picture (rows, columns)."""
    rows, columns = shape
    parts = rng.standard_normal((2, rows, columns // 2 + 1))
    return parts[0] + 1j * parts[1]


def _draw_breast(
    exam: Exam,
    breast: Breast,
    projection: str,
    body: _Body,
    shared: np.ndarray,
    settings: Settings,
    look: tuple[float, float],
) -> tuple[np.ndarray, list[LesionOutline]]:
    """One mammogram as that of a left breast, uint8 with background exactly 0, and outlines in its pixels."""
    # own streams, so that the breast is the same whatever its findings; that of harmless structures is the same in both
    # projections
    p, s = PROJECTIONS.index(projection), SIDES.index(breast.side)
    rng, harmless_rng, lesion_rng = (_make_rng(exam, settings, *key) for key in ((4, p, s), (5, s), (6, p, s)))
    shape = (settings.rows, settings.columns)
    canvas = Canvas(shape, body, projection, rng)
    own = _sample_spectrum(shape, rng)
    tissue, fine = _make_textures(0.75 * shared + 0.66 * own, shape)
    gland = _draw_gland(canvas, body, DENSE_SHARE[exam.density] + rng.normal(0, 0.12), tissue, fine)
    fibres = _draw_fibres(canvas, tissue, rng)

    picture = FAT * (1 - 0.45 * np.exp(-canvas.inward / 9)) + 5 * tissue + 4 * fine
    picture += GLAND * gland * (1 + 0.08 * fine + 0.16 * fibres) + 5 * fibres
    picture += SKIN * np.exp(-np.square((canvas.inward - 1.2) / 1.1))
    picture += _draw_vessels(canvas, rng)
    if projection == "MLO":
        picture += _draw_muscle(canvas, body.muscle, picture, fine, rng)
    picture = (picture - 75) * body.contrast + 75 * body.brightness
    canvas.picture = picture

    add_harmless_structures(canvas, harmless_rng)
    share, contrast = look
    outlines = add_structures(canvas, breast.structures, lesion_rng, contrast, share)
    canvas.picture += 2.0 * settings.noise * rng.standard_normal(shape)
    image = np.where(canvas.mask, np.clip(np.rint(canvas.picture), 1, 255), 0).astype(np.uint8)
    return image, outlines if breast.findings else []


def _make_textures(spectrum: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Two fields of unit deviation from one spectrum: cloudy tissue (1/f^3 power) and its fine grain."""
    rows, columns = shape
    f = np.hypot(
        fft.fftfreq(rows, HEIGHT / rows)[:, None],
        fft.rfftfreq(columns, WIDTH / columns)[None, :],
    )
    cloud = (f + 0.006) ** -2.0
    cloud[0, 0] = 0
    grain = np.where(f > 0.04, (f + 0.006) ** -0.9, 0)
    fields = fft.irfft2(np.stack([spectrum * cloud, spectrum * grain]), s=shape)
    return tuple(field / (field.std() + 1e-6) for field in fields)


def _draw_gland(canvas: Canvas, body: _Body, share: float, tissue: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Share of dense tissue per pixel, 0..1: a lens behind the nipple, broken up by the random field."""
    centre, extent = body.gland
    up = min(canvas.up, 1.3 * canvas.down)
    dy = (canvas.y - canvas.nipple) / np.where(canvas.y < canvas.nipple, up, canvas.down)
    lens = np.square((canvas.x / canvas.reach - centre) / (0.46 * extent)) + np.square(dy / (0.72 * extent))
    return 1 / (1 + np.exp(-2.2 * (tissue + 0.16 * fine + share + 1.5 * (0.75 - lens))))


def _draw_fibres(canvas: Canvas, tissue: np.ndarray, rng: Generator) -> np.ndarray:
    """Ducts and ligaments: thin lines that run to the nipple, bent by the tissue; about -0.5..1."""
    angle = np.arctan2(canvas.y - canvas.nipple, canvas.reach + 14 - canvas.x)
    waves = np.sin(rng.uniform(26, 34) * angle + 2.2 * tissue + rng.uniform(0, 6.28))
    return np.maximum(waves, 0) ** 3 - 0.2


def _draw_vessels(canvas: Canvas, rng: Generator) -> np.ndarray:
    """Zero to two long bright curves along the depth."""
    x, y = canvas.x, canvas.y
    lines = np.zeros(np.broadcast_shapes(x.shape, y.shape))
    for _ in range(rng.integers(0, 3)):
        level, slope, bend = rng.uniform(-0.6, 0.6), rng.normal(0, 0.25), rng.normal(0, 0.003)
        course = canvas.nipple + level * canvas.down + slope * x + bend * np.square(x - canvas.reach / 2)
        course = course + 1.5 * np.sin(x / rng.uniform(5, 9))
        away = np.square((y - course) / rng.uniform(0.7, 1.1))
        lines += rng.uniform(14, 30) * np.exp(-np.minimum(away, 30))
    return lines


def _draw_muscle(
    canvas: Canvas, corner: tuple[float, float, float], picture: np.ndarray, fine: np.ndarray, rng: Generator
) -> np.ndarray:
    """What the pectoral muscle adds in MLO: it covers the tissue and evens it out."""
    across, along = corner[0] * rng.normal(1, 0.06), corner[1] * rng.normal(1, 0.06)
    edge = across * (1 - np.clip(canvas.y / along, 0, 1) ** corner[2])
    inside = 1 / (1 + np.exp(np.clip((canvas.x - edge) / 1.6, -30, 30))) * np.clip((along - canvas.y) / 12, 0, 1)
    return inside * (FAT + MUSCLE + 4 * fine - 0.75 * picture - 0.25 * FAT)
