"""Preprocessing of full-size images beside its floor and beside a plain loop."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pydicom
import torch
from PIL import Image

from benchmarks.measure import interleaved_medians
from mammo_utils.images.preprocess import prepare_image
from mammo_utils.io import exit_with_parent
from mammo_utils.synthetic.release import write_release

SHAPE = (2294, 1914)  # rows and columns of CMMD's images


def prepare_at_floor(path: Path, size: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """The least: read the file's bytes, take the pixels from their end and filter as the store does; check nothing."""
    pixels = np.frombuffer(path.read_bytes()[-shape[0] * shape[1] :], np.uint8).reshape(shape)
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))


def prepare_plainly(path: Path, size: int) -> np.ndarray:
    """The first draft: pydicom, numpy and Pillow, in float."""
    dataset = pydicom.dcmread(path)
    image = dataset.pixel_array.astype(np.float32) / (2**dataset.BitsStored - 1)
    image = image[:, ::-1] if dataset.ImageLaterality == "R" else image
    small = Image.fromarray(np.ascontiguousarray(image)).resize((size, size), Image.Resampling.BILINEAR)
    return (np.asarray(small) * 255).round().astype(np.uint8)


def prepare_as_study(path: Path, size: int) -> np.ndarray:
    """The study's own preprocessing."""
    return prepare_image(path, "R", size).pixels


def _prepare_all(function: Callable[[Path, int], np.ndarray], size: int, paths: list[Path]) -> float:
    return sum(float(function(path, size)[0, 0]) for path in paths)


def compare_preprocessing(
    images: int, size: int, workers: int, rounds: int, shape: tuple[int, int] = SHAPE
) -> dict[str, Any]:
    """Milliseconds an image of the floor and of this study, both in `workers` processes, and of the plain loop in one.

    The files are synthetic, of CMMD's size, and read from the operating system's cache.

    Args:
        images: Images a round; the plain loop prepares a quarter.
        size: Side of the result, in pixels.
        workers: Processes.
        rounds: Interleaved rounds whose median is taken.
        shape: Rows and columns of the files.
    """
    few = max(1, images // 4)
    with (
        TemporaryDirectory() as folder,
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=exit_with_parent) as pool,
    ):
        write_release(folder, n_exams=4, rows=shape[0], columns=shape[1], workers=workers)
        files = sorted(Path(folder).rglob("*.dcm"))
        paths = [files[i % len(files)] for i in range(images)]

        def run(function: Callable[[Path, int], np.ndarray]) -> None:
            list(pool.map(partial(_prepare_all, function, size), [paths[i::workers] for i in range(workers)]))

        calls = {
            "floor": partial(run, partial(prepare_at_floor, shape=shape)),
            "ours": partial(run, prepare_as_study),
            "plain": partial(_prepare_all, prepare_plainly, size, paths[:few]),
        }
        times = interleaved_medians(calls, rounds, torch.device("cpu"))
    found = {f"{name}_ms": ms / (few if name == "plain" else images) for name, ms in times.items()}
    found |= {"times_floor": found["ours_ms"] / found["floor_ms"], "rows": shape[0], "columns": shape[1]}
    return found | {"size": size, "images": images, "workers": workers, "filter": "bilinear, antialiased (Pillow)"}
