"""What the Snakefile asks before it starts: whose turn it is, and what a killed or failed command left behind."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from mammo_utils.config import Study
from mammo_utils.io import folder_lock, read_json, write_json
from mammo_utils.provenance import code_hash

STARTER = "MAMMO_STUDY_PID"  # environment variable: the process without which no notebook of a study should run


class StudyRunning(RuntimeError):
    """Another command runs the same study."""


def lock_study(study: Study) -> IO[str] | None:
    """Hold the study for this process and name it in the environment; keep the result to keep the claim.

    The system lets go of the claim when the process dies, so a killed command leaves no lock behind. Processes
    started by the one that holds the study get None. Raises StudyRunning naming the process that holds it.
    """
    starter = int(os.environ.get(STARTER, 0))
    if starter and starter != os.getpid() and is_alive(starter):
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


def outcomes_to_redo(study: Study) -> list[Path]:
    """The outcomes of what is to be done again: what failed, runs whose files were deleted, or overwritten by hand with
    those of other settings, and notebooks whose figures rest on code that has changed since. (Runs are kept then: they
    say that they are stale.)"""
    outcomes = study.folder / "outcomes"
    found = {file for file in outcomes.glob("*.json") if read_json(file)["outcome"] == "failed"}
    for run in study.runs():
        if not ((run.folder / "metrics.json").is_file() and run.begun):
            found.add(outcomes / f"04_train-{run.id}.json")
    manifest = study.folder / "figures" / "manifest.json"
    for entry in read_json(manifest) if manifest.is_file() else []:
        if entry["code"] != code_hash(*entry["modules"]):
            found.add(outcomes / f"{entry['notebook']}.json")
    return sorted(file for file in found if file.is_file())


def invalidate(outcomes: Iterable[Path]) -> None:
    """Remove outcomes, so that their steps are done again."""
    for file in outcomes:
        file.unlink(missing_ok=True)


def mark_failed(outcome: Path, reason: str, failure: Path | None = None) -> None:
    """Write the failed outcome of what was killed before it could; failure: a further file for the reason."""
    values = {"outcome": "failed", "reason": f"{reason}; give the same command again", "seconds": None}
    for path in filter(None, (failure, outcome)):  # the outcome last: it is the sign that all is there
        write_json(path, values)


def drop_figures(folder: Path, notebook: str) -> None:
    """Remove the figures that an earlier execution of a notebook left: the next one may draw others."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return
    with folder_lock(folder):
        entries = read_json(manifest)
        write_json(manifest, [entry for entry in entries if entry["notebook"] != notebook])
        for entry in entries:
            if entry["notebook"] == notebook:
                (folder / entry["figure"]).unlink(missing_ok=True)


def failures(study: Study) -> dict[str, str]:
    """What failed, by name, with its reason: notebooks and runs."""
    outcomes = {file.stem: read_json(file) for file in sorted((study.folder / "outcomes").glob("*.json"))}
    return {name: values["reason"] for name, values in outcomes.items() if values["outcome"] == "failed"}


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def orphaned(parent: int) -> bool:
    """Whether the process that started the study is gone, or `parent`, the one that started this process.

    A killed starter that nobody waits for keeps its number; then the change of our parent tells.
    """
    starter = int(os.environ.get(STARTER, 0))
    return os.getppid() != parent or bool(starter and not is_alive(starter))
