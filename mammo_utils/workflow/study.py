"""What the Snakefile asks before it starts: whose turn it is, and what a killed or failed command left behind."""

from __future__ import annotations

import fcntl
import os
from typing import IO

from mammo_utils.config import Study
from mammo_utils.files import read_json

STARTER = "MAMMO_STUDY_PID"  # environment variable: the process without which no notebook of a study should run


class StudyRunning(RuntimeError):
    """Another command runs the same study."""


def claim(study: Study) -> IO[str] | None:
    """Hold the study for this process and name it in the environment; keep the result to keep the claim.

    The system lets go of the claim when the process dies, so a killed command leaves no lock behind. Processes
    started by the one that holds the study get None. Raises StudyRunning naming the process that holds it.
    """
    starter = int(os.environ.get(STARTER, 0))
    if starter and starter != os.getpid() and alive(starter):
        return None
    study.folder.mkdir(parents=True, exist_ok=True)
    file = (study.folder / ".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise StudyRunning(f"The study {study.name} is running already (process {holder}).") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    os.environ[STARTER] = str(os.getpid())
    return file


def forget_failures(study: Study) -> None:
    """Remove the outcomes of what failed, so that it is tried again."""
    for file in (study.folder / "outcomes").glob("*.json"):
        if read_json(file)["outcome"] == "failed":
            file.unlink()


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
