from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from mammo_utils.config import Augmentation, Training
from mammo_utils.training.dataset import DEVIATION, MEAN, ExamSet, derive_seed, make_exam_set, place_images
from mammo_utils.vocabulary import VIEWS

STILL = Augmentation(rotation=0, translation=0, scale=0, flip=0)


@pytest.fixture
def exams():
    """Three exams over five images: all views but two in the first, one in the second, two in the third."""
    present = np.array([[1, 1, 0, 0], [0, 0, 0, 1], [1, 0, 1, 0]], bool)
    rows = np.where(present, np.cumsum(present).reshape(3, 4) - 1, -1)
    table = pd.DataFrame(present, index=["S1-0001", "S1-0002", "S1-0003"], columns=list(VIEWS))
    table = table.assign(L_diagnosis=[1, -1, 0], R_diagnosis=[-1, 0, 1], L_birads=[5, -1, 1], R_birads=[-1, 1, 3])
    images = np.arange(5 * 6 * 6, dtype=np.uint8).reshape(5, 6, 6)
    store = SimpleNamespace(images=images, rows_of=lambda names: rows)
    return make_exam_set(table, pd.Series(list("abc"), table.index), store, (1, 5), "cpu")


def test_batch_is_the_normalised_images_with_absent_views_zero(exams):
    batch = exams.batch(torch.tensor([2, 0]))
    assert batch.images.shape == (2, 4, 3, 6, 6)
    assert batch.present.tolist() == [[True, False, True, False], [True, True, False, False]]
    assert (batch.images[~batch.present] == 0).all()
    for channel in range(3):
        expected = (exams.images[3].float() / 255 - MEAN[channel]) / DEVIATION[channel]
        torch.testing.assert_close(batch.images[0, 0, channel], expected)
    assert batch.labels["diagnosis"].tolist() == [[0, 1], [1, -1]]
    assert batch.labels["birads"].tolist() == [[0, -1], [1, -1]], "a category outside the subset is absent"


def test_an_epoch_is_every_exam_once_and_a_function_of_seed_and_epoch(exams):
    def draw(seed, epoch, size):
        batches = list(exams.epoch(seed, epoch, Training(batch_size=size)))
        order = torch.cat([b.exams for b in batches])
        return order, torch.cat([b.images for b in batches])[order.argsort()]

    order, images = draw(0, 3, 2)
    assert sorted(order.tolist()) == [0, 1, 2]
    again, same = draw(0, 3, 1)
    assert torch.equal(order, again) and torch.equal(images, same), "whatever the batch size"
    assert not torch.equal(images, draw(0, 4, 2)[1]) and not torch.equal(images, draw(1, 3, 2)[1])
    assert (images[~exams.present] == 0).all(), "augmentation leaves an absent view zero"


def test_without_augmentation_an_epoch_holds_the_images_as_they_are(exams):
    batches = list(exams.epoch(0, 0, Training(batch_size=3, augmentation=STILL)))
    plain = exams.batch(batches[0].exams)
    torch.testing.assert_close(batches[0].images, plain.images, atol=1e-5, rtol=0)


def many_exams(n=64, missing=0.3):
    """Exams whose images and labels name their breast: view v of exam i has the grey value i, label i % 2."""
    torch.manual_seed(0)
    present = torch.rand(n, 2, 1).ge(missing).expand(n, 2, 2).reshape(n, 4)
    present[:, :2] |= ~present.any(1, keepdim=True)
    images = torch.arange(n, dtype=torch.uint8).repeat_interleave(4)[:, None, None].expand(-1, 4, 4).contiguous()
    rows = torch.where(present, torch.arange(4 * n).view(n, 4), -1)
    labels = torch.where(present[:, ::2], torch.arange(n)[:, None] % 2, -1)
    names = tuple(str(i) for i in range(n))
    return ExamSet(names, names, images, rows, {"diagnosis": labels}, (1, 5), torch.device("cpu"))


def test_a_recombined_exam_has_the_right_breast_of_another_with_its_label():
    exams = many_exams()
    settings = Training(batch_size=8, augmentation=STILL, recombine=1)
    mean, deviation = MEAN[0], DEVIATION[0]
    for batch in exams.epoch(0, 1, settings):
        grey = ((batch.images[:, :, 0].mean((2, 3)) * deviation + mean) * 255).round().long()  # the exam it comes from
        complete = batch.present.all(1)
        assert torch.equal(batch.present, exams.present[batch.exams])
        for side, labels in enumerate(batch.labels["diagnosis"].T):
            own = grey[:, 2 * side : 2 * side + 2]
            known = labels >= 0
            assert (own[known] % 2 == labels[known, None]).all() and (own[known, 0] == own[known, 1]).all()
        left, right = grey[complete, 0], grey[complete, 2]
        assert torch.equal(left, batch.exams[complete]) and set(right.tolist()) == set(left.tolist())
        assert (left != right).all() or complete.sum() < 2, "no exam keeps its right breast"
        assert (grey[~complete] == torch.where(batch.present, batch.exams[:, None], grey)[~complete]).all()


@pytest.mark.parametrize("probability", [0.3, 0.99])
def test_dropped_views_leave_one_and_a_breast_without_views_has_no_label(probability):
    exams = many_exams(n=200)
    settings = Training(batch_size=50, augmentation=STILL, view_dropout=probability)
    batches = list(exams.epoch(0, 1, settings))
    order = torch.cat([batch.exams for batch in batches])
    present, before = torch.cat([batch.present for batch in batches]), exams.present[order]
    assert present.any(1).all() and (before | ~present).all()
    labels, known = torch.cat([b.labels["diagnosis"] for b in batches]), exams.labels["diagnosis"][order]
    seen = present.unflatten(1, (2, 2)).any(2)
    assert torch.equal(labels, torch.where(seen, known, -1))
    assert torch.cat([b.images for b in batches])[~present].abs().max() == 0
    dropped = (before & ~present).sum() / before.sum()
    assert dropped == pytest.approx(0.25 if probability == 0.3 else 0.64, abs=0.06)  # less than p: one view stays


def test_a_probability_of_0_draws_nothing_and_others_leave_order_and_augmentation_alone():
    exams = many_exams()
    plain, nothing, both = (
        list(exams.epoch(3, 2, Training(batch_size=8, **options)))
        for options in ({}, {"recombine": 0, "view_dropout": 0}, {"recombine": 0.5, "view_dropout": 0.2})
    )
    for one, other, third in zip(plain, nothing, both, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.exams, third.exams)
        same = (one.images == third.images).flatten(2).all(2)
        assert same[third.present][:].float().mean() > 0.3, "views that stay are augmented as before"


def test_streams_differ_by_purpose_and_number():
    seeds = {derive_seed(purpose, a, b) for purpose in ("batches", "dropout") for a in range(5) for b in range(5)}
    assert len(seeds) == 50


def test_images_are_placed_once_and_shared(exams):
    images = np.zeros((2, 4, 4), np.uint8)
    store = SimpleNamespace(images=images)
    assert (
        place_images(store, "cpu", "auto").data_ptr()
        == place_images(store, "cpu", "mapped").data_ptr()
        == images.ctypes.data
    )
    assert place_images(store, "cpu", "device").data_ptr() != images.ctypes.data
    assert replace(exams, names=()).images.data_ptr() == exams.images.data_ptr()


def test_what_is_read_ahead_is_what_would_be_read(exams):
    """For a device other than the processor; "meta" is one that every machine has."""
    asked = [torch.tensor([2]), torch.tensor([0, 1]), torch.tensor([], dtype=torch.int64), torch.tensor([1])]
    found = list(replace(exams, device=torch.device("meta"))._read_ahead(iter(asked)))
    for part, (which, grey) in zip(asked, found, strict=True):
        assert torch.equal(which, part) and torch.equal(grey, exams.read(part))
    assert [grey for _, grey in exams._read_ahead(asked)] == [None] * 4
