"""An index of DICOM files by their headers alone: whose image, which side, which view.

Nothing is read from names of files or folders. A file that cannot be used is listed with its reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info

from mammo_utils.data.folders import MAY_NOT, walk_below

LARGEST_FILE = 128 * 2**20  # bytes; a mammogram has at most some 60 MB
LARGEST_IMAGE = 40_000_000  # pixels; films are scanned to some 30 million. At 16 bits they need 0.5 GB to prepare
DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.8.1")  # transfer syntaxes
SUFFIXES = (".dcm", ".dicom")
CODES = {  # DICOM's views of mammography (CID 4014): SNOMED CT, and the older SRT
    **{"399162004": "CC", "399368009": "MLO", "R-10242": "CC", "R-10226": "MLO"},
    **{"399260004": "ML", "399352003": "LM", "399099002": "LMO", "R-10224": "ML", "R-10228": "LM", "R-10230": "LMO"},
    **{"399192008": "XCCL", "399101009": "XCCM", "R-1024A": "XCCL", "R-1024B": "XCCM"},
    **{"399196006": "FB", "399188001": "SIO", "441555000": "ISO", "127457009": "SPECIMEN"},
    **{"R-10244": "FB", "R-102D0": "SIO", "R-40AAA": "ISO", "G-8310": "SPECIMEN"},
}
POSITIONS = {*CODES.values(), "XCC", "CV", "AT", "TAN", "RL", "RM"}  # what ViewPosition may say
TAGS = [
    *("SOPInstanceUID", "PatientID", "ImageLaterality", "Laterality", "PatientOrientation", "ViewCodeSequence"),
    *("ViewPosition", "Rows", "Columns", "BitsStored", "PhotometricInterpretation", "Manufacturer"),
    *("ImageComments", "InstitutionName"),
]


class Refused(ValueError):
    """A file that is not opened; the message is the reason."""


def read_dataset(path: Path, **options: Any) -> pydicom.Dataset:
    """pydicom.dcmread, but bounded. Raises Refused for a file that is too large, deflated or may not be read.

    pydicom inflates a deflated data set whole, whatever part of it is asked for: 300 kB can become 300 MB and
    more while the header alone is read. No collection of mammograms is deflated.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise Refused(f"the file is larger than {LARGEST_FILE // 2**20} MB; no mammogram is")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if str(read_file_meta_info(path).get("TransferSyntaxUID", "")) in DEFLATED:
                raise Refused("the file is deflated, and could grow without bound; write it without deflation")
            return pydicom.dcmread(path, **options)
        except PermissionError:
            raise Refused(f"the file {MAY_NOT}") from None


def read_headers(
    folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Headers of every .dcm or .dicom file under `folder`, ordered by path, and the files set aside.

    Each header: image, patient, side ("L", "R", ""), view ("CC", "MLO", ""), path, size (bytes), rows, columns,
    bits_stored, photometric, transfer_syntax, note, refused (why it is no view of an exam, ""), synthetic (bool).
    Files, and all that is out of reach, are set aside as rows of the table excluded.
    """
    files, _, lost = walk_below(folder)
    paths = [path for path in files if path.suffix.lower() in SUFFIXES]
    headers = []
    excluded = [{"kind": "file", "what": p.relative_to(folder).as_posix(), "reason": reason} for p, reason in lost]
    for done, path in enumerate(paths, 1):
        name = path.relative_to(folder).as_posix()
        header, reason = read_header(path)
        if reason:
            excluded.append({"kind": "file", "what": name, "reason": reason})
        else:
            headers.append({**header, "path": name, "size": path.stat().st_size})
        progress(done, len(paths))
    return headers, excluded


def read_header(path: Path) -> tuple[dict[str, Any], str]:
    """One file's header, or the reason why it cannot be used. Reads no pixels and never raises."""
    try:
        dataset = read_dataset(path, stop_before_pixels=True, specific_tags=TAGS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are not as the standard says
            return _header(dataset)
    except Refused as refused:
        return {}, str(refused)
    except InvalidDicomError:
        return {}, "not a DICOM file; download it again"
    except Exception as error:  # the file is untrusted: whatever is wrong with it must not stop the others
        return {}, f"the DICOM header cannot be read ({type(error).__name__}); download the file again"


def _header(dataset: pydicom.Dataset) -> tuple[dict[str, Any], str]:
    def text(name: str) -> str:
        value = dataset.get(name)
        return "" if value is None else str(value).strip()

    image, patient = text("SOPInstanceUID"), text("PatientID")
    missing = [name for name in ("SOPInstanceUID", "PatientID", "Rows", "Columns") if not text(name)]
    if missing:
        return {}, f"the DICOM header has no {missing[0]}; download the file again"
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > LARGEST_IMAGE or min(rows, columns) < 1:
        return {}, f"{rows} x {columns} pixels is no size of a mammogram"
    sides, views = side_tags(dataset), view_tags(dataset)
    notes = [
        f"{what}: " + ", ".join(f"{tag} says {value}" for tag, value in tags.items())
        for what, tags in (("side", sides), ("view", views))
        if len(set(tags.values())) > 1
    ]
    code, position = _code(dataset), _position(dataset)
    if code and code not in CODES:
        notes.append(f"view: ViewCodeSequence has the unknown code {code[:20]!r}")
    if position and position not in POSITIONS:
        notes.append(f"view: ViewPosition has the unknown word {position[:20]!r}")
    other = next((view for view in views.values() if view not in ("CC", "MLO")), "")
    face = " ".join(text(name) for name in ("Manufacturer", "ImageComments", "InstitutionName"))
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    return {
        "image": image,
        "patient": patient,
        "side": next(iter(sides.values()), ""),
        "view": "" if other else next(iter(views.values()), ""),
        "rows": rows,
        "columns": columns,
        "bits_stored": int(dataset.get("BitsStored") or 0),
        "photometric": text("PhotometricInterpretation"),
        "transfer_syntax": str(syntax or ""),
        "note": "; ".join(notes),
        "refused": f"another projection: {other}, neither CC nor MLO" if other else "",
        "synthetic": "SYNTHETIC" in face.upper(),
    }, ""


def side_tags(dataset: pydicom.Dataset) -> dict[str, str]:
    """Which side each tag says, "L" or "R", in the order of precedence: ImageLaterality, Laterality,
    PatientOrientation. The first counts.

    The column direction of PatientOrientation runs down the image; in mammograms the lateral or upper part of
    the breast is on top, so it points to the patient's right for a left breast, and the other way round.
    """
    found = {}
    for tag in ("ImageLaterality", "Laterality"):
        value = str(dataset.get(tag) or "").strip().upper()
        if value in ("L", "R"):
            found[tag] = value
    down = _down(dataset)
    if ("R" in down) != ("L" in down):
        found["PatientOrientation"] = "L" if "R" in down else "R"
    return found


def view_tags(dataset: pydicom.Dataset) -> dict[str, str]:
    """Which view each tag says, in the order of precedence: PatientOrientation, ViewCodeSequence, ViewPosition.
    The first counts; but where one names a projection other than CC and MLO the image is of that.

    A column direction with a part towards the feet is the oblique view's, and that of a lateral projection (ML) looks
    the same. CBIS-DDSM writes the view's name into PatientOrientation.
    """
    found = {}
    orientation, down = _orientation(dataset), _down(dataset)
    if orientation and orientation[0] in ("CC", "MLO"):
        found["PatientOrientation"] = orientation[0]
    elif down:
        found["PatientOrientation"] = "MLO" if "F" in down or "H" in down else "CC"
    if _code(dataset) in CODES:
        found["ViewCodeSequence"] = CODES[_code(dataset)]
    if _position(dataset) in POSITIONS:
        found["ViewPosition"] = _position(dataset)
    return found


def _code(dataset: pydicom.Dataset) -> str:
    sequence = dataset.get("ViewCodeSequence")
    return str(sequence[0].get("CodeValue") or "").strip() if sequence else ""


def _position(dataset: pydicom.Dataset) -> str:
    return str(dataset.get("ViewPosition") or "").strip().upper()


def _orientation(dataset: pydicom.Dataset) -> list[str]:
    value = dataset.get("PatientOrientation")
    if value is None:
        return []
    return [str(v).strip().upper() for v in ([value] if isinstance(value, str) else value)]


def _down(dataset: pydicom.Dataset) -> str:
    orientation = _orientation(dataset)
    return orientation[1] if len(orientation) == 2 else ""
