"""Which of several images of one view is used, and what is no mammogram at all."""

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from mammo_utils.data.sources import read_cohort
from tests.release_builder import build_release, write_dicom

SECOND = "a second image of the same view: beside {}, because this is {}"
CAPTURE, SEGMENTATION = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.66.4"
IMPLANT, SHOWN = {"BreastImplantPresent": "YES"}, {"PresentationIntentType": "FOR PRESENTATION"}
FULL = "CMMD/series-4/1-1.dcm"  # D1-0002 L CC, of 24 x 20 pixels and the UID 2.25.1004


def make_code(value):
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = value, "SCT"
    return Sequence([code])


def change(path, **tags):
    dataset = pydicom.dcmread(path)
    modifier = tags.pop("modifier", None)
    for name, value in tags.items():
        setattr(dataset, name, value)
    if modifier:
        dataset.ViewCodeSequence[0].ViewModifierCodeSequence = make_code(modifier)
    dataset.save_as(path)


@pytest.fixture
def release(tmp_path):
    return build_release(tmp_path / "release", annotate=False)


def read_rows(release):
    cohort = read_cohort("cmmd", release)
    return cohort, cohort.images.set_index("path")


@pytest.mark.parametrize(
    ("full", "other", "why"),
    [
        ({}, {"modifier": "399163009"}, "a magnified view"),
        ({}, {"modifier": "R-102D7"}, "a spot view"),
        ({}, {"ViewModifierCodeSequence": make_code("399055006")}, "a spot view"),
        (IMPLANT, IMPLANT | {"modifier": "399209000"}, "an implant-displaced view"),
        ({}, {"modifier": "999"}, "a modified view"),
        ({}, IMPLANT, "a view with an implant"),
        ({"Modality": "MG"}, {"Modality": "OT", "Rows": 48}, "an image of the modality OT, not MG"),
        ({"Modality": "MG"}, {"Modality": "MG", "SOPClassUID": CAPTURE}, "a secondary capture"),
        (SHOWN, {"PresentationIntentType": "FOR PROCESSING"}, "FOR PROCESSING"),
        ({"Rows": 26}, {}, "smaller"),
        ({"Columns": 26, "BreastImplantPresent": "NO"}, SHOWN, "smaller"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("uid", ["2.25.1", "2.25.999999"])
def test_the_better_image_of_a_view_is_used_whatever_its_uid(release, full, other, why, uid):
    write_dicom(release / "a.dcm", "D1-0002", "L", "CC", 99, uid)
    change(release / "a.dcm", **other)
    change(release / FULL, **full)
    cohort, rows = read_rows(release)
    assert rows.at[FULL, "status"] == "used" and rows.at["a.dcm", "status"] == "excluded"
    assert rows.at["a.dcm", "reason"] == SECOND.format(FULL, why)
    assert cohort.exams.at["D1-0002", "L_CC"] and rows.at["a.dcm", "step"] == "reading"


def test_full_view_counts_before_intent_and_size_and_intent_before_size(release):
    for number, tags in enumerate(
        [{"modifier": "399163009", "Rows": 99}, {"PresentationIntentType": "FOR PROCESSING", "Rows": 98}, {"Rows": 24}]
    ):
        path = release / f"{number}.dcm"
        write_dicom(path, "D1-0001", "R", "CC", 90 + number)
        change(path, **tags)
    (release / "CMMD" / "series-0" / "1-1.dcm").unlink()
    _, rows = read_rows(release)
    assert rows.loc[["0.dcm", "1.dcm", "2.dcm"], "status"].tolist() == ["excluded", "excluded", "used"]


def test_the_only_image_of_a_view_is_used_and_noted_if_it_is_a_spot(release):
    change(release / FULL, modifier="399055006")
    _, rows = read_rows(release)
    assert rows.at[FULL, "status"] == "used" and rows.at[FULL, "note"] == "kind: a spot view"


def make_studies(release, dates):
    """Two studies of D1-0002: the release's own, and one with a L CC and a L MLO more."""
    for name, uid, date in zip(("CMMD/series-4/1-1.dcm", "CMMD/series-5/1-1.dcm"), "11", dates[:1] * 2, strict=True):
        change(release / name, StudyInstanceUID=uid, StudyDate=date)
    for number, view in enumerate(("CC", "MLO")):
        write_dicom(release / f"{view}.dcm", "D1-0002", "L", view, 70 + number, f"2.25.{number + 1}")
        change(release / f"{view}.dcm", StudyInstanceUID="2", StudyDate=dates[1], Rows=20)


@pytest.mark.parametrize(
    ("dates", "latest"), [(("20100718", "20120102"), ["CC.dcm", "MLO.dcm"]), (("20120102", "20100718"), [])]
)
def test_an_exam_has_images_of_its_latest_study_only(release, dates, latest):
    make_studies(release, dates)
    _, rows = read_rows(release)
    exam = rows[rows["exam"] == "D1-0002"]
    used, others = exam[exam["status"] == "used"], exam[exam["status"] == "excluded"]
    assert list(used.index) == (latest or ["CMMD/series-4/1-1.dcm", "CMMD/series-5/1-1.dcm"]), "never one of each"
    assert set(others["reason"]) == {"from another study of the patient; an exam uses only one study"}
    assert len(others) == 2 and set(others["step"]) == {"cohort"}


def test_a_study_without_a_date_is_not_the_latest_by_its_time(release):
    make_studies(release, ("20100718", ""))
    for name in ("CC.dcm", "MLO.dcm"):
        change(release / name, StudyTime="235959")
    assert read_rows(release)[1].at["CMMD/series-4/1-1.dcm", "status"] == "used"


def test_a_later_study_without_a_full_view_or_a_usable_image_is_not_preferred(release):
    make_studies(release, ("20100718", "20120102"))
    change(release / "CC.dcm", modifier="399055006")
    change(release / "MLO.dcm", ViewPosition="ML")
    _, rows = read_rows(release)
    assert rows.at[FULL, "status"] == "used" and rows.at["CC.dcm", "status"] == "excluded"


def test_what_is_no_mammogram_is_refused_with_its_modality(release):
    write_dicom(release / "seg.dcm", "D1-0002", "L", "MLO", 99, "2.25.1")
    change(release / "seg.dcm", Modality="SEG", SOPClassUID=SEGMENTATION)
    write_dicom(release / "mr.dcm", "D1-0009", "L", "MLO", 98)
    change(release / "mr.dcm", Modality="MR")
    cohort, rows = read_rows(release)
    listed = cohort.excluded.set_index("what")["reason"]
    assert listed["seg.dcm"] == "no mammogram: its Modality is SEG" and "Modality is MR" in listed["mr.dcm"]
    assert rows.at["CMMD/series-5/1-1.dcm", "status"] == "used" and "D1-0009" not in set(cohort.breasts["exam"])
