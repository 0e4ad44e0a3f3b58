"""The store apart from its pixels: second images, hashes of unused images, staleness, killed builds."""

import hashlib
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pydicom
import pytest

from mammo_utils.data.cohort import DataError, load_cohort, save_cohort
from mammo_utils.data.exclusions import exclude_conflicting_duplicates, exclusion_flow
from mammo_utils.data.kinds import OTHER_STUDY
from mammo_utils.data.sources import read_cohort
from mammo_utils.data.split import check_split, duplicate_views, find_duplicates, make_split, patient_groups
from mammo_utils.images import build_store as stores
from mammo_utils.images.build_store import apply_store, build_store
from mammo_utils.images.store import load_store
from mammo_utils.provenance import imported_modules
from tests.release_builder import BREASTS, build_release, write_dicom

FILES = ("images.npy", "index.parquet", "store.json", "excluded.csv", "unused.parquet")


@pytest.fixture
def release(tmp_path):
    """D1-0001 both breasts, D1-0002 L, D2-0001 L excluded and R, D2-0002 R invisible; other pixels in each image."""
    folder = build_release(tmp_path / "release", annotate=False)
    for number in range(12):
        paint(folder, number, number)
    return folder


def path_of(number):
    return f"CMMD/series-{number}/1-1.dcm"


def paint(folder, number, seed):
    dataset = pydicom.dcmread(folder / path_of(number))
    values = dataset.pixel_array.copy()
    values[values > 0] = np.random.default_rng(seed).integers(60, 250, (values > 0).sum())
    dataset.PixelData = values.tobytes()
    dataset.save_as(folder / path_of(number))


def share(folder, number, other):
    """Give an image the pixels of another."""
    dataset = pydicom.dcmread(folder / path_of(number))
    dataset.PixelData = pydicom.dcmread(folder / path_of(other)).PixelData
    dataset.save_as(folder / path_of(number))


def blacken(path):
    dataset = pydicom.dcmread(path)
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(path)


def build(cohort, folder, **options):
    return build_store(cohort, folder, size=8, workers=1, **options)


# --- second images ----------------------------------------------------------------------------------------


def test_the_preferred_of_two_spare_images_is_tried_first():
    """They keep the order of the table of images, whatever their UIDs are."""
    rows = [{"image": "9", "status": "used", "step": "", "reason": ""}]
    rows += [{"image": image, "status": "excluded", "step": "reading", "reason": stores.SECOND} for image in ("8", "1")]
    images = pd.DataFrame([{**row, "path": row["image"]} for row in rows]).assign(exam="E", view="L_CC", side="L")
    images = images.assign(mirrored=False, rows=1, columns=1, photometric="", note="")
    used = next(job for job in stores._list_jobs(images) if not job["unused"])
    assert [spare["image"] for spare in used["spares"]] == ["8", "1"]


@pytest.mark.parametrize("copy", [False, True])
def test_a_second_image_takes_the_place_of_one_that_cannot_be_used(release, tmp_path, copy):
    """The first of two L-CC images of D1-0002, or of two copies of one, is black."""
    first, second = path_of(4), "zzz.dcm"
    if copy:
        shutil.copy(release / first, release / second)
    else:
        write_dicom(release / second, "D1-0002", "L", "CC", 99)
    blacken(release / first)
    cohort = read_cohort("cmmd", release)
    assert cohort.images.set_index("path").loc[first, "status"] == "used"
    store = build(cohort, tmp_path / "store")
    after = apply_store(cohort, store)
    rows = after.images.set_index("path")
    assert rows.loc[first, ["status", "step", "reason"]].tolist() == ["excluded", "pixels", "every pixel is 0"]
    assert rows.loc[second, ["status", "step", "reason"]].tolist() == ["used", "", ""]
    assert second in set(store.index["path"]) and first not in set(store.index["path"])
    assert after.exams.loc["D1-0002", "L_CC"] and len(after.exams) == len(cohort.exams)
    assert second not in set(after.excluded["what"]) and first in set(after.excluded["what"])
    before, now = exclusion_flow(cohort), exclusion_flow(after)
    assert before.at[0, "images"] == now.at[0, "images"] == 13
    assert before["images_left"].iloc[-1] == now["images_left"].iloc[-1] == 8
    pd.testing.assert_frame_equal(apply_store(after, store).images, after.images)


def test_where_both_images_of_a_view_fail_it_is_absent(release, tmp_path):
    write_dicom(release / "zzz.dcm", "D1-0002", "L", "CC", 99)
    blacken(release / path_of(4))
    blacken(release / "zzz.dcm")
    cohort = read_cohort("cmmd", release)
    after = apply_store(cohort, build(cohort, tmp_path / "store"))
    assert not after.exams.loc["D1-0002", "L_CC"] and after.exams.loc["D1-0002", "L_MLO"]


def test_a_breast_without_a_decodable_image_leaves(release, tmp_path):
    for number in (4, 5):
        blacken(release / path_of(number))
    cohort = read_cohort("cmmd", release)
    after = apply_store(cohort, build(cohort, tmp_path / "store"))
    breast = after.breasts.set_index(["exam", "side"]).loc[("D1-0002", "L")]
    assert breast[["status", "step"]].tolist() == ["excluded", "pixels"] and "D1-0002" not in after.exams.index


def test_an_older_study_does_not_replace_one_without_usable_pixels_and_has_the_exact_reason(release, tmp_path):
    for number, (study, date) in {4: ("1", "20120102"), 5: ("2", "20100718")}.items():
        dataset = pydicom.dcmread(release / path_of(number))
        dataset.StudyInstanceUID, dataset.StudyDate = study, date
        dataset.save_as(release / path_of(number))
    blacken(release / path_of(4))
    cohort = read_cohort("cmmd", release)
    assert cohort.images.set_index("path").at[path_of(5), "reason"] == OTHER_STUDY
    store = build(cohort, tmp_path / "store")
    after = apply_store(cohort, store)
    reason = "from another study of the patient; none of the images of the chosen study can be used"
    assert after.images.set_index("path").at[path_of(5), "reason"] == reason and "D1-0002" not in after.exams.index
    listed = after.excluded.set_index("what")["reason"]
    assert listed[[path_of(4), path_of(5)]].tolist() == ["every pixel is 0", reason]
    pd.testing.assert_frame_equal(apply_store(after, store).excluded, after.excluded)
    assert exclusion_flow(after)["images_left"].iloc[-1] == (after.images["status"] == "used").sum()


# --- patients ----------------------------------------------------------------------------------------------


def test_patients_who_share_an_image_that_is_not_used_are_one(release, tmp_path):
    """An image of D2-0001's excluded breast has the pixels of one of D1-0002."""
    share(release, 6, 4)
    cohort = read_cohort("cmmd", release)
    store = build(cohort, tmp_path / "store")
    assert sorted(store.unused["path"]) == sorted(map(path_of, (6, 7, 10, 11))) and len(store.images) == 8
    groups = patient_groups(cohort, store.hashes)
    assert groups["D2-0001"] == groups["D1-0002"] == "D1-0002" and groups["D1-0001"] == "D1-0001"
    assert (
        len(find_duplicates(cohort, store.hashes)) == 2
        and not find_duplicates(cohort, store.hashes)["conflicting"].any()
    )
    assert len(exclude_conflicting_duplicates(cohort, store.hashes).exams) == 3, (
        "an excluded breast has no label that contradicts"
    )


def test_patients_are_joined_through_one_who_is_not_used(release, tmp_path):
    share(release, 10, 4)
    share(release, 11, 8)
    cohort = read_cohort("cmmd", release)
    groups = patient_groups(cohort, build(cohort, tmp_path / "store").hashes)
    assert groups["D2-0001"] == groups["D1-0002"] == "D1-0002" and "D2-0002" not in groups.index


def test_black_or_broken_images_are_no_duplicates(release, tmp_path):
    for number in (6, 10):
        blacken(release / path_of(number))
    (release / path_of(7)).write_bytes((release / path_of(7)).read_bytes()[:-100])
    cohort = read_cohort("cmmd", release)
    store = build(cohort, tmp_path / "store")
    assert store.unused["path"].tolist() == [path_of(11)] and not len(store.excluded)
    assert patient_groups(cohort, store.hashes).nunique() == 3


def test_the_same_pixels_on_two_views_of_an_exam_are_listed(release, tmp_path):
    share(release, 7, 8)
    cohort = read_cohort("cmmd", release)
    store = build(cohort, tmp_path / "store")
    found = duplicate_views(store.hashes)
    assert found[["exam", "view"]].to_numpy().tolist() == [["D2-0001", "L_MLO"], ["D2-0001", "R_CC"]]
    assert len(patient_groups(cohort, store.hashes)) == 3, "they are listed only"


def test_a_split_is_checked_against_the_data_not_against_itself(release, tmp_path):
    share(release, 6, 4)
    cohort = read_cohort("cmmd", release)
    hashes = build(cohort, tmp_path / "store").hashes
    groups = patient_groups(cohort, hashes)
    split = make_split(cohort.exams, groups, kind="paper", validation=0.5)
    check_split(split, cohort, hashes)
    alone = pd.Series(groups.index, groups.index)
    leaking = pd.Series({"D1-0001": "train", "D1-0002": "train", "D2-0001": "validation"})
    with pytest.raises(DataError, match="has D1-0002 or its duplicate in two parts; run notebook 02"):
        check_split(type(split)("paper", 0, leaking, alone), cohort, hashes)
    old = type(split)("paper", 0, split.part.drop("D1-0001"), split.groups.drop("D1-0001"))
    with pytest.raises(DataError, match="is of other data: it lacks D1-0001"):
        check_split(old, cohort, hashes)


def test_the_final_cohort_has_no_conflicting_duplicates_and_needs_no_other_exam_in_the_split(release, tmp_path):
    share(release, 2, 4)  # the normal left breast of D1-0001 and the malignant one of D1-0002
    blacken(release / path_of(9))
    cohort = read_cohort("cmmd", release)
    store = build(cohort, tmp_path / "store")
    found, hashes = apply_store(cohort, store), store.hashes
    final = exclude_conflicting_duplicates(found, hashes)
    assert list(final.exams.index) == ["D2-0001"]
    assert list(apply_store(final, store).exams.index) == ["D2-0001"], "the store brings none of them back"
    split = make_split(final.exams, patient_groups(final, hashes), kind="paper")
    check_split(split, final, hashes)
    with pytest.raises(DataError, match="is of other data: it lacks D1-0001"):
        check_split(split, found, hashes)


# --- staleness and kills ----------------------------------------------------------------------------------


def test_a_changed_file_is_read_again_and_touching_changes_no_byte(release, tmp_path):
    cohort = read_cohort("cmmd", release)
    old = build(cohort, tmp_path / "store")
    before = {name: (tmp_path / "store" / name).read_bytes() for name in FILES}
    seen = []
    os.utime(release / path_of(4), ns=(1, 1))
    build(cohort, tmp_path / "store", progress=lambda done, total: seen.append(done))
    assert seen and before == {name: (tmp_path / "store" / name).read_bytes() for name in FILES}
    size = (release / path_of(4)).stat().st_size
    paint(release, 4, 77)
    assert (release / path_of(4)).stat().st_size == size
    new = build(cohort, tmp_path / "store")
    assert new.hash != old.hash and load_store(tmp_path / "store").hash == new.hash


def test_the_hash_covers_the_prepared_pixels_and_how_they_were_made(release, tmp_path, monkeypatch):
    """Training's provenance leaves out the preprocessing code, so the store's hash must show what that code made."""
    cohort = read_cohort("cmmd", release)
    store = build(cohort, tmp_path / "store")
    assert store.settings["content"] == hashlib.sha256(store.images.tobytes()).hexdigest()
    assert build(cohort, tmp_path / "pad", resize="pad").hash != store.hash

    def brighter(*arguments, **options):
        image = stores_prepare(*arguments, **options)
        return replace(image, pixels=np.minimum(image.pixels, 254) + np.uint8(1))

    stores_prepare = stores.prepare_image
    monkeypatch.setattr(stores, "prepare_image", brighter)
    other = build(cohort, tmp_path / "other")
    assert other.index.equals(store.index) and other.hash != store.hash


def test_reading_a_store_imports_no_code_that_prepares_images():
    """Code that training imports is part of its provenance."""
    modules = imported_modules(["mammo_utils.images.store"])
    builders = ("images.build_store", "images.preprocess", "images.decoder", "data.exclusions")
    assert "mammo_utils.images.store" in modules and not {f"mammo_utils.{name}" for name in builders} & set(modules)


def slow_build(release, folder, workers):
    """Build with a pause after each chunk, so that it can be killed in between."""
    stores.CHUNK = 1
    build_chunk = stores._build_chunk

    def slow(job):
        count = build_chunk(job)
        time.sleep(0.2)
        return count

    stores._build_chunk = slow if workers == 1 else build_chunk
    build_store(read_cohort("cmmd", release), folder, size=8, workers=workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_build_ends_with_the_same_bytes(release, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(stores, "CHUNK", 1)
    cohort = read_cohort("cmmd", release)
    build(cohort, tmp_path / "one")
    folder = tmp_path / "two"
    process = multiprocessing.get_context("spawn").Process(target=slow_build, args=(release, folder, workers))
    process.start()
    deadline = time.monotonic() + 60
    while not list(folder.glob("chunks-*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    if workers == 1:
        assert process.exitcode == -signal.SIGKILL and not (folder / "store.json").exists()
    seen = []
    build_store(cohort, folder, size=8, workers=workers, progress=lambda done, total: seen.append(done))
    assert not seen or seen[0] > 0, "finished chunks are not built again"
    assert workers == 2 or 0 < seen[0] < 12
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (folder / name).read_bytes(), name


def test_saved_exclusions_come_back(release, tmp_path):
    blacken(release / path_of(0))
    cohort = read_cohort("cmmd", release)
    after = apply_store(cohort, build(cohort, tmp_path / "store"))
    save_cohort(after, tmp_path / "cohort")
    pd.testing.assert_frame_equal(exclusion_flow(load_cohort(tmp_path / "cohort")), exclusion_flow(after))
    assert BREASTS[0][0] == "D1-0001" and not after.exams.loc["D1-0001", "R_CC"]
