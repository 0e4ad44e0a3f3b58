"""Inputs that users of public projects reported as troublesome, each as one image of D1-0002 beside a good patient."""

import gzip
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MediaStorageDirectoryStorage

from mammo_utils.data.cohort import DataError, load_cohort, save_cohort
from mammo_utils.data.exclusions import exclusion_flow
from mammo_utils.data.folders import name_below, path_below
from mammo_utils.data.sources import read_cohort
from mammo_utils.images.build_store import apply_store, build_store
from mammo_utils.images.grey import read_pixels
from tests.release_builder import BREASTS, build_release

CC = "CMMD/series-4/1-1.dcm"  # D1-0002 L
PACKED = "an archive or a compressed file; unpack it"


def rename(release, name):
    (release / CC).rename(release / name)


def pack_gzip(release):
    (release / "a.dcm.gz").write_bytes(gzip.compress((release / CC).read_bytes()))
    (release / CC).unlink()


def pack_zip(release, name="images.zip"):
    with zipfile.ZipFile(release / name, "w") as archive:
        archive.write(release / CC, "1-1.dcm")
    (release / CC).unlink()


def pack_tar(release, name="images.tar"):
    with tarfile.open(release / name, "w:gz" if name.endswith("gz") else "w") as archive:
        archive.add(release / CC, "1-1.dcm")
    (release / CC).unlink()


def drop_preamble(release, meta=True, syntax=ExplicitVRLittleEndian):
    dataset = pydicom.dcmread(release / CC)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(release / CC, implicit_vr=syntax.is_implicit_VR, little_endian=True)
    content = (release / CC).read_bytes()[132:]
    start = 0 if meta else 12 + int.from_bytes(content[8:12], "little")
    (release / CC).write_bytes(content[start:])


def write_bytes(release, content):
    (release / CC).write_bytes(content)


def write_dicomdir(release):
    index = Dataset()
    index.file_meta = FileMetaDataset()
    index.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    index.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    index.file_meta.MediaStorageSOPInstanceUID = "2.25.9"
    index.FileSetID = "DISK"
    index.save_as(release / "DICOMDIR", enforce_file_format=True)


def change(release, **tags):
    dataset = pydicom.dcmread(release / CC)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(release / CC)


def write_segmentation(release):
    shutil.copy(release / CC, release / "seg.dcm")
    dataset = pydicom.dcmread(release / "seg.dcm")
    dataset.Modality, dataset.SOPInstanceUID = "SEG", "2.25.1"
    dataset.save_as(release / "seg.dcm")


def name_in_latin_1(release):
    folder = os.fsencode(release) + b"/pat\xe9"
    os.mkdir(folder)
    os.rename(release / CC, folder + b"/1.dcm")
    os.rename(release / "TOMPEI-CMMD_clinical_data_v01_20250121.xlsx", folder + b"/TOMPEI-CMMD_clinical_data_v01.xlsx")


def write_junk(release):
    for name in ("._1-1.dcm", ".DS_Store"):
        (release / "CMMD" / "series-4" / name).write_bytes(b"junk")


USED = {CC: "used"}
REPORTS = {
    "dicompyler#5, CaPTk#1053: no suffix": (lambda r: rename(r, "IM0001"), {"IM0001": "used"}),
    "dicompyler#5: another suffix": (lambda r: rename(r, "1.ima"), {"1.ima": "used"}),
    "dicompyler#5: a number as suffix": (lambda r: rename(r, "1.2.840.4"), {"1.2.840.4": "used"}),
    "dicompyler#5: capitals": (lambda r: rename(r, "1.DCM"), {"1.DCM": "used"}),
    "dicompyler#5: compressed": (pack_gzip, {"a.dcm.gz": PACKED}),
    "cbis_ddsm_dataloader#2: zip left packed": (pack_zip, {"images.zip": PACKED}),
    "zip without suffix": (lambda r: pack_zip(r, "images"), {"images": PACKED}),
    "tar left packed": (pack_tar, {"images.tar": PACKED}),
    "tgz left packed": (lambda r: pack_tar(r, "images.tgz"), {"images.tgz": PACKED}),
    "cbis_ddsm_dataloader#2: error page": (
        lambda r: write_bytes(r, b"<html>503</html>"),
        {CC: "not a DICOM file: it is a web page, perhaps a server's error; download it again"},
    ),
    "cbis_ddsm_dataloader#2: empty": (
        lambda r: write_bytes(r, b""),
        {CC: "not a DICOM file: it is empty; download it again"},
    ),
    "a disk that was full": (
        lambda r: write_bytes(r, bytes(1000)),
        {CC: "not a DICOM file: it is only zeros; download it again"},
    ),
    "no preamble": (drop_preamble, USED),
    "neither preamble nor meta, explicit": (lambda r: drop_preamble(r, False), USED),
    "neither preamble nor meta, implicit": (lambda r: drop_preamble(r, False, ImplicitVRLittleEndian), USED),
    "DICOMDIR": (write_dicomdir, {"DICOMDIR": "a DICOMDIR: an index of other files, not an image", **USED}),
    "a segmentation with PatientOrientation (ISPY1)": (
        write_segmentation,
        {"seg.dcm": "no mammogram: its Modality is SEG", **USED},
    ),
    "not UTF-8": (name_in_latin_1, {"pat\\xe9/1.dcm": "used"}),
    "pylidc#43: files of macOS": (write_junk, USED),
    "Mirai#13: ML is no MLO": (
        lambda r: change(r, ViewPosition="ML"),
        {CC: "another projection: ML, neither CC nor MLO"},
    ),
    "anonymised without PatientID": (
        lambda r: change(r, PatientID=""),
        {CC: "the DICOM header has no PatientID, by which images are matched; use files that keep it"},
    ),
    "an object without pixels": (
        lambda r: change(r, Rows=None),
        {CC: "the DICOM header has no Rows: the file is cut off or is no image"},
    ),
    "a picture beside the images": (
        lambda r: (r / "scan.png").write_bytes(b"\x89PNG"),
        {"scan.png": "of another kind, not read: .png", **USED},
    ),
}


@pytest.mark.parametrize("report", REPORTS)
def test_the_input_is_used_or_listed_and_stops_nothing(tmp_path, report):
    alter, expected = REPORTS[report]
    release = build_release(tmp_path / "release", BREASTS[:3], annotate=False)
    alter(release)
    cohort = read_cohort("cmmd", release)
    listed = cohort.excluded.set_index("what")["reason"].to_dict()
    used = dict.fromkeys(cohort.images.loc[cohort.images["status"] == "used", "path"], "used")
    found = {**listed, **used}
    assert {name: found.get(name) for name in expected} == expected
    assert cohort.exams.loc["D1-0001", ["L_CC", "L_MLO", "R_CC", "R_MLO"]].all(), "the other patient"
    assert cohort.exams.at["D1-0002", "L_MLO"] and cohort.exams.at["D1-0002", "L_CC"] == ("used" in expected.values())
    assert exclusion_flow(cohort).at[0, "images"] == len(cohort.images) + (cohort.excluded["kind"] == "file").sum()
    save_cohort(cohort, tmp_path / "found")
    assert load_cohort(tmp_path / "found").excluded.equals(cohort.excluded)
    store = build_store(cohort, tmp_path / "store", size=8, workers=1)
    assert len(store.index) == len(used) and apply_store(cohort, store).exams.equals(cohort.exams)


@pytest.mark.parametrize(
    "name", [b"pat\xe9/1.dcm", rb"pat\xe9", rb"a\x5cxe9\xe9.dcm", "é\\x".encode() + b"\xff\\", b"1.dcm"]
)
def test_every_name_has_one_path_and_every_path_one_name(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    assert path_below(tmp_path, name_below(tmp_path, path)) == path
    name_below(tmp_path, path).encode("utf-8")
    assert name_below(tmp_path, tmp_path / os.fsdecode(b"\xe9")) != name_below(tmp_path, tmp_path / r"\xe9")


@pytest.mark.parametrize("meta", [True, False])
def test_pixels_of_a_file_without_preamble_are_those_with_it(tmp_path, meta):
    release = build_release(tmp_path / "release", BREASTS[:3], annotate=False)
    expected = read_pixels(release / CC).values
    drop_preamble(release, meta)
    found = read_pixels(release / CC).values
    assert np.array_equal(found, expected)


def test_a_folder_with_nothing_but_archives_is_an_error_that_names_them(tmp_path):
    release = build_release(tmp_path / "release", BREASTS[:3], annotate=False)
    pack_zip(release)
    for path in release.rglob("*.dcm"):
        path.unlink()
    with pytest.raises(
        DataError, match=r"no readable DICOM file.* images\.zip: an archive or a compressed file; unpack it"
    ):
        read_cohort("cmmd", release)
    next(release.glob("*.xlsx")).unlink()
    with pytest.raises(DataError, match=r"should hold one workbook.* Unpack images\.zip first\."):
        read_cohort("cmmd", release)


def test_the_name_of_a_label_file_that_is_not_utf_8_can_be_printed(tmp_path):
    release = build_release(tmp_path / "release", BREASTS[:3])
    folder = os.fsencode(release) + b"/pat\xe9"
    os.rename(release / "TOMPEI-CMMD_v01_20250123", folder)
    cohort = read_cohort("cmmd", release)
    save_cohort(cohort, tmp_path / "found")
    names = cohort.excluded.loc[cohort.excluded["kind"] == "annotation", "what"]
    assert "pat\\xe9/D1-0001_MLO_R_AnnotationFile.json" in set(names) and len(cohort.lesions) == 3
    assert Path(release, os.fsdecode(b"pat\xe9")).is_dir()
