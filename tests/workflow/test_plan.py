"""The Snakefile's own rules: what only reads changes nothing, and a mistake in the command is one sentence."""

import fcntl
import os
import subprocess
import sys

import pytest

from benchmarks import load_records
from mammo_utils.config import Grid, ParameterError
from mammo_utils.io import STARTER, write_json
from mammo_utils.study import load_study
from mammo_utils.vocabulary import SYSTEMS
from mammo_utils.workflow.plan import Plan, _refuse_to_replace
from mammo_utils.workflow.study_state import damaged_outcomes, failures, outcomes_to_redo
from tests.conftest import CHECKOUT
from tests.evaluation.fakes import write_run
from tests.test_study import SETTINGS, project, start


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """A project with a study of which two steps have failed and one outcome is torn; another command runs it."""
    folder = project(tmp_path_factory.mktemp("failed"))
    outcomes = folder / "results" / "tiny" / "outcomes"
    write_json(outcomes / "03_models.json", {"outcome": "failed", "reason": "memory"})
    write_json(outcomes / "05_results.json", {"outcome": "failed", "reason": "memory"})
    (outcomes / "06_attention.json").write_text("{half")
    return folder


def snakemake(folder, *words, settings=SETTINGS):
    before = len((folder / "log.txt").read_text()) if (folder / "log.txt").is_file() else 0
    status = start(folder, *words, settings=settings).wait(timeout=120)
    return status, (folder / "log.txt").read_text()[before:]


@pytest.mark.parametrize(
    "words",
    [
        ("-n",),
        ("--report", "report.html"),
        ("--lint",),
        ("--list-changes", "code"),
        ("--unlock",),
        ("--cleanup-metadata", "x"),
        ("--summary",),
    ],
    ids=lambda words: words[0],
)
def test_a_command_that_only_reads_changes_nothing_and_needs_no_lock(failed, words):
    results = failed / "results" / "tiny"
    with (results / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        files = {file: file.read_bytes() for file in results.rglob("*") if file.is_file()}
        _, log = snakemake(failed, *words)
    assert {file: file.read_bytes() for file in results.rglob("*") if file.is_file()} == files
    assert "study tiny: 2 runs, 2 waiting" in log and "already running" not in log
    assert "06_attention.json is damaged; its step runs again." in log and "in file " not in log


def test_a_failed_or_damaged_step_runs_again(failed):
    """It is forced, not deleted: the dry run names it."""
    _, log = snakemake(failed, "-n")
    forced = log.split("forced:")[1].splitlines()[1]
    assert forced.split(", ") == ["        attention", "models", "results"]


def test_a_second_command_stops_before_its_first_step(failed):
    with (failed / "results" / "tiny" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, log = snakemake(failed)
    assert status == 1 and "The study tiny is already running" in log and "started" not in log
    assert (failed / "results" / "tiny" / "outcomes" / "03_models.json").is_file()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("stduy=config/paper.yaml",), "--config has no name 'stduy'; did you mean 'study'? Accepted are study and"),
        (("setting=[]",), "--config has no name 'setting'; did you mean 'settings'?"),
        (("epochs=3",), "--config has no name 'epochs'; accepted are study and settings."),
        (
            ("study=config/demo.yaml", "-j4"),
            "-j 4 would be ignored, because the default profile sets `cores",
        ),
    ],
)
def test_a_mistake_in_the_command_is_one_sentence(tmp_path, words, sentence):
    command = [sys.executable, "-m", "snakemake", "-n", "--config", *words]
    environment = {k: v for k, v in os.environ.items() if k != STARTER} | {"MAMMO_PROJECT": str(tmp_path)}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr


def test_the_longest_training_starts_first(fake_study):
    plan = object.__new__(Plan)
    plan.runs = {run.id: run for run in fake_study.model_copy(update={"grid": Grid(subsets=["1v5", "1to5"])}).runs()}
    steps = [{"system": name, "step_ms": 2000 if name == "resnet50" else 500} for name in SYSTEMS]
    order = sorted(plan.runs, key=lambda run: plan.run_priority(run, steps), reverse=True)
    assert order[0].startswith("resnet50-") and "1to5" in order[0] and "1v5" in order[-1]
    assert all(1 <= plan.run_priority(run, steps) < 2 for run in order)
    assert {row["system"] for row in load_records()["cpu"]["steps"]} == set(SYSTEMS), "the record has each system"


def test_a_damaged_outcome_counts_as_none_and_is_named(fake_study):
    folder = fake_study.folder / "outcomes"
    write_json(folder / "02_preprocessing.json", {"outcome": "done", "reason": ""})
    for name, content in (("03_models", "{half"), ("05_results", ""), ("06_attention", "[]"), ("01_data", "{}")):
        (folder / f"{name}.json").write_text(content)
    assert failures(fake_study) == {}
    assert {file.stem for file in outcomes_to_redo(fake_study)} == {
        "01_data", "03_models", "05_results", "06_attention",
    }  # fmt: skip
    assert all("is damaged; its step runs again." in line for line in damaged_outcomes(fake_study))
    assert len(damaged_outcomes(fake_study)) == 4


def test_finished_runs_of_an_edited_study_file_are_not_replaced(fake_study):
    write_run(fake_study.runs()[2])
    _refuse_to_replace(fake_study)
    file = fake_study.folder.parents[1] / "config" / "demo.yaml"
    file.write_text(file.read_text().replace("epochs: 10", "epochs: 20"))
    with pytest.raises(
        ParameterError,
        match=r"finished run with other settings. training.epochs was 10; .* or delete that folder",
    ):
        _refuse_to_replace(load_study("config/demo.yaml"))


def test_changed_settings_need_another_name(fake_study):
    with pytest.raises(ParameterError, match=r"change training.epochs of the study demo; add \"name=mine\""):
        _refuse_to_replace(load_study("config/demo.yaml", ["training.epochs=3"]))
    _refuse_to_replace(load_study("config/demo.yaml", ["training.epochs=3", "name=mine"]))
    _refuse_to_replace(load_study("config/demo.yaml", ["grid.seeds=[0, 1]", "evaluation.resamples=9"]))
