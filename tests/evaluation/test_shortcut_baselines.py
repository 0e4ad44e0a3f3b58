"""Each shortcut finds its own kind of signal, and none where there is none."""

import shutil

import numpy as np
import pytest

from mammo_utils.data.cohort import DataError
from mammo_utils.evaluation.bootstrap import Sample
from mammo_utils.evaluation.shortcut_baselines import (
    Baseline,
    baseline_table,
    breast_features,
    load_statistics,
    load_subsets,
    pool_baselines,
    shortcut_baselines,
    thumbnails,
)
from mammo_utils.images.statistics import image_statistics
from mammo_utils.study import load_study
from mammo_utils.training.run import load_data
from tests.conftest import CHECKOUT
from tests.evaluation.exams import exam_set_of


def parts(signal, n=80):
    return {
        part: exam_set_of(n, seed, signal=signal) for seed, part in enumerate(("train", "validation", "test"), start=1)
    }


def aucs(signal):
    return {b.name: b.auc for b in shortcut_baselines(parts(signal), "test", "diagnosis")}


def test_each_shortcut_finds_its_own_signal():
    assert aucs("mean")["mean intensity"] > 0.95
    corner = aucs("corner")
    assert corner["8x8 thumbnails"] > 0.9 and corner["mean intensity"] < 0.65
    available = aucs("availability")
    assert available["view availability"] > 0.75  # it predicts the left breast, not the right


def test_the_brightest_pixel_is_found_by_maximum_extremes_and_boosting():
    """One pixel of a malignant breast is bright."""
    exams = parts("none")
    for part in exams.values():
        for (exam, view), row in np.ndenumerate(part.rows.numpy()):
            if row >= 0 and part.labels["diagnosis"][exam, view // 2] == 1:
                part.images[row, 7 + exam % 3, 5 + row % 4] = 160
    found = {b.name: b.auc for b in shortcut_baselines(exams, "test", "diagnosis")}
    strong = {"maximum", "percentiles", "high-pass extremes", "side differences", "boosted statistics"}
    assert min(found[name] for name in strong) > 0.9, found
    assert found["view availability"] < 0.62, found


def test_there_are_more_than_forty_statistics_and_air_does_not_enter_the_grey_levels():
    rng = np.random.default_rng(0)
    images = rng.integers(90, 110, (3, 40, 32)).astype(np.uint8)
    images[:, :, 20:] = 0
    found = image_statistics(images)
    assert found.shape[0] == 3 and found.shape[1] >= 40 and np.isfinite(found.to_numpy()).all()
    inside = images[:, :, :20].reshape(3, -1)
    np.testing.assert_allclose(found["mean"], inside.mean(1), rtol=1e-6)
    np.testing.assert_allclose(found["percentile 90"], np.percentile(inside, 90, axis=1), rtol=1e-6)
    np.testing.assert_array_equal(found["maximum"], inside.max(1))
    np.testing.assert_array_equal(found[["area", "height", "width"]], [[800, 40, 20]] * 3)


def test_many_and_large_images_are_measured_as_few_and_small_ones():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 255, (70, 16, 16)).astype(np.uint8)
    apart = [image_statistics(images[i : i + 1]) for i in (0, 69)]
    whole = image_statistics(images)
    np.testing.assert_allclose(whole.iloc[[0, 69]], np.vstack([a.to_numpy() for a in apart]), rtol=1e-4, atol=1e-4)
    large = image_statistics(images[:2].repeat(16, 1).repeat(16, 2))  # 256 pixels per side: averaged to 128
    assert np.isfinite(large.to_numpy()).all()
    np.testing.assert_allclose(large["mean"], whole["mean"][:2], rtol=1e-5)


def test_without_signal_they_find_none_and_the_majority_class_scores_one_half():
    found = aucs("none")
    assert found["majority class"] == 0.5
    assert all(0.38 < value < 0.62 for value in found.values()), found


def test_the_table_has_intervals_and_counts():
    exams = parts("mean")
    found = shortcut_baselines(exams, "test", "diagnosis")
    table = baseline_table({("1v5", "diagnosis"): found}, resamples=100, seed=0)
    row = table.query("baseline == 'mean intensity' and metric == 'auc'").iloc[0]
    assert row["low"] <= row["value"] <= row["high"]
    assert row["n_exams"] == 80 and row["n_breasts"] == int((exams["test"].labels["diagnosis"] >= 0).sum())
    majority = table.query("baseline == 'majority class' and metric == 'auc'").iloc[0]
    assert majority["value"] == 0.5 and np.isnan(majority["low"]) and "by construction" in majority["reason"]
    assert table.query("baseline == 'majority class' and metric == 'f1_macro'")["low"].notna().all()


def test_one_class_to_learn_from_gives_no_baseline():
    exams = parts("none")
    exams["train"].labels["diagnosis"].fill_(0)
    assert shortcut_baselines(exams, "test", "diagnosis") == []
    assert baseline_table({("1v5", "diagnosis"): []}, resamples=10, seed=0).empty


def test_thumbnails_are_means_of_tiles_and_an_absent_view_is_zero():
    exams = exam_set_of(6, size=16)
    small = thumbnails(exams)
    exam, view = np.argwhere(exams.present.numpy())[3]
    image = exams.images[exams.rows[exam, view]].numpy()
    assert small[exam, view, 9] == pytest.approx(image[2:4, 2:4].mean() / 255)
    assert (small[~exams.present.numpy()] == 0).all() and (small[exams.present.numpy()] > 0).all()
    with pytest.raises(ValueError, match="4 pixels per side are too small for thumbnails of 8"):
        thumbnails(exam_set_of(2, size=4))


def test_thumbnails_outlive_the_store(small_study, in_small_project, tmp_path, monkeypatch):
    """The baselines and the hash of the data are the same without the images and the store."""
    spec = small_study.run("hybrid_shared", "multi", "1v5", 0)
    whole = load_data(spec)
    shutil.copytree(small_study.folder, tmp_path / "results" / "small", ignore=shutil.ignore_patterns("store", "runs"))
    monkeypatch.setenv("MAMMO_PROJECT", str(tmp_path))
    data, problem = load_subsets(small_study, ["1v5"])
    assert not problem and data["1v5"].hash == whole.hash
    for part, exams in whole.parts.items():
        np.testing.assert_allclose(thumbnails(data["1v5"].parts[part]), thumbnails(exams), atol=1e-6)
    known = [None, load_statistics(small_study)]
    pairs = zip((whole, data["1v5"]), known, strict=True)
    found = [shortcut_baselines(d.parts, d.reported, "diagnosis", statistics) for d, statistics in pairs]
    assert [b.auc for b in found[0]] == [b.auc for b in found[1]]
    with pytest.raises(DataError, match="store holds no finished image store"):
        load_data(small_study.run("hybrid_shared", "multi", "1v5", 0))
    table = small_study.folder / "thumbnails" / "statistics.parquet"
    content = table.read_bytes()
    table.write_bytes(content[:-1] + b"?")
    with pytest.raises(DataError, match="parquet is damaged; run notebook 02"):
        load_statistics(small_study)
    table.write_bytes(content)
    path = small_study.folder / "thumbnails" / "thumbnails.npy"
    path.write_bytes(path.read_bytes()[:-4] + b"oops")
    data, problem = load_subsets(small_study, ["1v5"])
    assert not data and "thumbnails.npy is damaged; run notebook 02" in problem


def test_a_breasts_own_views_come_first():
    features = breast_features(np.arange(4).reshape(1, 4, 1))
    assert features.tolist() == [[0, 1, 2, 3], [2, 3, 0, 1]]


def test_a_task_without_labels_has_no_baseline_and_does_not_affect_the_other():
    exams = parts("mean")
    for part in exams.values():
        part.labels["diagnosis"].fill_(-1)
    assert shortcut_baselines(exams, "test", "diagnosis") == []
    assert shortcut_baselines(exams, "test", "birads")
    exams["test"].labels["birads"].fill_(-1)
    assert shortcut_baselines(exams, "test", "birads") == []


def test_data_without_diagnoses_are_loaded_for_another_task_mode_of_the_study(tmp_path, monkeypatch):
    """VinDr-Mammo has no diagnoses: a study of BI-RADS alone has its baselines all the same."""

    def load_data(spec, store):
        assert store is None, "this study has no thumbnails"
        if spec.task_mode != "birads":
            raise ValueError("there is no diagnosis label")
        return spec.subset

    monkeypatch.setattr("mammo_utils.evaluation.shortcut_baselines.load_data", load_data)
    shutil.copytree(CHECKOUT / "config", tmp_path / "config")
    monkeypatch.setenv("MAMMO_PROJECT", str(tmp_path))
    for modes, found in (("[birads]", {"1v5": "1v5"}), ("[diagnosis, birads]", {"1v5": "1v5"}), ("[multi]", {})):
        study = load_study("config/demo.yaml", [f"grid.task_modes={modes}"])
        data, why_not = load_subsets(study, ["1v5"])
        assert data == found and ("no diagnosis label" in why_not) == (not found)


def test_baselines_of_folds_are_pooled_in_the_order_of_the_systems():
    def baseline(exams, labels, p):
        exams, labels, p = np.array(exams), np.array(labels), np.array(p)
        return Baseline("x", True, Sample(labels, np.stack([1 - p, p], 1)[None], exams), 0.0, len(set(exams)), exams)

    one, other = baseline(["b", "d", "d"], [0, 1, 0], [0.1, 0.2, 0.15]), baseline(["a", "c"], [0, 1], [0.3, 0.9])
    (pooled,) = pool_baselines([[one], [other]])
    assert pooled.auc == 5 / 6 and pooled.n_exams == 4
    assert pooled.exams.tolist() == pooled.sample.groups.tolist() == ["a", "b", "c", "d", "d"]
    assert pooled.sample.labels.tolist() == [0, 0, 1, 1, 0]
    assert pooled.sample.probabilities[0, :, 1].tolist() == [0.3, 0.1, 0.9, 0.2, 0.15]
    assert pool_baselines([[one]]) == [one]
