"""How far a study is, from its files alone."""

import json
import math

import pytest

from mammo_utils.files import folder_lock, write_json
from mammo_utils.workflow import status


@pytest.fixture
def demo(fake_study, tmp_path, monkeypatch):
    """One run of each state, and an unreadable one."""
    rates = [
        {"system": run.system, "size": 32, "rows": [{"name": status.FLOAT32, "exams_per_second": 10.0}]}
        for run in fake_study.runs()
    ]
    write_json(tmp_path / "cpu.json", {"epochs": [{"systems": rates}]})
    monkeypatch.setattr(status, "RECORD", tmp_path / "cpu.json")
    return fake_study


def folders(study):
    return {run.system: run.folder for run in study.runs()}


def test_a_study_that_has_not_begun_takes_what_the_ledger_says(demo):
    states = status.run_states(demo)
    assert (states["state"] == "waiting").all() and len(states) == 6
    seconds, how = status.time_left(demo, states)
    # 400 exams, 60 % of them for training, 10 a second at 32 px and a quarter of that at 64 px, 10 epochs, 6 systems
    assert seconds == pytest.approx(6 * 10 * 240 / 2.5) and how == "by the speed ledger"
    assert status.time_left(demo, states, 4)[0] == pytest.approx(seconds / 4)
    assert status.report(demo)[-1] == "time left for training: about 1.6 h, by the speed ledger"


def test_each_state_is_named_with_its_reason(demo):
    at = folders(demo)
    write_json(at["resnet18"] / "metrics.json", {"epochs": 10, "seconds": 20.0})
    write_json(at["resnet50"] / "failed.json", {"reason": "TrainingError: the loss"})
    write_json(at["vssm_shared"] / "progress.json", {"epochs": 4, "of": 10, "seconds": 3.0})
    write_json(at["hybrid_shared"] / "progress.json", {"epochs": 2, "of": 10, "seconds": 5.0})
    at["hybrid_view_specific"].mkdir(parents=True)
    (at["hybrid_view_specific"] / "progress.json").write_text("{half")
    (at["vssm_view_specific"]).mkdir(parents=True)
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


def test_without_a_record_the_time_is_unknown_until_epochs_are_there(demo, monkeypatch, tmp_path):
    monkeypatch.setattr(status, "RECORD", tmp_path / "nowhere.json")
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


def test_the_records_of_the_project_are_read(monkeypatch):
    """The shipped record has what the estimate needs, for all six systems."""
    record = json.loads(status.RECORD.read_text())
    for system in record["epochs"][0]["systems"]:
        assert any(row["name"] == status.FLOAT32 for row in system["rows"])
    assert len(record["epochs"][0]["systems"]) == 6
