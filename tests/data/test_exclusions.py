"""Every image and breast found is used or excluded for one reason, and the sums agree at every step."""

import pandas as pd
import pydicom
import pytest

from mammo_utils.data.cohort import STEPS, DataError, load_cohort, save_cohort
from mammo_utils.data.exclusions import UNITS, exclude_conflicting_duplicates, exclusion_flow
from mammo_utils.data.sources import read_cohort
from mammo_utils.data.split import select_subset
from mammo_utils.images.build_store import apply_store, build_store
from mammo_utils.vocabulary import VIEWS
from tests.release_builder import build_release

BREASTS = [  # ID, side, age, classification, density, BI-RADS
    *(("D1-0001", side, 44, "Benign", "fatty", 2) for side in "LR"),
    *(("D1-0002", side, 44, "Malignant", "fatty", 5) for side in "LR"),
    *(("D1-0003", side, 44, "Normal", "fatty", 1) for side in "LR"),
    ("D1-0004", "L", 44, "Malignant", "fatty", 5),
    ("D1-0005", "L", 44, "Exclusion", "fatty", None),
    ("D1-0005", "R", 44, "Invisible", "fatty", None),
]


@pytest.fixture
def release(tmp_path):
    return build_release(tmp_path / "release", BREASTS, annotate=False)


def find_path(release, exam, side, view):
    for path in release.rglob("*.dcm"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        meaning = {"CC": "cranio-caudal", "MLO": "medio-lateral oblique"}[view]
        if (header.PatientID, header.ImageLaterality, header.ViewCodeSequence[0].CodeMeaning) == (exam, side, meaning):
            return path
    raise AssertionError(f"{exam} {side} {view} was not written")


def reconcile(cohort, release, subset=""):
    """Compare the flow with counts made in another way."""
    rows = exclusion_flow(cohort, subset)
    kept = select_subset(cohort.exams, subset).index if subset else cohort.exams.index
    first, last = rows.iloc[0], rows.iloc[-1]
    breasts = {*zip(cohort.breasts["exam"], cohort.breasts["side"], strict=True)}
    assert first["step"] == "found" and first["images"] == len(list(release.rglob("*.dcm")))
    assert first["breasts"] == len(breasts) == len(cohort.breasts)
    assert first["exams"] == len({exam for exam, _ in breasts} | set(cohort.images["exam"]))
    assert last["images_left"] == cohort.exams.loc[kept, list(VIEWS)].to_numpy().sum()
    assert last["exams_left"] == len(kept)
    used = cohort.breasts[(cohort.breasts["status"] == "used") & cohort.breasts["exam"].isin(kept)]
    assert last["breasts_left"] == len(used)
    for unit in UNITS:
        assert (rows[unit] >= 0).all() and rows[f"{unit}_left"].iloc[0] == rows[unit].iloc[0]
        assert rows[unit].iloc[1:].sum() + last[f"{unit}_left"] == first[unit]
    assert rows["step"].iloc[1:].isin(STEPS).all() and not rows.duplicated(["step", "reason"]).any()
    assert list(rows["step"].iloc[1:]) == sorted(rows["step"].iloc[1:], key=STEPS.index)
    for frame in (cohort.images, cohort.breasts):
        excluded = frame["status"] == "excluded"
        assert ((frame["reason"] != "") == excluded).all() and ((frame["step"] != "") == excluded).all()
    return rows.set_index(["step", "reason"])


def test_the_flow_of_a_release_reconciles_at_every_step(release, tmp_path):
    find_path(release, "D1-0001", "L", "CC").write_bytes(b"no dicom at all")
    bad = find_path(release, "D1-0003", "R", "MLO")
    dataset = pydicom.dcmread(bad)
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(bad)
    cohort = read_cohort("cmmd", release)
    rows = reconcile(cohort, release)
    assert rows.loc[("labels", "marked as excluded in the workbook"), ["images", "breasts"]].tolist() == [2, 1]
    assert rows.loc["labels", "exams"].sum() == 1, "D1-0005 leaves with its second breast"
    assert rows.loc["reading", ["images", "breasts", "exams"]].sum().tolist() == [1, 0, 0]
    store = build_store(cohort, tmp_path / "store", size=8, workers=1)
    cohort = apply_store(cohort, store)
    rows = reconcile(cohort, release)
    assert rows.loc[("pixels", "every pixel is 0"), "images"] == 1
    rows = reconcile(cohort, release, "1v5")
    assert rows.loc["subset", list(UNITS)].to_numpy().tolist() == [[3, 2, 1]], "D1-0001 has BI-RADS 2 only"
    save_cohort(cohort, tmp_path / "tables")
    pd.testing.assert_frame_equal(exclusion_flow(load_cohort(tmp_path / "tables")), exclusion_flow(cohort))


def test_an_exam_that_loses_an_image_is_no_longer_complete(release, tmp_path):
    bad = find_path(release, "D1-0003", "R", "MLO")
    dataset = pydicom.dcmread(bad)
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(bad)
    cohort = read_cohort("cmmd", release, cohort="complete")
    assert list(cohort.exams.index) == ["D1-0001", "D1-0002", "D1-0003"]
    cohort = apply_store(cohort, build_store(cohort, tmp_path / "store", size=8, workers=1))
    assert list(cohort.exams.index) == ["D1-0001", "D1-0002"]
    rows = reconcile(cohort, release)
    assert rows.loc[("pixels", "not all four views are there (complete)"), list(UNITS)].tolist() == [3, 2, 1]


@pytest.mark.parametrize("conflicts", ["exclude", "keep"])
def test_exams_with_conflicting_duplicates_are_listed(release, tmp_path, conflicts):
    source = pydicom.dcmread(find_path(release, "D1-0001", "L", "CC"))
    path = find_path(release, "D1-0004", "L", "CC")
    duplicate = pydicom.dcmread(path)
    duplicate.PixelData = source.PixelData
    duplicate.save_as(path)
    cohort = read_cohort("cmmd", release)
    store = build_store(cohort, tmp_path / "store", size=8, workers=1)
    after = exclude_conflicting_duplicates(cohort, store.index, conflicts)
    rows = reconcile(after, release)
    if conflicts == "keep":
        assert list(after.exams.index) == ["D1-0001", "D1-0002", "D1-0003", "D1-0004"]
        return
    assert list(after.exams.index) == ["D1-0002", "D1-0003"]
    assert rows.loc["duplicates", list(UNITS)].to_numpy().tolist() == [[6, 3, 2]]
    listed = after.excluded.set_index("what")["reason"]
    assert listed["D1-0001"].endswith(": D1-0004") and listed["D1-0004"].endswith(": D1-0001")


@pytest.mark.parametrize(("folder", "notebook"), [("found", "01_data_exploration"), ("cohort", "02_preprocessing")])
def test_the_message_for_a_missing_cohort_names_the_notebook_that_saves_it(tmp_path, folder, notebook):
    with pytest.raises(DataError, match=f"has no cohort.json; run notebook {notebook} of the study first"):
        load_cohort(tmp_path / folder)
