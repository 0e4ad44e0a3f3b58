"""Choose GPUs for a run on a machine with several, unless a scheduler has chosen already."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from mammo_utils.io import lock_file

VISIBLE = "CUDA_VISIBLE_DEVICES"  # read by CUDA when torch first uses a GPU


def count_gpus() -> int:
    """How many NVIDIA GPUs this machine has, by its driver's command, without importing torch.

    0 if one is split into instances (MIG), which have no plain numbers.
    """
    lines = _nvidia_smi()
    return 0 if any(line.lstrip().startswith("MIG ") for line in lines) else sum(map(_is_gpu, lines))


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, whole or split."""
    return any(map(_is_gpu, _nvidia_smi()))


def _is_gpu(line: str) -> bool:
    return line.startswith("GPU ")


def _nvidia_smi() -> list[str]:
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []


@contextmanager
def take_gpus(wanted: int, folder: Path, count: int | None = None) -> Iterator[list[str]]:
    """Make the least used GPUs the only ones that child processes see.

    A run holds a locked file in `folder` for each GPU it uses; the system frees it when the process dies. Several runs
    may share a GPU. If a scheduler has assigned no more GPUs than are wanted, there is nothing to choose.

    Args:
        wanted: GPUs of the run.
        folder: Where the users of each GPU are recorded.
        count: GPUs of this machine, if known.

    Yields:
        Their numbers; [] if there is nothing to choose.
    """
    listed = os.environ.get(VISIBLE)
    if listed is None and wanted:
        listed = ",".join(map(str, range(count_gpus() if count is None else count)))
    visible = [name.strip() for name in (listed or "").split(",") if name.strip()]
    if not 0 < wanted < len(visible):
        yield []
        return
    files = []
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:  # one process chooses at a time
        lock_file(lock, fcntl.LOCK_EX)
        prefix = f"{platform.node()}-"  # several machines may share the folder
        users = [_count_users(folder, f"{prefix}{name}-") for name in visible]
        taken = [visible[i] for i in sorted(sorted(range(len(visible)), key=lambda i: (users[i], i))[:wanted])]
        for name in taken:
            files.append(NamedTemporaryFile(prefix=f"{prefix}{name}-", dir=folder))
            lock_file(files[-1], fcntl.LOCK_EX)
    os.environ[VISIBLE] = ",".join(taken)
    try:
        yield taken
    finally:
        for file in files:
            file.close()


def _count_users(folder: Path, prefix: str) -> int:
    """How many live processes use a GPU; files of dead ones are removed."""
    users = 0
    for path in folder.glob(f"{prefix}*"):
        with path.open() as file:
            try:
                lock_file(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                path.unlink()
            except BlockingIOError:
                users += 1
    return users
