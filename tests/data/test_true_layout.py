"""The reader of CMMD on a release built without the synthetic writer, and on unusable cells and files."""

import json

import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from mammo_utils.data import outlines
from mammo_utils.data.cohort import DataError, load_cohort, save_cohort
from mammo_utils.data.dicom import read_header
from mammo_utils.data.sources import read_cohort
from mammo_utils.images.build_store import apply_store, build_store
from tests.release_builder import BREASTS, build_release, write_dicom, write_workbook


@pytest.fixture
def release(tmp_path):
    return build_release(tmp_path / "release")


def test_the_exam_table_of_the_true_layout(release):
    cohort = read_cohort("cmmd", release)
    assert not cohort.synthetic and cohort.label == "TOMPEI-CMMD"
    exams = cohort.exams
    assert list(exams.index) == ["D1-0001", "D1-0002", "D2-0001"], "D2-0002 has only an invisible breast"
    assert exams["age"].tolist() == [44, 51, 60], "the age is in one of two rows"
    assert exams[["L_class", "R_class"]].to_numpy().tolist() == [
        ["normal", "benign"],
        ["malignant", ""],
        ["", "normal"],
    ]
    assert exams[["L_diagnosis", "R_diagnosis"]].to_numpy().tolist() == [[0, 0], [1, -1], [-1, 0]]
    assert exams[["L_birads", "R_birads"]].to_numpy().tolist() == [[1, 2], [5, -1], [-1, 1]]
    assert exams["L_density"].tolist() == ["heterogeneous", "extreme", ""]
    views = exams[["L_CC", "L_MLO", "R_CC", "R_MLO"]].to_numpy().tolist()
    assert views == [[True] * 4, [True, True, False, False], [False, False, True, True]]
    assert cohort.images["status"].value_counts().to_dict() == {"used": 8, "excluded": 4}
    assert (cohort.images["note"] == "").all(), "the tags of the header pattern agree"


def test_outlines_are_cleaned_clipped_or_listed_and_junk_is_ignored(release):
    cohort = read_cohort("cmmd", release)
    assert cohort.lesions[["exam", "view", "kind"]].to_numpy().tolist() == [
        ["D1-0001", "R_MLO", "FAD"],
        ["D1-0002", "L_MLO", "mass"],
        ["D1-0002", "L_MLO", "calc"],
        ["D2-0001", "L_MLO", "mass"],
    ]
    assert json.loads(cohort.lesions["points"][2])[0] == [0.0, 5.0]
    assert json.loads(cohort.lesions["points"][0]) == [[2.0, 5.0], [6.0, 5.0], [20.0, 9.0]], "cut at the edge"
    (listed,) = cohort.excluded[cohort.excluded["kind"] == "annotation"].to_dict("records")
    assert "D1-0001_MLO_R" in listed["what"] and "lesion 1: it is cut at the edge, points" in listed["reason"]
    assert listed["reason"].endswith("up to 100 % of the side outside the image of 20 x 24 pixels")


def test_outlines_of_an_excluded_breast_do_not_count(release):
    exams = read_cohort("cmmd", release).exams
    assert exams["L_lesions"].tolist() == [0, 2, 0], "D2-0001 L is excluded"
    assert list(read_cohort("cmmd", release, cohort="annotated").exams.index) == ["D1-0001", "D1-0002"]


@pytest.mark.parametrize("order", [1, -1])
def test_conflicting_rows_exclude_the_breast(tmp_path, order):
    twice = [BREASTS[2], ("D1-0002", "L", 51, "Invisible", "extremely dense", None)][::order]
    release = build_release(tmp_path / "r", [*BREASTS[:2], twice[0]])
    write_workbook(next(release.glob("*.xlsx")), [*BREASTS[:2], *twice])
    cohort = read_cohort("cmmd", release)
    breast = cohort.breasts.set_index(["exam", "side"]).loc[("D1-0002", "L")]
    assert breast["reason"] == "the workbook has conflicting rows for this breast" and breast["diagnosis"] == -1
    assert "D1-0002" not in cohort.exams.index


def test_unusable_cells_are_listed(tmp_path):
    rows = [("D1-0002", "L", 51, "Malignant", "fatty", "4A"), ("D2-0009", "Left", 51, "Malignant", "fatty", 5)]
    release = build_release(tmp_path / "r", [*BREASTS[:2], rows[0]])
    write_workbook(next(release.glob("*.xlsx")), [*BREASTS[:2], *rows])
    cohort = read_cohort("cmmd", release)
    listed = cohort.excluded[cohort.excluded["kind"] == "annotation"].set_index("what")["reason"]
    assert "'4A' in the workbook is none of 1 to 5" in listed["D1-0002 L"]
    assert "'LEFT' in the workbook is neither L nor R" in listed["D2-0009"]
    assert cohort.exams.loc["D1-0002", ["L_diagnosis", "L_birads"]].tolist() == [1, -1]


def test_a_file_that_is_too_large_is_listed(release, monkeypatch):
    monkeypatch.setattr(outlines, "LARGEST", 10)
    cohort = read_cohort("cmmd", release)
    listed = cohort.excluded[cohort.excluded["kind"] == "annotation"]
    assert len(listed) == 3 and listed["reason"].str.startswith("the file is larger than").all()


def test_a_deflated_file_is_not_opened(tmp_path):
    path = tmp_path / "a.dcm"
    write_dicom(path, "D1-0001", "L", "CC", 0)
    dataset = pydicom.dcmread(path)
    assert read_header(path)[1] == ""
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.add_new(0x00091001, "OB", bytes(2**20))
    dataset.save_as(path)
    assert path.stat().st_size < 2**14, "it would expand a hundredfold"
    header, reason = read_header(path)
    assert header == {} and "deflated" in reason


def test_images_without_tags_are_listed_each_with_that_reason(tmp_path):
    for number in range(3):
        path = tmp_path / f"{number}.dcm"
        write_dicom(path, "Mass-Test_P_00001_LEFT_CC", "L", "CC", number)
        dataset = pydicom.dcmread(path)
        if number:
            del dataset.ImageLaterality, dataset.PatientOrientation, dataset.ViewCodeSequence
        dataset.save_as(path)
    cohort = read_cohort("ddsm", tmp_path)
    assert sorted(cohort.images["reason"]) == ["", *["no DICOM tag has the side"] * 2]
    assert list(cohort.exams.index) == ["P_00001"]


def test_a_repaired_file_of_the_same_size_is_read_again(release, tmp_path):
    cohort = read_cohort("cmmd", release)
    path = release / cohort.images.loc[cohort.images["status"] == "used", "path"].iloc[0]
    good = path.read_bytes()
    dataset = pydicom.dcmread(path)
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(path)
    bad = path.read_bytes()
    assert len(bad) == len(good)
    store = build_store(cohort, tmp_path / "store", size=8, workers=1)
    assert store.excluded["reason"].tolist() == ["every pixel is 0"]
    assert len(apply_store(cohort, store).exams) == len(cohort.exams)
    path.write_bytes(good)
    seen = []
    store = build_store(cohort, tmp_path / "store", size=8, workers=1, progress=lambda done, total: seen.append(done))
    assert not len(store.excluded) and len(store.index) == 8
    seen.clear()
    build_store(cohort, tmp_path / "store", size=8, workers=1, progress=lambda done, total: seen.append(done))
    assert not seen


@pytest.mark.parametrize("name", ["cohort.json", "images.parquet", "excluded.csv"])
def test_a_missing_file_of_saved_tables_is_named(release, tmp_path, name):
    save_cohort(read_cohort("cmmd", release), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"has no {name}; run notebook 01"):
        load_cohort(tmp_path)
