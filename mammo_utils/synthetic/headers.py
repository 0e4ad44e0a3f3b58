"""DICOM files with CMMD's header pattern, marked SYNTHETIC in every field that describes their origin."""

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
PROJECTION_CODES = {"CC": ("399162004", "cranio-caudal"), "MLO": ("399368009", "medio-lateral oblique")}
ORIENTATION = {
    ("L", "CC"): ["A", "R"],
    ("L", "MLO"): ["A", "FR"],
    ("R", "CC"): ["P", "L"],
    ("R", "MLO"): ["P", "FL"],
}
FIXED = {  # the same in every file of the real release
    **dict.fromkeys(["StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"], "000000"),
    **dict.fromkeys(["AccessionNumber", "ReferringPhysicianName", "PatientBirthDate", "StudyID"], ""),
    **dict.fromkeys(["Laterality", "ViewPosition"], ""),
    **dict.fromkeys(["SeriesNumber", "SamplesPerPixel", "RescaleSlope"], 1),
    **dict.fromkeys(["BodyPartExamined", "OrganExposed"], "BREAST"),
    **dict.fromkeys(["BitsAllocated", "BitsStored"], 8),
    **dict.fromkeys(["PixelRepresentation", "RescaleIntercept"], 0),
    "SpecificCharacterSet": "ISO_IR 100",
    "ImageType": ["DERIVED", "PRIMARY"],
    "InstanceCreationDate": "20170818",
    "Modality": "MG",
    "PresentationIntentType": "FOR PRESENTATION",
    "PatientSex": "F",
    "PatientIdentityRemoved": "YES",
    "DetectorType": "SCINTILLATOR",
    "PositionerType": "MAMMOGRAPHIC",
    "PhotometricInterpretation": "MONOCHROME2",
    "HighBit": 7,
    "BurnedInAnnotation": "NO",
    "PixelIntensityRelationship": "LOG",
    "PixelIntensityRelationshipSign": -1,
    "WindowCenter": 128,
    "WindowWidth": 256,
    "RescaleType": "US",
    "WindowCenterWidthExplanation": "Full width of 8 bit data",
    "LossyImageCompression": "00",
    "PresentationLUTShape": "IDENTITY",
    "VOILUTFunction": "SIGMOID",
    # fields that in the real release hold the origin of the image and its anonymisation
    "Manufacturer": f"{MARK} - drawn by mammo_utils",
    "InstitutionName": f"{MARK} - no institution",
    "ImageComments": f"{MARK} image: drawn by a program, shows no patient",
    "DeidentificationMethod": f"{MARK}: no patient",
}


def make_uid(*parts: object) -> str:
    """Make a valid UID that is a function of `parts`: 2.25.<128 bits as a decimal number> (PS3.5, B.2).

    The bits are a SHA-256 cut to the form of a UUID, in a namespace of our own.
    """
    digest = bytearray(hashlib.sha256(repr(("mammo_utils synthetic", *parts)).encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80  # version 8: custom (RFC 9562)
    digest[8] = digest[8] & 0x3F | 0x80
    return f"2.25.{int.from_bytes(digest, 'big')}"


CREATOR = make_uid("creator")


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    *,
    patient: str,
    age: int,
    date: str,
    side: str,
    projection: str,
    number: int,
    uids: tuple[str, str, str],
) -> None:
    """Write one image.

    Args:
        path: File to write.
        pixels: uint8 (rows, columns).
        patient: ID, and name.
        age: In years.
        date: Of the study, YYYYMMDD.
        side: "L" or "R".
        projection: "CC" or "MLO".
        number: Of the image in its series, from 1.
        uids: Of study, series and instance.
    """
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
    dataset.PatientOrientation = ORIENTATION[side, projection]
    code = Dataset()
    code.CodeValue, code.CodeMeaning = PROJECTION_CODES[projection]
    code.CodingSchemeDesignator = "SCT"
    dataset.ViewCodeSequence = [code]
    dataset.ImagerPixelSpacing = [f"{HEIGHT / rows:.9f}", f"{WIDTH / columns:.9f}"]
    dataset.Rows, dataset.Columns = rows, columns
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)
