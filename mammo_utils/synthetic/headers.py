"""DICOM files with CMMD's header pattern, marked SYNTHETIC wherever a reader of headers would look."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from pydicom import FileMetaDataset
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import UID, DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian

from mammo_utils.synthetic.anatomy import HEIGHT, WIDTH

SOP_CLASS = DigitalMammographyXRayImageStorageForPresentation
MARK = "SYNTHETIC"
VIEW_CODES = {"CC": ("399162004", "cranio-caudal"), "MLO": ("399368009", "medio-lateral oblique")}
ORIENTATION = {
    ("L", "CC"): ["A", "R"],
    ("L", "MLO"): ["A", "FR"],
    ("R", "CC"): ["P", "L"],
    ("R", "MLO"): ["P", "FL"],
}
FIXED = {  # the same in every file of the real release
    "SpecificCharacterSet": "ISO_IR 100",
    "ImageType": ["DERIVED", "PRIMARY"],
    "InstanceCreationDate": "20170818",
    "StudyTime": "000000",
    "SeriesTime": "000000",
    "AcquisitionTime": "000000",
    "ContentTime": "000000",
    "AccessionNumber": "",
    "Modality": "MG",
    "PresentationIntentType": "FOR PRESENTATION",
    "ReferringPhysicianName": "",
    "PatientBirthDate": "",
    "PatientSex": "F",
    "PatientIdentityRemoved": "YES",
    "BodyPartExamined": "BREAST",
    "DetectorType": "SCINTILLATOR",
    "PositionerType": "MAMMOGRAPHIC",
    "OrganExposed": "BREAST",
    "StudyID": "",
    "SeriesNumber": 1,
    "Laterality": "",
    "ViewPosition": "",
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 8,
    "BitsStored": 8,
    "HighBit": 7,
    "PixelRepresentation": 0,
    "BurnedInAnnotation": "NO",
    "PixelIntensityRelationship": "LOG",
    "PixelIntensityRelationshipSign": -1,
    "WindowCenter": 128,
    "WindowWidth": 256,
    "RescaleIntercept": 0,
    "RescaleSlope": 1,
    "RescaleType": "US",
    "WindowCenterWidthExplanation": "Full width of 8 bit data",
    "LossyImageCompression": "00",
    "PresentationLUTShape": "IDENTITY",
    "VOILUTFunction": "SIGMOID",
    # where the real release says who made the image and how it was made anonymous
    "Manufacturer": f"{MARK} - drawn by mammo_utils",
    "InstitutionName": f"{MARK} - no institution",
    "ImageComments": f"{MARK} image: drawn by a program, shows no patient",
    "DeidentificationMethod": f"{MARK}: no patient",
}


def uid_of(*what: object) -> str:
    """A valid UID that is a function of `what`: 2.25.<128 bits as a decimal number> (PS3.5, B.2).

    The bits are a SHA-256 cut to the form of a UUID, in a space of names of our own.
    """
    digest = bytearray(hashlib.sha256(repr(("mammo_utils synthetic", *what)).encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80  # version 8: made by a rule of one's own (RFC 9562)
    digest[8] = digest[8] & 0x3F | 0x80
    return f"2.25.{int.from_bytes(digest, 'big')}"


CREATOR = uid_of("creator")


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    *,
    patient: str,
    age: int,
    date: str,
    side: str,
    view: str,
    number: int,
    uids: tuple[str, str, str],
) -> None:
    """Write one image. pixels: uint8 (rows, columns); date: YYYYMMDD; number: of the image in its series;
    uids: of study, series and instance."""
    rows, columns = pixels.shape
    study, series, instance = uids
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
    dataset.StudyInstanceUID = study
    dataset.SeriesInstanceUID = series
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = date
    dataset.PatientName = dataset.PatientID = patient
    dataset.PatientAge = f"{age:03d}Y"
    dataset.InstanceNumber = number
    dataset.ImageLaterality = side
    dataset.PatientOrientation = ORIENTATION[side, view]
    code = Dataset()
    code.CodeValue, code.CodeMeaning = VIEW_CODES[view]
    code.CodingSchemeDesignator = "SCT"
    dataset.ViewCodeSequence = [code]
    dataset.ImagerPixelSpacing = [f"{HEIGHT / rows:.9f}", f"{WIDTH / columns:.9f}"]
    dataset.Rows, dataset.Columns = rows, columns
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)
