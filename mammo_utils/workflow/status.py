"""How far a study is: ``python -m mammo_utils.workflow.status config/demo.yaml``; it reads files and changes none.

The time left is that of the epochs still to be trained, each as long as those of the same system that were measured
in this study; before there is one, as the speed ledger has it, scaled by exams and pixels: its record of this device,
where there is one, of another where not, and the sentence says which.
"""

from __future__ import annotations

import argparse
import fcntl
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from mammo_utils.config import ParameterError, Study, load_study
from mammo_utils.io import read_json
from mammo_utils.provenance import PACKAGE
from mammo_utils.workflow.gpus import gpu_names

COLUMNS = ["run", "system", "state", "epochs", "of", "seconds", "reason"]
CMMD_EXAMS = 1360  # about as many as are usable, while the exam table is not there
RECORDS = PACKAGE / "ledger" / "records"
BFLOAT16 = "bfloat16"  # in the names of the ledger's epochs with it


def run_states(study: Study) -> pd.DataFrame:
    """One row a run of the grid, in its order. state: done, running, failed, stopped (its next start goes on) or
    waiting; epochs: finished ones of `of`; seconds: of one epoch, NaN before the first; reason: of a failure."""
    rows = []
    for spec in study.runs():
        folder = spec.folder
        row: dict[str, Any] = {"run": spec.id, "system": spec.system, "state": "waiting", "epochs": 0}
        row |= {"of": spec.training.epochs, "seconds": float("nan"), "reason": ""}
        done, failed, going = (_values(folder / f"{name}.json") for name in ("metrics", "failed", "progress"))
        if not spec.begun:  # what is there has other settings and will be replaced
            done, going = {}, {}
        if done.get("epochs"):
            row |= {"state": "done", "epochs": done["epochs"], "seconds": done["seconds"] / done["epochs"]}
        elif is_locked(folder):
            row |= {"state": "running"} | going
        elif failed:
            row |= {"state": "failed", "reason": str(failed.get("reason", ""))}
        elif going:
            row |= {"state": "stopped"} | going
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def time_left(study: Study, states: pd.DataFrame, at_once: int = 1) -> tuple[float, str]:
    """Seconds until all runs but the failed ones are trained, `at_once` of them together, and by what it is known.

    The time of the longest run is the least. NaN where nothing is known of a system.
    """
    ledger, of_what = _ledger_seconds(study)
    measured = states.groupby("system")["seconds"].median().dropna()
    # where the ledger was made on another machine, it is as far off for every system
    factor = median([measured[s] / ledger[s] for s in measured.index if ledger.get(s)] or [1.0])
    by_ledger = False
    times = [0.0]
    for row in states[states["state"].isin(["waiting", "stopped", "running"])].itertuples():
        seconds = measured.get(row.system, float("nan"))
        if seconds != seconds:
            seconds, by_ledger = factor * ledger.get(row.system, float("nan")), True
        times.append((row.of - row.epochs) * seconds)
    how = f"by the speed ledger ({of_what})" if by_ledger else "by the epochs trained here"
    return max(sum(times) / at_once, max(times)), how


def report(study: Study, at_once: int = 1) -> list[str]:
    """The lines that the command prints."""
    states = run_states(study)
    counts = states["state"].value_counts()
    names = ("done", "running", "failed", "stopped", "waiting")
    lines = [f"study {study.name}: {len(states)} runs, " + ", ".join(f"{counts.get(n, 0)} {n}" for n in names)]
    for row in states[states["state"].isin(["running", "stopped"])].itertuples():
        lines.append(f"  {row.state}: {row.run}, {row.epochs} of {row.of} epochs")
    lines += [f"  failed: {row.run}: {row.reason}" for row in states[states["state"] == "failed"].itertuples()]
    seconds, how = time_left(study, states, at_once)
    if seconds != seconds:
        lines.append("time left: unknown before the first epoch of each system")
    elif seconds:
        at_once = min(at_once, len(states[~states["state"].isin(["done", "failed"])]))
        together = f", {at_once} runs at once" if at_once > 1 else ""
        lines.append(f"time left for training: about {in_words(seconds)}, {how}{together}")
    return lines


def in_words(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def is_locked(folder: Path) -> bool:
    """Whether a process works in a run's folder: it holds the lock, which the system releases when it dies."""
    if not (folder / ".lock").is_file():
        return False
    with (folder / ".lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _values(path: Path) -> dict[str, Any]:
    """What a JSON file holds, {} where it is missing or damaged."""
    try:
        values = read_json(path)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _record(study: Study) -> dict[str, Any]:
    """The ledger's record with epochs that fits best: of the device that the study would take here, else of any GPU
    where it would take one, else of a CPU, else of what there is; {} where there is none."""
    found = [record for record in map(_values, sorted(RECORDS.glob("*.json"))) if record.get("epochs")]
    gpus = [] if study.training.device == "cpu" else gpu_names()
    here = gpus[0] if gpus else "cuda" if study.training.device == "cuda" else "cpu"

    def fit(record: dict[str, Any]) -> int:
        device = record["environment"]["device"]
        return 2 if device == here else int((device == "cpu") == (here == "cpu"))

    return max(found, key=fit, default={})


def _ledger_seconds(study: Study) -> tuple[dict[str, float], str]:
    """system -> seconds of an epoch by the ledger's record, whose time goes with exams and pixels; what it is of."""
    record = _record(study)
    if not record:
        return {}, ""
    exams = CMMD_EXAMS
    if (study.folder / "exams.parquet").is_file():
        exams = len(pd.read_parquet(study.folder / "exams.parquet", columns=[]))
    elif study.data.source == "synthetic":
        exams = study.data.synthetic.n_exams
    split = study.split
    tested = {"paper": 0, "nested": split.test, "kfold": 1 / split.folds}
    exams *= 1 - split.validation - tested[split.kind]
    size = study.images.size
    part = min(record["epochs"], key=lambda part: abs(part["systems"][0]["size"] - size))
    device, threads = record["environment"]["device"], record["environment"].get("threads")
    half = study.training.precision == "bfloat16" or (study.training.precision == "auto" and device != "cpu")
    found = {}
    for system in part["systems"]:
        rows = [row for row in system["rows"] if half or BFLOAT16 not in row["name"]]
        found[system["system"]] = exams / rows[-1]["exams_per_second"] * (size / system["size"]) ** 2
    where = f"{threads} threads of a CPU" if device == "cpu" else device
    return found, f"{where}, measured at {part['systems'][0]['size']} px"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m mammo_utils.workflow.status", description=__doc__.splitlines()[0])
    parser.add_argument("study", help="the study file")
    parser.add_argument("settings", nargs="*", help="settings in place of the file's, as the study was started with")
    parser.add_argument("--at-once", type=int, default=1, help="runs that are trained at the same time")
    a = parser.parse_args(arguments)
    try:
        print("\n".join(report(load_study(a.study, a.settings), a.at_once)))
    except ParameterError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
