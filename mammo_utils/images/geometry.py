"""Where a picture of the store lies in its original image, and back.

The store's square shows a box of the flipped original, which may reach beyond the image (there it is 0). Points are
(x, y), x to the right, y down, in pixels, whole numbers at the centres of pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

RESIZES = ("stretch", "pad", "crop")
AIR = 0.02  # of the full scale; brighter is breast
BOX = ("left", "top", "width", "height")


def box_of(image: np.ndarray, resize: str) -> tuple[int, int, int, int]:
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


def cut(image: np.ndarray, box: tuple[int, int, int, int], air: float = 0) -> np.ndarray:
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
