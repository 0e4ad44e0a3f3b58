"""How far a study is, from its files alone."""

import math

import pytest

from mammo_utils.config import load_study
from mammo_utils.io import folder_lock, write_json
from mammo_utils.workflow import status


@pytest.fixture
def demo(fake_study, tmp_path, monkeypatch):
    """One run of each state, and an unreadable one."""
    write_json(tmp_path / "cpu.json", record_of(fake_study, "cpu", 32, 10.0))
    monkeypatch.setattr(status, "RECORDS", tmp_path)
    monkeypatch.setattr(status, "gpu_names", list)
    return fake_study


def record_of(study, device, size, rate):
    rows = [{"name": name, "exams_per_second": r} for name, r in (("float32", rate), ("+ bfloat16", 2 * rate))]
    systems = [{"system": run.system, "size": size, "rows": rows} for run in study.runs()]
    return {"environment": {"device": device, "threads": 2}, "epochs": [{"systems": systems}]}


def folders(study):
    """system -> folder of its run, begun with the study's settings."""
    for run in study.runs():
        write_json(run.folder / "config.json", {"hash": run.hash})
    return {run.system: run.folder for run in study.runs()}


def test_a_study_that_has_not_begun_takes_what_the_ledger_says(demo):
    states = status.run_states(demo)
    assert (states["state"] == "waiting").all() and len(states) == 6
    seconds, how = status.time_left(demo, states)
    # 400 exams, 60 % of them for training, 10 a second at 32 px and a quarter of that at 64 px, 10 epochs, 6 systems
    assert seconds == pytest.approx(6 * 10 * 240 / 2.5)
    assert how == "by the speed ledger (2 threads of a CPU, measured at 32 px)"
    assert status.time_left(demo, states, 4)[0] == pytest.approx(seconds / 4)
    assert status.time_left(demo, states, 100)[0] == pytest.approx(seconds / 6), "no run is trained in parts"
    assert status.report(demo)[-1] == f"time left for training: about 1.6 h, {how}"
    assert status.report(demo, 4)[-1] == f"time left for training: about 24 min, {how}, 4 runs at once"


def test_the_exams_of_a_fold_are_without_its_test_part(demo):
    split = demo.split.model_copy(update={"kind": "kfold", "folds": 4, "validation": 0.15, "test": 0.9})
    study = demo.model_copy(update={"split": split})
    assert status.time_left(study, status.run_states(study))[0] == pytest.approx(6 * 10 * 240 / 2.5)


def test_the_record_is_that_of_the_device(demo, tmp_path, monkeypatch):
    """On a GPU that has a record it counts, at bfloat16; on another GPU one of a GPU; a study on a CPU has its own."""
    write_json(tmp_path / "a.json", record_of(demo, "NVIDIA A100", 64, 100.0))
    write_json(tmp_path / "h.json", record_of(demo, "NVIDIA H100", 64, 200.0))
    auto = demo.model_copy(update={"training": demo.training.model_copy(update={"device": "auto"})})
    for gpus, study, seconds, said in (
        (["NVIDIA H100"], auto, 240 / 400, "NVIDIA H100, measured at 64 px"),
        (["NVIDIA L4"], auto, 240 / 200, "NVIDIA A100, measured at 64 px"),
        (["NVIDIA H100"], demo, 240 / 2.5, "2 threads of a CPU, measured at 32 px"),
        ([], auto, 240 / 2.5, "2 threads of a CPU, measured at 32 px"),
    ):
        monkeypatch.setattr(status, "gpu_names", lambda gpus=gpus: gpus)
        found, how = status.time_left(study, status.run_states(study))
        assert found == pytest.approx(6 * 10 * seconds) and said in how


def test_each_state_is_named_with_its_reason(demo):
    at = folders(demo)
    write_json(at["resnet18"] / "metrics.json", {"epochs": 10, "seconds": 20.0})
    write_json(at["resnet50"] / "failed.json", {"reason": "TrainingError: the loss"})
    write_json(at["vssm_shared"] / "progress.json", {"epochs": 4, "of": 10, "seconds": 3.0})
    write_json(at["hybrid_shared"] / "progress.json", {"epochs": 2, "of": 10, "seconds": 5.0})
    (at["hybrid_view_specific"] / "progress.json").write_text("{half")
    (at["vssm_view_specific"] / ".lock").touch()  # left by one that was killed
    with folder_lock(at["hybrid_shared"]):
        states = status.run_states(demo)
        lines = status.report(demo)
    assert states.set_index("system")["state"].to_dict() == {
        "resnet18": "done", "resnet50": "failed", "vssm_shared": "stopped", "vssm_view_specific": "waiting",
        "hybrid_shared": "running", "hybrid_view_specific": "waiting",
    }  # fmt: skip
    assert lines[0] == "study demo: 6 runs, 1 done, 1 running, 1 failed, 1 stopped, 2 waiting"
    assert "  running: hybrid_shared-multi-1v5-seed0, 2 of 10 epochs" in lines
    assert "  failed: resnet50-multi-1v5-seed0: TrainingError: the loss" in lines
    # 6 epochs of 3 s, 8 of 5 s; two systems of which nothing is known, by the ledger's 96 s, 3/96 of it here
    seconds, _ = status.time_left(demo, states)
    assert seconds == pytest.approx(6 * 3 + 8 * 5 + 2 * 10 * 3)
    assert status.report(demo)[0].startswith("study demo: 6 runs, 1 done, 0 running, 1 failed, 2 stopped")


def test_what_has_other_settings_counts_for_nothing(demo):
    at = folders(demo)
    write_json(at["resnet18"] / "metrics.json", {"epochs": 10, "seconds": 20.0})
    write_json(at["vssm_shared"] / "progress.json", {"epochs": 4, "of": 10, "seconds": 3.0})
    longer = demo.model_copy(update={"training": demo.training.model_copy(update={"epochs": 100})})
    assert set(status.run_states(demo)["state"]) == {"done", "stopped", "waiting"}
    states = status.run_states(longer)
    assert (states["state"] == "waiting").all() and (states["epochs"] == 0).all() and (states["of"] == 100).all()


def test_without_a_record_the_time_is_unknown_until_epochs_are_there(demo, monkeypatch, tmp_path):
    monkeypatch.setattr(status, "RECORDS", tmp_path / "nowhere")
    assert math.isnan(status.time_left(demo, status.run_states(demo))[0])
    assert status.report(demo)[-1] == "time left: unknown before the first epoch of each system"
    for folder in folders(demo).values():
        write_json(folder / "metrics.json", {"epochs": 10, "seconds": 20.0})
    assert len(status.report(demo)) == 1, "nothing is left"


def test_the_command(demo, capsys):
    status.main(["config/demo.yaml", "training.epochs=3"])
    assert "study demo: 6 runs" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        status.main(["config/nowhere.yaml"])
    assert "no study file config/nowhere.yaml" in capsys.readouterr().err


def test_the_records_of_the_project_are_read():
    """The shipped record has what the estimate needs, for all six systems."""
    found, said = status._ledger_seconds(load_study("config/demo.yaml"))
    assert len(found) == 6 and all(seconds > 0 for seconds in found.values()) and "of a CPU" in said
