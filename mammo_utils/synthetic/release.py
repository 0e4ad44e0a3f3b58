"""Writes the synthetic release to disk in CMMD's and TOMPEI-CMMD's own format.

    FOLDER/
      synthetic.json                                    what it was drawn with; written first
      manifest-synthetic/metadata.csv
      manifest-synthetic/CMMD/S1-0001/07-18-2010-NA-NA-12345/1.000000-NA-67890/1-1.dcm
      TOMPEI-CMMD_v01_20250123/S1-0001_MLO_L_AnnotationFile.json
      __MACOSX/TOMPEI-CMMD_v01_20250123/._S1-0001_MLO_L_AnnotationFile.json    junk, as in the release
      CMMD_clinicaldata_revision.xlsx
      TOMPEI-CMMD_clinical_data_v01_20250121.xlsx       written last: the release is complete

An exam is a function of (seed, its number) and of the knobs, whoever draws it and in whatever order. Its images
appear at once, when its folder is moved into place, so that a killed command goes on where it was.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mammo_utils.io import folder_lock, read_json, write_json, write_text
from mammo_utils.provenance import code_hash
from mammo_utils.synthetic import anatomy, cases, headers, tables
from mammo_utils.synthetic.cases import Exam
from mammo_utils.synthetic.findings import Outline

LAYOUTS = ("descriptive", "rest", "flat")
DATES = ("20100718", "20110718", "20120717")
DATE_SHARES = (882 / 1772, 849 / 1772, 41 / 1772)
SMALLEST = 32  # pixels a side
DRAWING = ".drawing"


@dataclass(frozen=True)
class Settings:
    """What a release is drawn with; its pixels and UIDs are a function of these and of the exam's number."""

    rows: int
    columns: int
    seed: int
    contrast: float
    noise: float
    null: bool


def write_release(
    folder: str | Path,
    *,
    n_exams: int = 300,
    rows: int = 288,
    columns: int = 240,
    seed: int = 0,
    contrast: float = 1.0,
    noise: float = 1.0,
    null: bool = False,
    workers: int = 0,
    layout: str = "descriptive",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw `n_exams` exams into `folder` and return it; what is there already is not drawn again.

    rows, columns: pixels of each image (the real detector: 2294 x 1914); the picture is always 215.8 x 180.1 mm.
    contrast: of the findings, 1 as tuned, 0 none. noise: of the pixels, 1 = two grey levels. null: the findings
    are drawn without regard to the labels. workers: processes, 0 = one per core. layout: "descriptive"
    (downloader), "rest" (REST client) or "flat". progress: called with (exams done, n_exams).

    Raises ValueError, in one sentence, for a knob out of range and for a folder that holds anything else than
    this release, finished or not.
    """
    _check(n_exams, rows, columns, contrast, noise, workers, layout)
    folder = Path(folder)
    settings = Settings(rows, columns, seed, contrast, noise, null)
    progress = progress or (lambda done, total: None)
    _check_folder(folder)
    with folder_lock(folder):
        _claim(folder, {**asdict(settings), "n_exams": n_exams, "layout": layout})
        _sweep(folder)
        exams = cases.exams_of(n_exams, seed)
        left = [exam for exam in exams if not _place(folder, exam, settings, layout).is_dir()]
        if not left and (folder / tables.WORKBOOK).is_file():
            progress(n_exams, n_exams)
            return folder
        (folder / tables.ANNOTATIONS).mkdir(exist_ok=True)
        done = n_exams - len(left)
        progress(done, n_exams)
        for _ in _draw_all(folder, left, settings, layout, workers):
            done += 1
            progress(done, n_exams)
        _sweep(folder)
        _finish(folder, exams, settings, layout)
    return folder


def draw_exam(exam: Exam, settings: Settings) -> dict[tuple[str, str], tuple[np.ndarray, list[Outline]]]:
    """Draw an exam: (side, view) -> (image as it is stored, uint8 (rows, columns), outlines in its pixels)."""
    shape = (settings.rows, settings.columns)
    findings = [breast.findings for breast in exam.breasts]
    if settings.null:
        findings = list(cases.findings_without_signal(exam, settings.seed))

    def rng(*stream: int) -> np.random.Generator:
        return np.random.default_rng([settings.seed, exam.number, *stream])

    body = anatomy.body_of(rng(2))
    drawn = {}
    for v, view in enumerate(anatomy.VIEWS):
        shared = anatomy.spectrum_of(shape, rng(3, v))
        for breast, found in zip(exam.breasts, findings, strict=True):
            side = cases.SIDES.index(breast.side)
            image, outlines = anatomy.draw(
                shape,
                view,
                body,
                exam.density,
                found,
                shared,
                rng(4, v, side),
                rng(5, side),
                rng(6, v, side),
                settings.contrast,
                settings.noise,
            )
            if breast.side == "R":  # stored with the chest wall at the right edge
                image = np.ascontiguousarray(image[:, ::-1])
                outlines = [Outline(o.kind, np.array([settings.columns - 1, 0]) + o.points * [-1, 1]) for o in outlines]
            drawn[breast.side, view] = (image, outlines)
    return drawn


def _check(n_exams: int, rows: int, columns: int, contrast: float, noise: float, workers: int, layout: str) -> None:
    for name, value, least in (
        ("n_exams", n_exams, 1),
        ("rows", rows, SMALLEST),
        ("columns", columns, SMALLEST),
        ("contrast", contrast, 0),
        ("noise", noise, 0),
        ("workers", workers, 0),
    ):
        if not value >= least:
            raise ValueError(f"{name} is {value}; it must be {least} or more.")
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}.")


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else: the synthetic release never mixes with other files."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the synthetic release.")
    if folder.is_dir() and not (folder / "synthetic.json").is_file():
        others = [path.name for path in folder.iterdir() if path.name != ".lock"]
        others = [name for name in others if not name.startswith(".synthetic.json.")]
        if others:
            raise ValueError(
                f"{folder} holds other files ({sorted(others)[0]}); name an empty folder for the synthetic release."
            )


def _claim(folder: Path, knobs: dict[str, Any]) -> None:
    """Write what is about to be drawn, or hold it against what an earlier command wrote."""
    path = folder / "synthetic.json"
    wanted = {**knobs, "code": code_hash("mammo_utils.synthetic.release")}
    if not path.is_file():
        write_json(path, {"what": f"{headers.MARK} release, drawn by mammo_utils: no patient", **wanted})
        return
    found = read_json(path)
    for name, value in wanted.items():
        if found.get(name) != value:
            was = "by other code" if name == "code" else f"with {name} {found.get(name)}, not {value}"
            raise ValueError(f"{folder} holds a synthetic release drawn {was}; delete it or name another folder.")


def _sweep(folder: Path) -> None:
    """Remove what a killed command left half written."""
    shutil.rmtree(folder / DRAWING, ignore_errors=True)
    for place in (folder, folder / "manifest-synthetic", folder / tables.ANNOTATIONS):
        for path in place.glob(".*.part"):
            path.unlink(missing_ok=True)


def _uids(exam: Exam, settings: Settings) -> tuple[str, str]:
    """UIDs of the exam's study and series."""
    return tuple(headers.uid_of(what, exam.number, *asdict(settings).values()) for what in ("study", "series"))


def _date(exam: Exam, settings: Settings) -> str:
    rng = np.random.default_rng([settings.seed, exam.number, 7])
    return DATES[rng.choice(len(DATES), p=DATE_SHARES)]


def _images(folder: Path, exam: Exam, settings: Settings, layout: str) -> Path:
    """The folder of an exam's images; one exam has one study, and this one series."""
    study, series = _uids(exam, settings)
    if layout == "rest":
        return folder / "tciaDownload" / series
    if layout == "flat":
        return folder / "CMMD" / study
    date = _date(exam, settings)
    first = f"{date[4:6]}-{date[6:]}-{date[:4]}-NA-NA-{study[-5:]}"
    return folder / "manifest-synthetic" / "CMMD" / exam.id / first / f"1.000000-NA-{series[-5:]}"


def _place(folder: Path, exam: Exam, settings: Settings, layout: str) -> Path:
    """The folder that is moved into place when the exam is drawn."""
    images = _images(folder, exam, settings, layout)
    return images.parents[1] if layout == "descriptive" else images


def _draw_all(folder: Path, exams: list[Exam], settings: Settings, layout: str, workers: int) -> Iterator[None]:
    """Draw exams, yielding after each one."""
    workers = min(workers or (os.cpu_count() or 1), max(1, len(exams) // 8))
    if workers <= 1:
        for exam in exams:
            yield _write_exam(folder, exam, settings, layout)
        return
    n = len(exams)
    # spawned, for forking a kernel that has threads can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        yield from pool.map(
            _write_exam, [folder] * n, exams, [settings] * n, [layout] * n, chunksize=max(1, min(16, n // 50))
        )


def _end_with_parent() -> None:
    """Leave when the process that asked is gone: a killed command must not leave workers behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _write_exam(folder: Path, exam: Exam, settings: Settings, layout: str) -> None:
    """Write one exam's annotations, then its images, all at once."""
    drawn = draw_exam(exam, settings)
    place, images = _place(folder, exam, settings, layout), _images(folder, exam, settings, layout)
    temporary = folder / DRAWING / exam.id
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / images.relative_to(place)).mkdir(parents=True)
    study, series = _uids(exam, settings)
    for number, ((side, view), (image, outlines)) in enumerate(sorted(drawn.items()), start=1):
        name = f"{number:08d}.dcm" if layout == "rest" else f"1-{number}.dcm"
        headers.write_dicom(
            temporary / images.relative_to(place) / name,
            image,
            patient=exam.id,
            age=exam.age,
            date=_date(exam, settings),
            side=side,
            view=view,
            number=number,
            uids=(study, series, headers.uid_of("image", side, view, study)),
        )
        if outlines and view == "MLO":  # the release outlines lesions in this view alone
            path = folder / tables.ANNOTATIONS / f"{exam.id}_MLO_{side}_AnnotationFile.json"
            write_text(path, tables.annotation(outlines, exam))
    place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(temporary, place)


def _finish(folder: Path, exams: list[Exam], settings: Settings, layout: str) -> None:
    """Write the tables and the junk files; the workbook last."""
    rows = []
    manifest = folder / "manifest-synthetic"
    for exam in exams:
        images = _images(folder, exam, settings, layout)
        files = list(images.glob("*.dcm"))
        size = sum(file.stat().st_size for file in files)
        location = os.path.relpath(images, manifest) if layout == "descriptive" else images.name
        date = _date(exam, settings)
        rows.append(tables.metadata_row(exam, _uids(exam, settings), date, len(files), size, location))
    beside = manifest if layout == "descriptive" else folder
    tables.write_metadata(beside / "metadata.csv", rows)
    annotations = sorted((folder / tables.ANNOTATIONS).glob("*.json"))
    for path in annotations[:5]:
        junk = folder / "__MACOSX" / tables.ANNOTATIONS / f"._{path.name}"
        junk.parent.mkdir(parents=True, exist_ok=True)
        junk.write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
    tables.write_clinical_sheet(folder / tables.CLINICAL_SHEET, exams)
    knobs = {**asdict(settings), "n_exams": len(exams)}
    tables.write_workbook(folder / tables.WORKBOOK, exams, knobs)
