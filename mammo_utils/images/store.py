"""The image store: every used image once, as one array on disk, built in parallel and resumable.

A part of PART images is written whole; a build that was killed goes on after the parts that are there. The
result is the same to the byte whatever the number of workers.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mammo_utils.data.exams import USED, VIEWS, Cohort, DataError
from mammo_utils.data.fates import without_images
from mammo_utils.files import code_hash, folder_lock, hash_of, read_json, shown, write_json, write_text, write_whole
from mammo_utils.images.geometry import BOX
from mammo_utils.images.pixels import PixelError, prepare

PART = 64  # images


@dataclass(frozen=True)
class Store:
    """images: (n, size, size) uint8, chest wall at the left. index: one row an image, in that order: exam, view,
    image, path, sha256 (of the decoded pixels), rows, columns (of the original), flipped, chest_wall, agrees
    (whether the chest wall lies where the side puts it, so that it is at the left now), left, top, width, height (the
    box of the flipped original that is shown, see images.geometry). set_aside: image, path, reason.
    """

    folder: Path
    settings: dict[str, Any]
    images: np.ndarray
    index: pd.DataFrame
    set_aside: pd.DataFrame

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


def build_store(
    cohort: Cohort,
    folder: Path,
    *,
    size: int = 512,
    resize: str = "stretch",
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Store:
    """Build the store of the cohort's used images in `folder`, or read it where it is already there.

    size: pixels a side; resize: "stretch", "pad" or "crop", see images.geometry.box_of; workers: processes, 0 for
    one a core. An image whose pixels cannot be used is listed in set_aside with its reason, and the build goes on.
    Raises DataError where not one image can be used.
    """
    wanted = cohort.images[cohort.images["fate"] == USED]
    order = {view: position for position, view in enumerate(VIEWS)}
    wanted = wanted.sort_values(["exam", "view"], key=lambda c: c.map(order) if c.name == "view" else c)
    wanted = wanted[["exam", "view", "side", "image", "path", "mirrored"]].to_dict("records")
    sizes = [(cohort.folder / row["path"]).stat().st_size for row in wanted]
    settings = {"size": size, "resize": resize, "filter": "bilinear, antialiased", "code": code_hash("images")}
    identity = hash_of([settings, wanted, sizes])
    with folder_lock(folder):
        if (folder / "store.json").is_file() and read_json(folder / "store.json")["identity"] == identity:
            if not _repaired(cohort.folder, folder):
                return load_store(folder)
            (folder / "store.json").unlink()
        parts = folder / f"parts-{identity[:12]}"
        for stale in folder.glob("parts-*"):
            if stale != parts:
                shutil.rmtree(stale)
        chunks = [wanted[start : start + PART] for start in range(0, len(wanted), PART)]
        _build_parts(cohort.folder, chunks, parts, (size, resize), workers, progress)
        _join(parts, len(chunks), folder, size)
        write_json(folder / "store.json", {"identity": identity, **settings})
        shutil.rmtree(parts)
    store = load_store(folder)
    if not len(store.index):
        reason = store.set_aside["reason"].iloc[0] if len(store.set_aside) else "there is none"
        raise DataError(f"Not one image of {shown(cohort.folder)} can be used; the first: {reason}.")
    return store


def _repaired(source: Path, folder: Path) -> bool:
    """Whether a file that could not be used was put there anew; its size, part of the identity, may be the same."""
    built = (folder / "store.json").stat().st_mtime_ns
    paths = pd.read_csv(folder / "set_aside.csv", dtype=str, keep_default_na=False)["path"]
    return any((source / path).stat().st_mtime_ns > built for path in paths)


def load_store(folder: Path) -> Store:
    """Open a store; its images are a memory map that no write reaches. Raises DataError where it is not complete."""
    if not (folder / "store.json").is_file():
        raise DataError(
            f"{shown(folder)} holds no finished image store; run notebook 02_preprocessing of the study first."
        )
    return Store(
        folder,
        read_json(folder / "store.json"),
        np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False),
        pd.read_parquet(folder / "index.parquet"),
        pd.read_csv(folder / "set_aside.csv", dtype=str, keep_default_na=False),
    )


def apply_store(cohort: Cohort, store: Store) -> Cohort:
    """The cohort without the images whose pixels could not be used, and without what had no other image."""
    reasons = dict(zip(store.set_aside["image"], store.set_aside["reason"], strict=True))
    return without_images(cohort, reasons) if reasons else cohort


# --- building -------------------------------------------------------------------------------------------


def _build_parts(
    source: Path,
    chunks: list[list[dict]],
    parts: Path,
    shape: tuple[int, str],
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    total = sum(map(len, chunks))
    waiting = [number for number in range(len(chunks)) if not (parts / f"{number:05d}.json").is_file()]
    done = total - sum(len(chunks[number]) for number in waiting)
    progress(done, total)
    jobs = [(source, chunks[number], parts / f"{number:05d}", shape) for number in waiting]
    for count in _spread(jobs, workers or os.cpu_count() or 1):
        done += count
        progress(done, total)


def _spread(jobs: list[tuple], workers: int) -> Iterator[int]:
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from (_build_part(job) for job in jobs)
        return
    # fresh processes: a fork of a kernel with torch's or numba's threads can hang
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_build_part, jobs)


def _build_part(job: tuple[Path, list[dict], Path, tuple[int, str]]) -> int:
    """Write one part, its images then its facts, and return how many images it was asked for."""
    source, rows, part, (size, resize) = job
    pictures, facts = [], []
    for row in rows:
        try:
            picture = prepare(source / row["path"], row["side"], size, row["mirrored"], resize)
        except PixelError as error:
            facts.append({**row, "reason": str(error)})
            continue
        pictures.append(picture.grey)
        facts.append(
            {
                **row,
                "reason": "",
                "sha256": picture.sha256,
                "rows": picture.rows,
                "columns": picture.columns,
                "flipped": picture.flipped,
                "chest_wall": picture.chest_wall,
                "agrees": (picture.chest_wall == "right") == picture.flipped,
                **dict(zip(BOX, picture.box, strict=True)),
            }
        )
    with write_whole(part.with_suffix(".npy")) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(pictures, np.uint8).reshape(-1, size, size))
    write_json(part.with_suffix(".json"), facts)
    return len(rows)


def _join(parts: Path, count: int, folder: Path, size: int) -> None:
    """Put the parts together: the array, the index and the list of what was set aside."""
    facts = [row for number in range(count) for row in read_json(parts / f"{number:05d}.json")]
    used = [{k: v for k, v in row.items() if k != "reason"} for row in facts if not row["reason"]]
    shape = (len(used), size, size)
    with write_whole(folder / "images.npy") as temporary:
        with temporary.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for number in range(count):
                np.load(parts / f"{number:05d}.npy", allow_pickle=False).tofile(file)
    columns = ["exam", "view", "side", "image", "path", "sha256", "rows", "columns", "flipped", "chest_wall", "agrees"]
    columns += BOX
    with write_whole(folder / "index.parquet") as temporary:
        pd.DataFrame(used, columns=columns).to_parquet(temporary)
    lost = pd.DataFrame([row for row in facts if row["reason"]], columns=["image", "path", "reason"])
    write_text(folder / "set_aside.csv", lost.to_csv(index=False))
