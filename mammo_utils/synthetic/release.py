"""Write the synthetic release to disk in CMMD's and TOMPEI-CMMD's own format.

    FOLDER/
      synthetic.json                                    what it is drawn with; written first
      manifest-synthetic/metadata.csv
      manifest-synthetic/CMMD/S1-0001/07-18-2010-NA-NA-12345/1.000000-NA-67890/1-1.dcm
      TOMPEI-CMMD_v01_20250123/S1-0001_MLO_L_AnnotationFile.json
      __MACOSX/TOMPEI-CMMD_v01_20250123/._S1-0001_MLO_L_AnnotationFile.json    junk, as in the release
      CMMD_clinicaldata_revision.xlsx
      TOMPEI-CMMD_clinical_data_v01_20250121.xlsx       written last: the release is complete

An exam is a function of the settings and its number, whatever the order and the process in which it is drawn. Its
images appear at once, when their folder is moved into place, so that a killed command resumes where it stopped.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mammo_utils.io import exit_with_parent, folder_lock, read_json, write_json, write_text
from mammo_utils.provenance import code_hash
from mammo_utils.synthetic import anatomy, cases, headers, tables
from mammo_utils.synthetic.cases import Exam
from mammo_utils.synthetic.findings import LesionOutline
from mammo_utils.vocabulary import SIDES

MANIFEST = "manifest-synthetic"
DATES = ("20100718", "20110718", "20120717")
DATE_SHARES = (882 / 1772, 849 / 1772, 41 / 1772)
DRAWING = ".drawing"  # holds the exams that are being drawn


@dataclass(frozen=True)
class Settings:
    """What a release is drawn with; its pixels and UIDs are a function of these and of the exam's number.

    Attributes:
        rows, columns: Pixels of each image.
        seed: Of all that is random.
        contrast: Factor of the findings' contrast.
        noise: Factor of the pixels' noise.
        null: Whether findings are drawn without regard to the labels.
    """

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
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw `n_exams` exams into `folder` and return it; exams that are in it already are not drawn again.

    Args:
        folder: An empty or new folder, or one in which the same release was started.
        n_exams: Patients.
        rows: Pixels of each image from top to bottom (the real detector: 2294); always 215.8 mm.
        columns: Pixels from left to right (1914); always 180.1 mm.
        seed: Of all that is random.
        contrast: Factor of the findings' contrast; they are invisible at 0.
        noise: Factor of the pixels' noise; its standard deviation is two grey levels at 1.
        null: Whether to draw findings without regard to the labels.
        workers: Processes; 0 is one per core.
        progress: Called with (exams done, n_exams).

    Raises:
        ValueError: A setting is out of range, or the folder holds anything other than this release.
    """
    limits = {"n_exams": (n_exams, 1), "rows": (rows, 32), "columns": (columns, 32), "contrast": (contrast, 0)}
    for name, (value, least) in (limits | {"noise": (noise, 0), "workers": (workers, 0)}).items():
        if not value >= least:
            raise ValueError(f"{name} is {value}; it must be {least} or more.")
    folder = Path(folder)
    settings = Settings(rows, columns, seed, contrast, noise, null)
    progress = progress or (lambda done, total: None)
    _refuse_other_files(folder)
    with folder_lock(folder):
        _record_or_compare_settings(folder, {**asdict(settings), "n_exams": n_exams})
        _remove_partial_files(folder)
        exams = cases.sample_exams(n_exams, seed)
        left = [exam for exam in exams if not _exam_folder(folder, exam).is_dir()]
        if not left and (folder / tables.WORKBOOK).is_file():
            progress(n_exams, n_exams)
            return folder
        (folder / tables.ANNOTATIONS).mkdir(exist_ok=True)
        progress(n_exams - len(left), n_exams)
        for done, _ in enumerate(_draw_all(folder, left, settings, workers), start=n_exams - len(left) + 1):
            progress(done, n_exams)
        _remove_partial_files(folder)
        _write_tables(folder, exams, settings)
    return folder


def draw_exam(exam: Exam, settings: Settings) -> dict[tuple[str, str], tuple[np.ndarray, list[LesionOutline]]]:
    """Draw an exam: (side, projection) -> (image as stored, uint8 (rows, columns), outlines in its pixels)."""
    shape = (settings.rows, settings.columns)
    findings = [breast.findings for breast in exam.breasts]
    if settings.null:
        findings = list(cases.sample_null_findings(exam, settings.seed))

    def rng(*stream: int) -> np.random.Generator:
        return np.random.default_rng([settings.seed, exam.number, *stream])

    body = anatomy.sample_body(rng(2))
    drawn = {}
    for p, projection in enumerate(anatomy.PROJECTIONS):
        shared = anatomy.sample_spectrum(shape, rng(3, p))
        for breast, found in zip(exam.breasts, findings, strict=True):
            side = SIDES.index(breast.side)
            image, outlines = anatomy.draw_mammogram(
                shape,
                projection,
                body,
                exam.density,
                found,
                shared,
                rng(4, p, side),
                rng(5, side),
                rng(6, p, side),
                settings.contrast,
                settings.noise,
            )
            if breast.side == "R":  # stored with the chest wall at the right edge
                image = np.ascontiguousarray(image[:, ::-1])
                outlines = [
                    LesionOutline(o.kind, np.array([settings.columns - 1, 0]) + o.points * [-1, 1]) for o in outlines
                ]
            drawn[breast.side, projection] = (image, outlines)
    return drawn


def _refuse_other_files(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the synthetic release.")
    if folder.is_dir() and not (folder / "synthetic.json").is_file():
        others = [path.name for path in folder.iterdir() if path.name != ".lock"]
        others = [name for name in others if not name.startswith(".synthetic.json.")]
        if others:
            raise ValueError(
                f"{folder} holds other files ({sorted(others)[0]}); name an empty folder for the synthetic release."
            )


def _record_or_compare_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write what is about to be drawn, or compare it with what an earlier command wrote."""
    path = folder / "synthetic.json"
    wanted = {**settings, "code": code_hash("mammo_utils.synthetic.release")}
    if not path.is_file():
        write_json(path, {"what": f"{headers.MARK} release, drawn by mammo_utils: no patient", **wanted})
        return
    found = read_json(path)
    for name, value in wanted.items():
        if found.get(name) != value:
            how = "by other code" if name == "code" else f"with {name} {found.get(name)}, not {value}"
            raise ValueError(f"{folder} holds a synthetic release drawn {how}; delete it or name another folder.")


def _remove_partial_files(folder: Path) -> None:
    """Remove what a killed command was writing."""
    shutil.rmtree(folder / DRAWING, ignore_errors=True)
    for parent in (folder, folder / MANIFEST, folder / tables.ANNOTATIONS):
        for path in parent.glob(".*.part"):
            path.unlink(missing_ok=True)


def _make_uids(exam: Exam, settings: Settings) -> tuple[str, str]:
    """Make the UIDs of the exam's study and series."""
    return tuple(headers.make_uid(what, exam.number, *asdict(settings).values()) for what in ("study", "series"))


def _draw_date(exam: Exam, settings: Settings) -> str:
    rng = np.random.default_rng([settings.seed, exam.number, 7])
    return DATES[rng.choice(len(DATES), p=DATE_SHARES)]


def _exam_folder(folder: Path, exam: Exam) -> Path:
    return folder / MANIFEST / "CMMD" / exam.id


def _series_folder(exam: Exam, settings: Settings) -> Path:
    """The folder of the images, relative to the exam's: one exam has one study, with one series."""
    (study, series), date = _make_uids(exam, settings), _draw_date(exam, settings)
    return Path(f"{date[4:6]}-{date[6:]}-{date[:4]}-NA-NA-{study[-5:]}", f"1.000000-NA-{series[-5:]}")


def _draw_all(folder: Path, exams: list[Exam], settings: Settings, workers: int) -> Iterator[None]:
    """Draw and write exams; yield after each one."""
    write = partial(_write_exam, folder, settings)
    workers = min(workers or (os.cpu_count() or 1), max(1, len(exams) // 8))
    if workers <= 1:
        yield from map(write, exams)
        return
    context = multiprocessing.get_context("spawn")  # forking a kernel that has threads can hang
    with ProcessPoolExecutor(workers, mp_context=context, initializer=exit_with_parent) as pool:
        yield from pool.map(write, exams, chunksize=max(1, min(16, len(exams) // 50)))


def _write_exam(folder: Path, settings: Settings, exam: Exam) -> None:
    """Write one exam's annotations, then its images, all at once."""
    temporary = folder / DRAWING / exam.id
    shutil.rmtree(temporary, ignore_errors=True)
    images = temporary / _series_folder(exam, settings)
    images.mkdir(parents=True)
    study, series = _make_uids(exam, settings)
    drawn = sorted(draw_exam(exam, settings).items(), key=lambda item: item[0])
    for number, ((side, projection), (image, outlines)) in enumerate(drawn, start=1):
        headers.write_dicom(
            images / f"1-{number}.dcm",
            image,
            patient=exam.id,
            age=exam.age,
            date=_draw_date(exam, settings),
            side=side,
            projection=projection,
            number=number,
            uids=(study, series, headers.make_uid("image", side, projection, study)),
        )
        if outlines and projection == "MLO":  # the release outlines lesions in MLO only
            path = folder / tables.ANNOTATIONS / f"{exam.id}_MLO_{side}_AnnotationFile.json"
            write_text(path, tables.make_annotation(outlines, exam))
    _exam_folder(folder, exam).parent.mkdir(parents=True, exist_ok=True)
    os.replace(temporary, _exam_folder(folder, exam))


def _write_tables(folder: Path, exams: list[Exam], settings: Settings) -> None:
    """Write the tables and the junk files; the workbook last."""
    rows = []
    for exam in exams:
        images = _exam_folder(folder, exam) / _series_folder(exam, settings)
        sizes = [file.stat().st_size for file in images.glob("*.dcm")]
        uids, date = _make_uids(exam, settings), _draw_date(exam, settings)
        place = images.relative_to(folder / MANIFEST).as_posix()
        rows.append(tables.make_metadata_row(exam, uids, date, len(sizes), sum(sizes), place))
    tables.write_metadata(folder / MANIFEST / "metadata.csv", rows)
    for path in sorted((folder / tables.ANNOTATIONS).glob("*.json"))[:5]:
        junk = folder / "__MACOSX" / tables.ANNOTATIONS / f"._{path.name}"
        junk.parent.mkdir(parents=True, exist_ok=True)
        junk.write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
    tables.write_clinical_sheet(folder / tables.CLINICAL_SHEET, exams)
    tables.write_workbook(folder / tables.WORKBOOK, exams, {**asdict(settings), "n_exams": len(exams)})
