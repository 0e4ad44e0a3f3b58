"""Nothing vanishes silently: unreachable folders and links, copies, other projections, rows without an ID."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from mammo_utils.data import assemble, dicom
from mammo_utils.data.cohort import DataError
from mammo_utils.data.exclusions import exclusion_flow
from mammo_utils.data.folders import name_below, walk_below
from mammo_utils.data.sources import read_cohort
from mammo_utils.io import read_json
from tests.conftest import CHECKOUT
from tests.release_builder import BREASTS, CODES, build_release, write_dicom, write_workbook


@pytest.fixture
def release(tmp_path):
    return build_release(tmp_path / "release", annotate=False)


def change_tags(path, **values):
    dataset = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


def view_code(value):
    item = Dataset()
    item.CodeValue = value
    return Sequence([item])


def get_image(cohort, path):
    return cohort.images.set_index("path").loc[path]


# --- folders ----------------------------------------------------------------------------------------------


def test_unreachable_files_are_listed_and_junk_is_not(release, monkeypatch):
    before = exclusion_flow(read_cohort("cmmd", release)).at[0, "images"]
    series = sorted((release / "CMMD").iterdir())
    (release / "linked.dcm").symlink_to(release / "nowhere.dcm")
    (release / "folder.dcm").mkdir()
    os.mkfifo(release / "pipe.dcm")
    (release / "__MACOSX").mkdir()
    shutil.copy(series[0] / "1-1.dcm", release / "__MACOSX" / "1-1.dcm")
    shutil.copy(series[0] / "1-1.dcm", release / "._a.DCM")
    shutil.move(series[1], release.parent / "elsewhere")
    series[1].symlink_to(release.parent / "elsewhere")
    scandir = os.scandir

    def closed(parent):
        if os.fspath(parent) == str(series[2]):
            raise PermissionError(13, "Permission denied", str(series[2]))
        return scandir(parent)

    monkeypatch.setattr(os, "scandir", closed)
    cohort = read_cohort("cmmd", release)
    files = cohort.excluded[cohort.excluded["kind"] == "file"].set_index("what")["reason"].to_dict()
    assert files == {
        "linked.dcm": "the link is broken",
        "pipe.dcm": "it is neither a file nor a folder",
        "CMMD/series-10": "the folder may not be read; change its permissions",
    }
    assert len(cohort.images) == before - 1 and exclusion_flow(cohort).at[0, "images"] == before + 2
    assert walk_below(release)[1] == 2
    cells = read_json(CHECKOUT / "notebooks" / "01_data_exploration.ipynb")["cells"]
    (cell,) = ("".join(cell["source"]) for cell in cells if "on_disk = " in "".join(cell["source"]))
    count = cell[: cell.index("for name, frame")]
    names = {
        "exclusion_flow": exclusion_flow,
        "walk_below": walk_below,
        "has_mark": dicom.has_mark,
        "name_below": name_below,
    }
    exec(count, names | {"cohort": cohort, "study": SimpleNamespace(data_folder=release)})
    lost = replace(cohort, images=cohort.images.iloc[1:])
    with pytest.raises(AssertionError):
        exec(count, names | {"cohort": lost, "study": SimpleNamespace(data_folder=release)})


def test_a_file_without_permission_is_listed_with_that_reason(release, monkeypatch):
    path = release / "CMMD" / "series-0" / "1-1.dcm"
    opened = Path.open

    def closed(file, *mode, **options):
        if file == path:
            raise PermissionError
        return opened(file, *mode, **options)

    monkeypatch.setattr(Path, "open", closed)
    listed = read_cohort("cmmd", release).excluded.set_index("what")["reason"]
    assert listed["CMMD/series-0/1-1.dcm"] == "the file may not be read; change its permissions"


# --- copies and second images -----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["without tags", "of another projection", "of a patient without labels"])
def test_a_good_image_is_not_lost_beside_a_bad_copy(release, bad):
    path = release / "CMMD" / "series-4" / "1-1.dcm"  # D1-0002 L CC
    copy = release / "AAA" / "copy.dcm"
    copy.parent.mkdir()
    shutil.copy(path, copy)
    if bad == "without tags":
        change_tags(copy, ImageLaterality="", PatientOrientation="", ViewCodeSequence=Sequence([]))
    elif bad == "of another projection":
        change_tags(copy, ViewCodeSequence=view_code("399260004"))
    else:
        change_tags(copy, PatientID="D1-0000")
    cohort = read_cohort("cmmd", release)
    assert get_image(cohort, "CMMD/series-4/1-1.dcm")["status"] == "used" and cohort.exams.loc["D1-0002", "L_CC"]
    assert get_image(cohort, "AAA/copy.dcm")["status"] == "excluded"


def test_the_same_uid_under_another_patient_is_listed_with_both_files(release):
    first, other = (release / "CMMD" / f"series-{n}" / "1-1.dcm" for n in (0, 4))
    change_tags(other, SOPInstanceUID=pydicom.dcmread(first).SOPInstanceUID)
    reason = get_image(read_cohort("cmmd", release), "CMMD/series-4/1-1.dcm")["reason"]
    assert reason == "the same UID as another patient's file: D1-0001, CMMD/series-0/1-1.dcm"


def test_the_largest_of_several_copies_is_used_whatever_its_name(release):
    path = release / "CMMD" / "series-4" / "1-1.dcm"
    short = release / "AAA.dcm"
    short.write_bytes(path.read_bytes()[:-50])
    cohort = read_cohort("cmmd", release)
    assert get_image(cohort, "CMMD/series-4/1-1.dcm")["status"] == "used"
    assert get_image(cohort, "AAA.dcm")["reason"] == "the same UID as another file: CMMD/series-4/1-1.dcm"


def test_one_of_two_images_of_a_view_is_used(release):
    write_dicom(release / "second.dcm", "D1-0002", "L", "CC", 99)
    cohort = read_cohort("cmmd", release)
    reason = get_image(cohort, "second.dcm")["reason"]
    assert reason == "a second image of the same view: beside CMMD/series-4/1-1.dcm, because this has the later UID"
    used = cohort.images[cohort.images["status"] == "used"]
    assert not used.duplicated(["exam", "view"]).any()


def test_a_breast_without_usable_images_is_excluded(release):
    for number in (4, 5):
        change_tags(release / "CMMD" / f"series-{number}" / "1-1.dcm", ViewCodeSequence=view_code("399260004"))
    cohort = read_cohort("cmmd", release)
    breast = cohort.breasts.set_index(["exam", "side"]).loc[("D1-0002", "L")]
    assert (breast["status"], breast["step"]) == ("excluded", "reading") and "D1-0002" not in cohort.exams.index
    assert breast["reason"] == "none of its images can be used"


# --- tags -------------------------------------------------------------------------------------------------

NOTHING = {"ImageLaterality": "", "PatientOrientation": "", "ViewCodeSequence": Sequence([]), "ViewPosition": ""}


@pytest.mark.parametrize(
    ("tags", "side", "view", "note"),
    [
        ({"ImageLaterality": "L", "ViewCodeSequence": view_code(CODES["MLO"][0])}, "L", "MLO", ""),
        ({"ImageLaterality": "L", "ViewCodeSequence": view_code("R-10242")}, "L", "CC", ""),
        ({"ImageLaterality": "R", "ViewPosition": "MLO"}, "R", "MLO", ""),
        ({"Laterality": "R", "ViewPosition": "CC"}, "R", "CC", ""),
        ({"PatientOrientation": ["P", "FL"]}, "R", "MLO", ""),
        (
            {"ImageLaterality": "L", "PatientOrientation": ["P", "L"]},
            "L",
            "CC",
            "side: ImageLaterality is L, PatientOrientation is R",
        ),
        (
            {"ImageLaterality": "L", "PatientOrientation": ["A", "R"], "ViewCodeSequence": view_code(CODES["MLO"][0])},
            "L",
            "CC",
            "view: PatientOrientation is CC, ViewCodeSequence is MLO",
        ),
        (
            {"ImageLaterality": "L", "ViewCodeSequence": view_code(CODES["MLO"][0]), "ViewPosition": "CC"},
            "L",
            "MLO",
            "view: ViewCodeSequence is MLO, ViewPosition is CC",
        ),
        (
            {"ImageLaterality": "L", "PatientOrientation": ["A", "R"], "ViewCodeSequence": view_code("1234")},
            "L",
            "CC",
            "view: ViewCodeSequence has the unknown code '1234'",
        ),
        (
            {"ImageLaterality": "L", "PatientOrientation": ["A", "R"], "ViewPosition": "SIDEWAYS"},
            "L",
            "CC",
            "view: ViewPosition has the unknown value 'SIDEWAYS'",
        ),
    ],
)
def test_the_first_tag_with_a_value_counts(tmp_path, tags, side, view, note):
    write_dicom(tmp_path / "a.dcm", "D1-0001", "L", "CC", 0)
    change_tags(tmp_path / "a.dcm", **NOTHING | tags)
    header, reason = dicom.read_header(tmp_path / "a.dcm")
    assert (header["side"], header["view"], header["note"], header["refused"], reason) == (side, view, note, "", "")


@pytest.mark.parametrize(
    ("tags", "projection"),
    [
        ({"ViewCodeSequence": view_code("399260004")}, "ML"),
        ({"ViewCodeSequence": view_code("R-10224")}, "ML"),
        ({"ViewCodeSequence": view_code("399192008")}, "XCCL"),
        ({"ViewPosition": "ML"}, "ML"),
        ({"ViewPosition": "XCCL", "ViewCodeSequence": Sequence([])}, "XCCL"),
    ],
)
def test_another_projection_is_neither_cc_nor_mlo(release, tags, projection):
    """A lateral projection has the PatientOrientation of an MLO."""
    change_tags(release / "CMMD" / "series-5" / "1-1.dcm", **tags)  # D1-0002 L MLO
    cohort = read_cohort("cmmd", release)
    row = get_image(cohort, "CMMD/series-5/1-1.dcm")
    assert row["reason"] == f"another projection: {projection}, neither CC nor MLO" and row["view"] == ""
    assert f"is {projection}" in row["note"] and not cohort.exams.loc["D1-0002", "L_MLO"]


# --- rows of the tables -----------------------------------------------------------------------------------


def test_a_row_without_an_id_is_listed_unless_it_is_a_total(tmp_path):
    more = [(None, "L", 51, "Malignant", "fatty", 5), (None, "Total", 95, "6", None, None)]
    release = build_release(tmp_path / "r", BREASTS[:2], annotate=False)
    write_workbook(next(release.glob("*.xlsx")), [*BREASTS[:2], *more])
    cohort = read_cohort("cmmd", release)
    (listed,) = cohort.excluded[cohort.excluded["kind"] == "annotation"].to_dict("records")
    assert listed["reason"] == "it has no ID, but a side and a label: L, Malignant"
    assert listed["what"].endswith("xlsx, row 3 below the header")
    assert set(cohort.breasts["exam"]) == {"D1-0001"}, "a total is not a breast"


def test_a_cohort_that_needs_outlines_is_an_error_without_them(tmp_path):
    write_dicom(tmp_path / "a.dcm", "Mass-Test_P_00001_LEFT_CC", "L", "CC", 0)
    for number, (side, view) in enumerate([("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")], 1):
        write_dicom(tmp_path / f"{number}.dcm", f"P_00002_{side}_{view}", side, view, number)
    assert list(read_cohort("ddsm", tmp_path).exams.index) == ["P_00001", "P_00002"]
    complete = read_cohort("ddsm", tmp_path, cohort="complete")
    assert list(complete.exams.index) == ["P_00002"] and complete.rule == "complete"
    assert complete.images.set_index("exam").loc["P_00001", "reason"] == "not all four views are there (complete)"
    with pytest.raises(DataError, match="CBIS-DDSM has no lesion outlines"):
        read_cohort("ddsm", tmp_path, cohort="annotated")


def test_the_reasons_for_copies_have_no_detail():
    assert ": " not in assemble.COPY + assemble.SECOND, "what follows ': ' is detail"
