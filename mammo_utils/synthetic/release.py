"""Writes the synthetic release to disk in CMMD's and TOMPEI-CMMD's own format.

    FOLDER/
      synthetic.json                                    its settings; written first
      manifest-synthetic/metadata.csv
      manifest-synthetic/CMMD/S1-0001/07-18-2010-NA-NA-12345/1.000000-NA-67890/1-1.dcm
      TOMPEI-CMMD_v01_20250123/S1-0001_MLO_L_AnnotationFile.json
      __MACOSX/TOMPEI-CMMD_v01_20250123/._S1-0001_MLO_L_AnnotationFile.json    junk, as in the release
      CMMD_clinicaldata_revision.xlsx
      TOMPEI-CMMD_clinical_data_v01_20250121.xlsx       written last: the release is complete

An exam is a function of its number and of the settings, whatever the number and order of the processes. Its images
appear at once, when its folder is moved into place, so that the same command continues after an interruption.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mammo_utils.io import available_cpus, folder_lock, map_processes, read_json, write_json, write_text
from mammo_utils.provenance import code_hash
from mammo_utils.synthetic import headers, tables
from mammo_utils.synthetic.anatomy import draw_exam
from mammo_utils.synthetic.cases import VISIBLE, Exam, Settings, exams_of

MANIFEST = "manifest-synthetic"
UNFINISHED = ".drawing"  # folder of the exams that are being drawn


def write_release(
    folder: str | Path,
    *,
    n_exams: int = 300,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Path:
    """Draw a release, or the rest of one that was interrupted.

    Args:
        folder: A new or an empty folder, or one with this release.
        n_exams: Number of patients.
        workers: Number of processes; 0 starts one per available CPU.
        progress: Called with (exams done, n_exams).
        **settings: Attributes of `Settings`.

    Returns:
        The folder.

    Raises:
        ValueError: A setting is out of range, or the folder holds other files or another release.
    """
    settings = Settings(**settings)
    least = {"n_exams": 1, "rows": 32, "columns": 32, "contrast": 0, "noise": 0, "workers": 0}
    for name, value in {**asdict(settings), "n_exams": n_exams, "workers": workers}.items():
        if name in least and not value >= least[name]:
            raise ValueError(f"{name} is {value}; it must be {least[name]} or more.")
    for name in ("difficulty", "bilateral"):
        value = getattr(settings, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it must be 0 to 1.")
    if settings.visible not in VISIBLE:
        raise ValueError(f"visible is {settings.visible}; it must be {', '.join(VISIBLE)}.")
    folder = Path(folder)
    progress = progress or (lambda done, total: None)
    _check_folder(folder)
    with folder_lock(folder):
        _record_settings(folder, {**asdict(settings), "n_exams": n_exams, "layout": "descriptive"})
        _remove_unfinished(folder)
        exams = exams_of(n_exams, settings.seed, settings.bilateral)
        left = [exam for exam in exams if not (folder / MANIFEST / "CMMD" / exam.id).is_dir()]
        if not left and (folder / tables.WORKBOOK).is_file():
            progress(n_exams, n_exams)
            return folder
        (folder / tables.ANNOTATIONS).mkdir(exist_ok=True)
        finished = n_exams - len(left)
        progress(finished, n_exams)
        for done, _ in enumerate(_write_exams(folder, left, settings, workers), finished + 1):
            progress(done, n_exams)
        _remove_unfinished(folder)
        _write_tables(folder, exams, settings)
    return folder


def _check_folder(folder: Path) -> None:
    """Refuse a folder with other files: a synthetic release must never mix with real images."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the synthetic release.")
    if folder.is_dir() and not (folder / "synthetic.json").is_file():
        names = sorted(path.name for path in folder.iterdir())
        others = [name for name in names if name != ".lock" and not name.startswith(".synthetic.json.")]
        if others:
            raise ValueError(f"{folder} holds other files ({others[0]}); name an empty folder for the release.")


def _record_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings, or compare them with those of an earlier command."""
    path = folder / "synthetic.json"
    settings = {**settings, "code": code_hash("mammo_utils.synthetic.release")}
    if not path.is_file():
        write_json(path, {"what": f"{headers.MARK} release, drawn by mammo_utils: no patient", **settings})
        return
    found = read_json(path)
    for name, value in settings.items():
        if found.get(name) != value:
            how = "by other code" if name == "code" else f"with {name} {found.get(name)}, not {value}"
            raise ValueError(f"{folder} holds a synthetic release drawn {how}; delete it or name another folder.")


def _remove_unfinished(folder: Path) -> None:
    """Remove what a killed command left incomplete."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    for parent in (folder, folder / MANIFEST, folder / tables.ANNOTATIONS):
        for path in parent.glob(".*.part"):
            path.unlink(missing_ok=True)


def _write_exams(folder: Path, exams: list[Exam], settings: Settings, workers: int) -> Iterator[None]:
    """Draw and write exams; the iterator advances after each one."""
    n = len(exams)
    workers = min(workers or available_cpus(), max(1, n // 8))
    return map_processes(_write_exam, [folder] * n, exams, [settings] * n, workers=workers)


def _write_exam(folder: Path, exam: Exam, settings: Settings) -> None:
    """Write an exam's annotations, then all its images at once."""
    study = headers.identify_study(exam, settings)
    temporary = folder / UNFINISHED / study.folder
    shutil.rmtree(folder / UNFINISHED / "CMMD" / exam.id, ignore_errors=True)
    temporary.mkdir(parents=True)
    for number, ((side, projection), (image, outlines)) in enumerate(sorted(draw_exam(exam, settings).items()), 1):
        headers.write_dicom(temporary / f"1-{number}.dcm", image, exam, study, f"{side}_{projection}", number)
        if outlines and projection == "MLO":  # the release outlines lesions in MLO only
            path = folder / tables.ANNOTATIONS / f"{exam.id}_MLO_{side}_AnnotationFile.json"
            write_text(path, tables.format_annotation(outlines, exam))
    (folder / MANIFEST / "CMMD").mkdir(parents=True, exist_ok=True)
    os.replace(folder / UNFINISHED / "CMMD" / exam.id, folder / MANIFEST / "CMMD" / exam.id)


def _write_tables(folder: Path, exams: list[Exam], settings: Settings) -> None:
    """Write the tables and the junk files; the workbook last."""
    tables.write_metadata(folder / MANIFEST, exams, settings)
    for path in sorted((folder / tables.ANNOTATIONS).glob("*.json"))[:5]:
        junk = folder / "__MACOSX" / tables.ANNOTATIONS / f"._{path.name}"
        junk.parent.mkdir(parents=True, exist_ok=True)
        junk.write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
    tables.write_clinical_sheet(folder / tables.CLINICAL_SHEET, exams)
    tables.write_workbook(folder / tables.WORKBOOK, exams, {**asdict(settings), "n_exams": len(exams)})
