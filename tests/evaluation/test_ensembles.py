"""Averaged trainings: the arithmetic, and that independent errors cancel."""

import numpy as np
import pytest

from mammo_utils.evaluation.bootstrap import Sample
from mammo_utils.evaluation.ensembles import average_trainings, ensemble_table
from mammo_utils.evaluation.runs import labelled_breasts, read_runs
from mammo_utils.metrics import auc
from tests.evaluation.fakes import write_run


def test_the_probabilities_are_averaged():
    p = np.array([[[0.2, 0.8], [0.6, 0.4]], [[0.4, 0.6], [1.0, 0.0]]])
    found = average_trainings(Sample(np.array([1, 0]), p, np.array(["a", "b"])))
    np.testing.assert_allclose(found.probabilities, [[[0.3, 0.7], [0.8, 0.2]]])


def test_an_ensemble_of_noisy_trainings_is_better_than_one(fake_study):
    for seed in range(4):
        write_run(fake_study.run("resnet18", "diagnosis", "1v5", seed), strength=1.0)
    write_run(fake_study.run("resnet50", "diagnosis", "1v5", 0))
    runs = read_runs(fake_study)
    (row,) = ensemble_table(runs, fake_study).to_dict("records")
    assert (row["system"], row["trainings"]) == ("resnet18", 4), "one training is no ensemble"
    tables = [labelled_breasts(run, "diagnosis") for run in runs if run.finished and run.spec.system == "resnet18"]
    p = np.stack([table["diagnosis_p"] for table in tables])
    labels, both = tables[0]["diagnosis"].to_numpy(), lambda q: np.stack([1 - q, q], 1)
    assert row["ensemble"] == pytest.approx(auc(labels, both(p.mean(0))))
    assert row["mean_of_trainings"] == pytest.approx(np.mean([auc(labels, both(q)) for q in p]))
    assert row["gain_low"] > 0 and row["low"] < row["ensemble"] < row["high"]
    assert ensemble_table([], fake_study).empty
