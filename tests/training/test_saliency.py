"""Saliency maps: those of captum for a function whose maps are known, and the file that a run keeps."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from mammo_utils.images.store import Outline, load_store, stored_outlines, to_store
from mammo_utils.models.system import build_system
from mammo_utils.training import run as runs
from mammo_utils.training.dataset import DEVIATION, MEAN
from mammo_utils.training.run_state import SALIENCY, damage
from mammo_utils.training.saliency import (
    METHODS,
    RANDOM,
    BreastOdds,
    draw_mask,
    explain,
    load_maps,
    outlined_views,
    saliency_maps,
    save_maps,
)
from tests.evaluation.exams import exam_set_of

AIR = ((0 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).view(3, 1, 1)


class LinearEncoder(nn.Module):
    """One feature: the sum over pixels of a plane of weights times the image."""

    out_features = 1

    def __init__(self, plane):
        super().__init__()
        self.plane = plane

    def feature_map(self, x):
        return (x * self.plane).sum(1, keepdim=True) * self.plane.numel()


class LinearSystem(nn.Module):
    """The log-odds of a breast are the sum of its views' features; those of the right breast have the other sign."""

    def __init__(self, plane):
        super().__init__()
        self.encoders, self.classes = [LinearEncoder(plane)], {"diagnosis": 2}

    def encode_views(self, images, present):
        return self.encoders[0].feature_map(images.flatten(0, 1)).mean((2, 3)).view(len(images), 4, 1)

    def classify(self, v, present):
        odds = v[:, :, 0].unflatten(1, (2, 2)).sum(2) * torch.tensor([1.0, -1.0])
        return {"diagnosis": torch.stack([torch.zeros_like(odds), odds], 2)}, None


@pytest.mark.parametrize("view", [1, 3])
def test_the_maps_of_a_linear_system_are_its_weights_times_what_is_there(view):
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(16, 16, generator=generator)
    image = torch.randn(1, 3, 16, 16, generator=generator)
    image[0, :, :4, :4] = AIR  # windows without tissue
    system, sign = LinearSystem(plane), 1 if view == 1 else -1
    found = explain(BreastOdds(system, torch.zeros(4, 1), torch.ones(4, dtype=torch.bool), view), image, 5)
    share = sign * (plane * (image[0] - AIR).sum(0)).numpy()
    np.testing.assert_allclose(found["integrated_gradients"], share, atol=1e-4)
    np.testing.assert_allclose(found["occlusion"], share.reshape(8, 2, 8, 2).sum((1, 3)), atol=1e-3)
    assert (found["occlusion"][:2, :2] == 0).all()
    # the gradient of the odds in every cell of the map is 1 / 256
    np.testing.assert_allclose(found["grad_cam"], sign * (plane * image[0].sum(0)).numpy(), atol=1e-4)


@pytest.mark.parametrize("system", ["resnet18", "hybrid_view_specific"])
@pytest.mark.parametrize("fusion", ["gated", "per_breast"])
def test_what_is_explained_is_the_systems_own_answer(system, fusion):
    torch.manual_seed(0)
    model = build_system(system, fusion=fusion, missing="masked", n_birads=3).eval()
    exams = exam_set_of(5, size=32)
    position = int(exams.present.all(1).nonzero()[0])
    batch = exams.batch(torch.tensor([position]))
    with torch.no_grad():
        logits, _ = model(batch.images, batch.present)
        encoded = model.encode_views(batch.images, batch.present)[0]
        for view in range(4):
            odds = BreastOdds(model, encoded, batch.present[0], view)
            own = logits["diagnosis"][0, view // 2]
            assert odds(batch.images[0, view][None]).item() == pytest.approx((own[1] - own[0]).item(), abs=1e-5)


def test_the_maps_of_a_network_are_those_computed_by_hand():
    torch.manual_seed(1)
    model = build_system("vssm_shared").eval()  # its maps have the channels last before they are turned
    batch = exam_set_of(3, size=64, missing=0).batch(torch.tensor([0]))
    encoded = model.encode_views(batch.images, batch.present)[0].detach()
    odds, image = BreastOdds(model, encoded, batch.present[0], 2), batch.images[0, 2][None]
    found = explain(odds, image, 7)
    last = model.encoders[0].feature_map(image).detach().requires_grad_()
    v = torch.cat([encoded[None, :2], last.mean((2, 3))[:, None], encoded[None, 3:]], 1)
    logits = model.classify(v, batch.present)[0]["diagnosis"][0, 1]
    (gradient,) = torch.autograd.grad(logits[1] - logits[0], last)
    cam = (gradient.mean((2, 3), keepdim=True) * last).sum(1)[0].detach()
    np.testing.assert_allclose(found["grad_cam"], cam, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        hidden = image.clone()
        hidden[0, :, 8:16, 24:32] = AIR
        assert found["occlusion"][1, 3] == pytest.approx((odds(image) - odds(hidden)).item(), abs=1e-5)
        change = (odds(image) - odds(AIR.expand_as(image))).item()
    assert found["integrated_gradients"].sum() == pytest.approx(change, rel=0.1)  # completeness, up to 16 steps


def test_only_outlined_views_of_positive_breasts_are_explained():
    exams = exam_set_of(8, size=32, missing=0)
    lesion = [Outline("mass", np.array([[4, 4], [20, 4], [20, 20], [4, 20.0]]))]
    outlines = {(name, view): lesion for name in exams.names for view in ("L_MLO", "R_MLO")}
    outlines.pop((exams.names[0], "L_MLO"), None)
    positive = [(int(e), 1 + 2 * int(s)) for e, s in (exams.labels["diagnosis"] == 1).nonzero()]
    expected = [found for found in positive if found != (0, 1)]
    assert outlined_views(exams, outlines, "diagnosis", 99) == expected
    assert outlined_views(exams, outlines, "birads", 2) == expected[:2]
    assert outlined_views(exams, {}, "diagnosis", 99) == []


def test_the_mask_is_the_inside_of_the_outline_at_any_scale():
    square = np.array([[4, 8], [11, 8], [11, 15], [4, 15.0]])  # pixel centres: 8 x 8 pixels
    expected = np.zeros((32, 32), bool)
    expected[8:16, 4:12] = True
    assert np.array_equal(draw_mask([square], 32, 32), expected)
    half = draw_mask([square], 32, 16)
    assert half[4:8, 2:6].all() and not half[:3].any() and not half[9:].any() and half.sum() <= 25


def test_outlines_are_mapped_to_the_store(small_study, in_small_project):
    store = load_store(small_study.folder / "store")
    lesions = pd.read_parquet(small_study.folder / "cohort" / "lesions.parquet")
    outlines = stored_outlines(lesions, store)
    assert sum(map(len, outlines.values())) == len(lesions)
    first = lesions.iloc[0]
    row = store.index[(store.index["exam"] == first["exam"]) & (store.index["view"] == first["view"])].iloc[0]
    points = np.array(pd.io.json.ujson_loads(first["points"]), float)
    np.testing.assert_allclose(outlines[first["exam"], first["view"]][0].points, to_store(points, row, 32))
    assert Outline("mass", np.array([[0, 0], [2, 0], [2, 3], [0, 3.0]])).area == 6
    assert stored_outlines(lesions.assign(exam="unknown"), store) == {}


def test_a_run_keeps_the_maps_of_its_outlined_views(small_study, in_small_project):
    spec = small_study.run("hybrid_shared", "multi", "1v3v5", 0)
    runs.train_run(spec)
    found = load_maps(spec.folder / SALIENCY)
    data, (_, model) = runs.load_data(spec), runs.load_run(spec.folder)
    exams = data.parts["test"]
    chosen = outlined_views(exams, data.outlines, "diagnosis", spec.training.saliency)
    assert len(chosen) == len(found.exams) == 2 and found.images.shape == found.masks.shape == (2, 32, 32)
    untrained = runs.build(spec, "random weights").eval()
    again = saliency_maps(model, untrained, exams, chosen, data.outlines, 8)
    assert found.exams == again.exams and found.views == again.views and found.kinds == again.kinds
    assert set(found.maps) == {prefix + name for prefix in ("", RANDOM) for name in METHODS}
    for name, values in again.maps.items():
        # the trained system has its weights in another memory format, which rounds otherwise
        np.testing.assert_allclose(found.maps[name], values, atol=1e-2 * np.abs(values).max())
    assert found.maps["grad_cam"].shape == (2, 2, 2) and found.maps["occlusion"].shape == (2, 8, 8)
    assert np.array_equal(found.images[0], store_image(small_study, found.exams[0], found.views[0]))
    assert not np.allclose(found.maps["occlusion"], found.maps["random_occlusion"])
    assert all(p.requires_grad for p in model.parameters())
    (spec.folder / SALIENCY).unlink()
    assert f"{SALIENCY} is missing" in damage(spec.folder)
    shutil.rmtree(spec.folder)


def store_image(study, exam, view):
    store = load_store(study.folder / "store")
    return store.images[store.index.index[(store.index["exam"] == exam) & (store.index["view"] == view)][0]]


def test_a_run_without_outlines_keeps_no_maps(small_study, in_small_project):
    spec = small_study.run("resnet18", "diagnosis", "1v3v5", 0)
    none = spec.model_copy(update={"training": spec.training.model_copy(update={"saliency": 0})})
    assert none.hash == spec.hash and none.id == spec.id
    runs.train_run(none)
    assert not (none.folder / SALIENCY).exists() and damage(none.folder) == ""
    shutil.rmtree(none.folder)


def test_maps_are_read_back_and_anything_else_is_refused(tmp_path):
    exams = exam_set_of(6, size=16, missing=0)
    outlines = {(name, "L_CC"): [Outline("calc", np.array([[1, 1], [9, 1], [9, 9.0]]))] for name in exams.names}
    system = LinearSystem(torch.ones(16, 16))
    chosen = outlined_views(exams, outlines, "diagnosis", 2)
    found = saliency_maps(system, system, exams, chosen, outlines, 2)
    save_maps(found, tmp_path / "a")
    again = load_maps(tmp_path / "a")
    assert (again.exams, again.groups, again.views, again.kinds) == (found.exams,) * 2 + (("L_CC",) * 2, ("calc",) * 2)
    assert np.array_equal(again.masks, found.masks) and again.masks.dtype == bool
    for name in found.maps:
        assert np.array_equal(again.maps[name], found.maps[name])
    save_maps(type(found)(**{**vars(found), "exams": found.exams[1:]}), tmp_path / "b")
    (tmp_path / "c").write_bytes(b"\x80\x04cposix\nsystem\n")  # a pickle
    for name, sentence in (("b", "b holds maps of other numbers"), ("c", "c holds no saliency maps")):
        with pytest.raises(ValueError, match=sentence):
            load_maps(tmp_path / name)
