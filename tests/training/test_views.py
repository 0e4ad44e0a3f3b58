"""What a run keeps of its views: the same numbers as a full pass through the system."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mammo_utils.config import Training
from mammo_utils.evaluation.gate import complete_exams, gate_table
from mammo_utils.evaluation.recombination import recombination_table
from mammo_utils.evaluation.runs import read_runs, read_views
from mammo_utils.evaluation.view_ablation import predict_exams, stored_prediction
from mammo_utils.models.fusion import FUSIONS
from mammo_utils.models.system import build_system
from mammo_utils.training import run as runs
from mammo_utils.training.predict import breast_table, predict
from mammo_utils.training.run_state import damage
from mammo_utils.training.views import (
    ALL_VIEWS,
    VIEW_SUBSETS,
    classify,
    encode,
    load_features,
    save_features,
    shown_views,
    subset_predictions,
)
from mammo_utils.vocabulary import VIEWS
from tests.evaluation.exams import exam_set_of

SETTINGS = Training(device="cpu", batch_size=4)


@pytest.mark.parametrize("missing", ["zeros", "masked"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_predictions_from_cached_features_are_those_of_a_full_pass(fusion, missing):
    torch.manual_seed(0)
    model = build_system("resnet18", fusion=fusion, missing=missing)
    model.train()
    for batch in exam_set_of(8, seed=9, size=32).in_order(8):
        model(batch.images, batch.present)  # batch norm has statistics
    exams = exam_set_of(9, size=32)
    table = subset_predictions(model, exams, "test", encode(model, exams, SETTINGS), SETTINGS)
    numbers = [name for name in table if "_logit_" in name or name.startswith("weight_")]
    for subset, found in table.groupby("views"):
        shown = shown_views(subset)
        rows = torch.where(shown, exams.rows, -1)
        expected = breast_table(exams, "test", *predict(model, replace(exams, rows=rows), SETTINGS))
        has_them = expected["exam"].isin(found["exam"].unique()).to_numpy()
        np.testing.assert_allclose(found[numbers], expected.loc[has_them, numbers], atol=1e-5)
        assert found[[f"present_{v}" for v, there in zip(VIEWS, shown, strict=True) if there]].all(axis=None)
    present = exams.present.numpy()
    assert table.groupby("exam", sort=False)["views"].nunique().tolist() == [2**n - 1 for n in present.sum(1)]
    if missing == "masked":  # a subset without the left breast
        right = table[table["views"] == 0b1100].filter(regex="_from_L_")
        assert len(right) and (right == 0).all(axis=None)


def test_a_run_keeps_predictions_from_every_subset_of_its_views(small_study, in_small_project):
    spec = small_study.run("resnet18", "multi", "1v3v5", 31)  # a seed that no other test trains
    runs.train_run(spec)
    table = pd.read_parquet(spec.folder / "views.parquet")
    predictions = pd.read_parquet(spec.folder / "predictions.parquet").query("part == 'test'").reset_index(drop=True)
    present = table[[f"present_{view}" for view in VIEWS]].to_numpy()
    everything = table[table["views"] == present @ (1 << np.arange(4))].sort_values(["exam", "side"], ignore_index=True)
    labelled = everything[(everything[["diagnosis", "birads"]] >= 0).any(axis=1)].reset_index(drop=True)
    pd.testing.assert_frame_equal(labelled[list(predictions)], predictions, check_exact=True)
    assert set(table["views"]) == set(VIEW_SUBSETS)
    features = load_features(spec.folder / "features.safetensors")
    _, model = runs.load_run(spec.folder)
    logits, _, _ = classify(model, features.views, features.present, 4)
    by_exam = everything.set_index(["exam", "side"])["diagnosis_logit_1"]
    for exam, (left, right) in zip(features.exams, logits["diagnosis"][:, :, 1], strict=True):
        assert by_exam.loc[exam].tolist() == pytest.approx([left, right], abs=1e-6)
    (spec.folder / "views.parquet").unlink()
    assert "views.parquet is missing" in damage(spec.folder)
    shutil.rmtree(spec.folder)


def test_features_are_read_back_and_anything_else_is_refused(tmp_path):
    exams = exam_set_of(5, size=32)
    features = encode(build_system("resnet18"), exams, SETTINGS)
    save_features(features, tmp_path / "f")
    again = load_features(tmp_path / "f")
    assert again.exams == exams.names and torch.equal(again.present, exams.present)
    assert torch.equal(again.views, features.views) and torch.equal(again.blank, features.blank)
    assert torch.equal(again.show(shown_views(ALL_VIEWS)), features.views)
    save_features(replace(features, exams=features.exams[1:]), tmp_path / "g")
    (tmp_path / "h").write_bytes(b"\x80\x04cposix\nsystem\n")  # a pickle
    for name, sentence in (("g", "g holds features of other shapes"), ("h", "h holds no features of views")):
        with pytest.raises(ValueError, match=sentence):
            load_features(tmp_path / name)


@pytest.mark.parametrize("task_mode", ["multi", "birads"])
def test_a_run_with_an_ordinal_head_is_trained_kept_and_examined(small_study, in_small_project, task_mode):
    spec = small_study.run("resnet18", task_mode, "1to5", 0, variant=["model.birads_head=corn"])
    runs.train_run(spec)
    (run,) = [run for run in read_runs(small_study) if run.id == spec.id]
    _, model = runs.load_run(spec.folder)
    assert run.finished and model.ordinal == ("birads",)
    table = run.predictions
    logits = table[[f"birads_logit_{k}" for k in range(1, 6)]].to_numpy()
    np.testing.assert_allclose(np.exp(logits).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(logits), table[[f"birads_p{k}" for k in range(1, 6)]], atol=1e-6)
    views = read_views(run)
    assert not [name for name in views if name.startswith("birads_from_")]
    complete = complete_exams(run, views)
    assert np.isnan(complete.contributions).all() == (task_mode == "birads")
    assert np.isfinite(complete.odds[1:]).all() and len(complete.exams)
    found = stored_prediction(run, views, complete.exams[0], [True] * 4)
    np.testing.assert_allclose(found.probabilities["birads"].sum(1), 1)
    exams = runs.load_data(spec).parts["test"]
    again = predict_exams(model, exams, spec.training)[exams.names.index(complete.exams[0])]
    np.testing.assert_allclose(again.probabilities["birads"], found.probabilities["birads"], atol=1e-5)
    np.testing.assert_allclose(again.contributions, found.contributions, atol=1e-4)
    assert len(gate_table([run], small_study)) == 1 and len(recombination_table([run], small_study)) == 1
    shutil.rmtree(spec.folder)
