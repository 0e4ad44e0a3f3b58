"""Parameters are checked before a kernel starts, and no kernel outlives what it was started for."""

import os
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from mammo_utils.io import STARTER, read_json, write_json
from mammo_utils.workflow import engine
from mammo_utils.workflow.run_notebook import PrefixedStream, execute
from mammo_utils.workflow.study_state import (
    StudyRunning,
    drop_figures,
    failures,
    is_alive,
    lock_study,
    outcomes_to_redo,
)
from tests.evaluation.fakes import write_run
from tests.workflow.processes import gone


def papermill_command(*words, **environment):
    command = [sys.executable, "-m", "papermill", "--engine", "study", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | environment)


def test_papermill_with_the_studys_engine_refuses_before_a_kernel_starts(tmp_path):
    from tests.conftest import CHECKOUT

    notebook, copy = str(CHECKOUT / "notebooks" / "04_train.ipynb"), str(tmp_path / "out.ipynb")
    for words, sentence in (
        (["-p", "sytem", "resnet18"], "04_train: there is no parameter 'sytem'"),
        (["-p", "system", "resnet"], "04_train: the parameter 'system' is 'resnet'"),
        (["-p", "seed", "first"], "04_train: the parameter 'seed' is 'first'"),
    ):
        done = papermill_command(notebook, copy, *words)
        assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr
        cells = nbformat.read(copy, as_version=4).cells
        assert all(cell.get("execution_count") is None for cell in cells), "no cell ran"


@pytest.fixture
def sleeper(tmp_path):
    """A notebook that names its kernel's process and then stays inside compiled code that lets no thread in."""
    cell = f"import os, pathlib, time\npathlib.Path({str(tmp_path / 'kernel')!r}).write_text(str(os.getpid()))"
    notebook = new_notebook(cells=[new_code_cell(cell), new_code_cell("while True: sum(range(10**7))")])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "sleeper.ipynb")
    return tmp_path


def kernel_of(folder, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (folder / "kernel").exists() and (folder / "kernel").read_text():
            return int((folder / "kernel").read_text())
        time.sleep(0.1)
    raise TimeoutError("the kernel did not start")


@pytest.mark.parametrize("victim", ["starter", "papermill"])
def test_a_kernel_ends_when_its_starter_or_papermill_is_killed(sleeper, victim):
    starter = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(200)"])
    words = ["--engine", "study", str(sleeper / "sleeper.ipynb"), str(sleeper / "out.ipynb")]
    environment = {**os.environ, STARTER: str(starter.pid)}
    runner = subprocess.Popen([sys.executable, "-m", "papermill", *words], env=environment, stderr=subprocess.DEVNULL)
    try:
        kernel = kernel_of(sleeper)
        (starter if victim == "starter" else runner).send_signal(signal.SIGKILL)
        starter.wait() if victim == "starter" else runner.wait()
        assert gone(kernel)
        if victim == "starter":
            assert runner.wait(timeout=20) != 0
    finally:
        for process in (starter, runner):
            process.kill()
            process.wait()


def test_a_kernel_ends_when_nobody_waits_for_the_killed_starter(sleeper):
    """A killed process that its own parent does not ask about keeps its number, as in a container without an init."""
    words = ["--engine", "study", str(sleeper / "sleeper.ipynb"), str(sleeper / "out.ipynb")]
    code = "import os, subprocess, sys; os.environ[sys.argv[1]] = str(os.getpid()); subprocess.run(sys.argv[2:])"
    command = [sys.executable, "-c", code, STARTER, sys.executable, "-m", "papermill", *words]
    starter = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        kernel = kernel_of(sleeper)
        starter.send_signal(signal.SIGKILL)
        assert gone(kernel) and is_alive(starter.pid), "the number is still taken"
    finally:
        starter.kill()
        starter.wait()


def test_a_failed_notebook_is_an_outcome_with_its_reason(tmp_path, monkeypatch):

    root = tmp_path / "project"
    (root / "notebooks").mkdir(parents=True)
    notebook = new_notebook(cells=[new_code_cell("raise ValueError('the reason')")])
    nbformat.write(notebook, root / "notebooks" / "broken.ipynb")
    monkeypatch.setenv("MAMMO_PROJECT", str(root))
    monkeypatch.setattr("mammo_utils.workflow.engine.NOTEBOOKS", {})
    outcome = execute("broken", tmp_path / "results", {})
    assert outcome["outcome"] == "failed" and outcome["reason"] == "ValueError: the reason"
    assert (tmp_path / "results" / "notebooks" / "broken.ipynb").is_file()
    assert not list((tmp_path / "results" / "notebooks").glob(".*")), "no half-written copy is left"


def test_one_command_at_a_time_and_a_dead_one_leaves_no_lock(small_study, in_small_project, monkeypatch):
    monkeypatch.delenv(STARTER, raising=False)
    code = "import sys, time; from mammo_utils.study import Study\n"
    code += "from mammo_utils.workflow.study_state import lock_study\n"
    code += f"c = lock_study(Study(name={small_study.name!r})); print('held', flush=True); time.sleep(100)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StudyRunning, match=f"already running .process {holder.pid}"):
            lock_study(small_study)
        holder.kill()
        holder.wait()
        claimed = lock_study(small_study)
        assert claimed and int(os.environ[STARTER]) == os.getpid()
        claimed.close()
    finally:
        holder.kill()
        holder.stdout.close()
        monkeypatch.delenv(STARTER, raising=False)


def test_failed_steps_and_runs_without_valid_results_run_again(small_study, in_small_project):
    """Failures, and runs whose files were deleted; not finished runs of other settings, which are never replaced."""
    study = small_study.model_copy(update={"name": "redone"})  # no other test has trained its runs
    folder, (kept, deleted, other, *_) = study.folder / "outcomes", study.runs()
    done = ("cohort", "05_results", *(f"04_train-{run.id}" for run in (kept, deleted, other)))
    for name in done:
        write_json(folder / f"{name}.json", {"outcome": "done", "reason": ""})
    write_json(folder / "03_models.json", {"outcome": "failed", "reason": "x"})
    write_run(kept)
    write_run(other, training={**other.training.model_dump(mode="json"), "epochs": 99}, hash="of other settings")
    try:
        assert failures(study) == {"03_models": "x"}
        for file in outcomes_to_redo(study):
            file.unlink()
        assert {file.stem for file in folder.iterdir()} == {
            "cohort",
            "05_results",
            *(f"04_train-{run.id}" for run in (kept, other)),
        }
    finally:
        shutil.rmtree(study.folder)


def test_a_notebook_starts_without_its_old_figures(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    entries = [{"notebook": "05_results", "figure": "a.png"}, {"notebook": "06_attention", "figure": "b.png"}]
    write_json(tmp_path / "manifest.json", entries)
    drop_figures(tmp_path, "05_results")
    assert read_json(tmp_path / "manifest.json") == entries[1:]
    assert not (tmp_path / "a.png").exists() and (tmp_path / "b.png").exists()


def test_a_notebook_speaks_in_whole_lines_behind_its_number(capsys):
    voice = PrefixedStream("05")
    for text in ("one ", "line\n\nan", "other"):
        voice.write(text)
    assert capsys.readouterr().out == "05  one line\n"
    voice.close()
    assert capsys.readouterr().out == "05  another\n"


def test_alive():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert is_alive(os.getpid()) and not is_alive(process.pid)


def test_plain_papermill_finds_an_unknown_parameter_in_the_second_cell(tmp_path):
    from tests.conftest import CHECKOUT

    with pytest.raises(papermill.PapermillExecutionError, match="there is no parameter 'sytem'"):
        papermill.execute_notebook(
            CHECKOUT / "notebooks" / "04_train.ipynb",
            tmp_path / "out.ipynb",
            {"sytem": "resnet18"},
            progress_bar=False,
            cwd=CHECKOUT,
        )


def test_a_long_folder_for_temporary_files_is_no_obstacle(tmp_path):
    """A socket's path may have 107 bytes, fewer than the path of many a cluster's scratch folder."""
    notebook = new_notebook(cells=[new_code_cell("print('it ran')")])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "a.ipynb")
    scratch = tmp_path / ("scratch" * 20)
    scratch.mkdir()
    for folder in (scratch, tmp_path):
        done = papermill_command(str(tmp_path / "a.ipynb"), str(tmp_path / "out.ipynb"), TMPDIR=str(folder))
        assert done.returncode == 0, done.stderr[-2000:]
        assert "it ran" in (tmp_path / "out.ipynb").read_text()
        assert not [path for path in folder.iterdir() if path.name.startswith("kernel-")]


def test_no_folder_that_is_short_enough_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(engine.tempfile, "gettempdir", lambda: str(tmp_path / ("scratch" * 20)))
    monkeypatch.setattr(engine.os, "access", lambda *_: False)
    with pytest.raises(SystemExit, match="too long for the sockets of a notebook"):
        engine.socket_parent()


def test_reading_a_notebook_compiles_no_grammar():
    """It would cost each of a study's processes two seconds."""
    check = "import mammo_utils.workflow.run_notebook, sys; assert 'lark' not in sys.modules, 'a grammar is compiled'"
    subprocess.run([sys.executable, "-c", check], check=True)
