"""Download of the real data: `python -m mammo_utils.data.download [cmmd|cbis-ddsm]`.

The images come from the NCI Imaging Data Commons; the labels are not there and have to be fetched by hand. A stopped
download continues with the same command. `--check` compares a folder, however it was filled, with the release.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pydicom

from mammo_utils.data.cbis_ddsm import CASE_DESCRIPTION
from mammo_utils.data.cohort import DataError
from mammo_utils.data.dicom import read_headers
from mammo_utils.data.folders import path_below, walk_below
from mammo_utils.data.label_tables import WORKBOOK, find_label_tables, read_workbook
from mammo_utils.data.outlines import LARGEST, NAME
from mammo_utils.io import display_path, project_root
from mammo_utils.progress import Progress


@dataclass(frozen=True)
class Release:
    """A data set that can be downloaded.

    Attributes:
        collection: Its name in the Imaging Data Commons; the images are put into a folder of this name.
        folder: Default data folder, relative to the project.
        images: Number of images.
        patients: Number of values of PatientID.
        gigabytes: Approximate size of the images.
        labels: The files that have to be fetched by hand, with their DOI.
    """

    collection: str
    folder: str
    images: int
    patients: int
    gigabytes: int
    labels: str


TOMPEI = f"TOMPEI-CMMD's workbook {WORKBOOK} and annotation files, unzipped (https://doi.org/10.7937/wezw-bh22)"
CASES = "{mass,calc}_case_description_{train,test}_set.csv (https://doi.org/10.7937/K9/TCIA.2016.7O02S9CY)"
RELEASES = {
    "cmmd": Release("cmmd", "data/TOMPEI-CMMD", 5202, 1775, 23, TOMPEI),
    "cbis-ddsm": Release("cbis_ddsm", "data/CBIS-DDSM", 10239, 6671, 164, CASES),
}
BREASTS, OUTLINES, CASE_TABLES = 2601, 1385, 4  # rows of the workbook, annotation files; csv files of CBIS-DDSM
UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")  # the first is implicit VR
BUCKET = "https://s3.amazonaws.com/idc-open-data?list-type=2&max-keys=1"
MOST_FINDINGS = 20  # printed findings of one kind


def download(folder: Path, dataset: str = "cmmd") -> None:
    """Download the images of a data set that `folder` lacks, into `<collection>/<SeriesInstanceUID>/`.

    Raises DataError if `idc-index` is not installed, the Imaging Data Commons does not answer, the disk is too small or
    some series did not arrive completely. What arrived stays.
    """
    collection = RELEASES[dataset].collection
    client = _open_client()
    series = client.index[client.index["collection_id"] == collection].set_index("SeriesInstanceUID")
    missing = _list_incomplete(series, folder / collection)
    if not missing:
        return
    # idc-index reports neither a missing connection nor failed files to its caller, so both are tested here
    try:
        urllib.request.urlopen(BUCKET, timeout=60).close()
    except OSError as error:
        raise DataError(
            f"The Imaging Data Commons does not answer ({error}); connect to the internet, or fetch the images "
            f"(https://doi.org/{series['source_DOI'].iloc[0]}) by hand, put them below {display_path(folder)} in any "
            "layout and use --check."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = series.loc[missing, "series_size_MB"].sum() / 1e3, shutil.disk_usage(folder).free / 1e9
    if needed > free:
        raise DataError(f"{display_path(folder)} has {free:.0f} GB free, but needs {needed:.0f} GB; free some space.")
    template = "%collection_id/%SeriesInstanceUID"
    client.download_from_selection(
        downloadDir=str(folder), seriesInstanceUID=missing, dirTemplate=template, use_s5cmd_sync=True
    )
    if missing := _list_incomplete(series, folder / collection):
        raise DataError(
            f"{len(missing)} of {len(series)} series are incomplete, for example {missing[0]}; what arrived is kept, "
            "run the same command again."
        )


def _open_client() -> Any:
    try:
        from idc_index import IDCClient
    except ImportError as error:
        raise DataError(f"Downloading needs idc-index ({error}); run: pip install -e '.[download]'") from error
    logging.getLogger("idc_index").setLevel(logging.ERROR)
    return IDCClient()


def _list_incomplete(series: pd.DataFrame, folder: Path) -> list[str]:
    """UIDs of the series whose folder has another number of images or, by more than 1 %, another size."""
    incomplete = []
    for uid, images, megabytes in series[["instanceCount", "series_size_MB"]].itertuples():
        sizes = [path.stat().st_size for path in (folder / uid).glob("*.dcm")]
        if len(sizes) != images or not math.isclose(sum(sizes), 1e6 * megabytes, rel_tol=0.01):
            incomplete.append(uid)
    return incomplete


# --- the check ----------------------------------------------------------------------------------------------


def check_folder(
    folder: Path, dataset: str = "cmmd", progress: Callable[[int, int], None] = lambda done, total: None
) -> list[str]:
    """Compare a data folder in any layout with the release, by headers and file sizes.

    Args:
        folder: The data folder.
        dataset: A key of RELEASES.
        progress: Called with (files read, files in total).

    Returns:
        One sentence for each thing that is missing or damaged; empty if the folder is complete.

    Raises:
        DataError: There is no folder, or the workbook cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"There is no data folder {display_path(folder)}; download the data or name another --folder.")
    files, _, _ = walk_below(folder)
    headers, unreadable = read_headers(folder, progress)
    unreadable = [row for row in unreadable if row["kind"] == "file"]
    findings = _shorten([f"{row['what']}: {row['reason']}" for row in unreadable], "files cannot be read")
    truncated = [
        f"{h['path']}: {h['size']:,} bytes for {h['rows']} x {h['columns']} pixels; it is cut off, download it again"
        for h in headers
        if h["transfer_syntax"] in UNCOMPRESSED and h["size"] < _smallest_size(path_below(folder, h["path"]), h)
    ]
    findings += _shorten(truncated, "files are cut off")
    patients = Counter({header["image"]: header["patient"] for header in headers}.values())  # copies count once
    findings += _compare_count(patients.total(), RELEASES[dataset].images, "images")
    findings += _compare_count(len(patients), RELEASES[dataset].patients, "patients")
    if dataset == "cmmd":
        return findings + _check_tompei(folder, files, patients)
    tables = {match.groups() for path in files if (match := CASE_DESCRIPTION.fullmatch(path.name.lower()))}
    return findings + _compare_count(len(tables), CASE_TABLES, "case descriptions")


def _check_tompei(folder: Path, files: list[Path], patients: Counter) -> list[str]:
    """What the workbook and the annotation files lack, and which patients of the workbook lack images."""
    outlines = {path.name: path for path in files if NAME.match(path.name)}
    findings = _compare_count(len(outlines), OUTLINES, "annotation files")
    broken = [path.relative_to(folder).as_posix() for path in outlines.values() if not _is_json_list(path)]
    findings += _shorten([f"{name}: not JSON; download it again" for name in broken], "annotation files are damaged")
    try:
        workbook, _ = find_label_tables(folder, files)
    except DataError as error:
        return [*findings, str(error)]
    if workbook is None:
        return [*findings, f"TOMPEI-CMMD's workbook {WORKBOOK} is missing; without it there is no BI-RADS."]
    labels, _, _ = read_workbook(workbook)
    findings += _compare_count(len(labels), BREASTS, f"breasts in {workbook.name}")
    lacking = [
        f"{patient}: {patients[patient]} of {2 * breasts} images"
        for patient, breasts in sorted(Counter(patient for patient, _ in labels).items())
        if patients[patient] < 2 * breasts
    ]
    return findings + _shorten(lacking, "patients of the workbook lack images")


def _smallest_size(path: Path, header: dict) -> int:
    """Bytes of a complete uncompressed file: its header and its pixels."""
    with path.open("rb") as file:
        pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Rows"])  # leaves the file at the pixels' tag
        tag = 8 if header["transfer_syntax"] == UNCOMPRESSED[0] else 12  # bytes between tag and pixels
        return file.tell() + tag + header["rows"] * header["columns"] * -(-header["bits_stored"] // 8)


def _is_json_list(path: Path) -> bool:
    try:
        return path.stat().st_size <= LARGEST and isinstance(json.loads(path.read_bytes()), list)
    except (OSError, ValueError, RecursionError):
        return False


def _compare_count(found: int, expected: int, what: str) -> list[str]:
    return [] if found == expected else [f"{found:,} {what}; the release has {expected:,}."]


def _shorten(sentences: list[str], what: str) -> list[str]:
    rest = len(sentences) - MOST_FINDINGS
    return sentences[:MOST_FINDINGS] + ([f"… and {rest:,} more: {len(sentences):,} {what}."] if rest > 0 else [])


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns its exit status, 0 if the folder is complete."""
    parser = argparse.ArgumentParser(prog="python -m mammo_utils.data.download", description=__doc__.split("\n\n")[0])
    parser.add_argument("dataset", nargs="?", choices=list(RELEASES), default="cmmd")
    parser.add_argument("--folder", type=Path, help="data folder, relative to the project")
    parser.add_argument("--check", action="store_true", help="download nothing; list what the folder lacks")
    options = parser.parse_args(arguments)
    release = RELEASES[options.dataset]
    folder = project_root() / (options.folder or release.folder)
    shown = display_path(folder)
    try:
        if not options.check:
            print(f"Downloading {release.images:,} images, about {release.gigabytes} GB, to {shown}.")
            print(f"Fetch the labels by hand and put them below this folder: {release.labels}.", flush=True)
            download(folder, options.dataset)
        findings = check_folder(folder, options.dataset, Progress("checking", "files"))
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(findings) or f"{shown} is complete: {release.images:,} images of {release.patients:,} patients.")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
