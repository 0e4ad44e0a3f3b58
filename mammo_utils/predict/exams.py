"""Exams from any DICOM files, read and prepared as a study reads and prepares its own.

An exam is one study of one patient. Its name is the PatientID if that has the form of a research ID, of the data set
that the model was trained on or of CBIS-DDSM; else it is made of a hash, so that no output names a patient.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mammo_utils.config import Images
from mammo_utils.data.assemble import assemble
from mammo_utils.data.cbis_ddsm import VIEW, name_patient
from mammo_utils.data.cohort import Cohort, DataError
from mammo_utils.data.dicom import read_dataset, read_headers
from mammo_utils.data.folders import path_below
from mammo_utils.data.label_tables import UNLABELLED
from mammo_utils.images.build_store import apply_store, build_store
from mammo_utils.images.store import Store, load_store

# in what an image is compared with those of the training part; grey values are the prepared image's, 0 to 255
FACTS = ("rows", "columns", "rows per column", "pixel size in mm", "darkest grey", "mean grey", "brightest grey")
SPACING = ("ImagerPixelSpacing", "PixelSpacing")


@dataclass(frozen=True)
class Exams:
    """Exams as a model receives them.

    Attributes:
        cohort: Their tables, after the pixels have been read. Nothing has a label.
        store: Their prepared images.
        unread: Rows `kind`, `what`, `reason` of all that is not used: files, images, and exams without a usable image.
    """

    cohort: Cohort
    store: Store
    unread: list[dict[str, str]]


def read_exams(paths: Sequence[Path], folder: Path, images: Images, ids: str) -> Exams:
    """Read all exams in files and folders.

    Args:
        paths: DICOM files, and folders in which they lie at any depth.
        folder: An empty folder, for the prepared images.
        images: The preprocessing.
        ids: Pattern of PatientIDs that are research IDs, see `Source.ids`; of none if "".

    Raises:
        DataError: A path does not exist, or no file has the header of a mammogram; each file's reason is named.
    """
    inputs = folder / "inputs"
    inputs.mkdir()
    for number, path in enumerate(paths):  # links, so that files and folders anywhere are one data folder
        if not path.exists():
            raise DataError(f"There is no file or folder {path}.")
        place = Path(os.path.abspath(path))
        name = place.name or "files"  # of the root
        (inputs / (f"{number}-{name}" if (inputs / name).is_symlink() else name)).symlink_to(place)
    headers, excluded = read_headers(inputs, tagged=False)
    if not headers:
        reasons = "; ".join(f"{row['what']}: {row['reason']}" for row in excluded) or "there is no file"
        raise DataError(f"No mammogram can be read; name DICOM files or folders of them. {reasons}.")
    _name_exams(headers, ids)
    labels = {(header["patient"], header["side"]): UNLABELLED for header in headers if header["side"]}
    cohort = assemble("DICOM files", inputs, headers, labels, excluded, rule="usable")
    try:
        store = build_store(cohort, folder / "store", **images.model_dump())
    except DataError:
        if not (folder / "store" / "store.json").is_file():
            raise
        store = load_store(folder / "store")  # no image can be used: it is empty, and lists why
    cohort = apply_store(cohort, store)
    unread = cohort.excluded[cohort.excluded["kind"] != "breast"].to_dict("records")
    lost = cohort.images[~cohort.images["exam"].isin(cohort.exams.index)]
    for exam, reasons in lost.groupby("exam")["reason"]:
        unread.append({"kind": "exam", "what": exam, "reason": "; ".join(reasons.unique())})
    return Exams(cohort, store, unread)


def _name_exams(headers: list[dict], ids: str) -> None:
    """Put the name of its exam into each header's `patient`, in place, and a name of its path if it has no UID."""
    named: dict[str, dict[tuple[str, str], list[dict]]] = {}
    for header in headers:
        if film := VIEW.fullmatch(header["patient"]):
            name_patient(header)
        key = header["patient"], header["study"]
        if not any(key):  # nothing identifies it: the files of one folder are an exam
            key = "", Path(header["path"]).parent.as_posix()
        kept = film or re.fullmatch(ids, header["patient"])
        name = header["patient"] if kept and header["patient"] else f"exam-{_digest(*key)}"
        named.setdefault(name, {}).setdefault(key, []).append(header)
        header["image"] = header["image"] or f"file-{_digest(header['path'])}"
    for name, studies in named.items():
        for key, group in studies.items():
            for header in group:  # a patient's studies are exams of their own
                header["patient"] = f"{name}-{_digest(*key)[:6]}" if len(studies) > 1 else name


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def measure(store: Store, folder: Path) -> pd.DataFrame:
    """Measure the FACTS of each image of a store. `folder` has its DICOM files; a pixel size not in them is NaN."""
    step = max(1, store.images.shape[1] // 64)
    grey = np.asarray(store.images[:, ::step, ::step], np.float32).reshape(len(store.images), -1)
    darkest, brightest = np.percentile(grey, (0.5, 99.5), axis=1)
    height, width = store.index[["rows", "columns"]].to_numpy(float).T
    sizes = [_pixel_size(path_below(folder, path)) for path in store.index["path"]]
    columns = height, width, height / width, sizes, darkest, grey.mean(1), brightest
    return pd.DataFrame(dict(zip(FACTS, columns, strict=True)))


def _pixel_size(path: Path) -> float:
    try:
        header = read_dataset(path, stop_before_pixels=True, specific_tags=list(SPACING))
        return float(next(header[tag].value[0] for tag in SPACING if tag in header and header[tag].value))
    except Exception:  # untrusted: a value that cannot be read is no pixel size
        return np.nan
