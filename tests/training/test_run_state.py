"""One answer about a run: each missing or torn file is seen everywhere alike and repaired by the same command."""

import errno
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from mammo_utils.evaluation.runs import read_runs
from mammo_utils.io import folder_lock, read_json, write_json
from mammo_utils.training.run import load_run, train_run
from mammo_utils.training.run_state import FILES, FIRST_FILES, METRICS, run_state
from mammo_utils.workflow.status import run_table
from mammo_utils.workflow.study_state import outcomes_to_redo
from tests.evaluation.fakes import write_run


@pytest.fixture(scope="module")
def trained(small_study, small_project, tmp_path_factory):
    """One run that was really trained, with its outcome, and a copy of its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAMMO_PROJECT", str(small_project))
        spec = small_study.run("resnet18", "multi", "1v5", 5)
        train_run(spec)
        study = small_study.model_copy(update={"grid": small_study.grid.model_copy(update=GRID)})
        write_json(spec.outcome, {"outcome": "done", "reason": ""})
        copy = tmp_path_factory.mktemp("run") / "copy"
        shutil.copytree(spec.folder, copy)
        yield study, spec, copy
        shutil.rmtree(spec.folder)
        spec.outcome.unlink(missing_ok=True)


GRID = {"systems": ("resnet18",), "task_modes": ("multi",), "subsets": ("1v5",), "seeds": (5,)}


def delete(file):
    file.unlink()


def tear(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def alter(file):
    """Same length, one byte changed."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(("name", "damage"), [*((name, alter) for name in FILES), (FILES[0], delete), (FILES[0], tear)])
def test_a_damaged_file_is_seen_everywhere_and_repaired_by_the_same_command(trained, in_small_project, name, damage):
    study, spec, copy = trained
    damage(spec.folder / name)
    assert_answer(study, spec, "damaged", name)
    seen = []
    train_run(spec, seen.append)
    assert seen, "it was trained again"
    assert_answer(study, spec, "done", "")
    assert (spec.folder / "weights.safetensors").read_bytes() == (copy / "weights.safetensors").read_bytes()


def test_a_run_finished_before_a_file_was_introduced_is_kept(trained, in_small_project):
    study, spec, _ = trained
    metrics = read_json(spec.folder / METRICS)
    for name in set(FILES) - set(FIRST_FILES):
        (spec.folder / name).unlink()
        del metrics["files"][name]
    write_json(spec.folder / METRICS, metrics)
    assert_answer(study, spec, "done", "")
    shutil.rmtree(spec.folder)
    train_run(spec)


@pytest.mark.parametrize(("damage", "kind"), [(delete, "waiting"), (tear, "damaged")])
def test_so_are_damaged_metrics(trained, in_small_project, damage, kind):
    study, spec, _ = trained
    damage(spec.folder / METRICS)
    assert_answer(study, spec, kind, METRICS if kind == "damaged" else "")
    train_run(spec)
    assert_answer(study, spec, "done", "")


def test_a_finished_run_that_cannot_be_written_is_read(trained, in_small_project, monkeypatch):
    """The tests may run as root, whom no permission stops, so opening fails as on a read-only file system."""
    _, spec, _ = trained
    original = Path.open

    def read_only(path, mode="r", *arguments, **options):
        if set(mode) & set("wax+"):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return original(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", read_only)
    assert train_run(spec) == read_json(spec.folder / METRICS)


def assert_answer(study, spec, kind, word):
    """Training's, evaluation's, status's and the workflow's answer, and that of whoever loads the run."""
    state = run_state(spec.folder, spec)
    assert state.kind == kind and word in state.reason
    (run,) = [run for run in read_runs(study) if run.id == spec.id]
    assert run.status == state and run.finished == (kind == "done")
    (row,) = run_table(study).to_dict("records")
    assert (row["state"], row["reason"]) == (kind, state.reason)
    assert (spec.outcome in outcomes_to_redo(study)) == (kind != "done") or not spec.outcome.exists()
    if kind == "done":
        assert load_run(spec.folder)[0] == spec
    else:
        with pytest.raises(FileNotFoundError, match=word or "holds no finished run"):
            load_run(spec.folder)


def test_each_kind_has_its_reason(fake_study):
    done, failed, running, stopped, stale, _ = fake_study.runs()
    write_run(done)
    write_json(failed.outcome, {"outcome": "failed", "reason": "The loss of\nepoch 2 is nan."})
    for spec in (running, stopped):
        write_json(spec.folder / "config.json", {"hash": spec.hash})
        write_json(spec.folder / "progress.json", {"epochs": 1, "of": 10, "seconds": 1.0})
    write_run(stale, training={**stale.training.model_dump(mode="json"), "epochs": 99})
    with folder_lock(running.folder):
        states = {spec.id: run_state(spec.folder, spec) for spec in fake_study.runs()}
    kinds = ["done", "failed", "running", "stopped", "stale", "waiting"]
    assert [state.kind for state in states.values()] == kinds
    assert [state.to_train for state in states.values()] == [False, True, True, True, False, True]
    assert states[stale.id].other_settings and not states[done.id].other_settings
    assert states[failed.id].reason == "The loss of epoch 2 is nan."
    assert states[stale.id].reason == f"training.epochs was 99; the study now has {stale.training.epochs}."
    assert run_state(running.folder, running).kind == "stopped"
    other = stopped.model_copy(update={"seed": 9})
    assert run_state(stopped.folder, other).kind == "waiting", "half-done work of other settings counts for nothing"


def test_a_run_that_is_stale_by_its_code_alone_is_kept(fake_study):
    spec = fake_study.runs()[0]
    write_run(spec, code="0" * 64)
    state = run_state(spec.folder, spec)
    assert (state.kind, state.to_train, state.finished) == ("stale", False, True)
    assert state.reasons == ("The training code has changed since.",)


def test_a_finished_run_is_done_whatever_its_last_outcome(fake_study):
    """It was trained by hand after the study's command had failed."""
    spec = fake_study.runs()[0]
    write_run(spec)
    write_json(spec.outcome, {"outcome": "failed", "reason": "memory"})
    assert run_state(spec.folder, spec).kind == "done"


def test_metrics_of_another_run_are_not_believed(fake_study):
    one, other, *_ = fake_study.runs()
    write_run(one)
    write_run(other)
    shutil.copy(one.folder / METRICS, other.folder / METRICS)
    assert run_state(other.folder, other).kind == "damaged"
    predictions = pd.read_parquet(one.folder / "predictions.parquet")
    predictions.iloc[:-5].to_parquet(one.folder / "predictions.parquet")
    assert "predictions.parquet is not the file" in run_state(one.folder, one).reason


def test_weights_of_other_data_are_not_loaded(fake_study):
    spec = fake_study.runs()[0]
    write_run(spec)
    (spec.folder / "weights.safetensors").write_bytes(torch.zeros(1).numpy().tobytes())
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors is not the file"):
        load_run(spec.folder)
    assert json.loads((spec.folder / METRICS).read_text())["files"]
