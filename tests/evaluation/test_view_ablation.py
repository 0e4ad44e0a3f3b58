"""Predictions from some of the views, where it is known which view holds the answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mammo_utils.config import Evaluation, Training
from mammo_utils.evaluation.gate import gate_table
from mammo_utils.evaluation.runs import sample
from mammo_utils.evaluation.view_ablation import absent_weight, predict_exams, stored_prediction, subset_table
from mammo_utils.metrics import auc
from mammo_utils.models.system import build_system
from mammo_utils.study import Study
from mammo_utils.training.views import encode, subset_predictions
from tests.evaluation.exams import exam_set_of
from tests.evaluation.gates import exams_with_lesions, hand_made_system, predictions_of

STUDY = Study(name="x", evaluation=Evaluation(resamples=50))
POSITIVE = np.random.default_rng(0).integers(0, 2, (60, 2))


@pytest.fixture
def run(tmp_path):
    """A per-breast system on exams with four views, ten of which have lost the right breast."""
    exams, features, _ = exams_with_lesions(POSITIVE)
    present = features.present.clone()
    present[:10, 2:] = False
    rows = torch.where(present, exams.rows, -1)
    labels = {task: of.clone() for task, of in exams.labels.items()}
    labels["diagnosis"][:10, 1] = -1
    exams = replace(exams, rows=rows, labels=labels)
    features = replace(
        features, present=present, views=torch.where(present[:, :, None], features.views, features.blank)
    )
    run, views = predictions_of(hand_made_system("per_breast", "own views"), exams, features, "per_breast")
    run.spec.folder = tmp_path
    views.to_parquet(tmp_path / "views.parquet", index=False)
    return run, views


def test_the_auc_of_each_subset_is_that_of_the_breasts_it_shows(run):
    run, _ = run
    table = subset_table([run], STUDY)
    diagnosis = table[table["task"] == "diagnosis"].set_index("views")
    assert len(diagnosis) == 15 and (diagnosis["n_exams"] == 50).all()
    assert diagnosis["n_all"].to_dict() == {k: 60 if k < 4 else 50 for k in range(1, 16)}
    assert diagnosis.loc[15, "auc"] == 1 and (diagnosis.loc[15, ["change", "change_low", "change_high"]] == 0).all()
    complete = replace(run, predictions=run.predictions[run.predictions["present_R_CC"]])
    full = sample([complete], "diagnosis")
    assert diagnosis.loc[15, "auc"] == pytest.approx(auc(full.labels, full.probabilities[0]), abs=1e-12)
    left = POSITIVE[10:]  # from the left views, right breasts all score the same
    scores = np.stack([left[:, 0] * 2 - 1.0, np.full(50, -1.0)], axis=1).ravel()
    assert diagnosis.loc[3, "auc"] == pytest.approx(auc(left.ravel(), np.stack([-scores, scores], 1) / 4 + 0.5))
    assert diagnosis.loc[3, "change_high"] < 0 and diagnosis.loc[3, "shown"] == "L-CC + L-MLO"
    assert diagnosis.index[diagnosis["trained"]].tolist() == [3, 15]
    run.spec.training = Training(view_dropout=0.1)
    assert subset_table([run], STUDY)["trained"].all()


def test_runs_of_an_earlier_version_are_left_out(run):
    run, _ = run
    (run.spec.folder / "views.parquet").unlink()
    assert not len(subset_table([run], STUDY)) and not len(gate_table([run], STUDY))


def test_the_gate_table_has_a_row_for_each_run(run):
    row = gate_table([run[0]], STUDY).iloc[0]
    assert row["fusion"] == "per_breast" and row["n_exams"] == 50 and row["chance"] == 0.5
    assert row["negative_other"] == row["positive_other"] == 0 and row["positive_own"] > 10
    assert "left_weight_auc" not in row, "each breast has the same weight in all"


def test_an_exam_is_predicted_from_the_chosen_views(run):
    run, views = run
    exam = 10 + int(np.flatnonzero(POSITIVE[10:, 0])[0])
    full = stored_prediction(run, views, f"e{exam}", (True,) * 4)
    right = stored_prediction(run, views, f"e{exam}", (False, False, True, True))
    assert full.probabilities["diagnosis"][0, 1] > 0.99 and right.probabilities["diagnosis"][0, 1] < 0.5
    np.testing.assert_array_equal(full.probabilities["diagnosis"][1], right.probabilities["diagnosis"][1])
    assert full.contributions[0, :2].max() > 10 and (full.contributions[0, 2:] == 0).all()
    assert full.weights.tolist() == [0.5] * 4
    nothing = stored_prediction(run, views, "e0", (False, False, True, True))  # which the exam lacks
    assert np.isnan(nothing.probabilities["diagnosis"]).all() and np.isnan(nothing.weights).all()


def test_absent_views_have_weight_only_where_they_count(run):
    run, _ = run
    assert absent_weight(run) == {"n_exams": 10, "absent": 0.5, "present": 0.5}
    complete = replace(run, predictions=run.predictions[run.predictions["present_R_CC"]])
    assert absent_weight(complete)["n_exams"] == 0 and np.isnan(absent_weight(complete)["absent"])


def test_exams_of_no_run_are_predicted_as_those_of_a_run():
    torch.manual_seed(0)
    model, exams, settings = (
        build_system("resnet18"),
        exam_set_of(5, size=32, missing=0),
        Training(device="cpu", batch_size=2),
    )
    found = predict_exams(model, exams, settings)
    table = subset_predictions(model, exams, "test", encode(model, exams, settings), settings)
    rows = table[(table["exam"] == exams.names[3]) & (table["views"] == table["views"].max())].sort_values("side")
    assert found[3].probabilities["diagnosis"][:, 1] == pytest.approx(rows["diagnosis_p"], abs=1e-6)
    assert found[3].weights == pytest.approx(rows.iloc[0].filter(like="weight_").to_numpy(float), abs=1e-6)
    from_l_cc = rows["diagnosis_from_L_CC_1"] - rows["diagnosis_from_L_CC_0"]
    assert found[3].contributions[:, 0] == pytest.approx(from_l_cc, abs=1e-6)
