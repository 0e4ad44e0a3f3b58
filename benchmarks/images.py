"""Preprocessing beside its floor and beside the plain way: full-size images, both cores busy, in one run."""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pydicom
from PIL import Image

from mammo_utils.images.preprocess import prepare_image
from mammo_utils.synthetic.release import write_release

ROWS, COLUMNS = 2294, 1914  # CMMD's


def floor_of(path: Path, size: int, shape: tuple[int, int] = (ROWS, COLUMNS)) -> np.ndarray:
    """The least: the file's bytes, its pixels taken from their end, the filter of the store; nothing is checked."""
    data = np.frombuffer(path.read_bytes()[-shape[0] * shape[1] :], np.uint8).reshape(shape)
    return np.asarray(Image.fromarray(data).resize((size, size), Image.Resampling.BILINEAR))


def plain(path: Path, size: int) -> np.ndarray:
    """What one writes first: pydicom, numpy and Pillow, in float, one image after the other."""
    dataset = pydicom.dcmread(path)
    image = dataset.pixel_array.astype(np.float32) / (2**dataset.BitsStored - 1)
    image = image[:, ::-1] if dataset.ImageLaterality == "R" else image
    small = Image.fromarray(np.ascontiguousarray(image)).resize((size, size), Image.Resampling.BILINEAR)
    return (np.asarray(small) * 255).round().astype(np.uint8)


def ours(path: Path, size: int) -> np.ndarray:
    return prepare_image(path, "R", size).pixels


def _work(job: tuple[Callable[[Path, int], np.ndarray], list[Path], int]) -> float:
    function, paths, size = job
    return sum(float(function(path, size)[0, 0]) for path in paths)


def compare_preprocessing(
    images: int, size: int, workers: int, rounds: int, shape: tuple[int, int] = (ROWS, COLUMNS)
) -> dict[str, Any]:
    """Milliseconds an image of the floor, of this study's preprocessing and of the plain loop (one process).

    The files are synthetic, of CMMD's size, and come from the memory of the operating system; floor and ours run
    in `workers` processes, in turn, and the median over `rounds` is taken.
    """
    folder = Path(tempfile.mkdtemp())
    try:
        write_release(
            folder, n_exams=4, rows=shape[0], columns=shape[1], seed=0, contrast=1.0, noise=1.0, null=False,
            workers=workers,
        )  # fmt: skip
        files = sorted(folder.rglob("*.dcm"))
        paths = [files[i % len(files)] for i in range(images)]
        taken: dict[str, list[float]] = {"floor": [], "ours": [], "plain": []}
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            for turn in range(rounds + 1):
                for name, function in (("floor", partial(floor_of, shape=shape)), ("ours", ours)):
                    start = time.perf_counter()
                    list(pool.map(_work, [(function, paths[i::workers], size) for i in range(workers)]))
                    taken[name].append(time.perf_counter() - start)
                start = time.perf_counter()
                _work((plain, paths[: max(1, images // 4)], size))
                taken["plain"].append((time.perf_counter() - start) * images / max(1, images // 4))
                if not turn:
                    taken = {name: [] for name in taken}  # the first round starts the processes
        found = {f"{name}_ms": 1e3 * median(times) / images for name, times in taken.items()}
        more = {"times_floor": found["ours_ms"] / found["floor_ms"], "rows": shape[0], "columns": shape[1]}
        return (
            found
            | more
            | {"size": size, "images": images, "workers": workers, "filter": "bilinear, antialiased (Pillow)"}
        )
    finally:
        shutil.rmtree(folder)
