"""A notebook's process that is killed alone is a failure with its reason; one killed with its study is stopped."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mammo_utils.io import STARTER, read_json
from tests.workflow.processes import gone

SUPERVISE = [sys.executable, "-m", "mammo_utils.workflow.supervise"]
CHILD = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"


@pytest.fixture
def supervised(tmp_path):
    """A supervisor, the command that it watches and the process that started the study, all asleep."""
    starter = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    command = [
        *SUPERVISE,
        str(tmp_path / "04_train-a.json"),
        "--",
        sys.executable,
        "-c",
        CHILD,
        str(tmp_path / "child"),
    ]
    environment = {**os.environ, STARTER: str(starter.pid)}
    options = {"env": environment, "start_new_session": True, "stdout": subprocess.PIPE, "text": True}
    # where the tests run in the background of a script, Ctrl-C is ignored there and in all that they start
    supervisor = subprocess.Popen(command, **options, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while not (tmp_path / "child").is_file() or not (tmp_path / "child").read_text():
        time.sleep(0.05)
    child = int((tmp_path / "child").read_text())
    yield starter, supervisor, child
    for process in (starter, supervisor):
        process.kill()
        process.wait()
    supervisor.stdout.close()
    if not gone(child, 0):
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_killed_alone_has_failed_and_says_by_what(supervised, tmp_path, number):
    _, supervisor, child = supervised
    os.kill(child, number)
    assert supervisor.wait(20) == 0, "the other notebooks go on"
    outcome = read_json(tmp_path / "04_train-a.json")
    assert outcome["outcome"] == "failed"
    assert f"its process was killed by signal {number} ({number.name}" in outcome["reason"]
    assert outcome["reason"].endswith("run the same command again")
    assert supervisor.stdout.read().startswith("04_train-a: its process was killed by signal")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_everything_leaves_no_failure(supervised, tmp_path, number):
    _, supervisor, child = supervised
    os.killpg(supervisor.pid, number)
    assert supervisor.wait(20) != 0 and gone(child)
    assert not list(tmp_path.rglob("*.json"))


def test_a_command_ended_with_its_study_has_not_failed(supervised, tmp_path):
    starter, supervisor, child = supervised
    starter.kill()
    starter.wait()
    os.kill(child, signal.SIGKILL)
    assert supervisor.wait(20) != 0 and not list(tmp_path.rglob("*.json"))


def test_the_exit_status_is_the_commands_own(tmp_path):
    for status in (0, 3):
        done = subprocess.run([*SUPERVISE, str(tmp_path / "a.json"), "--", sys.executable, "-c", f"exit({status})"])
        assert done.returncode == status and not (tmp_path / "a.json").exists()
