from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from mammo_utils.synthetic import anatomy
from mammo_utils.synthetic.cases import Breast, Exam, Finding, exams_of
from mammo_utils.synthetic.release import Settings, draw_exam

SETTINGS = Settings(rows=288, columns=240, seed=3, contrast=1.0, noise=1.0, null=False)
SMALL = replace(SETTINGS, rows=144, columns=120, difficulty=0.0)
STEP = anatomy.WIDTH / 240  # mm


def make_exam(*findings, side="L", number=0, density="scattered"):
    sides = [side] if isinstance(side, str) else side
    breasts = [Breast(s, "Malignant", "Malignant", 5, density, "mass", None, findings) for s in sides]
    return Exam(number, "S1-0001", 50, density, tuple(breasts))


def is_inside(points, x, y):
    """Whether (x, y) is inside the closed curve `points`, by the even-odd rule."""
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
    crosses = (y0 > y) != (y1 > y)
    return np.sum(crosses & (x < x0 + (y - y0) / np.where(y1 == y0, 1, y1 - y0) * (x1 - x0))) % 2 == 1


@pytest.fixture(scope="module")
def exams():
    return [exam for exam in exams_of(60, 3) if len(exam.breasts) == 2][:12]


def test_chest_wall_is_at_the_left_edge_of_left_breasts_and_at_the_right_of_right_ones(exams):
    for exam in exams:
        for (side, view), (image, _) in draw_exam(exam, SETTINGS).items():
            assert image.dtype == np.uint8 and image.shape == (288, 240)
            wall, air = (image[:, 0], image[:, -1]) if side == "L" else (image[:, -1], image[:, 0])
            assert (wall > 0).mean() > 0.4 and not air.any(), (exam.id, side, view)


def test_background_is_zero_and_the_breast_is_one_piece_without_holes(exams):
    for exam in exams[:4]:
        for image, _ in draw_exam(exam, SETTINGS).values():
            assert ndimage.label(image > 0)[1] == 1
            assert (ndimage.binary_fill_holes(image > 0) == (image > 0)).all()
            assert 0.15 < (image > 0).mean() < 0.75
            assert 40 < image[image > 0].mean() < 140 and (image == 255).mean() < 0.02


def test_only_the_mlo_view_shows_the_muscle(exams):
    """The upper corner at the chest wall is air in CC and bright muscle in MLO."""
    for exam in exams[:6]:
        drawn = draw_exam(exam, SETTINGS)
        assert drawn["L", "MLO"][0][:20, :20].mean() > 60
        assert drawn["L", "CC"][0][:20, :20].mean() < 10


def test_dense_tissue_grows_with_the_density_class():
    means = []
    for density in anatomy.DENSE_SHARE:
        images = [draw_exam(make_exam(number=n, density=density), SETTINGS)["L", "CC"][0] for n in range(8)]
        means.append(np.mean([image[image > 0].mean() for image in images]))
    assert np.all(np.diff(means) > 3), means


def test_left_and_right_are_more_alike_than_two_patients(exams):
    def correlate(a, b):
        return np.corrcoef(a[::4, ::4].ravel(), b[::4, ::4].ravel())[0, 1]

    exams = [replace(e, breasts=tuple(replace(b, findings=()) for b in e.breasts)) for e in exams]
    drawn = [draw_exam(exam, SETTINGS) for exam in exams]
    own = [correlate(d["L", "CC"][0], d["R", "CC"][0][:, ::-1]) for d in drawn]
    other = [correlate(a["L", "CC"][0], b["R", "CC"][0][:, ::-1]) for a, b in pairwise(drawn)]
    assert np.mean(own) > np.mean(other) + 0.05 and np.mean(own) < 0.99


@pytest.mark.parametrize("side", ["L", "R"])
@pytest.mark.parametrize("kind", ["mass", "calc", "dist", "FA", "FAD", "lipoma"])
def test_the_outline_lies_on_the_drawn_finding(kind, side):
    """The difference between the pictures with and without the finding lies within the outline."""
    for number, position in enumerate([(0.3, 0.3, 0.3), (0.6, -0.3, 0.1), (0.45, 0.1, -0.4)]):
        exam = make_exam(Finding(kind, 0.8, 9.0, position), side=side, number=number)
        drawn, plain = draw_exam(exam, SETTINGS), draw_exam(make_exam(side=side, number=number), SETTINGS)
        for key, (image, outlines) in drawn.items():
            (outline,) = outlines
            assert outline.kind == kind
            change = np.abs(image.astype(float) - plain[key][0])
            assert change.max() > 15
            centre = np.array(ndimage.center_of_mass(change))[::-1]
            assert np.linalg.norm(centre - outline.points.mean(0)) < 18 / STEP, key
            assert is_inside(outline.points, *centre)
            at = np.rint(outline.points).astype(int)
            at = at.clip(0, [239, 287])
            assert (image[at[:, 1], at[:, 0]] > 0).mean() > 0.8, "the outline is inside the breast"


def test_a_finding_has_the_same_depth_in_both_views_and_lies_in_its_quadrant():
    for number in range(10):
        rng = np.random.default_rng(number)
        position = (rng.uniform(0.25, 0.7), *(rng.choice([-1, 1], 2) * rng.uniform(0.2, 0.4, 2)))
        drawn = draw_exam(make_exam(Finding("mass", 1.0, 9.0, position), number=number), SETTINGS)
        depths = {}
        for view in ("CC", "MLO"):
            image, (outline,) = drawn["L", view]
            nipple = np.flatnonzero((image > 0).any(0)).max()
            row = np.flatnonzero(image[:, nipple] > 0).mean()
            x, y = outline.points.mean(0)
            depths[view] = x / nipple
            if view == "CC":
                assert (y < row) == (position[1] > 0), "lateral is up in a CC view"
            elif abs(0.9 * position[2] + 0.3 * position[1]) > 0.1:
                assert (y < row) == (0.9 * position[2] + 0.3 * position[1] > 0)
        assert depths["CC"] == pytest.approx(depths["MLO"], abs=0.08)
        assert depths["CC"] == pytest.approx(position[0], abs=0.1)


def test_findings_lie_in_the_breast_wherever_they_are_placed():
    """The outline of a finding near the skin may extend beyond the breast, but not beyond the image."""
    n = 0
    for exam in exams_of(80, 4):
        for image, outlines in draw_exam(exam, SMALL).values():
            for outline in outlines:
                assert (outline.points >= -0.5).all() and (outline.points <= [119.5, 143.5]).all()
                at = np.rint(outline.points).astype(int).clip(0, [119, 143])
                x, y = np.rint(outline.points.mean(0)).astype(int)
                assert image[y, x] > 0 and (image[at[:, 1], at[:, 0]] > 0).mean() > 0.4
                n += 1
    assert n > 100


def test_a_finding_and_a_decoy_add_the_same_grey_levels():
    """They differ in the bend of the arcs alone; the standard error over 40 pictures is 4 % of the mean change."""
    changes = {0.0: [], 1.0: []}
    for suspicion, found in changes.items():
        for number in range(40):
            exam = make_exam(Finding("mass", suspicion, 7.0, (0.5, 0.1, 0.1)), number=number)
            image, plain = (draw_exam(e, SMALL)["L", "CC"][0].astype(float) for e in (exam, make_exam(number=number)))
            change = image - plain
            found.append([change.sum(), np.square(change).sum(), change.max(), (change > 20).sum()])
    decoy, finding = (np.mean(found, axis=0) for found in changes.values())
    np.testing.assert_allclose(finding, decoy, rtol=0.12)


def test_contrast_and_noise_are_settings():
    exam = make_exam(Finding("mass", 1.0, 9.0, (0.5, 0.1, 0.1)))
    plain = draw_exam(make_exam(), SETTINGS)["L", "CC"][0]
    none = draw_exam(exam, replace(SETTINGS, contrast=0.0))["L", "CC"][0]
    np.testing.assert_array_equal(none, plain)
    clean, loud = (draw_exam(exam, replace(SETTINGS, noise=n))["L", "CC"][0].astype(float) for n in (0.0, 3.0))
    inner = (clean > 10) & (clean < 240)
    assert 4.5 < (loud - clean)[inner].std() < 7


@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (574, 479)])
def test_the_patient_is_the_same_at_any_size(shape):
    exam = make_exam(Finding("mass", 1.0, 10.0, (0.5, 0.1, 0.1)))
    rows, columns = shape
    image, (outline,) = draw_exam(exam, replace(SETTINGS, rows=rows, columns=columns))["L", "CC"]
    full, (reference,) = draw_exam(exam, SETTINGS)["L", "CC"]
    assert image.shape == shape
    assert (image > 0).mean() == pytest.approx((full > 0).mean(), abs=0.03)
    np.testing.assert_allclose((outline.points + 0.5) / shape[::-1], (reference.points + 0.5) / [240, 288], atol=1e-6)
