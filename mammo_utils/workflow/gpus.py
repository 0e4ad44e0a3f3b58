"""Which GPUs a run takes on a machine with several, where no scheduler has said so."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

VISIBLE = "CUDA_VISIBLE_DEVICES"  # read by CUDA when torch first asks for a GPU


def gpu_names() -> list[str]:
    """The name of each NVIDIA GPU of this machine, as its driver's command tells, without starting torch.

    None where one is cut into parts (MIG): those have no plain numbers."""
    lines = _listed()
    if any(line.lstrip().startswith("MIG ") for line in lines):
        return []
    return [line.split(": ", 1)[1].split(" (UUID")[0] for line in lines if line.startswith("GPU ")]


def any_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, whole or in parts."""
    return any(line.startswith("GPU ") for line in _listed())


def _listed() -> list[str]:
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []


@contextmanager
def take_gpus(wanted: int, folder: Path, count: int | None = None) -> Iterator[list[str]]:
    """Take the `wanted` least used of the GPUs that this process may see, and show the processes that it starts those
    alone; yields their numbers, [] where there is nothing to choose.

    A run that uses a GPU holds a file of `folder`, which the system lets go of when its process dies; several may use
    one GPU. A scheduler that gave as many as are wanted has chosen already. count: of the machine's GPUs, if known.
    """
    said = os.environ.get(VISIBLE)
    if said is None and wanted:
        said = ",".join(map(str, range(len(gpu_names()) if count is None else count)))
    seen = [name.strip() for name in (said or "").split(",") if name.strip()]
    if not 0 < wanted < len(seen):
        yield []
        return
    files = []
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as turn:  # one chooses at a time
        fcntl.flock(turn, fcntl.LOCK_EX)
        prefix = f"{platform.node()}-"  # the folder may be shared by machines
        used = [_in_use(folder, f"{prefix}{name}-") for name in seen]
        taken = [seen[i] for i in sorted(sorted(range(len(seen)), key=lambda i: (used[i], i))[:wanted])]
        for name in taken:
            files.append(NamedTemporaryFile(prefix=f"{prefix}{name}-", dir=folder))
            fcntl.flock(files[-1], fcntl.LOCK_EX)
    os.environ[VISIBLE] = ",".join(taken)
    try:
        yield taken
    finally:
        for file in files:
            file.close()


def _in_use(folder: Path, prefix: str) -> int:
    """How many processes use a GPU; what dead ones left is removed."""
    users = 0
    for path in folder.glob(f"{prefix}*"):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                path.unlink()
            except BlockingIOError:
                users += 1
    return users
