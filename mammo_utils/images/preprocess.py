"""From a DICOM file to the square picture of §3.1."""

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
AIR = 0.02  # of the full scale; brighter is breast
BOX = ("left", "top", "width", "height")
EDGE = 0.02  # share of the columns that decides where the chest wall is


class PixelError(ValueError):
    """An image's pixels cannot be used; the message is the reason, for the list of what was set aside."""


@dataclass(frozen=True)
class PreparedImage:
    """pixels: (size, size) uint8, chest wall at the left; sha256 of the decoded pixels; what was done to them."""

    pixels: np.ndarray
    sha256: str
    rows: int
    columns: int
    flipped: bool
    chest_wall: str  # "left" or "right", as found in the pixels before flipping
    box: tuple[int, int, int, int]  # of the flipped image that the picture shows: left, top, width, height


def read_pixels(path: Path) -> tuple[np.ndarray, int, str]:
    """Stored values (rows, columns) of one grey frame, bits stored and the photometric interpretation.

    Raises PixelError with the reason; never another error, whatever the file holds.
    """
    try:
        dataset = read_dataset(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows, columns = int(dataset.Rows), int(dataset.Columns)
            frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel") or 1)
            if rows * columns > LARGEST_IMAGE or frames != 1 or samples != 1:
                raise PixelError(f"{frames} frames of {rows} x {columns} x {samples} are no single grey image")
            photometric = str(dataset.PhotometricInterpretation)
            if photometric not in ("MONOCHROME1", "MONOCHROME2"):
                raise PixelError(f"its pixels are {photometric[:20]}, not grey")
            bits, allocated, signed = (
                int(dataset[tag].value) for tag in ("BitsStored", "BitsAllocated", "PixelRepresentation")
            )
            if allocated > 16 or not 1 <= bits <= allocated:
                raise PixelError(f"{bits} of {allocated} bits a pixel are no mammogram")
            packed = dataset.file_meta.TransferSyntaxUID.is_compressed
            values = decompress(path) if packed else dataset.pixel_array
    except (PixelError, DecoderError, Refused) as error:
        raise PixelError(str(error)) from None
    except Exception as error:  # the file is untrusted: whatever is wrong with it must not stop the others
        raise PixelError(f"its pixels cannot be decoded ({type(error).__name__}); download the file again") from None
    if values.ndim != 2 or values.dtype.kind not in "iu":
        raise PixelError(f"{values.ndim} dimensions of {values.dtype} are no mammogram")
    if signed:
        values = values.astype(np.int32) + 2 ** (bits - 1)
    return values, bits, photometric


def rescale(values: np.ndarray, bits: int, photometric: str) -> np.ndarray:
    """Stored values as float32 in [0, 1], 0 for air: value / (2^bits - 1), MONOCHROME1 inverted.

    The window of the header is not applied: in CMMD it spans the full range and its sigmoid would bend it.
    """
    scaled = np.clip(values.astype(np.float32) / (2**bits - 1), 0, 1)
    return 1 - scaled if photometric == "MONOCHROME1" else scaled


def chest_wall_side(image: np.ndarray) -> str:
    """The side, "left" or "right", whose outermost columns are brighter: there the breast leaves the image."""
    width = max(1, round(EDGE * image.shape[1]))
    return "left" if image[:, :width].mean() >= image[:, -width:].mean() else "right"


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Stretch (rows, columns) to (size, size) uint8 with Pillow's antialiasing bilinear (triangle) filter.

    image: float in [0, 1], or uint8, which Pillow filters in 8 bits: a grey level off at most, and much faster.
    """
    small = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    return small if image.dtype == np.uint8 else np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8)


def prepare_image(path: Path, side: str, size: int, mirrored: bool = False, mode: str = "stretch") -> PreparedImage:
    """§3.1: decode, scale, invert, flip right breasts, resize. Raises PixelError with the reason.

    An image that is known to be stored `mirrored` is turned by where its pixels have the chest wall, not by its side.
    mode: what of the image is resized, see :func:`mammo_utils.images.preprocess.box_of`. The order of the steps is
    the one that touches the fewest pixels: an image of 8 bits stays in 8 bits, and the small picture is flipped.
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
    piece = crop(values, (values.shape[1] - left - width if flipped else left, top, width, height), air)
    if values.dtype == np.uint8 and bits == 8:
        grey = resize(piece, size)
        grey = 255 - grey if inverted else grey
    else:
        grey = resize(rescale(piece, bits, photometric), size)
    grey = np.ascontiguousarray(grey[:, ::-1]) if flipped else grey
    return PreparedImage(grey, pixel_hash(values, bits, photometric), *values.shape, flipped, wall, box)


def pixel_hash(values: np.ndarray, bits: int, photometric: str) -> str:
    """SHA-256 of the stored values, the same however many bits the file gives each."""
    widths = [width for width in ("<u1", "<u2") if values.dtype == width or values.max() <= np.iinfo(width).max]
    digest = hashlib.sha256(f"{values.shape}{bits}{photometric}".encode())
    digest.update(np.ascontiguousarray(values, dtype=widths[0] if widths and values.min() >= 0 else "<i4"))
    return digest.hexdigest()


# --- geometry -----------------------------------------------------------------------------------------------


def crop_box(image: np.ndarray, resize: str) -> tuple[int, int, int, int]:
    """The box (left, top, width, height) of `image` (rows, columns), chest wall at the left; "crop" needs [0, 1].

    "stretch": the whole image (§3.1). "pad": a square around it that keeps the proportions. "crop": a square
    around what is brighter than air. Both squares begin at the left, where the breast does.
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
    """The box of an image (rows, columns), `air` where it reaches beyond; the image itself where it is the whole."""
    left, top, width, height = box
    rows, columns = image.shape
    if box == (0, 0, columns, rows):
        return image
    inside = image[max(top, 0) : top + height, max(left, 0) : left + width]
    result = np.full((height, width), air, image.dtype)
    y, x = max(-top, 0), max(-left, 0)
    result[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return result


def to_store(points: np.ndarray, row: Mapping[str, Any], size: int) -> np.ndarray:
    """Points (n, 2) of the original image as points of its picture in the store, `size` pixels a side.

    row: the image's row of the store's index: columns, flipped, left, top, width, height.
    """
    x, y = np.asarray(points, float).T
    x = row["columns"] - 1 - x if row["flipped"] else x
    scale = size / row["width"], size / row["height"]
    return np.stack([(x + 0.5 - row["left"]) * scale[0] - 0.5, (y + 0.5 - row["top"]) * scale[1] - 0.5], axis=1)


def to_original(points: np.ndarray, row: Mapping[str, Any], size: int) -> np.ndarray:
    """The inverse of :func:`to_store`."""
    x, y = np.asarray(points, float).T
    x = (x + 0.5) * row["width"] / size + row["left"] - 0.5
    y = (y + 0.5) * row["height"] / size + row["top"] - 0.5
    return np.stack([row["columns"] - 1 - x if row["flipped"] else x, y], axis=1)
