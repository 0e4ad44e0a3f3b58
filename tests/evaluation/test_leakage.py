"""A model that memorises patients gains from a split by image, and nothing from a split by patient."""

import numpy as np
import pytest

from mammo_utils.evaluation.leakage import leakage


def cohort(likeness, patients=120, seed=0):
    """Two images per patient and projection that share the fraction `likeness`, and a label that they do not show."""
    draw = np.random.default_rng(seed)
    own = draw.normal(size=(patients, 1, 16, 16))
    images = likeness * own + (1 - likeness) * draw.normal(size=(patients, 4, 16, 16))
    images = np.clip(128 + 30 * images, 0, 255).astype(np.uint8).reshape(-1, 16, 16)
    projections = np.tile(["CC", "MLO", "CC", "MLO"], patients)
    return images, projections, np.repeat(np.arange(patients), 4), np.repeat(draw.integers(0, 2, patients), 4)


def means(rows):
    return rows.groupby(["label", "split"])["auc"].mean()


def test_patients_who_look_alike_on_both_sides_leak_through_a_split_by_image():
    mean = means(leakage(*cohort(likeness=0.7), repeats=10))
    for label in ("label", "coin"):
        assert mean[label, "by image"] > 0.75
        assert mean[label, "by patient"] == pytest.approx(0.5, abs=0.08)


def test_without_likeness_nothing_leaks():
    mean = means(leakage(*cohort(likeness=0.0), repeats=10))
    assert (mean - 0.5).abs().max() < 0.08


def test_it_is_repeatable_with_one_row_per_repeat():
    rows = leakage(*cohort(likeness=0.5, patients=30), repeats=3)
    assert len(rows) == 2 * 2 * 3 and rows.equals(leakage(*cohort(likeness=0.5, patients=30), repeats=3))
    assert not rows["auc"].equals(leakage(*cohort(likeness=0.5, patients=30), repeats=3, seed=1)["auc"])


def test_without_labels_only_the_coin_is_scored_and_few_patients_give_no_row():
    images, projections, patients, labels = cohort(likeness=0.5, patients=30)
    rows = leakage(iter(images), projections, patients, np.full_like(labels, -1), repeats=2)
    assert set(rows["label"]) == {"coin"} and rows["auc"].notna().all()
    few = patients < 10
    assert leakage(images[few], projections[few], patients[few], labels[few]).empty


def test_unknown_labels_are_left_out():
    images, projections, patients, labels = cohort(likeness=0.7)
    labels = np.where(patients % 2, labels, -1)
    mean = means(leakage(images, projections, patients, labels, repeats=10))
    assert mean["label", "by image"] > 0.75 and mean["label", "by patient"] == pytest.approx(0.5, abs=0.1)


def test_a_part_with_one_class_has_no_score():
    """One patient of 30 is malignant: all her images are in one part, so the other part lacks the class."""
    images, projections, patients, _ = cohort(likeness=0.5, patients=30)
    rows = leakage(images, projections, patients, (patients == 3).astype(int), repeats=3)
    assert not len(rows[(rows["label"] == "label") & (rows["split"] == "by patient")])
    assert len(rows[rows["label"] == "coin"]) == 6
