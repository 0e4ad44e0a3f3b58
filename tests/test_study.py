"""The whole study by its one command, at tiny size: every notebook, and kills at any moment.

What takes minutes is marked as slow; `.ci/run` runs it too.
"""

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from mammo_utils.io import STARTER, read_json
from mammo_utils.parameters import NOTEBOOKS
from tests.conftest import CHECKOUT
from tests.links import wrong_links
from tests.workflow.processes import gone, processes_of

SETTINGS = (
    "name=tiny",
    "data.folder=data/tiny",
    "data.synthetic={n_exams: 36, rows: 96, columns: 80, seed: 1}",
    "images.size=32",
    "split={kind: nested, seed: 0, validation: 0.25, test: 0.25}",
    "training.epochs=3",
    "grid.systems=[resnet18, hybrid_shared]",
    "grid.more_seeds={}",
    "grid.more_runs=[]",
    "evaluation.resamples=40",
    "real_exams=false",  # the demo shows them
)
RUNS = ("resnet18-multi-1v5-seed0", "hybrid_shared-multi-1v5-seed0")
LAST = ("08_predict", "09_reading_room")


def project(folder):
    """A project folder of its own, with all that a study reads."""
    for name in ("config", "notebooks", "profiles"):
        shutil.copytree(CHECKOUT / name, folder / name)
    for name in ("Snakefile", "pyproject.toml"):
        shutil.copy(CHECKOUT / name, folder / name)
    return folder


def foreign_kernel(folder):
    """A folder with a kernel of the name python3 that is no Python."""
    spec = folder / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True, exist_ok=True)
    spec.write_text(json.dumps({"argv": ["false"], "display_name": "another", "language": "python"}))
    return folder / "jupyter"


def start(folder, *words, settings=SETTINGS):
    environment = {k: v for k, v in os.environ.items() if k != STARTER}
    environment |= {"MAMMO_PROJECT": str(folder), "OMP_NUM_THREADS": "1"}
    environment["JUPYTER_PATH"] = str(foreign_kernel(folder))  # the study's kernels are of this interpreter even so
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--cores",
        "2",
        *words,
        "--config",
        f"settings={json.dumps(settings)}",
    ]
    log = (folder / "log.txt").open("a")
    with log:
        # where the tests run in the background of a script, Ctrl-C is ignored there and in all that they start
        options = {"start_new_session": True, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, **options)


def finish(folder, words=(), **more):
    process = start(folder, *words, **more)
    assert process.wait(timeout=600) == 0, (folder / "log.txt").read_text()[-6000:]
    return (folder / "log.txt").read_text()


def made(folder):
    """When each outcome was written: what was done again since is told by this, not by the log, which several write."""
    return {file.stem: file.stat().st_mtime_ns for file in (folder / "results" / "tiny" / "outcomes").glob("*.json")}


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    folder = project(tmp_path_factory.mktemp("undisturbed"))
    return folder, finish(folder)


def test_every_notebook_runs_and_the_command_names_the_page_to_open(undisturbed):
    folder, log = undisturbed
    results = folder / "results" / "tiny"
    outcomes = {file.stem: read_json(file)["outcome"] for file in (results / "outcomes").glob("*.json")}
    named = {name for name in NOTEBOOKS if name != "04_train"} | {f"04_train-{run}" for run in RUNS}
    steps = {"cohort", "compile_scan"}  # no notebooks
    assert outcomes == dict.fromkeys(named | steps, "done")
    page = results / "html" / "index.html"
    assert str(page) in log.rstrip().split("Open this page first: ")[-1]
    text = page.read_text()
    assert "Synthetic cohort" in text and all(run in text for run in RUNS)
    for name in named:
        assert f'href="{name}.html"' in text
        assert "image/png" in (results / "notebooks" / f"{name}.ipynb").read_text(), "its pictures are in the copy"
    figures = read_json(results / "figures" / "manifest.json")
    assert (results / "cohort" / "cohort.json").is_file() and 'id="flow-final"' in text
    assert len(figures) > 8 and all(f'id="{Path(entry["figure"]).stem}"' in text for entry in figures)
    assert wrong_links(results / "html") == [], "the folder is complete and needs no network"


def test_a_dry_run_tells_while_the_study_runs_and_holds_nothing(undisturbed):
    folder, _ = undisturbed
    with (folder / "results" / "tiny" / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        log = finish(folder, words=("-n",))
    assert "study tiny: 2 runs, 2 done" in log and "running already" not in log


def test_the_same_command_again_does_nothing_again(undisturbed):
    folder, _ = undisturbed
    files = {f: f.stat().st_mtime_ns for f in (folder / "results" / "tiny").rglob("*") if f.is_file()}
    start_of_log = len((folder / "log.txt").read_text())
    log = finish(folder)[start_of_log:]
    assert "started" not in log and "Open this page first" in log
    changed = [f.name for f, t in files.items() if f.stat().st_mtime_ns != t and f.name != ".lock"]
    assert not changed


@pytest.mark.slow
def test_a_notebook_that_is_run_by_hand_and_finds_the_same_makes_no_work(undisturbed):
    """As with "Run All Cells" in JupyterLab: looking at the data is no reason to train again."""
    folder, _ = undisturbed
    environment = {**os.environ, "MAMMO_PROJECT": str(folder)}
    for name in ("01_data_exploration", "02_preprocessing"):
        command = [sys.executable, "-m", "papermill", "--engine", "study", f"notebooks/{name}.ipynb", "out.ipynb"]
        command += ["-y", json.dumps({"settings": SETTINGS})]
        assert subprocess.run(command, cwd=folder, env=environment, timeout=300).returncode == 0
    before = len((folder / "log.txt").read_text())
    log = finish(folder, words=("-n",))[before:]
    assert "2 done" in log and "input files updated" not in log and "output files have to be generated" not in log


def test_the_log_has_no_noise_and_counts_the_runs(undisturbed):
    _, log = undisturbed
    assert not [line for line in log.splitlines() if line.startswith(("Select jobs", "Execute ", "Assuming unrestr"))]
    assert re.search(r"04_train-\S+: started \(0 of 2 runs done\)", log)
    assert re.search(r"04_train-\S+: done in .* \(2 of 2 runs done\)", log)
    assert log.index("02_preprocessing: started") < log.index("03_models: done"), "the data do not wait for 03"


def test_a_stopped_study_reads_well(tmp_path):
    """Ctrl-C: each step names itself in a line, and no traceback follows."""
    folder = project(tmp_path / "stopped")
    process = start(folder, "--until", "models")
    while "03_models: started" not in (folder / "log.txt").read_text():
        time.sleep(0.2)
    time.sleep(5)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 1
    log = (folder / "log.txt").read_text()
    assert "03_models: stopped" in log and "The study was stopped. Run the same command again to continue." in log
    assert "Traceback" not in log and "CalledProcessError" not in log and "WorkflowError" not in log


@pytest.mark.slow
def test_a_study_killed_at_any_moment_ends_as_an_undisturbed_one(undisturbed, tmp_path):
    """Three kills in all, each at a seeded random moment of what was left: of the command alone, and once a SIGTERM
    to all that it has started. None is a failure."""
    reference, _ = undisturbed
    folder = project(tmp_path / "killed")
    for name in ("outcomes/compile_scan.json", "outcomes/03_models.json", "notebooks/03_models.ipynb"):  # long
        (folder / "results" / "tiny" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(reference / "results" / "tiny" / name, folder / "results" / "tiny" / name)
    moment = random.Random(7)
    for longest, number, send in (
        (25, signal.SIGKILL, os.kill),
        (30, signal.SIGTERM, os.killpg),
        (30, signal.SIGKILL, os.kill),
    ):
        process = start(folder)
        time.sleep(moment.uniform(4, longest))
        send(process.pid, number)
        process.wait()
        assert all(gone(pid, 60) for pid in processes_of(folder)), "the killed study leaves a process behind"
        outcomes = [read_json(file)["outcome"] for file in (folder / "results" / "tiny" / "outcomes").glob("*.json")]
        assert set(outcomes) <= {"done"}
    log = finish(folder)
    for run in RUNS:
        one, other = (f / "results" / "tiny" / "runs" / run for f in (reference, folder))
        for name in ("metrics.json",):
            a, b = read_json(one / name), read_json(other / name)
            assert {**a, "seconds": 0, "files": 0} == {**b, "seconds": 0, "files": 0}  # some files hold dates
        assert (one / "weights.safetensors").read_bytes() == (other / "weights.safetensors").read_bytes()
        tables = [pd.read_parquet(f / "predictions.parquet") for f in (one, other)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
        epochs = log.count(f"{run}  epoch ")
        assert epochs <= 3 + 3, "each kill costs at most one epoch of a run"


def test_a_wrong_setting_stops_the_command_with_a_sentence(tmp_path):
    folder = project(tmp_path / "wrong")
    assert start(folder, settings=["training.epoch=3"]).wait(timeout=120) == 1
    log = (folder / "log.txt").read_text()
    assert "there is no parameter 'training.epoch'" in log and "Traceback" not in log


def test_a_missing_data_folder_stops_the_command_with_a_sentence(tmp_path):
    folder = project(tmp_path / "missing")
    settings = ["name=tiny", "data.source=cmmd", "data.folder=data/nowhere"]
    assert start(folder, settings=settings).wait(timeout=120) == 1
    log = (folder / "log.txt").read_text()
    assert "The data folder data/nowhere is missing or empty" in log and "Traceback" not in log
    assert "started" not in log and not list((folder / "results" / "tiny").glob("outcomes/*"))
    assert start(folder, "-n", settings=settings).wait(timeout=120) == 0, "what would run is told without data too"


@pytest.mark.slow
def test_a_failed_run_is_named_and_the_rest_is_made(undisturbed, tmp_path):
    """One run cannot be trained; the others, the report and its index are there, and the command says so."""
    reference, _ = undisturbed
    folder = tmp_path / "failed"
    shutil.copytree(reference, folder)
    for run in RUNS:
        shutil.rmtree(folder / "results" / "tiny" / "runs" / run)
    (folder / "log.txt").unlink()
    broken = [setting.replace("resnet18", "resnet50") for setting in SETTINGS]
    broken.append("training.learning_rate={resnet50: 1.0e+30}")
    assert start(folder, settings=broken).wait(timeout=600) == 1
    results, log = folder / "results" / "tiny", (folder / "log.txt").read_text()
    outcome = read_json(results / "outcomes" / "04_train-resnet50-multi-1v5-seed0.json")
    assert outcome["outcome"] == "failed" and "The loss of epoch" in outcome["reason"]
    assert read_json(results / "outcomes" / "04_train-hybrid_shared-multi-1v5-seed0.json")["outcome"] == "done"
    assert read_json(results / "outcomes" / "05_results.json")["outcome"] == "done"
    text = (results / "html" / "index.html").read_text()
    assert "1 failed" in text and "The loss of epoch" in text
    assert "failed: 04_train-resnet50-multi-1v5-seed0: TrainingError" in log
    assert log.rstrip().endswith("index.html"), "the page to open is the last word"
    # the same command tries it again: now all of its job is killed, as by a scheduler's time limit
    before = len((folder / "log.txt").read_text())
    earlier = made(folder)
    process = start(folder, settings=broken)
    kill_run(folder, "resnet50", ["supervise", "run_notebook"], before)
    assert process.wait(timeout=600) == 1
    again, reason = (folder / "log.txt").read_text()[before:], "its job was killed"
    redone = {name for name, time in made(folder).items() if time != earlier.get(name)}
    assert redone == {"04_train-resnet50-multi-1v5-seed0", "05_results", "06_attention", "07_decisions", *LAST}
    assert reason in read_json(results / "outcomes" / "04_train-resnet50-multi-1v5-seed0.json")["reason"]
    text = (results / "html" / "index.html").read_text()
    assert "1 failed" in text and reason in text
    assert "failed: 04_train-resnet50-multi-1v5-seed0: its job was killed" in again
    told, outcomes = len((folder / "log.txt").read_text()), sorted((results / "outcomes").iterdir())
    assert start(folder, "-n", settings=broken).wait(timeout=120) == 0
    said = (folder / "log.txt").read_text()[told:]
    assert "forced:\n        train" in said and "1 failed" in said
    assert sorted((results / "outcomes").iterdir()) == outcomes, "a dry run forgets nothing"


def kill_run(folder, name, modules, before):
    """SIGKILL the processes of a run's modules of the workflow, the first ones first, when its notebook has started."""
    found = []
    while len(found) < len(modules) or f"04_train-{name}" not in (folder / "log.txt").read_text()[before:]:
        time.sleep(0.2)
        lines = subprocess.run(["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True).stdout.splitlines()
        lines = [line.split(None, 4) for line in lines if str(folder) in line and f"copy 04_train-{name}" in line]
        found = [int(words[0]) for module in modules for words in lines if words[3].endswith(f".{module}")]
    for process in found:
        os.kill(process, signal.SIGKILL)


@pytest.mark.slow
def test_a_change_redoes_what_it_concerns_and_nothing_else(undisturbed, tmp_path):
    """A deleted run is trained again; a setting of the evaluation concerns 05 to 09 alone."""
    reference, _ = undisturbed
    folder = tmp_path / "changed"
    shutil.copytree(reference, folder)
    shutil.rmtree(folder / "results" / "tiny" / "runs" / RUNS[0])
    before = made(folder)
    log = finish(folder)
    redone = {f"04_train-{RUNS[0]}", "05_results", "06_attention", "07_decisions", *LAST}
    assert {name for name, time in made(folder).items() if time != before[name]} == redone, log[-6000:]
    log = finish(folder, words=("-n",), settings=[*SETTINGS, "evaluation.seed=1"])[len(log) :]
    changed = (
        "params have changed since last execution:\n        attention, decisions, predict, reading_room, results\n"
    )
    assert changed in log and "2 runs, 2 done" in log, log
