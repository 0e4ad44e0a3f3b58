"""Getting the real data: ``python -m mammo_utils.data.download`` fetches CMMD's images and TOMPEI-CMMD's files from
The Cancer Imaging Archive with tcia_utils; ``--check`` says whether a folder, filled in whatever way, is complete.

A series comes into the folder only whole: it is unpacked beside, counted, weighed and then moved. So a download that
was stopped goes on with the same command, and what is there is never fetched again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import shutil
import sys
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from types import ModuleType

import pydicom

from mammo_utils.data.cohort import DataError
from mammo_utils.data.dicom import read_headers
from mammo_utils.data.folders import files_below
from mammo_utils.data.label_tables import WORKBOOK, find_label_tables, read_workbook
from mammo_utils.data.outlines import LARGEST, NAME
from mammo_utils.io import atomic_write, display_path, project_root
from mammo_utils.progress import Progress

IMAGES, PATIENTS, BREASTS, OUTLINES = 5202, 1775, 2601, 1385  # of CMMD; of TOMPEI-CMMD's workbook and its files
BYTES = 23e9  # of CMMD, about
UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
CHUNK = 16  # series between two lines of progress; a stop costs no more than these
LARGEST_FILE = 500 * 2**20  # bytes, of TOMPEI-CMMD's files
DOWNLOADS = ("collection_downloads", "result_downloads")  # names that the archive has had for a page's files
SHOWN = 20  # findings of a kind that are printed
FILES = re.compile(
    r"https://(?:www\.)?cancerimagingarchive\.net/[^\s\"]*?/"
    r"((?:TOMPEI-CMMD_[\w.-]+|CMMD_clinicaldata[\w.-]*)\.(?:xlsx|zip))"
)


def by_hand(folder: Path) -> str:
    """What to fetch without this command, and where to put it."""
    return (
        "Fetch CMMD's images (https://doi.org/10.7937/tcia.eqde-4b16, with the NBIA Data Retriever) and TOMPEI-CMMD's "
        f"workbook {WORKBOOK} and annotation files (https://doi.org/10.7937/wezw-bh22) by hand, put all of it below "
        f"{display_path(folder)}, in any folders, and try it with --check."
    )


def download(folder: Path, workers: int = 4, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Fetch what `folder` lacks of CMMD, into ``CMMD/<series>/``, and of TOMPEI-CMMD.

    workers: series that are fetched at a time. Raises DataError with one sentence where tcia_utils is missing, the
    archive does not answer, or series did not come whole; what came stays.
    """
    nbia, wordpress = _tcia_utils()
    series = _series(nbia, folder)
    target, partial = folder / "CMMD", folder / ".partial"
    needed = sum(row["bytes"] for uid, row in series.items() if _fault(target / uid, row))
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{display_path(folder)} has {free / 1e9:.0f} GB free; {needed / 1e9:.0f} GB are still to come."
        )
    _labels(wordpress, folder)  # before the hours of images: what fails here is known at once
    faults = {}
    done = 0
    for uids in _chunks(iter(series)):
        wanted = [uid for uid in uids if _fault(target / uid, series[uid])]
        shutil.rmtree(partial, ignore_errors=True)  # a stopped unpacking would be taken for a finished one
        if wanted:
            nbia.downloadSeries(wanted, input_type="list", path=str(partial), max_workers=workers)
        found = {uid: _fault(partial / uid, series[uid]) for uid in wanted}
        for uid in (uid for uid, fault in found.items() if not fault):
            target.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target / uid, ignore_errors=True)
            (partial / uid).rename(target / uid)
        faults |= {uid: fault for uid, fault in found.items() if fault}
        done += len(uids)
        progress(done, len(series))
        if wanted and all(found.values()):
            raise DataError(
                f"The archive stopped answering ({found[wanted[0]]}); what came is kept, give the same command again."
            )
    shutil.rmtree(partial, ignore_errors=True)
    if faults:
        uid, fault = next(iter(faults.items()))
        raise DataError(
            f"{len(faults)} of {len(series)} series did not come whole, {uid} for one: {fault}. "
            "Give the same command again."
        )


def check_folder(folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """What the folder lacks of the release, a sentence each; empty where all of it is there.

    Reads headers alone, whatever the layout. A file that is shorter than its pixels is found by its size. Raises
    DataError where there is no folder, or a table cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"There is no data folder {display_path(folder)}. {by_hand(folder)}")
    files, _ = files_below(folder)
    headers, unread = read_headers(folder, progress)
    findings = _short([f"{row['what']}: {row['reason']}" for row in unread], "files cannot be read")
    cut = [
        f"{h['path']}: {h['size']:,} bytes for {h['rows']} x {h['columns']} pixels; it was cut off, download it again"
        for h in headers
        if h["transfer_syntax"] in UNCOMPRESSED and h["size"] < _least_size(folder / h["path"], h)
    ]
    findings += _short(cut, "files are cut off")
    headers = list({header["image"]: header for header in headers}.values())
    patients = Counter(header["patient"] for header in headers)
    findings += _count(len(headers), IMAGES, "images") + _count(len(patients), PATIENTS, "patients")
    outlines = {path.name: path for path in files if NAME.match(path.name)}
    findings += _count(len(outlines), OUTLINES, "annotation files")
    broken = [
        f"{path.relative_to(folder).as_posix()}: no JSON; download it again"
        for path in outlines.values()
        if not _is_json(path)
    ]
    findings += _short(broken, "annotation files cannot be read")
    try:
        workbook, _ = find_label_tables(folder, files)
    except DataError as error:
        return [*findings, str(error)]
    if workbook is None:
        return [*findings, f"TOMPEI-CMMD's workbook {WORKBOOK} is not there; without it there is no BI-RADS."]
    labels, _, _ = read_workbook(workbook)
    findings += _count(len(labels), BREASTS, f"breasts in {workbook.name}")
    expected = Counter(exam for exam, _ in labels)
    lacking = [
        f"{exam}: {patients[exam]} of {2 * breasts} images"
        for exam, breasts in sorted(expected.items())
        if patients[exam] < 2 * breasts
    ]
    return findings + _short(lacking, "patients of the workbook lack images")


def _least_size(path: Path, header: dict) -> int:
    """Bytes of a whole uncompressed file: its header, as long as it is, and its pixels."""
    with path.open("rb") as file:
        pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Rows"])  # leaves the file at the pixels' tag
        tag = (
            8 if header["transfer_syntax"] == UNCOMPRESSED[0] else 12
        )  # bytes before the pixels; the first is implicit
        return file.tell() + tag + header["rows"] * header["columns"] * -(-header["bits_stored"] // 8)


def _is_json(path: Path) -> bool:
    try:
        return path.stat().st_size <= LARGEST and isinstance(json.loads(path.read_bytes()), list)
    except (OSError, ValueError, RecursionError):
        return False


# --- the archive ------------------------------------------------------------------------------------------


def _tcia_utils() -> tuple[ModuleType, ModuleType]:
    try:
        from tcia_utils import nbia, wordpress
    except ImportError as error:
        raise DataError(
            f"Downloading needs tcia_utils ({error}); give: pip install -e '.[download]'. What is there already can be "
            "tried with --check."
        ) from error
    logging.getLogger("tcia_utils").setLevel(logging.WARNING)  # it writes a line for each request
    return nbia, wordpress


def _series(nbia: ModuleType, folder: Path) -> dict[str, dict[str, int]]:
    """CMMD's series as the archive lists them: UID -> images, bytes."""
    try:
        listed = nbia.getSeries(collection="CMMD")
    except OSError as error:  # requests' errors are OSErrors
        raise DataError(f"The Cancer Imaging Archive does not answer ({error!r:.200}). {by_hand(folder)}") from error
    if not listed:
        raise DataError(f"The Cancer Imaging Archive does not answer. {by_hand(folder)}")
    try:
        rows = {row["SeriesInstanceUID"]: row for row in listed}
        series = {
            uid: {"images": int(row["ImageCount"]), "bytes": int(row["FileSize"])} for uid, row in sorted(rows.items())
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"The archive's list of CMMD's series is not as expected ({error!r:.100}). {by_hand(folder)}"
        ) from error
    if not all(re.fullmatch(r"[0-9.]{1,64}", uid) and uid.strip(".") for uid in series):
        raise DataError(f"The archive's list of CMMD's series names no UIDs. {by_hand(folder)}")
    return series


def _fault(place: Path, series: dict[str, int]) -> str:
    """Why a series' folder is not whole, or "". Lists count an image's header otherwise at times: a hundredth."""
    if not place.is_dir():
        return "nothing came"
    sizes = [path.stat().st_size for path in place.iterdir() if path.suffix.lower() == ".dcm"]
    if len(sizes) != series["images"]:
        return f"{len(sizes)} of {series['images']} images"
    if not math.isclose(sum(sizes), series["bytes"], rel_tol=0.01):
        return f"{sum(sizes):,} of {series['bytes']:,} bytes"
    return ""


def _chunks(uids: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(islice(uids, CHUNK)):
        yield chunk


def _labels(wordpress: ModuleType, folder: Path) -> None:
    """TOMPEI-CMMD's workbook and outlines and CMMD's own sheet, from where the archive's pages say they are."""
    found: dict[str, str] = {}
    try:
        for query, list_entries in (("TOMPEI-CMMD", wordpress.getAnalyses), ("CMMD", wordpress.getCollections)):
            entries = list_entries(query=query) or []
            ids = [number for entry in entries for name in DOWNLOADS for number in entry.get(name) or []]
            records = wordpress.getDownloads(ids=ids) if ids else []
            # an address may be in one of several fields, which may be nested: it is known by the name of its file
            found |= {match[1]: match[0] for match in FILES.finditer(json.dumps(records))}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"The archive's pages do not answer as expected ({error!r:.200}). {by_hand(folder)}") from error
    for name, address in sorted(found.items()):
        path = folder / name
        if not path.is_file():
            fetch(address, path)
        if path.suffix == ".zip":
            unpack_outlines(path, folder / path.stem)
    if not any(fnmatch(path.name, WORKBOOK) for path in files_below(folder)[0]):
        raise DataError(f"The archive's pages do not say where TOMPEI-CMMD's workbook is. {by_hand(folder)}")


def fetch(address: str, path: Path) -> None:
    """Fetch one file, whole or not at all. Raises DataError where the address does not answer or sends too much."""
    try:
        with urllib.request.urlopen(address, timeout=60) as answer, atomic_write(path) as part, part.open("wb") as file:
            length = int(answer.headers.get("Content-Length") or 0)
            while data := answer.read(2**20):
                file.write(data)
                if file.tell() > LARGEST_FILE:
                    raise DataError(f"{address} sends more than {LARGEST_FILE // 2**20} MB; fetch it by hand.")
            if length and file.tell() != length:
                raise DataError(f"{address} sent {file.tell():,} of {length:,} bytes; give the same command again.")
    except OSError as error:
        raise DataError(f"{address} could not be fetched ({error}); give the same command again.") from error


def unpack_outlines(archive: Path, folder: Path) -> None:
    """The annotation files of a zip file, by their names alone, into `folder`; whatever else it holds stays there."""
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                name = member.filename.rpartition("/")[2]
                if NAME.match(name) and "__MACOSX" not in member.filename and member.file_size <= LARGEST:
                    with atomic_write(folder / name) as part:
                        part.write_bytes(opened.read(member))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"{display_path(archive)} cannot be unpacked ({error}); delete it and fetch it again."
        ) from error


# --- what is said -----------------------------------------------------------------------------------------


def _count(found: int, expected: int, what: str) -> list[str]:
    return [] if found == expected else [f"{found:,} {what}; the release has {expected:,}."]


def _short(sentences: list[str], what: str) -> list[str]:
    rest = len(sentences) - SHOWN
    return sentences[:SHOWN] + ([f"… and {rest:,} more: {len(sentences):,} {what}."] if rest > 0 else [])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mammo_utils.data.download", description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("data/TOMPEI-CMMD"), help="relative to the project")
    parser.add_argument("--check", action="store_true", help="fetch nothing; say what the folder lacks")
    parser.add_argument("--workers", type=int, default=4, help="series that are fetched at a time")
    wanted = parser.parse_args(arguments)
    folder = project_root() / wanted.folder
    try:
        if not wanted.check:
            print(f"CMMD has {IMAGES:,} images, some {BYTES / 1e9:.0f} GB; stop and go on as you like.", flush=True)
            download(folder, wanted.workers, Progress("downloading", "series"))
        findings = check_folder(folder, Progress("checking", "files"))
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(findings) or f"{display_path(folder)} is complete: {IMAGES:,} images of {PATIENTS:,} patients.")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
