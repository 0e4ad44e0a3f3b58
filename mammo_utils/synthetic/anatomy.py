"""Draw one synthetic mammogram: shape, fat, fibroglandular tissue, ducts, vessels, muscle, skin.

Lengths are in mm. A picture is drawn as a left breast, with the chest wall at the left edge. Tissue is a random field
with a power-law spectrum (about 1/f^3 in mammograms, Burgess 1999), thresholded so that the share of dense tissue
follows the density class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft

from mammo_utils.synthetic.cases import LIFT, Finding
from mammo_utils.synthetic.findings import LesionOutline, add_findings, add_harmless

HEIGHT, WIDTH = 2294 * 0.094090909, 1914 * 0.094090909  # mm of the real detector image: 215.8 x 180.1
PROJECTIONS = ("CC", "MLO")
DENSE_SHARE = {"fatty": -1.7, "scattered": -0.8, "heterogeneous dense": 0.2, "extremely dense": 1.2}
FAT, GLAND, MUSCLE, SKIN = 52.0, 48.0, 52.0, 28.0  # grey levels: fat, and what each adds to it


@dataclass(frozen=True)
class Body:
    """What both breasts of a patient have in common.

    Attributes:
        reach: Chest wall to nipple.
        half_width: Half the width in CC.
        nipple: Below the top edge in CC.
        muscle: Where the pectoral wedge meets the top and the left edge in MLO.
        gland: Centre along the depth, and extent.
        brightness, contrast: Factors of the grey levels.
    """

    reach: float
    half_width: float
    nipple: float
    muscle: tuple[float, float]
    gland: tuple[float, float]
    brightness: float
    contrast: float


@dataclass(frozen=True)
class BreastShape:
    """The shape of a breast in one projection.

    Attributes:
        projection: "CC" or "MLO".
        reach: Chest wall to nipple.
        up, down: Extent above and below the nipple.
        nipple: Below the top edge.
    """

    projection: str
    reach: float
    up: float
    down: float
    nipple: float

    def project(self, place: tuple[float, float, float]) -> tuple[float, float]:
        """Project a place (depth, lateral, up) to (x, y) in mm.

        Depth is the same in both projections. Lateral is upwards in CC; MLO is taken from the upper inner side, so that
        `up` and, less, `lateral` lift a place.
        """
        depth, lateral, upper = place
        lift = lateral if self.projection == "CC" else LIFT[0] * upper + LIFT[1] * lateral
        half = min(self.up, 1.25 * self.down) if lift > 0 else self.down
        return depth * self.reach, self.nipple - lift * half


def sample_body(rng: np.random.Generator) -> Body:
    """Sample what both breasts of a patient have in common."""
    reach = float(np.clip(rng.normal(92, 13), 66, 128))
    return Body(
        reach=reach,
        half_width=float(np.clip(0.86 * reach + rng.normal(4, 5), 58, 96)),
        nipple=float(HEIGHT / 2 + rng.normal(0, 5)),
        muscle=(float(rng.uniform(34, 62)), float(rng.uniform(95, 150))),
        gland=(float(rng.uniform(0.42, 0.52)), float(rng.uniform(0.9, 1.1))),
        brightness=float(rng.normal(1, 0.07)),
        contrast=float(rng.normal(1, 0.08)),
    )


def sample_shape(body: Body, projection: str, rng: np.random.Generator) -> BreastShape:
    """Draw the shape of one breast in one projection: that of the body, with what differs from side to side.

    Args:
        body: What both breasts share.
        projection: "CC" or "MLO".
        rng: Draws the differences.
    """
    reach = body.reach * rng.normal(1, 0.025)
    half = body.half_width * rng.normal(1, 0.03)
    nipple = body.nipple + rng.normal(0, 3)
    if projection == "CC":
        return BreastShape(projection, reach, half * rng.normal(1, 0.03), half * rng.normal(1, 0.03), nipple)
    return BreastShape(projection, reach, half * rng.uniform(1.85, 2.1), 0.95 * half, nipple + rng.uniform(8, 18))


def sample_spectrum(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Sample white complex noise, (rows, columns // 2 + 1): the half spectrum of a real picture."""
    rows, columns = shape
    parts = rng.standard_normal((2, rows, columns // 2 + 1), dtype=np.float32)
    return parts[0] + 1j * parts[1]


def draw_mammogram(
    shape: tuple[int, int],
    projection: str,
    body: Body,
    density: str,
    findings: tuple[Finding, ...],
    shared: np.ndarray,
    rng: np.random.Generator,
    harmless: np.random.Generator,
    lesions: np.random.Generator,
    contrast: float = 1.0,
    noise: float = 1.0,
) -> tuple[np.ndarray, list[LesionOutline]]:
    """Draw one mammogram as a left breast.

    The three generators are separate, so that a breast is the same with and without findings.

    Args:
        shape: Rows and columns.
        projection: "CC" or "MLO".
        body: What both breasts of the patient have in common.
        density: Key of `DENSE_SHARE`.
        findings: The lesions of the breast.
        shared: Spectrum of both breasts in this projection, from `sample_spectrum`.
        rng: Draws the breast in this projection.
        harmless: Draws what looks a little like a finding; restarted for each projection, so that both show the same.
        lesions: Draws the findings.
        contrast: Factor of the findings' contrast.
        noise: Factor of the quantum noise.

    Returns:
        uint8 (rows, columns), background exactly 0, and the findings' outlines in pixels.
    """
    rows, columns = shape
    y = ((np.arange(rows, dtype=np.float32) + 0.5) * np.float32(HEIGHT / rows))[:, None]
    x = ((np.arange(columns, dtype=np.float32) + 0.5) * np.float32(WIDTH / columns))[None, :]
    breast = sample_shape(body, projection, rng)

    half = np.where(y < breast.nipple, breast.up, breast.down).astype(np.float32)
    dy = np.abs(y - np.float32(breast.nipple)) / half
    surface = np.square(x / np.float32(breast.reach)) + dy**2.2  # 1 on the skin, less inside
    surface *= 1 - 0.09 * np.exp(-np.square((y - np.float32(breast.nipple)) / 4.5))  # the nipple
    mask = surface < 1
    # distance to the skin, to first order: (1 - f) / |gradient of f|
    inward = (1 - surface) / np.hypot(2 * x / breast.reach**2, 2.2 * dy**1.2 / half + 1e-3)

    own = sample_spectrum(shape, rng)
    tissue, fine = _textures(0.75 * shared + 0.66 * own, shape)
    gland = _gland(x, y, breast, body, DENSE_SHARE[density] + rng.normal(0, 0.12), tissue, fine)
    fibres = _fibres(x, y, breast, tissue, rng)

    picture = FAT * (1 - 0.45 * np.exp(-inward / 9)) + 5 * tissue + 4 * fine
    picture += GLAND * gland * (1 + 0.08 * fine + 0.16 * fibres) + 5 * fibres
    picture += SKIN * np.exp(-np.square((inward - 1.2) / 1.1))
    picture += _vessels(x, y, breast, rng)
    if projection == "MLO":
        picture += _muscle(x, y, body.muscle, picture, fine, rng)
    picture = (picture - 75) * np.float32(body.contrast) + 75 * np.float32(body.brightness)
    picture = np.where(mask, picture, 0).astype(np.float32)

    add_harmless(picture, mask, x, y, breast, harmless)
    drawn = add_findings(picture, mask, x, y, breast, findings, lesions, contrast)
    picture += np.float32(2.0 * noise) * rng.standard_normal(shape, dtype=np.float32)
    return np.where(mask, np.clip(np.rint(picture), 1, 255), 0).astype(np.uint8), drawn


def _textures(spectrum: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Make two fields of unit deviation from one spectrum: cloudy tissue (1/f^3 power) and its fine grain."""
    rows, columns = shape
    f = np.hypot(
        fft.fftfreq(rows, HEIGHT / rows).astype(np.float32)[:, None],
        fft.rfftfreq(columns, WIDTH / columns).astype(np.float32)[None, :],
    )
    cloud = (f + 0.006) ** -2.0
    cloud[0, 0] = 0
    grain = np.where(f > 0.04, (f + 0.006) ** -0.9, 0)
    fields = fft.irfft2(np.stack([spectrum * cloud, spectrum * grain]), s=shape)
    return tuple(field / (field.std() + 1e-6) for field in fields.astype(np.float32))


def _gland(
    x: np.ndarray, y: np.ndarray, breast: BreastShape, body: Body, share: float, tissue: np.ndarray, fine: np.ndarray
) -> np.ndarray:
    """Share of dense tissue per pixel, 0..1: a lens behind the nipple, broken up by the field."""
    centre, extent = body.gland
    up = min(breast.up, 1.3 * breast.down)
    dy = (y - breast.nipple) / np.where(y < breast.nipple, up, breast.down)
    lens = np.square((x / breast.reach - centre) / (0.46 * extent)) + np.square(dy / (0.72 * extent))
    return 1 / (1 + np.exp(-2.2 * (tissue + 0.16 * fine + share + 1.5 * (0.75 - lens))))


def _fibres(
    x: np.ndarray, y: np.ndarray, breast: BreastShape, tissue: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Ducts and ligaments: thin lines that run to the nipple, bent by the tissue; about -0.5..1."""
    angle = np.arctan2(y - breast.nipple, breast.reach + 14 - x)
    waves = np.sin(rng.uniform(26, 34) * angle + 2.2 * tissue + rng.uniform(0, 6.28))
    return np.maximum(waves, 0) ** 3 - 0.2


def _vessels(x: np.ndarray, y: np.ndarray, breast: BreastShape, rng: np.random.Generator) -> np.ndarray:
    """Zero to two vessels: long bright curves along the depth."""
    lines = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    for _ in range(rng.integers(0, 3)):
        level, slope, bend = rng.uniform(-0.6, 0.6), rng.normal(0, 0.25), rng.normal(0, 0.003)
        course = breast.nipple + level * breast.down + slope * x + bend * np.square(x - breast.reach / 2)
        course = course + 1.5 * np.sin(x / rng.uniform(5, 9))
        away = np.square((y - course) / rng.uniform(0.7, 1.1))
        lines += np.float32(rng.uniform(14, 30)) * np.exp(-np.minimum(away, 30))
    return lines


def _muscle(
    x: np.ndarray,
    y: np.ndarray,
    corner: tuple[float, float],
    picture: np.ndarray,
    fine: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """What the pectoral wedge adds in MLO: it lies over the tissue and evens it out."""
    across, along = corner[0] * rng.normal(1, 0.06), corner[1] * rng.normal(1, 0.06)
    edge = across * np.clip(1 - y / along, 0, None) ** 0.85
    inside = 1 / (1 + np.exp(np.clip((x - edge) / 1.6, -30, 30))) * np.clip((along - y) / 12, 0, 1)
    return inside * (FAT + MUSCLE + 4 * fine - 0.75 * picture - 0.25 * FAT)
