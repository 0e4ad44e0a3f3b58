"""Decisions of pooled folds: each fold's patients are judged by what was fitted on their own validation part."""

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from mammo_utils.evaluation.calibration import SCALINGS, calibration_table
from mammo_utils.evaluation.conformal import conformal_table
from mammo_utils.evaluation.failures import find_wrong
from mammo_utils.evaluation.operating import operating_table
from mammo_utils.evaluation.runs import group_by_seed, labelled_breasts, read_runs
from tests.evaluation.fakes import write_run


def test_folds_use_thresholds_and_scalings_of_their_own_validation_part(fake_study):
    """A fold whose log-odds are shifted and doubled on both parts is answered, scaled and flagged as before."""
    folds = {"split": fake_study.split.model_copy(update={"kind": "kfold", "folds": 2})}
    folds["grid"] = fake_study.grid.model_copy(update={"folds": (0, 1), "systems": ("resnet18",)})
    study = fake_study.model_copy(update=folds)
    for spec in study.runs():
        write_run(spec)
    runs = [run for run in read_runs(study) if run.in_grid]

    def run_of_fold(run, number):
        """Exams of its own, as in a split into folds, and the log-odds on another scale."""
        table = run.predictions.copy()
        for name in ("exam", "group"):
            table[name] = [f"{value}-{number}" for value in table[name]]
        return replace(run, predictions=table)

    def on_another_scale(run):
        table = run.predictions.copy()
        table["diagnosis_p"] = expit(2 * logit(table["diagnosis_p"]) + 3)
        return replace(run, predictions=table)

    alike = [run_of_fold(run, number) for number, run in enumerate(runs)]
    shifted = [alike[0], on_another_scale(alike[1])]
    found = [
        (calibration_table(fold, study), operating_table(fold), conformal_table(fold, study))
        for fold in (alike, shifted)
    ]
    for (calibration, points, conformal), fold in zip(found, (alike, shifted), strict=True):
        assert calibration["slope"].notna().all() and points["specificity"].notna().all()
        (run,) = next(iter(group_by_seed(fold).values()))
        assert points["n_positive"].iloc[0] == (labelled_breasts(run, "diagnosis")["diagnosis"] == 1).sum()
        assert conformal["n_breasts"].iloc[0] == len(labelled_breasts(run, "birads"))
    rates = ["sensitivity", "specificity", "ppv", "recall_rate"]
    pd.testing.assert_frame_equal(found[0][1][rates], found[1][1][rates])
    scaled = [calibration["scaling"] == SCALINGS[-1] for calibration, *_ in found]
    values = [c.loc[rows, ["ece", "log_loss"]] for (c, *_), rows in zip(found, scaled, strict=True)]
    pd.testing.assert_frame_equal(*values, rtol=1e-4)
    as_trained = [c.loc[c["scaling"] == SCALINGS[0], "log_loss"].item() for c, *_ in found]
    assert as_trained[1] > as_trained[0] + 0.05, "the scales differ"
    wrong = [find_wrong(next(iter(group_by_seed(fold).values()))[0])[0] for fold in (alike, shifted)]
    assert np.array_equal(*wrong)
