"""DICOM headers: patient, side and view of each image, whatever the names of files and folders."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pydicom
from pydicom import filereader, uid

from mammo_utils.data import kinds
from mammo_utils.data.folders import NOT_PERMITTED, PACKED, is_packed, name_below, walk_below

LARGEST_FILE = 128 * 2**20  # bytes; mammograms have up to about 60 MB
SMALLEST_SIDE = 8  # pixels; no picture has fewer
LARGEST_IMAGE = 40_000_000  # pixels; scanned films have up to about 30 million. 16 bits need 0.5 GB to prepare
DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.8.1")  # transfer syntaxes
SUFFIXES = (".dcm", ".dicom")
CODES = {  # mammography views of DICOM (CID 4014): SNOMED CT codes and the older SRT codes
    **{"399162004": "CC", "R-10242": "CC", "399368009": "MLO", "R-10226": "MLO"},
    **{"399260004": "ML", "R-10224": "ML", "399352003": "LM", "R-10228": "LM", "399099002": "LMO", "R-10230": "LMO"},
    **{"399192008": "XCCL", "R-1024A": "XCCL", "399101009": "XCCM", "R-1024B": "XCCM"},
    **{"399196006": "FB", "R-10244": "FB", "399188001": "SIO", "R-102D0": "SIO", "441555000": "ISO", "R-40AAA": "ISO"},
    **{"127457009": "SPECIMEN", "G-8310": "SPECIMEN"},
}
POSITIONS = {*CODES.values(), "XCC", "CV", "AT", "TAN", "RL", "RM"}  # accepted values of ViewPosition
TAGS = [
    *("SOPInstanceUID", "PatientID", "ImageLaterality", "Laterality", "PatientOrientation", "ViewCodeSequence"),
    *("ViewPosition", "Rows", "Columns", "BitsStored", "PhotometricInterpretation", "Manufacturer"),
    *("ImageComments", "InstitutionName"),
    *kinds.TAGS,
]


class Refused(ValueError):
    """A file was not opened; the message is the reason."""


def read_dataset(path: Path, **options: Any) -> pydicom.Dataset:
    """Read a DICOM file with `pydicom.dcmread(path, **options)`, within bounds.

    pydicom inflates a deflated data set completely, even to read its header: 300 kB can become 300 MB or more. Raises
    Refused if the file is no DICOM file, an index of others, too large, deflated or may not be read. A file without the
    preamble of 128 bytes is read if it begins with DICOM tags.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise Refused(f"the file is larger than {LARGEST_FILE // 2**20} MB, too large for a mammogram")
    try:
        file = path.open("rb")
    except PermissionError:
        raise Refused(f"the file {NOT_PERMITTED}") from None
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head = file.read(132)
        bare = head[128:] != b"DICM"
        if bare and not (head[:2] in (b"\2\0", b"\x08\0") and head[3:4] == b"\0"):  # group 2 or 8, element below 256
            raise Refused(f"not a DICOM file: {_describe_content(head)}")
        file.seek(0 if bare else 132)
        meta = filereader.read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        if str(meta.get("TransferSyntaxUID", "")) in DEFLATED:
            raise Refused("the file is deflated and could expand without bound; save it without deflation")
        if meta.get("MediaStorageSOPClassUID") == uid.MediaStorageDirectoryStorage:
            raise Refused("a DICOMDIR: an index of other files, not an image")
        file.seek(0)
        dataset = pydicom.dcmread(file, force=bare, **options)
        if bare and "TransferSyntaxUID" not in dataset.file_meta:  # pydicom has guessed it, but cannot decode without
            syntax = uid.ImplicitVRLittleEndian if dataset.original_encoding[0] else uid.ExplicitVRLittleEndian
            dataset.file_meta.TransferSyntaxUID = syntax
        return dataset


def read_headers(
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    tables: Collection[Path] = (),
    tagged: bool = True,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Read the header of every DICOM file below `folder`, ordered by path.

    A DICOM file ends in .dcm or .dicom, or has DICOM's mark at byte 128 whatever its name.

    Args:
        folder: The data folder.
        progress: Called with (files read, files in all).
        tables: Files that the data set's reader reads, for example tables of labels.
        tagged: Whether the tags must identify image and patient. If not, both may be "".

    Returns:
        The headers: image, patient, side ("L", "R", ""), view ("CC", "MLO", ""), path, size (bytes), rows, columns,
        bits_stored, photometric, transfer_syntax, note, refused (why it is not a view of an exam, or ""), synthetic
        (bool), and the keys of `kinds.describe_kind`. And rows of the table excluded: files that cannot be used
        ("file"), everything that cannot be reached ("file"), files of other kinds ("other") and macOS's ("junk").
    """
    files, junk, unusable = walk_below(folder)
    paths, others = [], []
    for path in files:
        if path.suffix.lower() in SUFFIXES or (path not in tables and has_mark(path)):
            paths.append(path)
        elif is_packed(path):
            unusable.append((path, PACKED))
        elif path not in tables:
            others.append((path, f"of another kind, not read: {path.suffix.lower()[:20] or 'without suffix'}"))
    headers = []
    for done, path in enumerate(paths, 1):
        header, reason = read_header(path, tagged)
        if reason:
            unusable.append((path, reason))
        else:
            headers.append({**header, "path": name_below(folder, path), "size": path.stat().st_size})
        progress(done, len(paths))
    excluded = [
        {"kind": kind, "what": name_below(folder, path), "reason": reason}
        for kind, rows in (("file", unusable), ("other", others))
        for path, reason in rows
    ]
    if junk:
        reason = "left by macOS (__MACOSX, ._…, .DS_Store): neither images nor labels"
        excluded.append({"kind": "junk", "what": f"{junk} files", "reason": reason})
    return headers, excluded


def has_mark(path: Path) -> bool:
    """Whether a file has DICOM's mark, "DICM" at byte 128. False if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _describe_content(head: bytes) -> str:
    """What a file that is no DICOM file seems to be, and what to do."""
    if not head.strip(b"\0"):
        return f"it is {'only zeros' if head else 'empty'}; download it again"
    if head.lstrip()[:1] == b"<":
        return "it is a web page, perhaps a server's error; download it again"
    return "it has neither DICOM's mark nor its tags at the beginning; download it again or remove it"


def read_header(path: Path, tagged: bool = True) -> tuple[dict[str, Any], str]:
    """Read the header of one file and return it, or the reason why it cannot be used. Never raises."""
    try:
        dataset = read_dataset(path, stop_before_pixels=True, specific_tags=TAGS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values that violate the standard
            return _parse_header(dataset, tagged)
    except Refused as refused:
        return {}, str(refused)
    except Exception as error:  # files are untrusted: no error of one may stop the reading of the others
        return {}, f"the DICOM header cannot be read ({type(error).__name__}); download the file again"


def _parse_header(dataset: pydicom.Dataset, tagged: bool) -> tuple[dict[str, Any], str]:
    if (modality := _text(dataset, "Modality").upper()) not in kinds.MODALITIES:
        return {}, f"no mammogram: its Modality is {modality[:20]}"
    for name in ("Rows", "Columns"):
        if not _text(dataset, name):
            return {}, f"the DICOM header has no {name}: the file is cut off or is no image"
    for name in ("SOPInstanceUID", "PatientID") if tagged else ():
        if not _text(dataset, name):
            return {}, f"the DICOM header has no {name}, by which images are matched; use files that keep it"
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > LARGEST_IMAGE or min(rows, columns) < SMALLEST_SIDE:
        return {}, f"{rows} x {columns} pixels is not the size of a mammogram"
    if not 0 <= (bits := int(dataset.get("BitsStored") or 0)) <= 64:
        return {}, "its BitsStored is out of range, so it is no mammogram"
    sides, views = _read_side_tags(dataset), _read_view_tags(dataset)  # the first tag of each counts
    notes = [
        f"{what}: " + ", ".join(f"{tag} is {value}" for tag, value in tags.items())
        for what, tags in (("side", sides), ("view", views))
        if len(set(tags.values())) > 1
    ]
    code, position = _view_code(dataset), _text(dataset, "ViewPosition").upper()
    if code and code not in CODES:
        notes.append(f"view: ViewCodeSequence has the unknown code {code[:20]!r}")
    if position and position not in POSITIONS:
        notes.append(f"view: ViewPosition has the unknown value {position[:20]!r}")
    kind = kinds.describe_kind(dataset)
    if kind["rank"] in (kinds.MODIFIED, kinds.OTHER):  # not captures: every image of CBIS-DDSM is one
        notes.append(f"kind: {kind['kind']}")
    projection = next((view for view in views.values() if view not in ("CC", "MLO")), "")
    origin = " ".join(_text(dataset, name) for name in ("Manufacturer", "ImageComments", "InstitutionName"))
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    return {
        "image": _text(dataset, "SOPInstanceUID"),
        "patient": _text(dataset, "PatientID"),
        "side": next(iter(sides.values()), ""),
        "view": "" if projection else next(iter(views.values()), ""),
        "rows": rows,
        "columns": columns,
        "bits_stored": bits,
        "photometric": _text(dataset, "PhotometricInterpretation"),
        "transfer_syntax": str(syntax or ""),
        "note": "; ".join(notes),
        "refused": f"another projection: {projection}, neither CC nor MLO" if projection else "",
        "synthetic": "SYNTHETIC" in origin.upper(),
        **kind,
    }, ""


def _read_side_tags(dataset: pydicom.Dataset) -> dict[str, str]:
    """The side ("L" or "R") in each tag that has one, in order of precedence."""
    sides = {tag: _text(dataset, tag).upper() for tag in ("ImageLaterality", "Laterality")}
    sides = {tag: side for tag, side in sides.items() if side in ("L", "R")}
    # The column direction points down the image. The lateral or upper part of the breast is at the top of a mammogram,
    # so the direction is towards the patient's right for a left breast, and vice versa.
    _, direction = _read_orientation(dataset)
    if ("R" in direction) != ("L" in direction):
        sides["PatientOrientation"] = "L" if "R" in direction else "R"
    return sides


def _read_view_tags(dataset: pydicom.Dataset) -> dict[str, str]:
    """The view or another projection in each tag that has one, in order of precedence."""
    views = {}
    first, direction = _read_orientation(dataset)
    if first in ("CC", "MLO"):  # CBIS-DDSM
        views["PatientOrientation"] = first
    elif (
        direction
    ):  # towards the feet: MLO, unless another tag names a lateral projection, which has the same direction
        views["PatientOrientation"] = "MLO" if "F" in direction or "H" in direction else "CC"
    if (code := _view_code(dataset)) in CODES:
        views["ViewCodeSequence"] = CODES[code]
    if (position := _text(dataset, "ViewPosition").upper()) in POSITIONS:
        views["ViewPosition"] = position
    return views


def _text(dataset: pydicom.Dataset, tag: str) -> str:
    value = dataset.get(tag)
    return "" if value is None else str(value).strip()


def _view_code(dataset: pydicom.Dataset) -> str:
    sequence = dataset.get("ViewCodeSequence")
    return str(sequence[0].get("CodeValue") or "").strip() if sequence else ""


def _read_orientation(dataset: pydicom.Dataset) -> tuple[str, str]:
    """The first value of PatientOrientation and, if it has two, the direction of the columns."""
    value = dataset.get("PatientOrientation") or ""
    values = [str(v).strip().upper() for v in ([value] if isinstance(value, str) else value)]
    return values[0], values[1] if len(values) == 2 else ""
