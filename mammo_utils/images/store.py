"""The image store: every used image once, as one array on disk, built in parallel and resumable.

A part of PART images is written whole; a build that was killed goes on after the parts that are there. The
result is the same to the byte whatever the number of workers.

Images that are not used (of an excluded breast, say) belong to persons too, and two patients who share one are one:
their pixels are hashed and not kept. That is decoding alone: of TOMPEI-CMMD 330 images more than the 4,872 used, of
the cohort "annotated" some 1,500. Of two images of one view the second takes the place of a first that cannot be used.
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

from mammo_utils.data.assemble import COPY, SECOND
from mammo_utils.data.exams import SET_ASIDE, USED, VIEWS, Cohort, DataError
from mammo_utils.data.fates import without_images
from mammo_utils.files import code_hash, folder_lock, hash_of, read_json, shown, write_json, write_text, write_whole
from mammo_utils.images.geometry import BOX
from mammo_utils.images.pixels import PixelError, decode, digest_of, prepare

PART = 64  # images


@dataclass(frozen=True)
class Store:
    """images: (n, size, size) uint8, chest wall at the left. index: one row an image, in that order: exam, view,
    image, path, sha256 (of the decoded pixels), rows, columns (of the original), flipped, chest_wall, agrees
    (whether the chest wall lies where the side puts it, so that it is at the left now), left, top, width, height (the
    box of the flipped original that is shown, see images.geometry). set_aside: image, path, reason. unused: exam,
    view, path, sha256 of images that the cohort does not use.
    """

    folder: Path
    settings: dict[str, Any]
    images: np.ndarray
    index: pd.DataFrame
    set_aside: pd.DataFrame
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
    wanted = _wanted(cohort.images)
    files = [(cohort.folder / path).stat() for row in wanted for path in (row["path"], *_paths(row["spares"]))]
    sizes, times = [file.st_size for file in files], [file.st_mtime_ns for file in files]
    settings = {"size": size, "resize": resize, "filter": "bilinear, antialiased", "code": code_hash("images")}
    identity = hash_of([settings, wanted, sizes])
    made_of = {"files": hash_of([identity, times])}  # in a file of its own: the store is the same whenever it is built
    with folder_lock(folder):
        if all((folder / name).is_file() for name in ("store.json", "files.json")):
            if read_json(folder / "store.json")["identity"] == identity and read_json(folder / "files.json") == made_of:
                return load_store(folder)
        (folder / "store.json").unlink(missing_ok=True)
        parts = folder / f"parts-{made_of['files'][:12]}"
        for stale in folder.glob("parts-*"):
            if stale != parts:
                shutil.rmtree(stale)
        chunks = [wanted[start : start + PART] for start in range(0, len(wanted), PART)]
        _build_parts(cohort.folder, chunks, parts, (size, resize), workers, progress)
        _join(parts, len(chunks), folder, size)
        write_json(folder / "files.json", made_of)
        write_json(folder / "store.json", {"identity": identity, **settings})
        shutil.rmtree(parts, ignore_errors=True)  # a worker of a killed build may be writing its last part there
    store = load_store(folder)
    if not len(store.index):
        reason = store.set_aside["reason"].iloc[0] if len(store.set_aside) else "there is none"
        raise DataError(f"Not one image of {shown(cohort.folder)} can be used; the first: {reason}.")
    return store


def load_store(folder: Path) -> Store:
    """Open a store; its images are a memory map that no write reaches. Raises DataError where it is not complete."""
    if not all((folder / name).is_file() for name in ("store.json", "unused.parquet")):
        raise DataError(
            f"{shown(folder)} holds no finished image store; run notebook 02_preprocessing of the study first."
        )
    return Store(
        folder,
        read_json(folder / "store.json"),
        np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False),
        pd.read_parquet(folder / "index.parquet"),
        pd.read_csv(folder / "set_aside.csv", dtype=str, keep_default_na=False),
        pd.read_parquet(folder / "unused.parquet"),
    )


def apply_store(cohort: Cohort, store: Store) -> Cohort:
    """The cohort without the images whose pixels could not be used, with those that took their place, and without
    what had no other image."""
    reasons = dict(zip(store.set_aside["path"], store.set_aside["reason"], strict=True))
    return without_images(cohort, reasons, instead=set(store.index["path"])) if reasons else cohort


# --- building -------------------------------------------------------------------------------------------


def _wanted(images: pd.DataFrame) -> list[dict]:
    """The images to prepare, in the order of the store, each with its `spares`; then those to hash alone."""
    order = {view: position for position, view in enumerate(VIEWS)}
    images = images.sort_values(
        ["exam", "view", "image", "path"], key=lambda c: c.map(order) if c.name == "view" else c, kind="stable"
    )
    columns = ["exam", "view", "side", "image", "path", "mirrored"]
    aside = images[(images["fate"] == SET_ASIDE) & images["view"].isin(VIEWS)]
    beside = aside[(aside["step"] == "reading") & aside["reason"].str.startswith((SECOND, COPY))]
    spares: dict[tuple[str, str], list[dict]] = {}
    for row in beside[columns].to_dict("records"):
        spares.setdefault((row["exam"], row["view"]), []).append(row)
    used = images.loc[images["fate"] == USED, columns].to_dict("records")
    used = [row | {"spares": spares.get((row["exam"], row["view"]), []), "unused": False} for row in used]
    # what was set aside while reading is a copy, or a mask, and black masks would make twins of strangers
    others = aside[(aside["step"] != "reading") | aside["reason"].str.startswith(SECOND)]
    return used + [row | {"spares": [], "unused": True} for row in others[columns].to_dict("records")]


def _paths(rows: list[dict]) -> list[str]:
    return [row["path"] for row in rows]


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
    for wanted in rows:
        if wanted["unused"]:
            facts.append({**wanted, "reason": "", "sha256": _digest(source / wanted["path"])})
            continue
        for row in ({**wanted, "spares": []}, *wanted["spares"]):
            try:
                picture = prepare(source / row["path"], row["side"], size, row["mirrored"], resize)
            except PixelError as error:
                facts.append({**row, "unused": False, "reason": str(error)})
                continue
            pictures.append(picture.grey)
            facts.append(
                {
                    **row,
                    "unused": False,
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
            break  # its spares are not needed
    with write_whole(part.with_suffix(".npy")) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(pictures, np.uint8).reshape(-1, size, size))
    write_json(part.with_suffix(".json"), facts)
    return len(rows)


def _digest(path: Path) -> str:
    """The hash of an image's pixels; "" where they cannot be read or are all alike, which says nothing of a person."""
    try:
        values, bits, photometric = decode(path)
    except PixelError:
        return ""
    return digest_of(values, bits, photometric) if values.min() < values.max() else ""


def _join(parts: Path, count: int, folder: Path, size: int) -> None:
    """Put the parts together: the array, the index and the list of what was set aside."""
    facts = [row for number in range(count) for row in read_json(parts / f"{number:05d}.json")]
    used = [row for row in facts if not row["reason"] and not row["unused"]]
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
    unused = [row for row in facts if row["unused"] and row["sha256"]]
    with write_whole(folder / "unused.parquet") as temporary:
        pd.DataFrame(unused, columns=["exam", "view", "path", "sha256"], dtype=object).to_parquet(temporary)
    lost = pd.DataFrame([row for row in facts if row["reason"]], columns=["image", "path", "reason"])
    write_text(folder / "set_aside.csv", lost.to_csv(index=False))
