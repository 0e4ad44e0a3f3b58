"""Building the image store, in parallel and resumable.

The store holds every used image once. If one cannot be used, a second image of the same view takes its place. Unused
images, of an excluded breast for example, are hashed and not kept, because two patients who share any image are one
person, and must not be in two parts of the split. For TOMPEI-CMMD these are 330 images beside the 4,872 used; for the
cohort "annotated" some 1,500.

The images are prepared in chunks, each written atomically, so that a killed build continues after the last finished
chunk. The store's bytes depend neither on that nor on the number of workers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mammo_utils.data.assemble import COPY, SECOND
from mammo_utils.data.cohort import EXCLUDED, USED, Cohort, DataError
from mammo_utils.data.exclusions import exclude_images
from mammo_utils.data.folders import path_below
from mammo_utils.images.grey import UNREADABLE, PixelError, read_pixels
from mammo_utils.images.preprocess import BOX, pixel_hash, prepare_image
from mammo_utils.images.store import TABLES, Store, load_store
from mammo_utils.io import (
    atomic_write,
    available_cpus,
    display_path,
    folder_lock,
    map_processes,
    read_json,
    write_json,
    write_text,
)
from mammo_utils.provenance import code_hash, file_hash, hash_of
from mammo_utils.vocabulary import VIEWS

CHUNK = 64  # images
SOURCE = ["exam", "view", "side", "image", "path"]  # columns of the index: which image it is,
MEASURED = ["sha256", "rows", "columns", "flipped", "chest_wall", "agrees", "note"]  # and what preparing it found


def build_store(
    cohort: Cohort,
    folder: Path,
    *,
    size: int = 512,
    resize: str = "stretch",
    window: bool = False,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Store:
    """Build the store of the cohort's used images, or load it if it is intact and up to date.

    Images whose pixels cannot be used, or whose file has gone, are listed in the store's table `excluded`.

    Args:
        cohort: The cohort that notebook 01 saves.
        folder: Where the store is kept.
        size: Pixels per side.
        resize: "stretch", "pad" or "crop", see `preprocess.crop_box`.
        window: Whether each header's window is applied, see `grey.read_pixels`.
        workers: Number of processes, 0 for one per available CPU.
        progress: Called with the numbers of images done and in total.

    Raises:
        DataError: No image can be used, the data folder has gone, or the store cannot be written.
    """
    jobs = _list_jobs(cohort.images)
    files = _sizes_and_times(cohort.folder, jobs)
    if not any(size for size, _ in files):
        raise DataError(f"{display_path(cohort.folder)} holds none of the images that notebook 01 found; restore it.")
    code = code_hash("mammo_utils.images.preprocess")
    settings = {"size": size, "resize": resize, "window": window, "filter": "bilinear, antialiased", "code": code}
    identity = hash_of([settings, jobs, [size for size, _ in files]])
    # Times are kept in a file of their own, so that store.json does not depend on when the data were downloaded.
    sources = {"files": hash_of([identity, [time for _, time in files]])}
    writable = os.access(folder, os.W_OK) or not folder.exists()
    try:
        with folder_lock(folder) if writable else nullcontext():  # a second process waits, and then finds it finished
            store = _load_finished(folder, identity, sources)
            if store is None and not writable:
                raise DataError(f"{display_path(folder)} is read-only and holds a store of other data or settings.")
            if store is None:
                _build(cohort.folder, jobs, folder, identity, sources, settings, workers, progress)
                store = load_store(folder)
                unread = store.excluded["reason"].str.startswith(UNREADABLE).any()
                if unread or _sizes_and_times(cohort.folder, jobs) != files:
                    print("Some files could not be read, or changed meanwhile; the next build starts over.", flush=True)
                    (folder / "files.json").unlink()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise DataError(
            f"The image store {display_path(folder)} cannot be written ({reason}). Make room or "
            "change its permissions and run the same command again; the images prepared so far are kept."
        ) from error
    except BrokenProcessPool:
        raise DataError(
            "A process that prepared images was killed, probably for lack of memory. Set images.workers to a smaller "
            "number and run the same command again; the images prepared so far are kept."
        ) from None
    if store.index.empty:
        reason = store.excluded["reason"].iloc[0] if len(store.excluded) else "there is none"
        raise DataError(f"No image of {display_path(cohort.folder)} can be used; the reason for the first: {reason}.")
    return store


def _sizes_and_times(folder: Path, jobs: list[dict]) -> list[tuple[int, int]]:
    """Size in bytes and time of change of each file; zeros if it has gone."""
    found = []
    for path in (path_below(folder, row["path"]) for job in jobs for row in (job, *job["spares"])):
        try:
            facts = path.stat()
            found.append((facts.st_size, facts.st_mtime_ns))
        except OSError:
            found.append((0, 0))
    return found


def _load_finished(folder: Path, identity: str, sources: dict[str, str]) -> Store | None:
    """The store in `folder`, None if it is not finished, of other sources or damaged."""
    try:
        if read_json(folder / "store.json")["identity"] == identity and read_json(folder / "files.json") == sources:
            return load_store(folder)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as error:
        print(f"The image store is built again. {error}", flush=True)
    return None


def _build(
    source: Path,
    jobs: list[dict],
    folder: Path,
    identity: str,
    sources: dict[str, str],
    settings: dict[str, Any],
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    """Prepare the images of `jobs` in chunks and join these to the store."""
    (folder / "store.json").unlink(missing_ok=True)  # it marks a finished store, and is written last
    building = folder / f"chunks-{sources['files'][:12]}"  # named after its sources: never resumed with others
    for stale in set(folder.glob("chunks-*")) - {building}:
        shutil.rmtree(stale)
    chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
    names = [building / f"{number:05d}" for number in range(len(chunks))]
    waiting = [i for i, name in enumerate(names) if not name.with_suffix(".json").is_file()]
    done = len(jobs) - sum(len(chunks[i]) for i in waiting)
    progress(done, len(jobs))
    options = {name: settings[name] for name in ("size", "window")} | {"mode": settings["resize"]}
    tasks = [(source, chunks[i], names[i], options) for i in waiting]
    workers = min(workers or available_cpus(), len(tasks))
    for count in map_processes(_build_chunk, tasks, workers=workers):
        done += count
        progress(done, len(jobs))
    content = _join_chunks(names, folder, settings["size"])
    tables = {name: file_hash(folder / name) for name in TABLES}
    write_json(folder / "files.json", sources)
    write_json(folder / "store.json", {"identity": identity, **settings, "content": content, "tables": tables})
    shutil.rmtree(building, ignore_errors=True)  # a worker of a killed build may still be writing its chunk there


def apply_store(cohort: Cohort, store: Store) -> Cohort:
    """Exclude the images whose pixels cannot be used; a second image of the view takes the place of the first."""
    reasons = dict(zip(store.excluded["path"], store.excluded["reason"], strict=True))
    return exclude_images(cohort, reasons, replacements=set(store.index["path"])) if reasons else cohort


def _list_jobs(images: pd.DataFrame) -> list[dict]:
    """List the images to prepare, in the order of the store and each with its spare images, then those to hash."""
    # VIEWS are in alphabetical order; images of one view keep their order, the preferred one first
    images = images.sort_values(["exam", "view"], kind="stable")
    excluded = images[(images["status"] == EXCLUDED) & images["view"].isin(VIEWS)]
    read = excluded["step"] == "reading"
    second, copy = (excluded["reason"].str.startswith(text) for text in (SECOND, COPY))
    columns = [*SOURCE, "mirrored"]
    spares: dict[tuple[str, str], list[dict]] = {}
    for row in excluded.loc[read & (second | copy), columns].to_dict("records"):
        spares.setdefault((row["exam"], row["view"]), []).append(row)
    used = images.loc[images["status"] == USED, columns].to_dict("records")
    used = [{**row, "unused": False, "spares": spares.get((row["exam"], row["view"]), [])} for row in used]
    # Other images excluded on reading are copies or masks, and equal black masks would join strangers.
    unused = excluded.loc[~read | second, columns].to_dict("records")
    return used + [{**row, "unused": True, "spares": []} for row in unused]


def _build_chunk(task: tuple[Path, list[dict], Path, dict[str, Any]]) -> int:
    """Prepare the images of one chunk, write pixels and then facts, and return how many jobs it had."""
    source, jobs, name, options = task
    pixels, facts = [], []
    for job in jobs:
        if job["unused"]:
            sha256 = _hash_unused(path_below(source, job["path"]), options["window"])
            facts.append({**job, "reason": "", "sha256": sha256})
            continue
        for row in (job, *job["spares"]):  # spares are tried until one can be used
            fact = {**row, "unused": False, "spares": []}
            try:
                image = prepare_image(path_below(source, row["path"]), row["side"], mirrored=row["mirrored"], **options)
            except PixelError as error:
                facts.append({**fact, "reason": str(error)})
                continue
            pixels.append(image.pixels.tobytes())
            measured = {column: getattr(image, column) for column in MEASURED}
            facts.append({**fact, "reason": "", **measured, **dict(zip(BOX, image.box, strict=True))})
            break
    with atomic_write(name.with_suffix(".raw")) as temporary:
        temporary.write_bytes(b"".join(pixels))
    write_json(name.with_suffix(".json"), facts)  # last: it marks the chunk as finished
    return len(jobs)


def _hash_unused(path: Path, window: bool) -> str:
    """Hash an image's grey values; "" if they cannot be read or are all equal, which identifies nobody."""
    try:
        return pixel_hash(read_pixels(path, window))
    except PixelError:
        return ""


def _join_chunks(names: list[Path], folder: Path, size: int) -> str:
    """Join the chunks to the store's array and tables, and return the SHA-256 of its pixels."""
    facts = [row for name in names for row in read_json(name.with_suffix(".json"))]
    used = [row for row in facts if not row["reason"] and not row["unused"]]
    content = hashlib.sha256()
    with atomic_write(folder / "images.npy") as temporary, temporary.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(used), size, size)}
        np.lib.format.write_array_header_1_0(file, header)
        for name in names:  # one chunk at a time: all images may not fit into memory
            pixels = name.with_suffix(".raw").read_bytes()
            file.write(pixels)
            content.update(pixels)
    unused = [row for row in facts if row["unused"] and row["sha256"]]
    tables = {
        "index": pd.DataFrame(used, columns=[*SOURCE, *MEASURED, *BOX]),
        "unused": pd.DataFrame(unused, columns=["exam", "view", "path", "sha256"], dtype=object),
    }
    for name, frame in tables.items():
        with atomic_write(folder / f"{name}.parquet") as temporary:
            frame.to_parquet(temporary)
    excluded = pd.DataFrame([row for row in facts if row["reason"]], columns=["image", "path", "reason"])
    write_text(folder / "excluded.csv", excluded.to_csv(index=False))
    return content.hexdigest()
