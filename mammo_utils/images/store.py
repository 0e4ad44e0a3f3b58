"""The image store: every used image once, as one array on disk, built in parallel and resumable.

A part of PART images is written whole; a build that was killed goes on after the parts that are there. The
result is the same to the byte whatever the number of workers.

Images that are not used (of an excluded breast, say) belong to persons too, and two patients who share one are one:
their pixels are hashed and not kept. That is decoding alone: of TOMPEI-CMMD 330 images more than the 4,872 used, of
the cohort "annotated" some 1,500. Of two images of one view the second takes the place of a first that cannot be used.
"""

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
    """images: (n, size, size) uint8, chest wall at the left. index: one row an image, in that order: exam, view,
    image, path, sha256 (of the decoded pixels), rows, columns (of the original), flipped, chest_wall, agrees
    (whether the chest wall lies where the side puts it, so that it is at the left now), left, top, width, height (the
    box of the flipped original that is shown, see images.geometry). excluded: image, path, reason. unused: exam,
    view, path, sha256 of images that the cohort does not use.
    """

    folder: Path
    settings: dict[str, Any]
    images: np.ndarray
    index: pd.DataFrame
    excluded: pd.DataFrame
    unused: pd.DataFrame

    @property
    def hashes(self) -> pd.DataFrame:
        """exam, view, sha256 of every image whose pixels were read, used or not: what tells twins."""
        columns = ["exam", "view", "sha256"]
        return pd.concat([self.index[columns], self.unused[columns]], ignore_index=True)

    @cached_property
    def hash(self) -> str:
        """Of the content: the size, what was resized and, for each image, exam, view and pixels."""
        return hash_of(
            [self.settings["size"], self.settings["resize"], self.index[["exam", "view", "sha256"]].to_numpy().tolist()]
        )

    def rows_of(self, exams: list[str]) -> np.ndarray:
        """(len(exams), 4) int64, the row of each view of VIEWS, -1 where there is no image."""
        place = {key: row for row, key in enumerate(zip(self.index["exam"], self.index["view"], strict=True))}
        rows = [[place.get((exam, view), -1) for view in VIEWS] for exam in exams]
        return np.array(rows, np.int64).reshape(-1, len(VIEWS))


def load_store(folder: Path) -> Store:
    """Open a store; its images are a memory map that no write reaches. Raises DataError where it is not complete."""
    if not all((folder / name).is_file() for name in ("store.json", "unused.parquet")):
        raise DataError(
            f"{display_path(folder)} holds no finished image store; run notebook 02_preprocessing of the study first."
        )
    return Store(
        folder,
        read_json(folder / "store.json"),
        np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False),
        pd.read_parquet(folder / "index.parquet"),
        pd.read_csv(folder / "excluded.csv", dtype=str, keep_default_na=False),
        pd.read_parquet(folder / "unused.parquet"),
    )
