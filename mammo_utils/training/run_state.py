"""The state of a run, judged from its files: the one answer for training, evaluation, status, workflow and reports.

`metrics.json` is written last and holds the SHA-256 of every other file, so a run whose files are missing, torn or
mixed up is recognised as damaged and trained again by the same command.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mammo_utils.config import ParameterError
from mammo_utils.io import display_path, is_locked, read_json
from mammo_utils.provenance import file_hash, training_code
from mammo_utils.study import RunSpec, changed_settings, flatten

FIRST_FILES = ("config.json", "environment.json", "epochs.csv", "predictions.parquet", "weights.safetensors")
SALIENCY = "saliency.safetensors"  # only where positive breasts are outlined
FILES = (*FIRST_FILES, "views.parquet", "features.safetensors", SALIENCY)  # those after the first may be missing
METRICS, CHECKPOINT, PROGRESS = "metrics.json", "checkpoint.pt", "progress.json"


@dataclass(frozen=True)
class RunState:
    """The state of one run.

    Attributes:
        kind: "done"; "stale" (finished, but settings, data or code have changed); "running"; "failed"; "damaged" (a
            file is missing or is not the one that the run wrote); "stopped" (half done, continues); "waiting".
        reasons: One sentence for each reason; none for done, running and waiting runs.
        to_train: Whether the same command trains it. A finished run is trained again only if its data have changed.
        other_settings: Whether it is finished and has other settings than the study now. It is never replaced.
    """

    kind: str
    reasons: tuple[str, ...] = ()
    to_train: bool = True
    other_settings: bool = False

    @property
    def finished(self) -> bool:
        """Whether its results can be read."""
        return self.kind in ("done", "stale")

    @property
    def reason(self) -> str:
        """The reasons as one line."""
        return " ".join(self.reasons)


def run_state(folder: Path, spec: RunSpec, data_hash: str = "") -> RunState:
    """Judge the run in `folder` against what the study asks for.

    Args:
        folder: The run's folder.
        spec: The run that the study asks for.
        data_hash: Hash of the data as they are now (`RunData.hash`); "" leaves the data out of the comparison.
    """
    results = saved_results(folder, spec, data_hash)
    if results and not results.to_train:
        return results
    if is_locked(folder):
        return RunState("running")
    if reason := failure(spec):
        return RunState("failed", (reason,))
    if results:
        return results
    if config_hash(folder) == spec.hash and any((folder / name).is_file() for name in (CHECKPOINT, PROGRESS)):
        return RunState("stopped", ("It is half done; the same command continues it.",))
    return RunState("waiting")


def saved_results(folder: Path, spec: RunSpec, data_hash: str = "") -> RunState | None:
    """The state of finished results: done, stale or damaged; None if there are none.

    Args:
        folder: The run's folder.
        spec: The run that the study asks for.
        data_hash: See `run_state`.
    """
    if not (folder / METRICS).is_file():
        return None
    if reason := damage(folder):
        return RunState("damaged", (reason,))
    record, environment = _read(folder / "config.json"), _read(folder / "environment.json")
    changed = changed_settings(record, spec)
    then = flatten(record)
    reasons = [f"{name} was {then.get(name)!r}; the study now has {value!r}." for name, value in changed.items()]
    if new_data := bool(data_hash) and record.get("data_hash") != data_hash:
        reasons.append("The study's data have changed since.")
    if environment.get("code") != training_code(environment.get("scan", "")):
        reasons.append("The training code has changed since.")
    return RunState("stale" if reasons else "done", tuple(reasons), new_data and not changed, bool(changed))


def refuse_other_settings(spec: RunSpec, state: RunState | None) -> None:
    """Raise ParameterError if a finished run of other settings would be replaced."""
    if state and state.other_settings:
        raise ParameterError(
            f"{display_path(spec.folder)} holds a finished run with other settings. {state.reason} Rename the study "
            '(for example by the setting "name=mine") or delete that folder.'
        )


def damage(folder: Path) -> str:
    """What is wrong with the files of finished results, as one sentence; "" if all are as the run wrote them."""
    hashes = _read(folder / METRICS).get("files")
    hashes = hashes if isinstance(hashes, dict) else None
    wrong = {} if hashes else {METRICS: "is not readable"}
    for name in [name for name in FILES if name in hashes or name in FIRST_FILES] if hashes else ():
        if not (folder / name).is_file():
            wrong[name] = "is missing"
        elif _cached_hash(folder / name) != hashes.get(name):
            wrong[name] = "is not the file that the run wrote"
    for name, what in wrong.items():
        return f"{display_path(folder / name)} {what}; run the same command to train the run again."
    return ""


def failure(spec: RunSpec) -> str:
    """The reason why the run's last attempt failed, "" if it did not."""
    outcome = _read(spec.outcome)
    return " ".join(str(outcome.get("reason")).split()) if outcome.get("outcome") == "failed" else ""


def config_hash(folder: Path) -> str:
    """Hash of the settings with which the run in `folder` was started, "" if there is none."""
    return _read(folder / "config.json").get("hash", "")


def progress(folder: Path) -> dict[str, Any]:
    """Epochs done, epochs in all ("of") and seconds per epoch of a run under way; {} before its first epoch."""
    return _read(folder / PROGRESS)


def _read(path: Path) -> dict[str, Any]:
    """What a JSON file holds, {} if it is missing or damaged."""
    try:
        values = read_json(path)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _cached_hash(path: Path) -> str:
    facts = path.stat()
    return _hash_of_version(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash_of_version(path: Path, size: int, changed: int) -> str:
    return file_hash(path)
