"""The reader of CMMD on a small synthetic release, intact and damaged."""

import json
import shutil

import openpyxl
import pandas as pd
import pydicom
import pytest

from mammo_utils.data.cohort import DataError, load_cohort, save_cohort
from mammo_utils.data.label_tables import clean, read_workbook
from mammo_utils.data.sources import read_cohort
from mammo_utils.data.split import select_subset
from mammo_utils.synthetic.release import write_release
from mammo_utils.vocabulary import VIEWS
from tests.conftest import SHARED

ANNOTATION = "*_AnnotationFile.json"


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release") / "release"
    write_release(folder, n_exams=24, rows=64, columns=56, seed=5, workers=1)
    return folder


@pytest.fixture
def release(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "release")


def dicoms(folder):
    return sorted(folder.rglob("*.dcm"))


def workbook(folder):
    return next(folder.glob("TOMPEI*.xlsx"))


def edit(folder, change):
    book = openpyxl.load_workbook(workbook(folder))
    change(book["Imaging Diagnosis Details Sheet"])
    book.save(workbook(folder))


def test_every_image_and_breast_has_one_status_and_the_sums_agree(pristine):
    cohort = read_cohort("cmmd", pristine)
    assert cohort.synthetic and cohort.label == "synthetic cohort"
    assert len(cohort.images) == len(dicoms(pristine))
    labels, _, _ = read_workbook(workbook(pristine))
    assert len(cohort.breasts) == len(labels) and set(cohort.images["status"]) <= {"used", "excluded"}
    assert ((cohort.images["reason"] == "") == (cohort.images["status"] == "used")).all()
    used = cohort.breasts[cohort.breasts["status"] == "used"].set_index(["exam", "side"])
    for (exam, side), breast in used.iterrows():
        row = cohort.exams.loc[exam]
        assert (row[f"{side}_class"], row[f"{side}_birads"]) == (breast["class"], breast["birads"])
        assert row[f"{side}_CC"] and row[f"{side}_MLO"]
        assert row[f"{side}_diagnosis"] == (breast["class"] == "malignant")


def test_labels_come_from_the_workbook_and_excluded_breasts_have_a_reason(release):
    def change(sheet):
        sheet["D3"], sheet["D4"], sheet["D5"] = "Exclusion\u200b", "Invisible", "Strange"

    edit(release, change)
    rows = list(
        openpyxl.load_workbook(workbook(release))["Imaging Diagnosis Details Sheet"].iter_rows(values_only=True)
    )
    cohort = read_cohort("cmmd", release)
    breasts = cohort.breasts.set_index(["exam", "side"])
    for row, words in zip(rows[2:5], ("excluded", "invisible", "'strange' is unknown"), strict=True):
        breast = breasts.loc[(row[0], row[1])]
        assert breast["status"] == "excluded" and words in breast["reason"] and breast["diagnosis"] == -1
        images = cohort.images[(cohort.images["exam"] == row[0]) & (cohort.images["side"] == row[1])]
        assert len(images) == 2 and (images["status"] == "excluded").all()
    assert {"breast", "image"} <= set(cohort.excluded["kind"])


@pytest.mark.parametrize("layout", ["rest", "flat"])
def test_the_layout_of_folders_does_not_matter(pristine, release, layout):
    expected = read_cohort("cmmd", pristine)
    for path in dicoms(release):  # move the images to where other clients leave them
        header = pydicom.dcmread(path, stop_before_pixels=True)
        rest = f"tciaDownload/{header.SeriesInstanceUID}/{int(header.InstanceNumber):08d}.dcm"
        target = release / {"rest": rest, "flat": f"CMMD/{header.StudyInstanceUID}/{path.name}"}[layout]
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    shutil.move(release / "manifest-synthetic" / "metadata.csv", release / "metadata.csv")
    shutil.rmtree(release / "manifest-synthetic")
    found = read_cohort("cmmd", release)
    pd.testing.assert_frame_equal(found.exams, expected.exams)
    pd.testing.assert_frame_equal(found.lesions, expected.lesions)


def test_names_and_order_of_files_do_not_matter(pristine, release):
    for number, path in enumerate(reversed(dicoms(release))):
        path.rename(release / f"{number:03d}.dcm")
    expected, found = read_cohort("cmmd", pristine), read_cohort("cmmd", release)
    pd.testing.assert_frame_equal(found.exams, expected.exams)


def test_side_and_view_follow_the_tags_in_order_and_contradictions_are_noted(release):
    path = dicoms(release)[0]
    dataset = pydicom.dcmread(path)
    right = dataset.ImageLaterality
    dataset.Laterality = "L" if right == "R" else "R"
    dataset.save_as(path)
    row = read_cohort("cmmd", release).images.set_index("path").loc[path.relative_to(release).as_posix()]
    assert row["side"] == right and "Laterality" in row["note"]
    del dataset.ImageLaterality, dataset.Laterality, dataset.ViewCodeSequence
    dataset.save_as(path)
    again = read_cohort("cmmd", release).images.set_index("path").loc[row.name]
    assert (again["side"], again["view"], again["note"]) == (right, row["view"], ""), "PatientOrientation has both"
    del dataset.PatientOrientation
    dataset.save_as(path)
    last = read_cohort("cmmd", release).images.set_index("path").loc[row.name]
    assert last["status"] == "excluded" and last["reason"] == "no DICOM tag has the side"


def test_bad_files_are_listed_with_their_reason_and_the_rest_is_read(release):
    first, second, third, fourth = dicoms(release)[:4]
    first.write_bytes(b"no dicom at all")
    second.write_bytes(second.read_bytes()[:200])
    shutil.copy(third, release / "copy.dcm")
    dataset = pydicom.dcmread(fourth)
    dataset.Rows = 60000
    dataset.Columns = 60000
    dataset.save_as(fourth)
    cohort = read_cohort("cmmd", release)
    reasons = cohort.excluded.set_index("what")["reason"]
    assert "not a DICOM file" in reasons[first.relative_to(release).as_posix()]
    assert second.relative_to(release).as_posix() in reasons.index
    same = reasons[reasons.str.startswith("the same UID as")]
    assert len(same) == 1 and same.index[0] in ("copy.dcm", third.relative_to(release).as_posix())
    assert "is not the size of a mammogram" in reasons[fourth.relative_to(release).as_posix()]
    unread = (cohort.excluded["kind"] == "file").sum()
    assert len(cohort.images) + unread == len(dicoms(release))


def test_missing_and_broken_files_are_one_sentence(tmp_path, release):
    with pytest.raises(DataError, match=r"There is no data folder .*nowhere"):
        read_cohort("cmmd", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="should hold one workbook"):
        read_cohort("cmmd", tmp_path / "empty")
    edit(release, lambda sheet: sheet.delete_cols(22))
    with pytest.raises(DataError, match=r"xlsx.*the column 'BI-RADS Category' is missing"):
        read_cohort("cmmd", release)
    workbook(release).write_bytes(b"PK broken")
    with pytest.raises(DataError, match="cannot be read as a workbook"):
        read_cohort("cmmd", release)


def test_a_release_without_images_is_an_error(release):
    for path in dicoms(release):
        path.unlink()
    with pytest.raises(DataError, match="no readable DICOM"):
        read_cohort("cmmd", release)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda lesions: [point.update(x=point["x"] + 500) for point in lesions[0]["cgPoints"]],
            "it lies outside the image of 56 x 64",
        ),
        (lambda lesions: lesions[0].update(label="thing"), "the label 'thing' is none of"),
        (lambda lesions: lesions[0].update(cgPoints=[]), "needs 3 points or more, but this one has 0"),
        (lambda lesions: lesions[0]["cgPoints"].append({"x": float("nan"), "y": 1.0}), "not finite"),
        (lambda lesions: lesions[0]["cgPoints"].append({"x": 1.0}), "no points"),
        (None, "cannot be read as JSON"),
    ],
)
def test_an_invalid_annotation_is_listed(release, change, words):
    path = next(p for p in sorted(release.rglob(ANNOTATION)) if not p.name.startswith("._"))
    before = len(read_cohort("cmmd", release).lesions)
    if change:
        lesions = json.loads(path.read_text())
        change(lesions)
        path.write_text(json.dumps(lesions))
    else:
        path.write_text("[{")
    cohort = read_cohort("cmmd", release)
    listed = cohort.excluded[cohort.excluded["kind"] == "annotation"]
    assert words in listed["reason"].iloc[0] and path.name in listed["what"].iloc[0]
    assert len(cohort.lesions) < before


def test_an_outline_of_no_width_inside_the_image_is_kept(release):
    path = next(p for p in sorted(release.rglob(ANNOTATION)) if not p.name.startswith("._"))
    before = len(read_cohort("cmmd", release).lesions)
    lesions = json.loads(path.read_text())
    lesions[0]["cgPoints"] = [{"x": 5.0, "y": float(y)} for y in (5, 9, 14)]
    path.write_text(json.dumps(lesions))
    assert len(read_cohort("cmmd", release).lesions) == before


def test_points_just_outside_are_clipped(release):
    path = next(p for p in sorted(release.rglob(ANNOTATION)) if not p.name.startswith("._"))
    lesions = json.loads(path.read_text())
    lesions[0]["cgPoints"].append({"x": 56.3, "y": -0.2})
    path.write_text(json.dumps(lesions))
    points = [p for text in read_cohort("cmmd", release).lesions["points"] for p in json.loads(text)]
    assert [56.0, 0.0] in points and all(0 <= x <= 56 and 0 <= y <= 64 for x, y in points)


def test_the_three_cohorts_keep_the_exams_of_their_rule(pristine):
    usable, annotated, complete = (read_cohort("cmmd", pristine, cohort=c) for c in ("usable", "annotated", "complete"))
    assert (annotated.exams[["L_lesions", "R_lesions"]].sum(axis=1) > 0).all()
    assert complete.exams[list(VIEWS)].all(axis=None)
    assert 0 < len(complete.exams) < len(usable.exams) and 0 < len(annotated.exams) < len(usable.exams)
    left = set(usable.exams.index) - set(complete.exams.index)
    assert left == set(complete.excluded.loc[complete.excluded["kind"] == "exam", "what"])
    with pytest.raises(ValueError, match="accepted are usable"):
        read_cohort("cmmd", pristine, cohort="all")


def test_saved_tables_are_loaded_unchanged(pristine, tmp_path):
    cohort = read_cohort("cmmd", pristine)
    save_cohort(cohort, tmp_path)
    loaded = load_cohort(tmp_path)
    for name in ("exams", "images", "breasts", "lesions", "corrections", "excluded"):
        pd.testing.assert_frame_equal(getattr(loaded, name), getattr(cohort, name))
    with pytest.raises(DataError, match="run notebook 01"):
        load_cohort(tmp_path / "nowhere")


def test_subsets_keep_exams_and_mask_birads(pristine):
    exams = read_cohort("cmmd", pristine).exams
    kept = select_subset(exams, "1v5")
    birads = kept[["L_birads", "R_birads"]]
    assert birads.isin([-1, 1, 5]).all(axis=None) and birads.isin([1, 5]).any(axis=1).all()
    original = exams[["L_birads", "R_birads"]]
    assert set(kept.index) == set(exams.index[original.isin([1, 5]).any(axis=1)])
    assert (kept["L_diagnosis"] == exams.loc[kept.index, "L_diagnosis"]).all(), "the diagnoses stay"
    assert len(select_subset(exams, "1v5", "mask")) == len(exams)
    with pytest.raises(ValueError, match="no subset '2v4'"):
        select_subset(exams, "2v4")


def test_cells_lose_their_invisible_characters():
    assert clean("\u200bBI-RADS\nCategory \ufeff") == "BI-RADS Category" and clean(None) == ""


def test_the_real_sample_of_the_workbook_is_read():
    file = SHARED / "data" / "tompei_sample" / "TOMPEI-CMMD_clinical_data_v01_20250121.SAMPLE.xlsx"
    if not file.is_file():
        pytest.skip("the real sample tables are not beside this checkout")
    labels, ages, unusable = read_workbook(file)
    assert len(labels) == 41 and not unusable
    first = labels["D1-0001", "R"]
    assert (first["class"], first["birads"], first["density"]) == ("benign", 2, "heterogeneous")
    assert ages["D1-0001"] == 44
    kept = [label for label in labels.values() if not label["reason"]]
    assert all(label["birads"] > 0 for label in kept), "every usable breast has a BI-RADS category"
