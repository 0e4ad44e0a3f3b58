"""Statistics of an image that need no eye for a lesion: extent, grey levels, texture, gradients, file size."""

from __future__ import annotations

import zlib

import numpy as np
import pandas as pd
from scipy import ndimage

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)
BINS = 16  # of the histogram
FILTERED_SIZE = 128  # pixels per side; larger images are averaged over blocks before they are filtered
CHUNK = 64  # images that are measured at once


def image_statistics(images: np.ndarray) -> pd.DataFrame:
    """Measure what needs no eye for a lesion: extent, grey levels, texture, gradients, high-pass extremes, file size.

    Args:
        images: (n, H, W) uint8, 0 in the air.

    Returns:
        One row per image, one column per statistic.
    """
    parts = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
    return pd.concat([pd.DataFrame(_grey_levels(part) | _textures(part)) for part in parts], ignore_index=True)


def _grey_levels(images: np.ndarray) -> dict[str, np.ndarray]:
    """Extent and grey levels, from every pixel."""
    x = np.asarray(images, dtype=np.float32)
    n = len(x)
    inside = x > 0
    area = np.maximum(inside.sum((1, 2)), 1)

    def mean(values: np.ndarray) -> np.ndarray:  # over the breast
        return (values * inside).sum((1, 2)) / area

    found = {"area": area, "height": inside.any(2).sum(1), "width": inside.any(1).sum(1)}
    found |= {"mean": mean(x), "deviation": np.sqrt(mean(np.square(x - mean(x)[:, None, None])))}
    centred = (x - found["mean"][:, None, None]) / np.maximum(found["deviation"], 1)[:, None, None]
    found |= {"skewness": mean(centred**3), "kurtosis": mean(centred**4)}
    breast = np.where(inside, x, np.nan).reshape(n, -1)
    breast[~inside.any((1, 2))] = 0
    for q, values in zip(PERCENTILES, np.nanpercentile(breast, PERCENTILES, axis=1), strict=True):
        found[f"percentile {q}"] = values
    found["maximum"] = x.max((1, 2))
    bins = [mean((x >= low) & (x < low + 256 / BINS)) for low in np.arange(BINS) * 256 / BINS]
    found |= {f"histogram {i}": share for i, share in enumerate(bins)}
    found["entropy"] = -sum(share * np.log(np.maximum(share, 1e-6)) for share in bins)
    found["compressed size"] = np.array([len(zlib.compress(image.tobytes(), 1)) for image in np.asarray(images)])
    return found


def _textures(images: np.ndarray) -> dict[str, np.ndarray]:
    """What filters find, from images of at most FILTERED_SIZE pixels per side."""
    step = -(-max(images.shape[1:]) // FILTERED_SIZE)
    height, width = (size // step for size in images.shape[1:])
    blocks = np.asarray(images)[:, : height * step, : width * step].reshape(-1, height, step, width, step)
    x = blocks.mean((2, 4), dtype=np.float32)
    n, inside = len(x), x > 0
    area = np.maximum(inside.sum((1, 2)), 1)
    mean, square = x.sum((1, 2)) / area, np.square(x).sum((1, 2)) / area
    deviation = np.sqrt(np.maximum(square - mean**2, 1))[:, None, None]
    bright = {k: (x - mean[:, None, None] > k * deviation) & inside for k in (2, 3)}
    found = {f"spots above {k} deviations": [ndimage.label(b)[1] for b in bright[k]] for k in bright}
    core = ndimage.binary_erosion(inside, np.ones((1, 3, 3)), iterations=max(1, width // 32))  # without the skin
    for sigma in (1, 2, 4, 8):
        smooth = ndimage.gaussian_filter(x, (0, sigma, sigma))
        detail = (x - smooth) * core
        found |= {f"high-pass {sigma} deviation": np.sqrt((detail**2).sum((1, 2)) / area)}
        found |= {f"high-pass {sigma} maximum": detail.max((1, 2)), f"high-pass {sigma} minimum": detail.min((1, 2))}
        found[f"high-pass {sigma} percentile 99.9"] = np.percentile(detail.reshape(n, -1), 99.9, axis=1)
        local = ndimage.gaussian_filter(detail**2, (0, sigma, sigma))
        found[f"local energy {sigma} maximum"] = np.sqrt(local.max((1, 2)))
        band = (smooth - ndimage.gaussian_filter(x, (0, 2 * sigma, 2 * sigma))) * core
        found |= {f"blob {sigma} maximum": band.max((1, 2)), f"blob {sigma} minimum": band.min((1, 2))}
        dy, dx = (np.gradient(smooth, axis=axis) * core for axis in (1, 2))
        size = np.hypot(dy, dx)
        found |= {f"gradient {sigma} mean": size.sum((1, 2)) / area, f"gradient {sigma} maximum": size.max((1, 2))}
        yy, xx, xy = (ndimage.gaussian_filter(a, (0, 2 * sigma, 2 * sigma)) for a in (dy * dy, dx * dx, dy * dx))
        corner = yy * xx - xy * xy - 0.05 * np.square(yy + xx)
        found |= {f"corner {sigma} maximum": corner.max((1, 2)), f"corner {sigma} mean": corner.sum((1, 2)) / area}
        coherence = np.hypot(yy - xx, 2 * xy) * core
        found[f"coherence {sigma}"] = coherence.sum((1, 2)) / np.maximum(((yy + xx) * core).sum((1, 2)), 1e-6)
        found[f"upright {sigma}"] = ((yy - xx) * core).sum((1, 2)) / np.maximum(((yy + xx) * core).sum((1, 2)), 1e-6)
    for step in (1, 2, 4):
        found[f"texture {step} down"] = np.abs(x[:, step:] - x[:, :-step]).sum((1, 2)) / area
        found[f"texture {step} across"] = np.abs(x[:, :, step:] - x[:, :, :-step]).sum((1, 2)) / area
    return found
