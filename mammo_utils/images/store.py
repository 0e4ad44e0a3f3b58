"""Reading the image store: every used image once, prepared, in one array on disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mammo_utils.data.cohort import DataError
from mammo_utils.io import display_path, read_json
from mammo_utils.provenance import hash_of
from mammo_utils.vocabulary import VIEWS


@dataclass(frozen=True)
class Store:
    """The prepared images of a cohort.

    Attributes:
        folder: The store's folder.
        settings: How it was built: `size`, `resize`, `content` (SHA-256 of the prepared pixels) and others.
        images: (n, size, size) uint8, chest wall at the left.
        index: One row per image, in that order: `exam`, `view`, `side`, `image`, `path`, `sha256` (of the decoded
            pixels); of the original `rows`, `columns`, `chest_wall` (its side, found in the pixels); `flipped`;
            `agrees` (the chest wall is where the side puts it); `left`, `top`, `width`, `height` (the box of the
            flipped original that is shown).
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
    """Open a store without reading its images into memory. Raises DataError if it is not complete."""
    if not all((folder / name).is_file() for name in ("store.json", "unused.parquet")):
        raise DataError(
            f"{display_path(folder)} holds no finished image store; run notebook 02_preprocessing of the study first."
        )
    return Store(
        folder,
        read_json(folder / "store.json"),
        np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False),  # copy on write: the file cannot change
        pd.read_parquet(folder / "index.parquet"),
        pd.read_csv(folder / "excluded.csv", dtype=str, keep_default_na=False),
        pd.read_parquet(folder / "unused.parquet"),
    )
