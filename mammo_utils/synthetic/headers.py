"""DICOM files with CMMD's header pattern, marked SYNTHETIC wherever a reader of headers would look."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom import FileMetaDataset
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import UID, DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian

from mammo_utils.synthetic.anatomy import HEIGHT, WIDTH
from mammo_utils.synthetic.cases import Exam, Settings

SOP_CLASS = DigitalMammographyXRayImageStorageForPresentation
MARK = "SYNTHETIC"
DATES = {"20100718": 882 / 1772, "20110718": 849 / 1772, "20120717": 41 / 1772}  # share of CMMD's studies
VIEW_CODES = {"CC": ("399162004", "cranio-caudal"), "MLO": ("399368009", "medio-lateral oblique")}
ORIENTATION = {"L_CC": ["A", "R"], "L_MLO": ["A", "FR"], "R_CC": ["P", "L"], "R_MLO": ["P", "FL"]}
EMPTY = "AccessionNumber ReferringPhysicianName PatientBirthDate StudyID Laterality ViewPosition".split()
FIXED = {  # the same in every file of the real release
    **dict.fromkeys(EMPTY, ""),
    **dict.fromkeys(("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"), "000000"),
    "SpecificCharacterSet": "ISO_IR 100",
    "ImageType": ["DERIVED", "PRIMARY"],
    "InstanceCreationDate": "20170818",
    "Modality": "MG",
    "PresentationIntentType": "FOR PRESENTATION",
    "PatientSex": "F",
    "PatientIdentityRemoved": "YES",
    "BodyPartExamined": "BREAST",
    "DetectorType": "SCINTILLATOR",
    "PositionerType": "MAMMOGRAPHIC",
    "OrganExposed": "BREAST",
    "SeriesNumber": 1,
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    **{"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0},
    "BurnedInAnnotation": "NO",
    **{"PixelIntensityRelationship": "LOG", "PixelIntensityRelationshipSign": -1},
    **{"WindowCenter": 128, "WindowWidth": 256, "WindowCenterWidthExplanation": "Full width of 8 bit data"},
    **{"RescaleIntercept": 0, "RescaleSlope": 1, "RescaleType": "US"},
    "LossyImageCompression": "00",
    "PresentationLUTShape": "IDENTITY",
    "VOILUTFunction": "SIGMOID",
    # the real release names here the maker of the image and the method of de-identification
    "Manufacturer": f"{MARK} - drawn by mammo_utils",
    "InstitutionName": f"{MARK} - no institution",
    "ImageComments": f"{MARK} image: drawn by a program, shows no patient",
    "DeidentificationMethod": f"{MARK}: no patient",
}


def make_uid(*parts: object) -> str:
    """Make a valid UID that is a function of `parts`: 2.25.<UUID as a decimal number> (DICOM PS3.5, B.2)."""
    digest = bytearray(hashlib.sha256(repr(("mammo_utils synthetic", *parts)).encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80  # version 8: vendor-specific (RFC 9562)
    digest[8] = digest[8] & 0x3F | 0x80
    return f"2.25.{int.from_bytes(digest, 'big')}"


CREATOR = make_uid("creator")


class Study(NamedTuple):
    """The identity of an exam's only study and series.

    Attributes:
        uid: UID of the study.
        series: UID of the series.
        date: YYYYMMDD.
        folder: Folder of the images, relative to the manifest's.
    """

    uid: str
    series: str
    date: str
    folder: Path


def identify_study(exam: Exam, settings: Settings) -> Study:
    """Sample the date of an exam's study and make its UIDs."""
    uid, series = (make_uid(what, exam.number, *asdict(settings).values()) for what in ("study", "series"))
    rng = np.random.default_rng([settings.seed, exam.number, 7])
    date = list(DATES)[rng.choice(len(DATES), p=list(DATES.values()))]
    study_folder = f"{date[4:6]}-{date[6:]}-{date[:4]}-NA-NA-{uid[-5:]}"
    return Study(uid, series, date, Path("CMMD", exam.id, study_folder, f"1.000000-NA-{series[-5:]}"))


def write_dicom(path: Path, pixels: np.ndarray, exam: Exam, study: Study, view: str, number: int) -> None:
    """Write one image.

    Args:
        path: The file.
        pixels: uint8 (rows, columns).
        exam: The patient.
        study: The identity of the exam's study.
        view: L_CC, L_MLO, R_CC or R_MLO.
        number: Number of the image in its series, from 1.
    """
    rows, columns = pixels.shape
    side, projection = view.split("_")
    instance = make_uid("image", side, projection, study.uid)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SOP_CLASS
    meta.MediaStorageSOPInstanceUID = UID(instance)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(CREATOR)
    meta.ImplementationVersionName = "MAMMO_UTILS"

    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    for name, value in FIXED.items():
        setattr(dataset, name, value)
    dataset.InstanceCreatorUID = CREATOR
    dataset.InstanceCreationTime = f"{10 + number:02d}0000"
    dataset.SOPClassUID = SOP_CLASS
    dataset.SOPInstanceUID = instance
    dataset.StudyInstanceUID = study.uid
    dataset.SeriesInstanceUID = study.series
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = study.date
    dataset.PatientName = dataset.PatientID = exam.id
    dataset.PatientAge = f"{exam.age:03d}Y"
    dataset.InstanceNumber = number
    dataset.ImageLaterality = side
    dataset.PatientOrientation = ORIENTATION[view]
    code = Dataset()
    code.CodeValue, code.CodeMeaning = VIEW_CODES[projection]
    code.CodingSchemeDesignator = "SCT"
    dataset.ViewCodeSequence = [code]
    dataset.ImagerPixelSpacing = [f"{HEIGHT / rows:.9f}", f"{WIDTH / columns:.9f}"]
    dataset.Rows, dataset.Columns = rows, columns
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)
