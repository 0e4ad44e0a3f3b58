"""Preprocessing (§3.1): from a DICOM file to a square image of 8 bits with the chest wall at the left."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.ndimage
from PIL import Image

from mammo_utils.images.grey import GreyImage, read_pixels, rescale

RESIZES = ("stretch", "pad", "crop")
AIR = 0.02  # of full scale; brighter pixels are breast
BOX = ("left", "top", "width", "height")
EDGE = 0.02  # share of the columns at either edge whose brightness shows where the chest wall is


@dataclass(frozen=True)
class PreparedImage:
    """An image as models see it, and what was done to it.

    Attributes:
        pixels: (size, size) uint8, chest wall at the left.
        sha256: Hash of the decoded pixels, see `pixel_hash`.
        rows: Rows of the original.
        columns: Columns of the original.
        flipped: Whether it was flipped.
        chest_wall: "left" or "right": where the pixels show the chest wall before flipping.
        box: The box of the flipped original that is shown, named by BOX.
        note: What in the header contradicts the grey values, see `grey.GreyImage`.
    """

    pixels: np.ndarray
    sha256: str
    rows: int
    columns: int
    flipped: bool
    chest_wall: str
    box: tuple[int, int, int, int]
    note: str

    @property
    def agrees(self) -> bool:
        """Whether the chest wall is at the left now."""
        return (self.chest_wall == "right") == self.flipped


def chest_wall_side(image: np.ndarray) -> str:
    """Find the side, "left" or "right", whose outermost columns are brighter: there the breast leaves the image."""
    width = max(1, round(EDGE * image.shape[1]))
    return "left" if image[:, :width].mean() >= image[:, -width:].mean() else "right"


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Stretch (rows, columns) to (size, size) uint8 with Pillow's antialiasing bilinear (triangle) filter.

    `image` is float in [0, 1], or uint8, which Pillow filters in 8 bits: at most one grey level off, and much faster.
    """
    small = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    return small if image.dtype == np.uint8 else np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8)


def prepare_image(
    path: Path, side: str, size: int, mirrored: bool = False, mode: str = "stretch", window: bool = False
) -> PreparedImage:
    """Decode, rescale, flip (right breasts) and resize an image (§3.1).

    The order of the steps is the one that touches the fewest pixels: an image of 8 bits stays in 8 bits, and the small
    image is flipped instead of the large one.

    Args:
        path: The DICOM file.
        side: "L" or "R".
        size: Pixels per side of the result.
        mirrored: The image is known to be stored mirrored: it is flipped by where its pixels show the chest wall.
        mode: One of RESIZES, see `crop_box`.
        window: Whether the header's window is applied.

    Raises:
        PixelError: The pixels cannot be used; the message is the reason.
    """
    image = read_pixels(path, window)
    values = image.values
    wall = chest_wall_side(~values if image.inverted else values)
    flipped = wall == "right" if mirrored else side == "R"
    turned = values[:, ::-1] if flipped else values
    box = crop_box(rescale(replace(image, values=turned)) if mode == "crop" else turned, mode)
    left, top, width, height = box
    # The box lies in the flipped image, but is cut out of the stored one.
    piece = crop(values, (values.shape[1] - left - width if flipped else left, top, width, height), image.air)
    if values.dtype == np.uint8 and image.bits == 8:
        pixels = resize(piece, size)
        pixels = 255 - pixels if image.inverted else pixels
    else:
        pixels = resize(rescale(replace(image, values=piece)), size)
    pixels = np.ascontiguousarray(pixels[:, ::-1]) if flipped else pixels
    return PreparedImage(pixels, pixel_hash(image), *values.shape, flipped, wall, box, image.note)


def pixel_hash(image: GreyImage) -> str:
    """Hash grey values with SHA-256, independently of how many bytes the file uses for each."""
    values, photometric = image.values, "MONOCHROME1" if image.inverted else "MONOCHROME2"
    digest = hashlib.sha256(f"{values.shape}{image.bits}{photometric}".encode())
    digest.update(np.ascontiguousarray(values, dtype="<u1" if values.max() < 256 else "<u2"))
    return digest.hexdigest()


# --- geometry -----------------------------------------------------------------------------------------------


def crop_box(image: np.ndarray, resize: str) -> tuple[int, int, int, int]:
    """Return the box (left, top, width, height) to be resized of an image with the chest wall at the left.

    "stretch" takes the whole image (§3.1), "pad" a square around it that keeps the proportions, "crop" a square around
    the breast, for which `image` must be in [0, 1]. Both squares start at the left, as the breast does.
    """
    rows, columns = image.shape
    if resize == "stretch":
        return 0, 0, columns, rows
    left, top, right, bottom = breast_box(image) if resize == "crop" else (0, 0, columns, rows)
    side = max(right - left, bottom - top)
    return left, (top + bottom - side) // 2, side, side


def breast_box(image: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the largest connected part of an image in [0, 1] that is brighter than air.

    Markers and labels beside the breast are other parts. The parts are found at a reduced size. An image without a
    bright pixel is returned whole.
    """
    step = max(1, min(image.shape) // 256)
    labels, count = scipy.ndimage.label(image[::step, ::step] > AIR)
    if not count:
        return 0, 0, *image.shape[::-1]
    part = scipy.ndimage.find_objects(labels)[np.bincount(labels.ravel())[1:].argmax()]
    down, across = (slice(max(0, s.start * step - step), s.stop * step) for s in part)
    bright = image[down, across] > AIR
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    left, top = across.start, down.start
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1


def crop(image: np.ndarray, box: tuple[int, int, int, int], air: float = 0) -> np.ndarray:
    """Cut a box out of an image (rows, columns).

    Args:
        image: The image, which is returned without a copy if the box is all of it.
        box: Left, top, width and height; it may reach beyond the image.
        air: Value of what lies beyond.
    """
    left, top, width, height = box
    rows, columns = image.shape
    if box == (0, 0, columns, rows):
        return image
    inside = image[max(top, 0) : top + height, max(left, 0) : left + width]
    beyond = (max(-top, 0), max(top + height - rows, 0)), (max(-left, 0), max(left + width - columns, 0))
    return np.pad(inside, beyond, constant_values=air)
