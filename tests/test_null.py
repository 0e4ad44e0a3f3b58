"""The negative control: without signal in the labels, training finds none. Takes minutes: pytest -m slow."""

import shutil

import numpy as np
import pytest

from mammo_utils.study import load_study
from mammo_utils.training.run import train_run
from tests.conftest import CHECKOUT, prepare


@pytest.mark.slow
def test_null_cohorts_give_a_mean_auc_of_one_half(tmp_path, monkeypatch):
    """With ten cohorts and seeds, the standard error is about 0.06 of each test AUC and 0.02 of their mean."""
    monkeypatch.setenv("MAMMO_PROJECT", str(tmp_path))
    shutil.copytree(CHECKOUT / "config", tmp_path / "config")
    scores = []
    for seed in range(10):
        settings = [
            f"name=null{seed}",
            f"data.folder=data/null{seed}",
            f"data.synthetic={{n_exams: 200, rows: 144, columns: 120, seed: {seed}, null: true}}",
            "images={size: 32, workers: 2}",
            f"split={{kind: nested, seed: {seed}, validation: 0.15, test: 0.35}}",
            "training.epochs=5",
        ]
        study = prepare(load_study("config/demo.yaml", settings))
        metrics = train_run(study.run("hybrid_shared", "multi", "1v5", seed))
        scores.append(metrics["parts"]["test"]["diagnosis"]["auc"])
        print(f"seed {seed}: {metrics['parts']['test']['diagnosis']}", flush=True)
        shutil.rmtree(study.data_folder)
    print(f"mean {np.mean(scores):.3f}, standard deviation {np.std(scores, ddof=1):.3f}, n = {len(scores)}")
    assert abs(np.mean(scores) - 0.5) <= 0.05
