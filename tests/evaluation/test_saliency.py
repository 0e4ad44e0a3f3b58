"""Scores of saliency maps with known values."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mammo_utils.evaluation import saliency
from mammo_utils.evaluation.runs import read_runs
from mammo_utils.evaluation.saliency import MAPS, enlarge, plain_maps, saliency_table, score_map, score_maps
from mammo_utils.study import load_study
from mammo_utils.training.run_state import SALIENCY
from mammo_utils.training.saliency import METHODS, RANDOM, SaliencyMaps, save_maps
from tests.evaluation.fakes import write_run

BREAST = np.zeros((32, 32), bool)
BREAST[:, :20] = True
MASK = np.zeros((32, 32), bool)
MASK[10:18, 4:12] = True


def maps_of(n=12, seed=0, *, cam_side=4, found=None) -> SaliencyMaps:
    """Maps of n views of n patients: noise in the breast, unless `found` makes those of the trained system."""
    rng = np.random.default_rng(seed)
    images = np.where(BREAST, rng.integers(60, 200, (n, 32, 32)), 0).astype(np.uint8)
    sides = {"grad_cam": cam_side, "integrated_gradients": 32, "occlusion": 8}
    maps = {p + m: rng.random((n, sides[m], sides[m])).astype(np.float32) for p in ("", RANDOM) for m in METHODS}
    for prefix in ("", RANDOM):
        maps[f"{prefix}integrated_gradients"] *= BREAST
    if found is not None:
        maps["integrated_gradients"] = np.stack([found] * n).astype(np.float32)
    names = tuple(f"S1-{i:03d}" for i in range(n))
    kinds = tuple(["mass", "calc"][i % 2] for i in range(n))
    return SaliencyMaps(names, names, ("L_MLO",) * n, kinds, images, np.stack([MASK] * n), maps)


def test_a_map_that_is_the_mask_has_every_point():
    assert score_map(MASK.astype(float), MASK, BREAST) == {
        "pointing": 1,
        "energy": 1,
        "ratio": pytest.approx(640 / 64),
        "top": 1,  # 64 pixels are 10 % of the breast
    }
    assert score_map(-MASK.astype(float), MASK, BREAST)["energy"] == 0
    outside = score_map((BREAST & ~MASK).astype(float), MASK, BREAST)
    assert (outside["energy"], outside["ratio"], outside["top"]) == (0, 0, 0)


def test_the_breast_alike_has_the_share_of_the_area():
    found = score_map(BREAST.astype(float), MASK, BREAST)
    assert found["energy"] == pytest.approx(0.1) and found["ratio"] == pytest.approx(1)
    for flat in (BREAST, np.ones((32, 32)), np.zeros((32, 32))):
        found = score_map(flat.astype(float), MASK, BREAST)
        assert np.isnan([found["pointing"], found["top"]]).all(), "a flat map has no highest pixel"
    in_air = score_map((~BREAST).astype(float), MASK, BREAST)
    assert in_air["pointing"] == 0, "it points, to the air"


def test_of_tied_pixels_each_counts_alike():
    """Three pixels are highest: one in the lesion, one elsewhere in the breast, one in the air."""
    values = np.zeros((32, 32))
    values[12, 6] = values[0, 0] = values[31, 31] = 1
    assert score_map(values, MASK, BREAST)["pointing"] == pytest.approx(1 / 3)
    assert score_map(values[::-1].copy(), MASK[::-1], BREAST)["pointing"] == pytest.approx(1 / 3)
    of_the_others = 30 * (64 - 1) / (640 - 2)  # 5 % of the breast are 32 pixels, so 30 are drawn from the tied ones
    assert score_map(values, MASK, BREAST)["top"] == pytest.approx((1 + of_the_others) / 32)


def test_a_map_of_known_values():
    values = np.zeros((32, 32))
    values[12, 6], values[0, 0], values[20, 30] = 3, 1, -5
    found = score_map(values, MASK, BREAST)
    assert found["energy"] == 0.75 and found["pointing"] == 1
    values[0, 0] = 4
    assert score_map(values, MASK, BREAST)["pointing"] == 0


def test_random_maps_have_the_share_of_the_area_on_average():
    rng = np.random.default_rng(0)
    scores = pd.DataFrame([score_map(rng.random((32, 32)) * BREAST, MASK, BREAST) for _ in range(400)])
    assert scores["energy"].mean() == pytest.approx(0.1, abs=0.01)
    assert scores["ratio"].mean() == pytest.approx(1, abs=0.05)
    assert scores["pointing"].mean() == pytest.approx(0.1, abs=0.045)  # 3 standard errors
    assert scores["top"].mean() == pytest.approx(0.1, abs=0.02)


def test_the_maps_that_need_no_system():
    image = np.where(BREAST, 50, 0).astype(np.uint8)
    image[MASK] = 200
    found = plain_maps(image, BREAST)
    assert set(found) < set(MAPS)
    assert score_map(found["brightest"], MASK, BREAST)["energy"] == 1
    assert np.unravel_index(found["centre"].argmax(), (32, 32)) in [(15, 9), (16, 9), (15, 10), (16, 10)]
    assert (found["uniform"] == BREAST).all()


def test_a_small_map_is_enlarged_around_its_cells():
    values = np.array([[0, 1], [0, 0.0]])
    large = enlarge(values, 8)
    assert np.unravel_index(large.argmax(), (8, 8)) == (0, 6) and large[:2, 6:].min() == 1 and large[4:, :2].max() == 0


def test_the_mask_is_enlarged_by_a_cell_and_lesions_below_a_cell_are_not_scored():
    table = score_maps(maps_of(3, cam_side=2)).set_index("method")
    assert not table.loc["grad_cam", "scored"].any()  # 64 pixels, but a cell has 256
    assert table.loc["grad_cam", ["pointing", "energy", "ratio", "top"]].isna().all(axis=None)
    uniform = table[table["map"] == "uniform"]
    assert uniform.loc["integrated_gradients", "energy"].tolist() == pytest.approx([100 / 640] * 3)  # 10 x 10
    assert uniform.loc["occlusion", "energy"].tolist() == pytest.approx([256 / 640] * 3)  # 16 x 16, a cell has 4
    assert len(table) == 3 * 3 * len(MAPS) and (table["area"] == 64).all()


def test_another_patients_map_is_that_of_the_next_patient():
    maps = maps_of(3, found=MASK)
    maps.maps["integrated_gradients"][1] = ~MASK & BREAST
    maps = replace(maps, groups=("a", "b", "b"))
    table = score_maps(maps).set_index(["method", "map"]).sort_index().loc["integrated_gradients"]
    assert table.loc["trained", "energy"].tolist() == pytest.approx([1, 36 / 576, 1])
    assert table.loc["other", "energy"].tolist() == pytest.approx([36 / 576, 1, 1])
    alone = score_maps(replace(maps, groups=("a", "a", "a")))
    assert alone.loc[alone["map"] == "other", "energy"].isna().all()


def test_the_table_compares_each_map_with_that_of_the_trained_system(fake_study):
    runs = [fake_study.run(system, "multi", "1v5", 0) for system in ("resnet18", "hybrid_shared")]
    for spec, found in zip(runs, (MASK, None), strict=True):
        write_run(spec)
        save_maps(maps_of(seed=1, found=found), spec.folder / SALIENCY)
    scores = saliency.saliency_scores(read_runs(fake_study))
    table = saliency_table(scores, fake_study).set_index(["run", "method", "map"]).sort_index()
    ours = table.loc[runs[0].id, "integrated_gradients"]
    assert ours.loc["trained", ["energy", "pointing"]].tolist() == [1, 1] and np.isnan(ours.loc["trained", "gain"])
    assert ours.loc["uniform", "gain"] == pytest.approx(1 - 100 / 640)
    assert ours.loc["uniform", ["pointing", "pointing_low", "top", "top_low"]].isna().all()
    assert (ours["n_views"] == 12).all() and ours.loc["trained", "pointing_low"] < 0.8  # Wilson's, of 12
    noise = table.loc[runs[1].id, "integrated_gradients"]
    assert noise.loc["random", "gain"] == pytest.approx(0, abs=0.01)
    assert noise.loc["trained", "ratio"] == pytest.approx(1, abs=0.1)
    sentences = " ".join(saliency.state_saliency(table.reset_index()))
    assert "Integrated gradients (2 runs, 12 outlined views of each): " in sentences
    assert "to 100% of the positive values lie in the lesion" in sentences
    # another patient's map is the same mask, so the fifth comparison is a draw
    assert "than with random weights in 1 of 2 runs, and higher than in all five comparison maps in 0 " in sentences
    by_kind = saliency_table(scores, fake_study, by=["kind"])
    assert by_kind.groupby(["run", "method", "map"])["n_views"].sum().eq(12).all()
    few = saliency_table(scores[scores["exam"] < "S1-004"], fake_study)
    assert few["n_views"].max() == 4 and few.filter(regex="_low|_high").isna().all(axis=None)
    assert "too few views for intervals" in " ".join(saliency.state_saliency(few))


def test_without_maps_the_sentence_is_what_they_need():
    scores = saliency.saliency_scores([])
    table = saliency_table(scores, load_study("config/demo.yaml"))
    assert table.empty and "No run has saliency maps" in saliency.state_saliency(table)[0]
