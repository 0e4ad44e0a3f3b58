"""The readers of VinDr-Mammo and CBIS-DDSM on small folders in the layouts of the releases."""

import csv

import numpy as np
import pytest

from mammo_utils.data.cohort import DataError
from mammo_utils.data.exclusions import exclusion_flow
from mammo_utils.data.sources import read_cohort
from tests.release_builder import write_dicom

VINDR = ("study_id", "series_id", "image_id", "laterality", "view_position", "breast_birads", "breast_density")
VIEWS = [("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")]


def write_csv(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


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
            write_dicom(path, "anonymous", side, view, 10 * study + number)
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
        write_dicom(tmp_path / f"Mass-Training_{name}" / "1-1.dcm", f"Mass-Training_{name}", side, view, number)
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
