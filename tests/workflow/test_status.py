"""The progress of a study, from its files alone."""

import math

import pytest

from mammo_utils.io import folder_lock, write_json
from mammo_utils.workflow import status
from tests.evaluation.fakes import write_run


@pytest.fixture
def started(fake_study):
    """System -> folder of its run, one run in each state."""
    runs = {run.system: run for run in fake_study.runs()}
    write_run(runs["resnet18"])  # 10 epochs in 12 s
    write_json(runs["resnet50"].outcome, {"outcome": "failed", "reason": "TrainingError: the loss"})
    for system, epochs, seconds in (("vssm_shared", 4, 3.0), ("hybrid_shared", 2, 5.0)):
        write_json(runs[system].folder / "config.json", {"hash": runs[system].hash})
        write_json(runs[system].folder / "progress.json", {"epochs": epochs, "of": 10, "seconds": seconds})
    write_json(runs["hybrid_view_specific"].folder / "config.json", {"hash": runs["hybrid_view_specific"].hash})
    (runs["hybrid_view_specific"].folder / "progress.json").write_text("{half")
    runs["vssm_view_specific"].folder.mkdir(parents=True)
    (runs["vssm_view_specific"].folder / ".lock").touch()  # left by a killed process
    return {system: run.folder for system, run in runs.items()}


def test_each_state_is_named_with_its_reason(fake_study, started):
    with folder_lock(started["hybrid_shared"]):
        runs = status.run_table(fake_study)
        lines = status.describe_progress(fake_study)
    assert runs.set_index("system")["state"].to_dict() == {
        "resnet18": "done", "resnet50": "failed", "vssm_shared": "stopped", "vssm_view_specific": "waiting",
        "hybrid_shared": "running", "hybrid_view_specific": "stopped",
    }  # fmt: skip
    assert lines[0] == "study demo: 6 runs, 1 done, 1 running, 1 failed, 2 stopped, 1 waiting"
    assert "  running: hybrid_shared-multi-1v5-seed0, 2 of 10 epochs" in lines
    assert "  failed: resnet50-multi-1v5-seed0: TrainingError: the loss" in lines
    assert lines[-1] == "time left: unknown before the first epoch of each system"
    assert status.describe_progress(fake_study)[0].endswith("1 done, 1 failed, 3 stopped, 1 waiting")


def test_the_time_left_is_that_of_the_epochs_still_to_train(fake_study, started):
    grid = fake_study.grid.model_copy(update={"systems": ("resnet18", "resnet50", "vssm_shared", "hybrid_shared")})
    study = fake_study.model_copy(update={"grid": grid})
    runs = status.run_table(study)
    assert status.time_left(runs) == pytest.approx(6 * 3 + 8 * 5), "failed runs are not counted"
    assert status.time_left(runs, 2) == pytest.approx(8 * 5), "no run is trained in parts"
    assert status.describe_progress(study, 2)[-1] == (
        "time left for training: about 40 s, 2 runs at once, by the epochs trained so far"
    )


def test_a_line_counts_the_runs_and_names_the_time_left(fake_study, started):
    grid = fake_study.grid.model_copy(update={"systems": ("resnet18", "vssm_shared", "hybrid_shared")})
    study = fake_study.model_copy(update={"grid": grid})
    assert status.describe_runs(study) == "1 of 3 runs done, about 58 s left"
    assert status.describe_runs(fake_study) == "1 of 6 runs done", "systems without a measured epoch"


def test_results_of_other_settings_count_for_nothing(fake_study, started):
    longer = fake_study.model_copy(update={"training": fake_study.training.model_copy(update={"epochs": 100})})
    runs = status.run_table(longer)
    assert (
        set(runs["state"]) == {"stale", "failed", "waiting"}
        and (runs["epochs"] == 0).all()
        and (runs["of"] == 100).all()
    )
    assert math.isnan(status.time_left(runs))


def test_a_study_that_is_finished_has_no_time_left(fake_study):
    for run in fake_study.runs():
        write_run(run)
    assert status.describe_progress(fake_study) == ["study demo: 6 runs, 6 done"]


def test_the_command(fake_study, capsys):
    status.main(["config/demo.yaml", "training.epochs=3"])
    assert "study demo: 6 runs, 6 waiting" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        status.main(["config/nowhere.yaml"])
    assert "no study file config/nowhere.yaml" in capsys.readouterr().err
