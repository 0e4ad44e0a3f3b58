"""Patches around the structures of a release of their own."""

import numpy as np
import pytest

from mammo_utils.training.patches import PatchSettings, draw_patches

SETTINGS = PatchSettings(n_exams=60, offset=0)


@pytest.fixture(scope="module")
def drawn():
    return draw_patches(SETTINGS)


def test_patches_are_small_pictures_with_both_extremes(drawn):
    patches, targets = drawn
    assert patches.shape[1:] == (32, 32) and patches.dtype == np.uint8
    assert len(patches) == len(targets) > 120
    assert ((targets >= 0) & (targets <= 1)).all()
    assert min(np.mean(targets == 0), np.mean(targets == 1)) > 0.2


def test_the_structure_lies_in_the_middle_whatever_its_label(drawn):
    """By distance from the middle, the core and the ring of strands are bright, and it is darker between them."""
    patches, targets = drawn
    y, x = np.indices((32, 32)) - 15.5
    ring = np.hypot(y, x).astype(int).ravel()
    for group in (patches[targets == 0], patches[targets == 1]):
        grey = np.bincount(ring, group.mean(0).ravel()) / np.bincount(ring)
        core, between, strands, outside = grey[0:2].mean(), grey[3], grey[5:7].mean(), grey[11]
        assert core > between + 8 and strands > outside + 8, grey[:12]
        if group is patches[targets == 0]:
            assert strands > between + 4, "strands that run round the core leave a gap"


def test_the_same_settings_give_the_same_patches_in_any_number_of_exams(drawn):
    patches, targets = draw_patches(PatchSettings(n_exams=5, offset=0))
    assert np.array_equal(patches, drawn[0][: len(patches)])
    assert np.array_equal(targets, drawn[1][: len(targets)])
