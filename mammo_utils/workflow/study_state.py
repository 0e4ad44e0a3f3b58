"""The state of a study between commands: who runs it, what has failed, and what must run again."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO, Any

from mammo_utils.io import STARTER, display_path, folder_lock, is_alive, lock_file, read_json, write_json
from mammo_utils.study import Study
from mammo_utils.training.run_state import run_state


class StudyRunning(RuntimeError):
    """Another command is running the same study."""


def lock_study(study: Study) -> IO[str] | None:
    """Lock the study for this process and name it in the environment. Keep the result to keep the lock.

    The system frees the lock when the process dies, so a killed command leaves none behind. Processes started by the
    holder get None. Raises StudyRunning naming the process that holds the lock.
    """
    starter = int(os.environ.get(STARTER, 0))
    if starter and starter != os.getpid() and is_alive(starter):
        return None
    study.folder.mkdir(parents=True, exist_ok=True)
    file = (study.folder / ".lock").open("a+")
    try:
        lock_file(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise StudyRunning(f"The study {study.name} is already running (process {holder}).") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    os.environ[STARTER] = str(os.getpid())
    return file


def outcomes(study: Study) -> dict[str, dict[str, Any]]:
    """Step -> its recorded outcome, {"outcome": "done", "failed" or "damaged", "reason": ...}."""
    found = {}
    for file in sorted((study.folder / "outcomes").glob("*.json")):
        try:
            values = read_json(file)
        except (ValueError, OSError):
            values = None
        if not (isinstance(values, dict) and {"outcome", "reason"} <= values.keys()):
            reason = f"{display_path(file)} is damaged; its step runs again."
            values = {"outcome": "damaged", "reason": reason}
        found[file.stem] = values
    return found


def failures(study: Study) -> dict[str, str]:
    """Failed step -> reason."""
    return {name: values["reason"] for name, values in outcomes(study).items() if values["outcome"] == "failed"}


def damaged_outcomes(study: Study) -> list[str]:
    """One sentence for each outcome file that is damaged."""
    return [values["reason"] for values in outcomes(study).values() if values["outcome"] == "damaged"]


def outcomes_to_redo(study: Study) -> list[Path]:
    """Outcome files of steps that must run again: failed or damaged ones, and runs without the study's results.

    (Runs that are stale by their code only are kept. Changes of settings and notebooks are found by Snakemake.)
    """
    redo = {study.folder / "outcomes" / f"{name}.json" for name, o in outcomes(study).items() if o["outcome"] != "done"}
    redo |= {run.outcome for run in study.runs() if run_state(run.folder, run).to_train}
    return sorted(file for file in redo if file.is_file())


def mark_failed(outcome: Path, reason: str) -> None:
    """Write the failed outcome of a process that was killed before it could."""
    write_json(outcome, {"outcome": "failed", "reason": f"{reason}; run the same command again", "seconds": None})


def drop_figures(folder: Path, notebook: str) -> None:
    """Remove the figures of a notebook's earlier execution, because the next one may draw others."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return
    with folder_lock(folder):
        entries = read_json(manifest)
        write_json(manifest, [entry for entry in entries if entry["notebook"] != notebook])
        for entry in entries:
            if entry["notebook"] == notebook:
                (folder / entry["figure"]).unlink(missing_ok=True)
