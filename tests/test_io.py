import ast
import errno
import fcntl
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mammo_utils import io
from mammo_utils.io import (
    atomic_write,
    available_cpus,
    exit_with_parent,
    folder_lock,
    is_locked,
    map_processes,
    read_json,
    write_json,
)
from tests.conftest import CHECKOUT
from tests.workflow.processes import gone, processes_of


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"n": np.int64(1), "x": math.nan, "f": np.float32(0.5), "t": (1, 2)})
    assert json.loads(path.read_text()) == {"n": 1, "x": None, "f": 0.5, "t": [1, 2]}
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path)["n"] == 1 and list(tmp_path.iterdir()) == [path]


def test_unreadable_json_names_the_file(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def hold(folder, seconds):
    with folder_lock(folder):
        (folder / "held").touch()
        time.sleep(seconds)


def test_a_second_process_waits_and_a_killed_one_leaves_no_lock(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path, 60))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.02)
    with (tmp_path / ".lock").open("w") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.kill()
    process.join()
    with folder_lock(tmp_path):
        pass


def test_a_file_with_the_same_bytes_is_not_replaced(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, [1])
    os.utime(path, ns=(0, 0))
    write_json(path, [1])
    assert path.stat().st_mtime_ns == 0 and list(tmp_path.iterdir()) == [path]
    write_json(path, [2])
    assert path.stat().st_mtime_ns > 0 and read_json(path) == [2]


def test_a_folder_that_cannot_be_written_is_read_without_a_lock(tmp_path, monkeypatch):
    """The tests may run as root, whom no permission stops, so opening fails as on a read-only file system."""

    def refuse(path, mode="r", **options):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with folder_lock(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_warning(tmp_path, monkeypatch, capsys, number):
    def refuse(file, kind):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(io.fcntl, "flock", refuse)
    monkeypatch.delenv(io.WARNED, raising=False)
    for _ in range(2):
        with folder_lock(tmp_path / "a"):
            assert not is_locked(tmp_path / "a")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: the file system of") and "do not run the same study twice" in line
    monkeypatch.delenv(io.WARNED)


def test_other_errors_of_a_lock_are_raised(tmp_path, monkeypatch):
    def refuse(file, kind):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(io.fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output"), folder_lock(tmp_path):
        pass


def test_the_cpus_are_those_of_the_process_not_of_the_machine(monkeypatch):
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)
    allowed = os.sched_getaffinity(0)
    assert available_cpus() <= len(allowed)
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from mammo_utils.io import *; "
    done = subprocess.run([sys.executable, "-c", code + "print(available_cpus())"], capture_output=True, text=True)
    assert done.stdout == "1\n"
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # what a step of the study sets
    assert available_cpus() == 1


def hold_a_pool(workers):
    """Two busy workers of a process that is killed while the pool works."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=exit_with_parent)
    for i, _ in enumerate(pool.map(time.sleep, [0.05] * 1000)):
        if i == 20:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_leaves_no_worker_of_its_pool(tmp_path):
    mark = str(tmp_path / "mark")
    code = "import sys; from tests.test_io import hold_a_pool\nif __name__ == '__main__': hold_a_pool(2)"
    environment = {**os.environ, "MAMMO_TEST_MARK": mark, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert all(gone(process) for process in processes_of(mark))


ENDING = ("exit_with_parent", "_start_worker")


def sleep_and_mark(folder, number):
    (folder / f"{number}-{os.getpid()}").touch()
    time.sleep(0.2)


def map_forever(folder):
    try:
        list(map_processes(sleep_and_mark, [Path(folder)] * 500, range(500), workers=2))
    except KeyboardInterrupt:
        print("stopped", flush=True)


@pytest.mark.parametrize("moment", ["import", "work"])
def test_an_interrupt_is_reported_once_and_by_no_worker(tmp_path, moment):
    code = "import sys; from tests.test_io import map_forever\nif __name__ == '__main__': map_forever(sys.argv[1])"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    mark = str(tmp_path / "mark")
    options |= {"env": {**os.environ, "MAMMO_TEST_MARK": mark, "PYTHONPATH": str(CHECKOUT)}}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )
    ready = (lambda: len(list(tmp_path.iterdir())) > 5) if moment == "work" else (lambda: len(processes_of(mark)) > 2)
    while not ready() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "stopped\n"
    assert len(list(tmp_path.iterdir())) < 50 and all(gone(worker) for worker in processes_of(mark))


def test_every_pool_of_processes_ends_with_its_parent():
    pools = {}
    for file in (file for name in ("mammo_utils", "benchmarks", "tests") for file in (CHECKOUT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ProcessPoolExecutor"):
                pools[f"{file}:{node.lineno}"] = {k.arg: ast.unparse(k.value) for k in node.keywords}
    assert len(pools) >= 4
    assert not [place for place, words in pools.items() if words.get("initializer") not in ENDING]


def test_a_user_without_a_name_can_import_the_package():
    """As in a container that runs under a number which its passwd lacks."""
    code = "import pwd\ndef refuse(number): raise KeyError(f'getpwuid(): uid not found: {number}')\n"
    code += "pwd.getpwuid = refuse\nimport mammo_utils.training.run"
    nameless = {k: v for k, v in os.environ.items() if k not in ("USER", "LOGNAME", "LNAME", "USERNAME")}
    nameless["PYTHONPATH"] = str(CHECKOUT)
    done = subprocess.run([sys.executable, "-c", code], env=nameless, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_processes_do_not_run_the_script_that_starts_them(tmp_path):
    """Although it has no `if __name__ == "__main__"`."""
    script = tmp_path / "script.py"
    script.write_text(
        "import math\nfrom mammo_utils.io import map_processes\n"
        "print(list(map_processes(math.sqrt, [1, 4], workers=2)))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "[1.0, 2.0]\n"
