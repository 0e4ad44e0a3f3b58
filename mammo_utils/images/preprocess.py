"""Preprocessing (§3.1): from a DICOM file to a square image of 8 bits with the chest wall at the left."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mammo_utils.data.dicom import LARGEST_IMAGE, Refused, read_dataset
from mammo_utils.images.decoder import DecoderError, decompress

RESIZES = ("stretch", "pad", "crop")
AIR = 0.02  # of full scale; brighter pixels are breast
BOX = ("left", "top", "width", "height")
EDGE = 0.02  # share of the columns at either edge whose brightness shows where the chest wall is


class PixelError(ValueError):
    """An image's pixels cannot be used; the message is the reason for its exclusion."""


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
    """

    pixels: np.ndarray
    sha256: str
    rows: int
    columns: int
    flipped: bool
    chest_wall: str
    box: tuple[int, int, int, int]

    @property
    def agrees(self) -> bool:
        """Whether the chest wall is at the left now."""
        return (self.chest_wall == "right") == self.flipped


def read_pixels(path: Path) -> tuple[np.ndarray, int, str]:
    """Read the stored values (rows, columns) of one greyscale frame, its bits stored and photometric interpretation.

    Raises PixelError with the reason, and no other error, whatever the file contains.
    """
    try:
        dataset = read_dataset(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows, columns = int(dataset.Rows), int(dataset.Columns)
            frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel") or 1)
            if rows * columns > LARGEST_IMAGE or frames != 1 or samples != 1:
                raise PixelError(f"{frames} frames of {rows} x {columns} x {samples} are not one greyscale image")
            photometric = str(dataset.PhotometricInterpretation)
            if photometric not in ("MONOCHROME1", "MONOCHROME2"):
                raise PixelError(f"its pixels are {photometric[:20]}, not greyscale")
            tags = ("BitsStored", "BitsAllocated", "PixelRepresentation")
            bits, allocated, signed = (int(dataset[tag].value) for tag in tags)
            if allocated > 16 or not 1 <= bits <= allocated:
                raise PixelError(f"{bits} of {allocated} bits a pixel are not a mammogram's")
            compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
            values = decompress(path) if compressed else dataset.pixel_array
    except (PixelError, DecoderError, Refused) as error:
        raise PixelError(str(error)) from None
    except Exception as error:  # the file is untrusted: whatever is wrong with it must not stop the others
        raise PixelError(f"its pixels cannot be decoded ({type(error).__name__}); download the file again") from None
    if values.ndim != 2 or values.dtype.kind not in "iu":
        raise PixelError(f"{values.ndim} dimensions of {values.dtype} are not a mammogram")
    if signed:
        values = values.astype(np.int32) + 2 ** (bits - 1)
    return values, bits, photometric


def rescale(values: np.ndarray, bits: int, photometric: str) -> np.ndarray:
    """Rescale stored values to float32 in [0, 1], 0 for air: value / (2^bits - 1), inverted for MONOCHROME1.

    The header's window is not applied: in CMMD it spans the full range, and its sigmoid would bend the scale.

    Args:
        values: Stored values.
        bits: Bits stored per value.
        photometric: "MONOCHROME1" (bright air) or "MONOCHROME2".
    """
    scaled = np.clip(values.astype(np.float32) / (2**bits - 1), 0, 1)
    return 1 - scaled if photometric == "MONOCHROME1" else scaled


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


def prepare_image(path: Path, side: str, size: int, mirrored: bool = False, mode: str = "stretch") -> PreparedImage:
    """Decode, rescale, flip (right breasts) and resize an image (§3.1).

    The order of the steps is the one that touches the fewest pixels: an image of 8 bits stays in 8 bits, and the small
    image is flipped instead of the large one.

    Args:
        path: The DICOM file.
        side: "L" or "R".
        size: Pixels per side of the result.
        mirrored: The image is known to be stored mirrored: it is flipped by where its pixels show the chest wall.
        mode: One of RESIZES, see `crop_box`.

    Raises:
        PixelError: The pixels cannot be used; the message is the reason.
    """
    values, bits, photometric = read_pixels(path)
    inverted = photometric == "MONOCHROME1"
    air = 2**bits - 1 if inverted else 0
    if not (values != air if air else values).any():
        raise PixelError("every pixel is 0")
    wall = chest_wall_side(~values if inverted else values)
    flipped = wall == "right" if mirrored else side == "R"
    turned = values[:, ::-1] if flipped else values
    box = crop_box(rescale(turned, bits, photometric) if mode == "crop" else turned, mode)
    left, top, width, height = box
    # The box lies in the flipped image, but is cut out of the stored one.
    piece = crop(values, (values.shape[1] - left - width if flipped else left, top, width, height), air)
    if values.dtype == np.uint8 and bits == 8:
        pixels = resize(piece, size)
        pixels = 255 - pixels if inverted else pixels
    else:
        pixels = resize(rescale(piece, bits, photometric), size)
    pixels = np.ascontiguousarray(pixels[:, ::-1]) if flipped else pixels
    return PreparedImage(pixels, pixel_hash(values, bits, photometric), *values.shape, flipped, wall, box)


def pixel_hash(values: np.ndarray, bits: int, photometric: str) -> str:
    """Hash stored values with SHA-256, independently of how many bytes the file uses for each.

    Args:
        values: Stored values (rows, columns).
        bits: Bits stored per value.
        photometric: The photometric interpretation.
    """
    widths = [width for width in ("<u1", "<u2") if values.dtype == width or values.max() <= np.iinfo(width).max]
    digest = hashlib.sha256(f"{values.shape}{bits}{photometric}".encode())
    digest.update(np.ascontiguousarray(values, dtype=widths[0] if widths and values.min() >= 0 else "<i4"))
    return digest.hexdigest()


# --- geometry -----------------------------------------------------------------------------------------------


def crop_box(image: np.ndarray, resize: str) -> tuple[int, int, int, int]:
    """Return the box (left, top, width, height) to be resized of an image with the chest wall at the left.

    "stretch" takes the whole image (§3.1), "pad" a square around it that keeps the proportions, "crop" a square around
    what is brighter than air, for which `image` must be in [0, 1]. Both squares start at the left, as the breast does.
    """
    rows, columns = image.shape
    if resize == "stretch":
        return 0, 0, columns, rows
    left, top, right, bottom = 0, 0, columns, rows
    if resize == "crop" and (bright := image > AIR).any():
        across, down = np.flatnonzero(bright.any(0)), np.flatnonzero(bright.any(1))
        left, right, top, bottom = int(across[0]), int(across[-1]) + 1, int(down[0]), int(down[-1]) + 1
    side = max(right - left, bottom - top)
    return left, (top + bottom - side) // 2, side, side


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


def to_store(points: np.ndarray, row: Mapping[str, Any], size: int) -> np.ndarray:
    """Map points of the original image to its image in the store. Coordinates are of pixel centres.

    Args:
        points: (n, 2), x and y.
        row: The image's row of the store's index: `columns`, `flipped`, `left`, `top`, `width`, `height`.
        size: Pixels per side in the store.
    """
    x, y = np.asarray(points, float).T
    x = row["columns"] - 1 - x if row["flipped"] else x
    scale = size / row["width"], size / row["height"]
    return np.stack([(x + 0.5 - row["left"]) * scale[0] - 0.5, (y + 0.5 - row["top"]) * scale[1] - 0.5], axis=1)


def to_original(points: np.ndarray, row: Mapping[str, Any], size: int) -> np.ndarray:
    """Map points of an image in the store to the original, the inverse of `to_store` with the same arguments.

    Args:
        points: (n, 2), x and y.
        row: The image's row of the store's index.
        size: Pixels per side in the store.
    """
    x, y = np.asarray(points, float).T
    x = (x + 0.5) * row["width"] / size + row["left"] - 0.5
    y = (y + 0.5) * row["height"] / size + row["top"] - 0.5
    return np.stack([row["columns"] - 1 - x if row["flipped"] else x, y], axis=1)
