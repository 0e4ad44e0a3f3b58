"""Reading the image store: every used image once, prepared, in one array on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mammo_utils.data.cohort import DataError
from mammo_utils.images.statistics import image_statistics
from mammo_utils.io import atomic_write, display_path, read_json, write_json
from mammo_utils.provenance import file_hash, hash_of
from mammo_utils.vocabulary import VIEWS

TABLES = ("index.parquet", "unused.parquet", "excluded.csv")  # beside images.npy and store.json
THUMBNAIL = 8  # pixels per side of a thumbnail
STATISTICS = "statistics.parquet"  # beside the thumbnails: one row per image
_intact: set[tuple[Path, int, int]] = set()  # images.npy that this process has compared with its hash: size and time


@dataclass(frozen=True)
class Store:
    """The prepared images of a cohort.

    Attributes:
        folder: The store's folder.
        settings: How it was built: `size`, `resize`, `window`, `content` (SHA-256 of the prepared pixels), `tables`
            (SHA-256 of each table's file) and others.
        images: (n, size, size) uint8, chest wall at the left.
        index: One row per image, in that order: `exam`, `view`, `side`, `image`, `path`, `sha256` (of the decoded
            pixels); of the original `rows`, `columns`, `chest_wall` (its side, found in the pixels); `flipped`;
            `agrees` (the chest wall is where the side puts it); `left`, `top`, `width`, `height` (the box of the
            flipped original that is shown); `note` (what in its header contradicts its grey values).
        excluded: `image`, `path`, `reason` of images whose pixels cannot be used.
        unused: `exam`, `view`, `path`, `sha256` of images that the cohort does not use.
    """

    folder: Path
    settings: dict[str, Any]
    images: np.ndarray
    index: pd.DataFrame
    excluded: pd.DataFrame
    unused: pd.DataFrame

    @property
    def hashes(self) -> pd.DataFrame:
        """`exam`, `view` and `sha256` of every decoded image, used or not, by which duplicates are found."""
        columns = ["exam", "view", "sha256"]
        return pd.concat([self.index[columns], self.unused[columns]], ignore_index=True)

    @cached_property
    def hash(self) -> str:
        """Hash of the content: settings, prepared pixels and, per image, exam, view and decoded pixels."""
        settings = [self.settings[name] for name in ("size", "resize", "content")]
        return hash_of([*settings, self.index[["exam", "view", "sha256"]].to_numpy().tolist()])

    def rows_of(self, exams: list[str]) -> np.ndarray:
        """Find the row of each view of VIEWS: (len(exams), 4) int64, -1 where the exam lacks the view."""
        place = {key: row for row, key in enumerate(zip(self.index["exam"], self.index["view"], strict=True))}
        rows = [[place.get((exam, view), -1) for view in VIEWS] for exam in exams]
        return np.array(rows, np.int64).reshape(-1, len(VIEWS))  # of no exam too: (0, 4)


def load_store(folder: Path) -> Store:
    """Open a store without keeping its images in memory.

    The files are compared with their hashes, the pixels once per process: 1 to 3 s for the 1.3 GB of CMMD at 512 px.

    Raises:
        DataError: The store is not finished, or a file is missing or not the one that was built.
    """
    return _load(folder, "images.npy")


def _load(folder: Path, pixels: str) -> Store:
    """Open a store, or its thumbnails; `pixels` is the name of the file of the images."""
    again = "run notebook 02_preprocessing of the study"
    if not (folder / "store.json").is_file():
        raise DataError(f"{display_path(folder)} holds no finished image store; {again} first.")
    name = "store.json"
    try:
        settings = read_json(folder / name)
        for name, digest in settings["tables"].items():
            if file_hash(folder / name) != digest:
                raise ValueError
        index, unused = (pd.read_parquet(folder / table) for table in TABLES[:2])
        excluded = pd.read_csv(folder / TABLES[2], dtype=str, keep_default_na=False)
        name, whole = pixels, pixels == "images.npy"
        # copy on write: the file cannot change
        images = np.load(folder / name, mmap_mode="c", allow_pickle=False)
        side = settings["size"] if whole else THUMBNAIL
        if images.dtype != (np.uint8 if whole else np.float32) or images.shape != (len(index), side, side):
            raise ValueError
        _check_pixels(folder / name, images.nbytes, settings["content" if whole else "thumbnails"])
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, FileNotFoundError):
        what = "damaged" if (folder / name).is_file() else "missing"
        raise DataError(f"{display_path(folder / name)} is {what}; {again} again, which renews it.") from None
    return Store(folder, settings, images, index, excluded, unused)


# --- thumbnails -----------------------------------------------------------------------------------------


def average_tiles(image: np.ndarray, side: int) -> np.ndarray:
    """Average an image (S, S) over side x side tiles: (side, side); a remainder of pixels beyond them is dropped."""
    tile = image.shape[0] // side
    if not tile:
        raise ValueError(f"Images of {image.shape[0]} pixels per side are too small for thumbnails of {side}.")
    return image[: tile * side, : tile * side].reshape(side, tile, side, tile).mean((1, 3), dtype=np.float64)


def save_thumbnails(store: Store, folder: Path) -> None:
    """Write what the evaluation needs once the store is deleted: its tables, thumbnails and statistics of its images.

    Args:
        store: The store; its images have at least `THUMBNAIL` pixels per side.
        folder: Where to write.
    """
    small = np.zeros((len(store.images), THUMBNAIL, THUMBNAIL), np.float32)
    for position, image in enumerate(store.images):
        small[position] = average_tiles(image, THUMBNAIL)
    with atomic_write(folder / "thumbnails.npy") as file, file.open("wb") as stream:
        np.save(stream, small, allow_pickle=False)
    for name in TABLES:
        with atomic_write(folder / name) as file:
            shutil.copyfile(store.folder / name, file)
    with atomic_write(folder / STATISTICS) as file:
        image_statistics(store.images).to_parquet(file)
    tables = store.settings["tables"] | {STATISTICS: file_hash(folder / STATISTICS)}
    write_json(
        folder / "store.json",
        store.settings | {"tables": tables, "thumbnails": hashlib.sha256(small.tobytes()).hexdigest()},
    )


def load_thumbnails(folder: Path) -> Store:
    """Open what `save_thumbnails` wrote: the store's tables and hash, with (n, 8, 8) float32 images from 0 to 255.

    Raises:
        DataError: As `load_store`.
    """
    return _load(folder, "thumbnails.npy")


def _check_pixels(path: Path, size: int, content: str) -> None:
    """Raise ValueError if the last `size` bytes of a file do not have the SHA-256 `content`."""
    facts = path.stat()
    key = path.resolve(), facts.st_size, facts.st_mtime_ns
    if key in _intact:
        return
    with path.open("rb") as file:
        file.seek(-size, 2)
        if hashlib.file_digest(file, "sha256").hexdigest() != content:
            raise ValueError
    _intact.add(key)


# --- geometry -----------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Outline:
    """An outlined lesion in an image of the store.

    Attributes:
        kind: One of `vocabulary.LESION_KINDS`.
        points: (n, 2), x and y in pixels.
    """

    kind: str
    points: np.ndarray

    @property
    def area(self) -> float:
        """Area in pixels of the store."""
        x, y = self.points.T
        return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def stored_outlines(lesions: pd.DataFrame, store: Store) -> dict[tuple[str, str], list[Outline]]:
    """Map the outlines of lesions to their images in the store: (exam, view) -> outlines.

    Args:
        lesions: The cohort's table of lesions; those whose image is not in the store are left out.
        store: The store.
    """
    index = store.index.set_index(["exam", "view"])
    found: dict[tuple[str, str], list[Outline]] = {}
    for lesion in lesions.itertuples():
        key = (lesion.exam, lesion.view)
        if key in index.index:
            points = to_store(np.array(json.loads(lesion.points), float), index.loc[key], store.settings["size"])
            found.setdefault(key, []).append(Outline(lesion.kind, points))
    return found
