"""The readers of the data sets other than CMMD on small folders in the layouts of the releases."""

import csv

import numpy as np
import pydicom
import pytest

from mammo_utils.data.cohort import DataError
from mammo_utils.data.exclusions import exclusion_flow
from mammo_utils.data.sources import read_cohort
from tests.release_builder import build_release, write_dicom

VINDR = ("study_id", "series_id", "image_id", "laterality", "view_position", "breast_birads", "breast_density")
# The tags that VinDr-Mammo's anonymiser keeps (github.com/vinbigdata-medical/vindr-mammo, tags.csv), by keyword.
VINDR_TAGS = (
    "PatientSex", "PatientAge", "PatientSize", "PatientWeight", "Rows", "Columns", "PixelSpacing", "ImagerPixelSpacing",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PresentationLUTShape", "SmallestImagePixelValue", "LargestImagePixelValue", "WindowCenter", "WindowWidth",
    "WindowCenterWidthExplanation", "VOILUTFunction", "VOILUTSequence", "LUTDescriptor", "LUTExplanation", "LUTData",
    "RescaleIntercept", "RescaleSlope", "RescaleType", "PixelData", "PhotometricInterpretation",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod", "SamplesPerPixel",
    "NumberOfFrames", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Modality", "BodyPartExamined",
    "PresentationIntentType", "Manufacturer", "ManufacturerModelName", "Laterality", "ImageLaterality", "ViewPosition",
)  # fmt: skip
VIEWS = [("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")]


def write_csv(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def keep_tags(path, names, **values):
    """Remove all tags but these from a file, as an anonymiser does, and set others."""
    dataset = pydicom.dcmread(path)
    for element in list(dataset):
        if element.keyword not in names:
            del dataset[element.tag]
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


@pytest.fixture
def vindr(tmp_path):
    """Three studies of four images; the second has an unknown BI-RADS left, the third conflicting rows right."""
    rows = []
    for study in range(3):
        for number, (side, view) in enumerate(VIEWS):
            image = f"image{study}{number}"
            birads = f"BI-RADS {study + 1 if side == 'L' else 5}"
            if (study, side) == (1, "L"):
                birads = "BI-RADS 9"
            if (study, side, view) == (2, "R", "CC"):
                birads = "BI-RADS 4"
            rows.append((f"study{study}", "s", image, side, view, birads, "DENSITY C"))
            path = tmp_path / "images" / f"study{study}" / f"{image}.dicom"
            write_dicom(path, "removed below", side, view, 10 * study + number)
            keep_tags(path, VINDR_TAGS, Modality="MG", StudyInstanceUID=f"2.25.{study + 1}", ViewPosition=view)
    write_csv(tmp_path / "breast-level_annotations.csv", VINDR, rows)
    return tmp_path


def test_vindr_has_birads_and_density_of_each_breast(vindr):
    cohort = read_cohort("vindr", vindr)
    assert cohort.name == "VinDr-Mammo" and list(cohort.exams.index) == ["study0", "study1", "study2"]
    assert cohort.exams["L_birads"].tolist() == [1, -1, 3] and cohort.exams["R_birads"].tolist() == [5, 5, -1]
    assert (cohort.exams[["L_diagnosis", "R_diagnosis"]] == -1).all(axis=None)
    assert cohort.exams.loc["study0", "L_density"] == "heterogeneous"
    excluded = cohort.breasts[cohort.breasts["status"] == "excluded"].set_index(["exam", "side"])["reason"].to_dict()
    assert excluded == {
        ("study1", "L"): "its BI-RADS 'BI-RADS 9' is unknown",
        ("study2", "R"): "the csv has conflicting rows for this breast",
    }
    assert cohort.exams.loc["study1", ["L_CC", "L_MLO", "R_CC", "R_MLO"]].tolist() == [False, False, True, True]
    assert exclusion_flow(cohort).at[0, "images"] == 12


def test_vindr_needs_no_tag_that_its_anonymiser_removes(vindr):
    path = vindr / "images" / "study0" / "image00.dicom"
    assert not {"PatientID", "PatientOrientation", "ViewCodeSequence"} & {e.keyword for e in pydicom.dcmread(path)}
    cohort = read_cohort("vindr", vindr)
    assert len(cohort.images) == 12 and (cohort.images["note"] == "").all()
    assert cohort.exams.loc["study0", ["L_CC", "L_MLO", "R_CC", "R_MLO"]].all()
    (vindr / "breast-level_annotations.csv").rename(vindr / "breast-level_annotations (1).csv")
    assert len(read_cohort("vindr", vindr).exams) == 3, "the name that a browser gives to a second download"


def test_vindr_loses_nothing(vindr):
    """An image without a row, a row without an image, tags that contradict the csv, a file that is not DICOM."""
    write_dicom(vindr / "images" / "study9" / "stray.dicom", "anonymous", "L", "CC", 90)
    (vindr / "images" / "study0" / "image03.dicom").unlink()
    (vindr / "images" / "study2" / "image20.dicom").write_bytes(b"no image")
    write_dicom(vindr / "images" / "study0" / "image00.dicom", "anonymous", "R", "CC", 91)
    cohort = read_cohort("vindr", vindr)
    listed = cohort.excluded.set_index("what")["reason"]
    assert listed["image03"] == "the folder has no file of this image"
    assert listed["images/study2/image20.dicom"].startswith("not a DICOM file: it has neither")
    assert listed["images/study9/stray.dicom"] == "the labels have no row for its breast"
    assert "image20" not in listed, "its file exists"
    noted = cohort.images.set_index("path").loc["images/study0/image00.dicom"]
    assert noted["view"] == "L_CC" and "side: L in the table, R in the tags" in noted["note"]
    found = exclusion_flow(cohort)
    assert found.at[0, "images"] == 12, "11 of the 12 and the stray image"


def test_errors_of_vindr_are_one_sentence(vindr):
    table = vindr / "breast-level_annotations.csv"
    text = table.read_text()
    table.write_text(text.replace("breast_birads", "birads"))
    with pytest.raises(DataError, match=r"breast-level_annotations\.csv: the column 'breast_birads' is missing"):
        read_cohort("vindr", vindr)
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"breast-level_annotations\.csv cannot be read as csv"):
        read_cohort("vindr", vindr)
    table.unlink()
    with pytest.raises(DataError, match=r"should hold one breast-level_annotations\.csv, but has none"):
        read_cohort("vindr", vindr)
    with pytest.raises(DataError, match="There is no data folder"):
        read_cohort("vindr", vindr / "nowhere")


DDSM = ("patient_id", "breast_density", "left or right breast", "image view", "assessment", "pathology")
ROWS = [
    ("P_00001", "2", "LEFT", "CC", "4", "BENIGN"),
    ("P_00001", "2.0", "LEFT", "MLO", "5.0", "MALIGNANT"),
    ("P_00001", "2", "LEFT", "MLO", "3", "BENIGN"),
    ("", "2", "LEFT", "MLO", "3", "BENIGN"),
    ("", "", "", "7", "", ""),
    ("P_00002", "4", "RIGHT", "CC", "0", "BENIGN_WITHOUT_CALLBACK"),
    ("P_00003", "0", "LEFT", "CC", "7", "UNPROVEN"),
    ("P_00003", "1", "BOTH", "CC", "2", "BENIGN"),
    ("P_00004", "1", "LEFT", "CC", "2", "BENIGN"),
]


@pytest.fixture
def ddsm(tmp_path):
    names = ["P_00001_LEFT_CC", "P_00001_LEFT_MLO", "P_00002_RIGHT_CC", "P_00003_LEFT_CC", "P_00009_LEFT_CC"]
    for number, name in enumerate([*names, "P_00001_LEFT_CC_1"]):
        side, view = name.split("_")[2][0], name.split("_")[3]
        path = tmp_path / f"Mass-Training_{name}" / "1-1.dcm"
        write_dicom(path, f"Mass-Training_{name}", side, view, number)
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID = f"2.25.{number + 1}"  # each view is a study of its own
        dataset.save_as(path)
    write_csv(tmp_path / "mass_case_description_train_set.csv", DDSM, ROWS)
    columns = [name.replace("_density", " density") for name in DDSM]
    write_csv(
        tmp_path / "calc_case_description_test_set.csv", columns, [("P_00002", "", "RIGHT", "MLO", "3", "BENIGN")]
    )
    return tmp_path


def test_ddsm_labels_a_breast_by_its_worst_lesion(ddsm):
    cohort = read_cohort("ddsm", ddsm)
    assert list(cohort.exams.index) == ["P_00001", "P_00002"]
    found = cohort.exams[["L_diagnosis", "L_birads", "L_density", "R_diagnosis", "R_birads", "R_density"]]
    assert found.loc["P_00001"].tolist() == [1, 5, "scattered", -1, -1, ""]
    assert cohort.exams.loc["P_00001", ["L_CC", "L_MLO"]].all()
    assert found.loc["P_00002"].tolist() == [-1, -1, "", 0, 3, "extreme"]
    reasons = cohort.images.set_index("path")["reason"]
    assert reasons["Mass-Training_P_00001_LEFT_CC_1/1-1.dcm"] == "a lesion's mask or crop, not a mammogram"
    assert reasons["Mass-Training_P_00003_LEFT_CC/1-1.dcm"] == "no row for it has a known pathology or assessment"
    assert reasons["Mass-Training_P_00009_LEFT_CC/1-1.dcm"] == "the labels have no row for its breast"
    breasts = cohort.breasts.set_index(["exam", "side"])
    assert breasts.loc[("P_00004", "L"), "reason"] == "the folder has no image of it"
    unusable = cohort.excluded[cohort.excluded["kind"] == "annotation"]["reason"].tolist()
    assert len(unusable) == 3 and "it has no ID, but a side and a label: LEFT, BENIGN" in unusable
    assert any("pathology 'UNPROVEN'" in reason for reason in unusable)
    assert any("side 'BOTH'" in reason for reason in unusable)


def test_ddsm_has_no_labels_without_a_table_and_a_damaged_table_is_an_error(ddsm):
    table = ddsm / "mass_case_description_train_set.csv"
    table.write_text(table.read_text().replace("pathology", "path"))
    with pytest.raises(DataError, match=r"mass_case_description_train_set\.csv: the column 'pathology' is missing"):
        read_cohort("ddsm", ddsm)
    for path in ddsm.glob("*.csv"):
        path.unlink()
    exams = read_cohort("ddsm", ddsm).exams
    assert len(exams) == 4 and np.all(exams[["L_diagnosis", "R_birads"]] == -1)


def test_a_row_of_vindr_without_an_id_is_listed_and_the_cohort_follows_its_rule(vindr):
    table = vindr / "breast-level_annotations.csv"
    table.write_text(table.read_text() + "study0,s,,L,CC,BI-RADS 2,DENSITY A\n")
    cohort = read_cohort("vindr", vindr, cohort="complete")
    assert list(cohort.exams.index) == ["study0"], "the others have a breast without a label"
    assert "it has no ID, but a side and a label: L, BI-RADS 2" in set(cohort.excluded["reason"])
    with pytest.raises(DataError, match="VinDr-Mammo has no lesion outlines"):
        read_cohort("vindr", vindr, cohort="annotated")
    with pytest.raises(ValueError, match="accepted are usable"):
        read_cohort("vindr", vindr, cohort="all")


# --- wrong folders ------------------------------------------------------------------------------------------


def test_ddsm_refuses_a_folder_of_another_data_set(vindr, ddsm, tmp_path):
    release = build_release(tmp_path / "cmmd", annotate=False)
    with pytest.raises(DataError, match=r"holds no image of CBIS-DDSM: the PatientID of none names a view"):
        read_cohort("ddsm", release)
    write_csv(tmp_path / "cmmd" / "mass_case_description_test_set.csv", DDSM, ROWS)
    with pytest.raises(DataError, match="holds no image of CBIS-DDSM"):
        read_cohort("ddsm", release)


def test_ddsm_refuses_case_descriptions_without_a_row_for_any_image(ddsm):
    (ddsm / "calc_case_description_test_set.csv").unlink()
    write_csv(ddsm / "mass_case_description_train_set.csv", DDSM, [("P_09999", "2", "LEFT", "CC", "4", "BENIGN")])
    with pytest.raises(DataError, match=r"mass_case_description_train_set\.csv has no row for any of the images"):
        read_cohort("ddsm", ddsm)


def test_ddsm_reads_a_csv_that_a_browser_has_numbered(ddsm):
    expected = read_cohort("ddsm", ddsm).exams
    for path in ddsm.glob("*.csv"):
        path.rename(path.with_stem(f"{path.stem} (1)"))
    found = read_cohort("ddsm", ddsm)
    assert found.exams.equals(expected) and "other" not in set(found.excluded["kind"])


def test_tables_that_differ_are_an_error_and_copies_are_not(vindr):
    table = vindr / "breast-level_annotations.csv"
    copy = vindr / "copy" / table.name
    copy.parent.mkdir()
    copy.write_bytes(table.read_bytes())
    assert len(read_cohort("vindr", vindr).exams) == 3
    copy.write_text(table.read_text().replace("BI-RADS 1", "BI-RADS 2"))
    with pytest.raises(
        DataError, match=r"should hold one breast-level_annotations\.csv, but has 2 that differ: b.*, copy/"
    ):
        read_cohort("vindr", vindr)


# --- RSNA 2022 ----------------------------------------------------------------------------------------------

RSNA = (
    *("site_id", "patient_id", "image_id", "laterality", "view", "age", "cancer", "biopsy", "invasive", "BIRADS"),
    *("implant", "density", "machine_id", "difficult_negative_case"),
)


@pytest.fixture
def rsna(tmp_path):
    """Two patients: one with cancer left, a biopsy right, a second L CC and an ML; one with a blank right breast."""
    images = [  # patient, image, side, view, cancer, biopsy, BIRADS, density
        ("10006", "462822612", "L", "CC", "1", "1", "0", "C"),
        ("10006", "1459541791", "L", "MLO", "1", "1", "0", "C"),
        ("10006", "11", "L", "CC", "1", "1", "0", "C"),
        ("10006", "1864590858", "R", "MLO", "0", "1", "2.0", "C"),
        ("10006", "1874946579", "R", "CC", "0", "1", "2.0", "C"),
        ("10006", "12", "R", "ML", "0", "1", "2.0", "C"),
        ("10011", "220375232", "L", "CC", "0", "0", "1", ""),
        ("10011", "541722628", "L", "MLO", "0", "0", "1", ""),
        ("10011", "1031443799", "R", "CC", "0", "0", "", ""),
    ]
    rows = []
    for number, (patient, image, side, view, cancer, biopsy, birads, density) in enumerate(images):
        rows.append(("2", patient, image, side, view, "61.0", cancer, biopsy, "0", birads, "0", density, "29", "False"))
        path = tmp_path / "train_images" / patient / f"{image}.dcm"
        write_dicom(path, patient, side, "CC" if view == "CC" else "MLO", number)
        tags = {"Modality": "MG", "StudyInstanceUID": f"2.25.{number + 1}", "Rows": 12 if image == "11" else 24}
        keep_tags(path, {"PatientID", *VINDR_TAGS} - {"ImageLaterality", "Laterality", "ViewPosition"}, **tags)
    write_csv(tmp_path / "train.csv", RSNA, rows)
    path = tmp_path / "test_images" / "10008" / "736471439.dcm"
    write_dicom(path, "10008", "L", "MLO", 99)
    return tmp_path


def test_rsna_has_a_diagnosis_of_each_breast_and_some_birads(rsna):
    cohort = read_cohort("rsna", rsna)
    assert cohort.name == "RSNA 2022" and list(cohort.exams.index) == ["10006", "10011"]
    columns = ["L_class", "R_class", "L_diagnosis", "R_diagnosis", "L_birads", "R_birads", "L_density", "age"]
    assert cohort.exams.loc["10006", columns].tolist() == ["malignant", "benign", 1, 0, -1, 2, "heterogeneous", 61.0]
    assert cohort.exams.loc["10011", columns].tolist() == ["", "", 0, 0, 1, -1, "", 61.0]
    assert cohort.exams[["L_CC", "L_MLO", "R_CC", "R_MLO"]].to_numpy().tolist() == [
        [True] * 4,
        [True, True, True, False],
    ]
    reasons = cohort.images.set_index("path")["reason"]
    large = "train_images/10006/462822612.dcm"
    assert (
        reasons["train_images/10006/11.dcm"]
        == f"a second image of the same view: beside {large}, because this is smaller"
    )
    assert reasons["train_images/10006/12.dcm"] == "another projection: ML, neither CC nor MLO"
    assert reasons["test_images/10008/736471439.dcm"] == "the labels have no row for its breast"
    assert (cohort.images["status"] == "used").sum() == 7, "although each image has a study of its own"


def test_rsna_excludes_a_breast_whose_rows_contradict_each_other_or_have_no_label(rsna):
    table = rsna / "train.csv"
    text = table.read_text()
    table.write_text(
        text.replace("462822612,L,CC,61.0,1", "462822612,L,CC,61.0,0").replace("R,CC,61.0,0,0", "R,CC,61.0,,0")
    )
    breasts = read_cohort("rsna", rsna).breasts.set_index(["exam", "side"])["reason"]
    assert breasts["10006", "L"] == "the csv has conflicting rows for this breast"
    assert breasts["10011", "R"] == "its cancer '' is neither 0 nor 1"
    table.unlink()
    (rsna / "train.csv.zip").write_bytes(b"PK")
    with pytest.raises(
        DataError, match=r"one train\.csv, but has none; put RSNA 2022's there\. Unpack train\.csv\.zip first"
    ):
        read_cohort("rsna", rsna)


def test_a_blank_cell_beside_a_value_of_the_same_breast_is_no_contradiction(rsna):
    table = rsna / "train.csv"
    text = table.read_text()
    table.write_text(  # 10006 R: BI-RADS and density only in the row of its CC; 10011 L: cancer only in that of its MLO
        text.replace("1864590858,R,MLO,61.0,0,1,0,2.0,0,C", "1864590858,R,MLO,61.0,0,,0,,0,").replace(
            "220375232,L,CC,61.0,0,0,0,1", "220375232,L,CC,61.0,,0,0,"
        )
    )
    cohort = read_cohort("rsna", rsna)
    columns = ["class", "diagnosis", "birads", "density", "status"]
    breasts = cohort.breasts.set_index(["exam", "side"])[columns]
    assert breasts.loc[("10006", "R")].tolist() == ["benign", 0, 2, "heterogeneous", "used"]
    assert breasts.loc[("10011", "L")].tolist() == ["", 0, 1, "", "used"]
    table.write_text(text.replace("1864590858,R,MLO,61.0,0,1,0,2.0,0,C", "1864590858,R,MLO,61.0,0,1,0,1,0,C"))
    reasons = read_cohort("rsna", rsna).breasts.set_index(["exam", "side"])["reason"]
    assert reasons["10006", "R"] == "the csv has conflicting rows for this breast", "BI-RADS 1 and 2"


def test_a_blank_cell_of_vindr_takes_the_breasts_other_value(vindr):
    table = vindr / "breast-level_annotations.csv"
    table.write_text(table.read_text().replace("image00,L,CC,BI-RADS 1,DENSITY C", "image00,L,CC,,DENSITY C"))
    assert read_cohort("vindr", vindr).exams.at["study0", "L_birads"] == 1


# --- INbreast -----------------------------------------------------------------------------------------------

INBREAST = ("Patient ID", "Patient age", "Laterality", "View", "Acquisition date", "File Name", "ACR", "Bi-Rads")
INBREAST_ROWS = [  # as in the release's csv; the last patient has two studies
    ("22678622", "53a1", "R", "CC", "201001", "4", "1"),
    ("22678646", "53a1", "L", "CC", "201001", "4", "3"),
    ("22678670", "53a1", "R", "MLO", "201001", "4", "1"),
    ("22678694", "53a1", "L", "MLO", "201001", "4", "3"),
    ("22670809", "6d2f", "R", "CC", "201001", "1", "5"),
    ("22670855", "6d2f", "R", "MLO", "201001", " " * 50, "4a"),
    ("53581406", "7e3a", "R", "MLO", "201001", "1", "6"),
    ("53581460", "7e3a", "R", "CC", "201001", "1", "6"),
    ("53581433", "7e3a", "L", "CC", "201001", "1", "4c"),
    ("50994300", "7e3a", "L", "FB", "201001", "1", "2"),
    ("50993895", "8f4b", "L", "MLO", "200802", "3", "5"),
    ("50993787", "8f4b", "L", "MLO", "201001", "3", "2"),
]


@pytest.fixture
def inbreast(tmp_path):
    rows = []
    for number, (image, patient, side, view, date, acr, birads) in enumerate(INBREAST_ROWS):
        rows.append(("removed", "removed", side, view, date, image, acr, birads))
        name = f"{image}_{patient}_MG_{side}_{'ML' if view == 'MLO' else view}_ANON.dcm"
        path = tmp_path / "INbreast Release 1.0" / "AllDICOMs" / name
        write_dicom(path, "removed", side, "CC" if view == "CC" else "MLO", number)
        kept = {"SOPInstanceUID", "Rows", "Columns", "PixelData", "PhotometricInterpretation", "SamplesPerPixel"}
        keep_tags(path, kept | {"BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"}, Modality="MG")
    write_csv(tmp_path / "INbreast Release 1.0" / "INbreast.csv", INBREAST, rows)
    table = tmp_path / "INbreast Release 1.0" / "INbreast.csv"
    table.write_text(table.read_text().replace(",", ";"))
    return tmp_path


def test_inbreast_has_birads_of_each_breast_and_the_patient_from_the_name(inbreast):
    cohort = read_cohort("inbreast", inbreast)
    assert cohort.name == "INbreast" and list(cohort.exams.index) == ["53a1", "6d2f", "7e3a", "8f4b"]
    columns = ["L_birads", "R_birads", "L_diagnosis", "R_diagnosis", "R_class"]
    assert cohort.exams[columns].to_numpy().tolist() == [
        [3, 1, -1, -1, ""],
        [-1, 5, -1, -1, ""],
        [4, -1, -1, 1, "malignant"],
        [2, -1, -1, -1, ""],
    ]
    assert cohort.exams["R_density"].tolist() == ["extreme", "fatty", "fatty", ""]
    assert cohort.exams["L_MLO"].tolist() == [True, False, False, True] and (cohort.images["note"] == "").all()
    reasons = [reason for reason in cohort.images["reason"] if reason]
    assert sorted(reasons) == [
        "another projection: FB, neither CC nor MLO",
        "from another study of the patient; an exam uses only one study",
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("R", "FB", "201001", "3", "2"), "another projection: FB, neither CC nor MLO"),
        (("R", "MLO", "200802", "3", "2"), "from another study of the patient; an exam uses only one study"),
        (("R", "MLO", "", "3", "2"), "its row has no Acquisition date, and the patient has several studies"),
    ],
)
def test_inbreast_gives_the_true_reason_of_a_breast_without_a_usable_image(inbreast, row, reason):
    folder = inbreast / "INbreast Release 1.0"
    write_dicom(folder / "AllDICOMs" / f"50990001_8f4b_MG_R_{row[1]}_ANON.dcm", "removed", "R", "MLO", 90)
    keep_tags(folder / "AllDICOMs" / f"50990001_8f4b_MG_R_{row[1]}_ANON.dcm", VINDR_TAGS, Modality="MG")
    with (folder / "INbreast.csv").open("a") as file:
        file.write(";".join(["removed", "removed", *row[:3], "50990001", *row[3:]]) + "\n")
    cohort = read_cohort("inbreast", inbreast)
    breast = cohort.breasts.set_index(["exam", "side"]).loc[("8f4b", "R")]
    assert breast["reason"] == "none of its images can be used" and breast["status"] == "excluded"
    assert reason in cohort.images.set_index(["exam", "side"]).loc[[("8f4b", "R")], "reason"].tolist()


def test_inbreast_images_without_a_date_belong_to_the_only_study_of_the_patient(inbreast):
    table = inbreast / "INbreast Release 1.0" / "INbreast.csv"
    lines = table.read_text().splitlines()
    lines = [line.replace(";201001;", ";;") if "22678622" in line or "6d2f" in line else line for line in lines]
    table.write_text("\n".join(lines))
    exams = read_cohort("inbreast", inbreast).exams
    assert exams.loc["53a1", ["L_CC", "L_MLO", "R_CC", "R_MLO"]].all() and exams.at["6d2f", "R_CC"]


def test_inbreast_lists_files_and_rows_that_do_not_match(inbreast):
    images = inbreast / "INbreast Release 1.0" / "AllDICOMs"
    (images / "22678622_53a1_MG_R_CC_ANON.dcm").rename(images / "22678622.dcm")
    (images / "22678646_53a1_MG_L_CC_ANON.dcm").rename(images / "22678646_53a1_MG_R_CC_ANON.dcm")
    (images / "22670809_6d2f_MG_R_CC_ANON.dcm").unlink()
    (images / "22670855_6d2f_MG_R_ML_ANON.dcm").rename(images / "999_6d2f_MG_R_ML_ANON.dcm")
    table = images.parent / "INbreast.csv"
    table.write_text(table.read_text().replace("53581433;1;4c", "53581433;1;x"))
    cohort = read_cohort("inbreast", inbreast)
    rows = {path.split("/")[-1]: row for path, row in cohort.images.set_index("path").iterrows()}
    assert rows["22678622.dcm"]["reason"].startswith("its name is not <image>_<patient>_MG_")
    assert rows["22678646_53a1_MG_R_CC_ANON.dcm"]["note"] == "side or view: L CC in the csv, R CC in the file's name"
    assert rows["999_6d2f_MG_R_ML_ANON.dcm"]["reason"] == "the labels have no row for its breast"
    listed = cohort.excluded.set_index("what")["reason"]
    assert listed["22670809"] == "the folder has no file of this image"
    assert listed["53581433"] == "the BI-RADS 'x' is unknown"
    breasts = cohort.breasts.set_index(["exam", "side"])["reason"]
    assert breasts["7e3a", "L"] == "none of its rows has a known BI-RADS"


def test_inbreast_without_csv_names_the_sheet_to_convert(inbreast):
    table = inbreast / "INbreast Release 1.0" / "INbreast.csv"
    table.rename(table.with_suffix(".xls"))
    with pytest.raises(
        DataError, match=r"one INbreast\.csv, but has none \(INbreast\.xls has to be saved as csv\); put"
    ):
        read_cohort("inbreast", inbreast)
