"""Paths, files that are written whole or not at all, and locks."""

from __future__ import annotations

import errno
import fcntl
import filecmp
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from time import sleep
from types import ModuleType
from typing import IO, Any

PACKAGE = Path(__file__).parent
STARTER = "MAMMO_STUDY_PID"  # environment variable: the process that started the study
WARNED = "MAMMO_NO_LOCKS"  # environment variable: the user has been warned that locks do not work
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what a file system without locks answers


def project_root() -> Path:
    """The folder against which a study's paths are resolved.

    This is the environment variable ``MAMMO_PROJECT`` if set, else the checkout from which the package is
    installed, else the current folder.
    """
    if os.environ.get("MAMMO_PROJECT"):
        return Path(os.environ["MAMMO_PROJECT"]).resolve()
    checkout = PACKAGE.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def display_path(path: Path) -> str:
    """A path for messages: relative to the project if it lies inside."""
    path = Path(path)
    return path.relative_to(project_root()).as_posix() if path.is_relative_to(project_root()) else str(path)


# --- atomic files ---------------------------------------------------------------------------------------


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` and move it into place when the block ends.

    Readers see the old file or the new one, never a part. If the block raises, the old file stays. A file with the
    same bytes is not replaced: its old time of change shows Snakemake that no step has to run again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        if path.is_file() and filecmp.cmp(temporary, path, shallow=False):
            return
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write `values` as JSON, atomically. NaN, which JSON lacks, becomes null."""
    write_text(path, json.dumps(plain_values(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises ValueError naming the file if it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        advice = "If a run of the study wrote it, delete it and run again; otherwise correct it."
        raise ValueError(f"{display_path(path)} is not valid JSON ({error}). {advice}") from error


def plain_values(values: Any) -> Any:
    """Nested values as JSON has them: string keys, lists, Python scalars, None for NaN."""
    if isinstance(values, dict):
        return {str(key): plain_values(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [plain_values(value) for value in values]
    if hasattr(values, "item") and not isinstance(values, str | bytes):
        values = values.item()  # a numpy scalar
    if isinstance(values, float) and values != values:
        return None
    return values.as_posix() if isinstance(values, Path) else values


# --- locks and processes --------------------------------------------------------------------------------


def lock_file(file: IO, kind: int) -> None:
    """Lock an open file until it is closed or its process dies.

    On a file system without locks, a warning is printed once and the work continues without.

    Args:
        file: The file.
        kind: Flags of `fcntl.flock`.

    Raises:
        BlockingIOError: `kind` includes LOCK_NB and another process holds the lock.
    """
    try:
        fcntl.flock(file, kind)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        if not os.environ.get(WARNED):
            os.environ[WARNED] = "1"  # read by the processes that this one starts
            print(
                f"warning: the file system of {display_path(Path(file.name).parent)} has no file locks "
                f"({error.strerror}); do not run the same study twice at the same time.",
                flush=True,
            )


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process; a second process waits. The system frees the lock when its holder dies.

    A folder that cannot be written needs no lock, because only its finished files can be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        file = (folder / ".lock").open("w")
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
        yield
        return
    with file:
        try:
            lock_file(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that works in {folder.name}", flush=True)
            lock_file(file, fcntl.LOCK_EX)
        yield


def is_locked(folder: Path) -> bool:
    """Whether a live process holds `folder_lock` of `folder`."""
    if not (folder / ".lock").is_file():
        return False
    with (folder / ".lock").open() as file:
        try:
            lock_file(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def available_cpus() -> int:
    """How many CPUs this process may use: not those of the machine, but its affinity, quota and own limit.

    The quota is that of a container (cgroup v1 or v2); the limit is the environment variable `LOKY_MAX_CPU_COUNT`,
    which the Snakefile sets to the threads of a step.
    """
    import joblib  # slow to import

    return joblib.cpu_count()


def is_alive(process: int) -> bool:
    """Whether a process with this number exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def map_processes(function: Callable, *values: Iterable, workers: int) -> Iterator:
    """Map a function over values as `map` does, in new processes if there is more than one worker.

    The processes end with this one, and on Ctrl-C without a word: only the command itself reports it.

    Args:
        function: A module's function.
        *values: Its arguments, as for `map`.
        workers: Number of processes.
    """
    if workers <= 1:
        yield from map(function, *values)
        return
    # New processes instead of forks, because a fork of a process with threads (torch's, numba's, a kernel's) can hang.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    # A process inherits the mask: until `_start_worker` runs, an interrupt waits and cannot break an import.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        try:
            with without_main():
                calls = [pool.submit(function, *arguments) for arguments in zip(*values, strict=True)]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for call in calls:  # unlike `pool.map`, which cancels calls while the pool's own thread ends them
            yield call.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def without_main() -> Iterator[None]:
    """Let processes that are spawned in the block start without the main module.

    They would import it first: a script without `if __name__ == "__main__"` would run again in each of them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    exit_with_parent()


def exit_with_parent(interval: float = 0.5) -> None:
    """End this process soon after its parent, or the process named in ``MAMMO_STUDY_PID``, has gone.

    Kernels, supervisors, worker processes and ranks call it, so that a killed command leaves none behind. The parent's
    number is compared too, because a killed process that its own parent does not reap keeps its number.

    Args:
        interval: Seconds between two checks.
    """
    # a process started by multiprocessing knows its parent's number even if the parent has died before this line
    parent = getattr(multiprocessing.parent_process(), "pid", None) or os.getppid()
    starter = int(os.environ.get(STARTER, 0))

    def watch() -> None:
        while os.getppid() == parent and not (starter and not is_alive(starter)):
            sleep(interval)
        os._exit(1)

    Thread(target=watch, daemon=True).start()
