"""Every known error of CMMD is handled as documented in every layout: side, label, duplicates, damaged image."""

import os
import random
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pydicom
import pytest

from mammo_utils.data.cohort import DataError
from mammo_utils.data.corrections import KINDS, apply_corrections, known_errors, suspect_corrections
from mammo_utils.data.exclusions import contradictions, exclude_conflicting_duplicates, exclusion_flow
from mammo_utils.data.sources import read_cohort
from mammo_utils.data.split import make_split, patient_groups
from mammo_utils.images.build_store import apply_store, build_store
from tests.cmmd_builder import (
    BOTH_REVERSED,
    DAMAGED,
    DUPLICATES,
    LABEL_MOVED,
    LAYOUTS,
    MIRRORED,
    SWAPPED,
    build_cmmd,
    list_images,
    list_labels,
    read_facts,
    write_clinical,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of each layout; csv and xlsx sheets alternate."""
    root = tmp_path_factory.mktemp("cmmd")
    sheets = dict(zip(LAYOUTS, ("xlsx", "csv", "xlsx"), strict=True))
    return {layout: build_cmmd(root / layout, layout, sheets[layout]) for layout in LAYOUTS}


@pytest.fixture(scope="module", params=LAYOUTS)
def cohort(request, folders):
    return read_cohort("cmmd", folders[request.param])


@pytest.fixture(scope="module")
def first(folders):
    return read_cohort("cmmd", folders["descriptive"])


@pytest.fixture(scope="module")
def store(first, tmp_path_factory):
    return build_store(first, tmp_path_factory.mktemp("store"), size=16, workers=1)


def test_every_image_is_on_the_side_that_it_shows(cohort):
    found = cohort.images.set_index("image")
    assert len(found) == len(list_images())
    for row in list_images():
        assert found.loc[row["uid"], ["exam", "view"]].tolist() == [row["exam"], f"{row['side']}_{row['view']}"]
    assert not found.duplicated(["exam", "view"]).any()
    wrong = [row for row in list_images() if row["side"] != row["tag"]]
    assert {row["exam"] for row in wrong} == {*BOTH_REVERSED, *SWAPPED} and len(wrong) == 16


def test_every_label_is_on_the_breast_of_its_images(cohort):
    rows = {(row[0], row[1]): row for row in list_labels()}
    breasts = cohort.breasts.set_index(["exam", "side"])
    for exam, (wrong, right) in LABEL_MOVED.items():
        row = rows[exam, right]
        expected = {"Normal": 0, "Benign": 0, "Malignant": 1}[row[3]]
        assert breasts.loc[(exam, right), ["diagnosis", "birads"]].tolist() == [expected, int(row[5])]
        assert cohort.exams.loc[exam, f"{right}_diagnosis"] == expected
        assert cohort.exams.loc[exam, [f"{right}_CC", f"{right}_MLO"]].all()
        if exam in BOTH_REVERSED:
            assert (exam, wrong) not in breasts.index and not cohort.exams.loc[exam, f"{wrong}_CC"]
        else:
            assert breasts.loc[(exam, wrong), "class"] == "normal"
    malignant = cohort.exams[[f"{side}_diagnosis" for side in "LR"]].eq(1).to_numpy()
    assert (malignant == cohort.exams[[f"{side}_lesions" for side in "LR"]].gt(0).to_numpy()).all()
    assert not len(contradictions(cohort)), "CMMD's sheet agrees once its labels are moved"


def test_the_damaged_image_is_excluded_and_the_other_view_stays(cohort):
    exam, side, view = DAMAGED
    row = cohort.images[cohort.images["exam"] == exam].set_index("view")
    damaged, other = row.loc[f"{side}_{view}"], row.loc[f"{side}_CC"]
    assert (damaged["status"], damaged["step"]) == ("excluded", "corrections")
    assert damaged["reason"] == "the image is damaged: its scale is wrong" and other["status"] == "used"
    assert cohort.exams.loc[exam, [f"{side}_CC", f"{side}_MLO"]].tolist() == [True, False]


def test_the_three_layouts_give_the_same_tables(cohort, first):
    for name in ("exams", "breasts", "lesions", "corrections"):
        pd.testing.assert_frame_equal(getattr(cohort, name), getattr(first, name))
    pd.testing.assert_frame_equal(cohort.images.drop(columns="path"), first.images.drop(columns="path"))
    pd.testing.assert_frame_equal(exclusion_flow(cohort), exclusion_flow(first))


def test_sixteen_bits_and_file_order_and_junk_and_totals(cohort):
    found = cohort.images.set_index(["exam", "view"])
    assert found.loc["D1-1343", "bits_stored"].tolist() == [16, 16] and (found.loc["D1-1343", "status"] == "used").all()
    order = [row["view"] for row in list_images() if row["exam"] == "D1-1506"]
    assert order == ["MLO", "CC"] and set(found.loc["D1-1506"].index) == {"R_CC", "R_MLO"}
    (junk,) = cohort.excluded[cohort.excluded["kind"] == "junk"].to_dict("records")
    assert junk["what"] == f"{sum(row[3] == 'Malignant' for row in list_labels())} files"
    assert exclusion_flow(cohort).iloc[0][["images", "breasts"]].tolist() == [len(list_images()), len(list_labels())]


def test_every_known_error_is_listed_and_applied(cohort):
    listed = cohort.corrections
    assert len(listed) == len(known_errors()) and listed["applied"].all() and (listed["why_not"] == "").all()
    assert (listed["source"] != "").all() and set(listed["kind"]) == set(KINDS)
    assert not listed.duplicated(["exam", "where", "kind"]).any()
    side = listed[listed["kind"] == "side"]
    assert {f"{row['exam']} {row['tag']}_{row['view']}" for row in list_images() if row["side"] != row["tag"]} == {
        f"{row['exam']} {row['where']}" for row in side.to_dict("records")
    }
    label = listed[listed["kind"] == "label"]
    assert dict(zip(label["exam"], label["where"] + label["value"], strict=True)) == LABEL_MOVED


def test_every_breast_of_the_store_has_its_chest_wall_at_the_left(first, store):
    assert store.index["agrees"].all() and len(store.index) == (first.images["status"] == "used").sum()
    for image in store.images:
        assert image[:, :2].mean() > 30 and image[:, -2:].mean() == 0
    row = store.index.set_index(["exam", "view"]).loc[(MIRRORED[0], "_".join(MIRRORED[1:]))]
    assert row["flipped"] and row["chest_wall"] == "right", "a left breast, stored mirrored"


def test_a_mirrored_image_is_flipped_only_if_its_pixels_are_mirrored(folders, tmp_path):
    """In a copy of the release where the image is no longer stored mirrored, its chest wall is at the left too."""
    folder = shutil.copytree(folders["flat"], tmp_path / "release")
    mirror_image(folder, MIRRORED[0], "cranio-caudal", MIRRORED[1])
    cohort = read_cohort("cmmd", folder)
    exam = cohort.images["exam"] == MIRRORED[0]
    cohort = replace(cohort, images=cohort.images[exam].reset_index(drop=True))
    store = build_store(cohort, tmp_path / "store", size=16, workers=1)
    row = store.index.set_index("view").loc["L_CC"]
    assert not row["flipped"] and row["chest_wall"] == "left"
    assert store.index["agrees"].all() and (store.images[:, :, :2].mean(axis=(1, 2)) > 30).all()


def mirror_image(folder, exam, meaning, side):
    """Mirror an image's pixels in its file."""
    for path in folder.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        found = dataset.PatientID, dataset.ViewCodeSequence[0].CodeMeaning, dataset.ImageLaterality
        if found == (exam, meaning, side):
            dataset.PixelData = np.ascontiguousarray(dataset.pixel_array[:, ::-1]).tobytes()
            dataset.save_as(path)


def test_a_correction_that_a_repaired_copy_does_not_need_is_reported(folders, first, store, tmp_path):
    """The tags of D1-0999's MLO are right already: the correction swaps them, which the pixels contradict."""
    assert not len(suspect_corrections(first.corrections, store.index))
    folder = shutil.copytree(folders["flat"], tmp_path / "release")
    for side in "LR":
        mirror_image(folder, "D1-0999", "medio-lateral oblique", side)
    mirror_image(folder, "D1-0252", "cranio-caudal", "R")
    cohort = read_cohort("cmmd", folder)
    found = suspect_corrections(cohort.corrections, build_store(cohort, tmp_path / "store", size=16, workers=1).index)
    notes = {(row["exam"], row["view"]): row["note"] for row in found.to_dict("records")}
    assert set(notes) == {("D1-0999", "L_MLO"), ("D1-0999", "R_MLO"), ("D1-0252", "L_CC")}
    assert (
        notes["D1-0999", "L_MLO"].startswith("corrected from R_MLO") and "data.corrections" in notes["D1-0252", "L_CC"]
    )
    off = read_cohort("cmmd", folder, corrections=False)
    suspects = suspect_corrections(off.corrections, build_store(off, tmp_path / "off", size=16, workers=1).index)
    assert (suspects["note"] == "").all() and "D1-0999" not in set(suspects["exam"])


def test_duplicates_stay_in_one_part_or_are_excluded_with_their_reason(first, store):
    after = exclude_conflicting_duplicates(apply_store(first, store), store.index)
    left = {"D1-0808", "D1-1292"}  # benign and malignant with the same pixels
    assert set(first.exams.index) - set(after.exams.index) == left
    reasons = after.excluded[after.excluded["kind"] == "exam"].set_index("what")["reason"]
    assert set(reasons.index) == left and reasons["D1-0808"].endswith(": D1-1292")
    assert (after.images.loc[after.images["exam"].isin(left), "step"] == "duplicates").all()
    groups = patient_groups(after, store.index)
    kept = patient_groups(first, store.index)
    for seed in range(20):
        split = make_split(after.exams, groups, seed=seed, validation=0.3, test=0.3)
        assert split.part["D1-0202"] == split.part["D2-0284"]
        split = make_split(first.exams, kept, seed=seed, validation=0.3, test=0.3)
        assert all(split.part[one] == split.part[other] for one, other in DUPLICATES.items())


def test_listed_duplicates_stay_together_although_their_pixels_differ(first, store):
    index = store.index.assign(sha256=[str(number) for number in range(len(store.index))])
    groups = patient_groups(first, index)
    assert all(groups[one] == groups[other] for one, other in DUPLICATES.items())
    off = patient_groups(read_cohort("cmmd", first.folder, corrections=False), index)
    assert all(off[one] != off[other] for one, other in DUPLICATES.items())


def test_without_corrections_each_error_is_visible(folders, tmp_path):
    cohort = read_cohort("cmmd", folders["flat"], corrections=False)
    assert len(cohort.corrections) == len(known_errors()) and not cohort.corrections["applied"].any()
    assert (cohort.corrections["why_not"] == "corrections are switched off").all()
    found = cohort.images.set_index("image")
    assert all(found.loc[row["uid"], "side"] == row["tag"] for row in list_images())
    assert (found.loc[found["exam"].isin(BOTH_REVERSED), "step"] == "labels").all(), (
        "the labels lie on the other breast"
    )
    found = contradictions(cohort)
    assert set(LABEL_MOVED) - set(BOTH_REVERSED) <= {what.split()[0] for what in found["what"]}
    store = build_store(cohort, tmp_path / "store", size=16, workers=1)
    suspects = store.index[~store.index["agrees"]]
    assert set(suspects["exam"]) == {*SWAPPED, MIRRORED[0]}, "the pixels reveal them in the images that have a label"


def test_a_label_does_not_replace_another():
    """A sheet that has labels for both breasts of D2-0048 is not changed."""
    headers = [{"patient": "D2-0048", "side": "L", "view": "CC"}]
    sheet = {("D2-0048", "L"): "malignant", ("D2-0048", "R"): "benign"}
    _, moved, rows = apply_corrections(headers, sheet)
    assert moved == sheet and [row["why_not"] for row in rows] == ["CMMD's sheet has a label for R too"]


@pytest.mark.parametrize("clinical", ["xlsx", "csv"])
def test_the_clinical_sheet_alone_gives_diagnoses(folders, tmp_path, clinical):
    folder = shutil.copytree(folders["rest"] / "tciaDownload", tmp_path / "cmmd" / "tciaDownload").parent
    with pytest.raises(DataError, match="should hold one workbook"):
        read_cohort("cmmd", folder)
    expected = read_facts("clinical")
    write_clinical(folder / f"CMMD_clinicaldata_revision.{clinical}")
    cohort = read_cohort("cmmd", folder)
    assert cohort.label == "CMMD" and (cohort.breasts["birads"] == -1).all() and cohort.corrections["applied"].all()
    breasts = cohort.breasts.set_index(["exam", "side"])
    for row in expected.to_dict("records"):
        side = LABEL_MOVED.get(row["ID1"], (row["LeftRight"],))[-1]
        assert breasts.loc[(row["ID1"], side), "class"] == row["classification"].lower()
    unlabelled = breasts[breasts["class"] == ""]
    assert len(breasts) - len(unlabelled) == len(expected) and (unlabelled["status"] == "used").all()
    assert cohort.exams["age"].notna().all()


def test_a_partial_download_has_the_corrections_that_concern_it(folders, tmp_path):
    folder = shutil.copytree(folders["descriptive"], tmp_path / "part")
    for path in sorted(folder.rglob("*.dcm")):
        exam = path.parts[-4]
        if exam not in ("D1-0202", "D1-0999", "D2-0048") or (exam == "D1-0999" and path.name != "1-2.dcm"):
            path.unlink()
    cohort = read_cohort("cmmd", folder)
    used = cohort.images[cohort.images["exam"] == "D1-0999"]
    assert used["view"].tolist() == ["R_MLO"], "tagged L_MLO"
    listed = cohort.corrections.set_index(["exam", "where"])
    assert set(cohort.corrections["exam"]) == {"D1-0202", "D1-0999", "D2-0048"}
    assert listed.loc[("D1-0999", "L_MLO"), "applied"]
    assert listed.loc[("D1-0999", "R_MLO"), "why_not"] == "no image of it is tagged R_MLO"
    assert (listed.loc["D1-0202", "why_not"] == "D2-0284 is not in this folder").all()
    rows = exclusion_flow(cohort).set_index(["step", "reason"])
    assert rows.loc[("reading", "the folder has no image of it"), "breasts"] == len(list_labels()) - 5


@pytest.mark.parametrize("seed", [0, 1])
def test_names_and_order_of_files_do_not_matter(folders, first, store, tmp_path, monkeypatch, seed):
    draw = random.Random(seed)
    folder = tmp_path / "again"
    paths = sorted(folders["descriptive"].rglob("*.dcm"))
    copies = draw.sample(paths, 5)
    for path in draw.sample([*paths, *copies], len(paths) + len(copies)):
        name = folder / f"{draw.randrange(9)}" / f"{draw.getrandbits(64):x}.dcm"
        name.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, name)
    shutil.copytree(folders["descriptive"] / "TOMPEI", folder / "somewhere" / "else")
    walk = os.walk

    def shuffled(*arguments, **options):
        for place, inside, names in walk(*arguments, **options):
            draw.shuffle(names)
            draw.shuffle(inside)
            yield place, inside, names

    monkeypatch.setattr(os, "walk", shuffled)
    cohort = read_cohort("cmmd", folder)
    pd.testing.assert_frame_equal(cohort.exams, first.exams)
    pd.testing.assert_frame_equal(cohort.lesions, first.lesions)
    assert (cohort.images["reason"].str.startswith("the same UID as another file")).sum() == 5
    again = build_store(cohort, tmp_path / "store", size=16, workers=1)
    assert again.hash == store.hash and np.array_equal(again.images, store.images)
    splits = [make_split(c.exams, patient_groups(c, s.index), seed=seed) for c, s in ((cohort, again), (first, store))]
    assert splits[0].hash == splits[1].hash and splits[0].part.equals(splits[1].part)
