"""A notebook's process that is killed alone is a failure with its reason; one killed with its study is stopped."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mammo_utils.io import read_json
from mammo_utils.workflow.state import STARTER
from tests.workflow.test_engine import gone

GUARD = [sys.executable, "-m", "mammo_utils.workflow.run_notebook"]
CHILD = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"


@pytest.fixture
def guarded(tmp_path):
    """A guard, the command that it watches and the process that started the study, all asleep."""
    starter = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    words = [tmp_path / "04_train-a.json", "--failure", tmp_path / "runs" / "failed.json"]
    command = [*GUARD, *map(str, words), "--", sys.executable, "-c", CHILD, str(tmp_path / "child")]
    environment = {**os.environ, STARTER: str(starter.pid)}
    options = {"env": environment, "start_new_session": True, "stdout": subprocess.PIPE, "text": True}
    # where the tests run in the background of a script, Ctrl-C is ignored there and in all that they start
    guard = subprocess.Popen(command, **options, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while not (tmp_path / "child").is_file() or not (tmp_path / "child").read_text():
        time.sleep(0.05)
    child = int((tmp_path / "child").read_text())
    yield starter, guard, child
    for process in (starter, guard):
        process.kill()
        process.wait()
    guard.stdout.close()
    if not gone(child, 0):
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_killed_alone_has_failed_and_says_by_what(guarded, tmp_path, number):
    _, guard, child = guarded
    os.kill(child, number)
    assert guard.wait(20) == 0, "the other notebooks go on"
    outcome = read_json(tmp_path / "04_train-a.json")
    assert outcome == read_json(tmp_path / "runs" / "failed.json") and outcome["outcome"] == "failed"
    assert f"its process was ended by signal {number} ({number.name}" in outcome["reason"]
    assert outcome["reason"].endswith("give the same command again")
    assert guard.stdout.read().startswith("04_train-a: its process was ended by signal")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_everything_leaves_no_failure(guarded, tmp_path, number):
    _, guard, child = guarded
    os.killpg(guard.pid, number)
    assert guard.wait(20) != 0 and gone(child)
    assert not list(tmp_path.rglob("*.json"))


def test_a_command_ended_with_its_study_has_not_failed(guarded, tmp_path):
    starter, guard, child = guarded
    starter.kill()
    starter.wait()
    os.kill(child, signal.SIGKILL)
    assert guard.wait(20) != 0 and not list(tmp_path.rglob("*.json"))


def test_the_exit_status_is_the_commands_own(tmp_path):
    for status in (0, 3):
        done = subprocess.run([*GUARD, str(tmp_path / "a.json"), "--", sys.executable, "-c", f"exit({status})"])
        assert done.returncode == status and not (tmp_path / "a.json").exists()
