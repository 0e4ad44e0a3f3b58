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
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_utils.data.assemble import COPY, SECOND
from mammo_utils.data.cohort import EXCLUDED, USED, Cohort, DataError
from mammo_utils.data.exclusions import exclude_images
from mammo_utils.images.preprocess import BOX, PixelError, pixel_hash, prepare_image, read_pixels
from mammo_utils.images.store import Store, load_store
from mammo_utils.io import atomic_write, display_path, folder_lock, read_json, write_json, write_text
from mammo_utils.provenance import code_hash, hash_of
from mammo_utils.vocabulary import VIEWS

PART = 64  # images


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
    one a core. An image whose pixels cannot be used is listed in excluded with its reason, and the build goes on.
    Raises DataError where not one image can be used.
    """
    wanted = _wanted(cohort.images)
    files = [(cohort.folder / path).stat() for row in wanted for path in (row["path"], *_paths(row["spares"]))]
    sizes, times = [file.st_size for file in files], [file.st_mtime_ns for file in files]
    settings = {
        "size": size,
        "resize": resize,
        "filter": "bilinear, antialiased",
        "code": code_hash("mammo_utils.images.preprocess"),
    }
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
        reason = store.excluded["reason"].iloc[0] if len(store.excluded) else "there is none"
        raise DataError(f"Not one image of {display_path(cohort.folder)} can be used; the first: {reason}.")
    return store


def apply_store(cohort: Cohort, store: Store) -> Cohort:
    """The cohort without the images whose pixels could not be used, with those that took their place, and without
    what had no other image."""
    reasons = dict(zip(store.excluded["path"], store.excluded["reason"], strict=True))
    return exclude_images(cohort, reasons, instead=set(store.index["path"])) if reasons else cohort


# --- building -------------------------------------------------------------------------------------------


def _wanted(images: pd.DataFrame) -> list[dict]:
    """The images to prepare, in the order of the store, each with its `spares`; then those to hash alone."""
    order = {view: position for position, view in enumerate(VIEWS)}
    images = images.sort_values(
        ["exam", "view", "image", "path"], key=lambda c: c.map(order) if c.name == "view" else c, kind="stable"
    )
    columns = ["exam", "view", "side", "image", "path", "mirrored"]
    aside = images[(images["status"] == EXCLUDED) & images["view"].isin(VIEWS)]
    beside = aside[(aside["step"] == "reading") & aside["reason"].str.startswith((SECOND, COPY))]
    spares: dict[tuple[str, str], list[dict]] = {}
    for row in beside[columns].to_dict("records"):
        spares.setdefault((row["exam"], row["view"]), []).append(row)
    used = images.loc[images["status"] == USED, columns].to_dict("records")
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
                picture = prepare_image(source / row["path"], row["side"], size, row["mirrored"], resize)
            except PixelError as error:
                facts.append({**row, "unused": False, "reason": str(error)})
                continue
            pictures.append(picture.pixels)
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
    with atomic_write(part.with_suffix(".npy")) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(pictures, np.uint8).reshape(-1, size, size))
    write_json(part.with_suffix(".json"), facts)
    return len(rows)


def _digest(path: Path) -> str:
    """The hash of an image's pixels; "" where they cannot be read or are all alike, which says nothing of a person."""
    try:
        values, bits, photometric = read_pixels(path)
    except PixelError:
        return ""
    return pixel_hash(values, bits, photometric) if values.min() < values.max() else ""


def _join(parts: Path, count: int, folder: Path, size: int) -> None:
    """Put the parts together: the array, the index and the list of what was set aside."""
    facts = [row for number in range(count) for row in read_json(parts / f"{number:05d}.json")]
    used = [row for row in facts if not row["reason"] and not row["unused"]]
    shape = (len(used), size, size)
    with atomic_write(folder / "images.npy") as temporary:
        with temporary.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for number in range(count):
                np.load(parts / f"{number:05d}.npy", allow_pickle=False).tofile(file)
    columns = ["exam", "view", "side", "image", "path", "sha256", "rows", "columns", "flipped", "chest_wall", "agrees"]
    columns += BOX
    with atomic_write(folder / "index.parquet") as temporary:
        pd.DataFrame(used, columns=columns).to_parquet(temporary)
    unused = [row for row in facts if row["unused"] and row["sha256"]]
    with atomic_write(folder / "unused.parquet") as temporary:
        pd.DataFrame(unused, columns=["exam", "view", "path", "sha256"], dtype=object).to_parquet(temporary)
    lost = pd.DataFrame([row for row in facts if row["reason"]], columns=["image", "path", "reason"])
    write_text(folder / "excluded.csv", lost.to_csv(index=False))
