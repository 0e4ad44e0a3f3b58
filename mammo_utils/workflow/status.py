"""Report the progress of a study: ``python -m mammo_utils.workflow.status config/demo.yaml``. Changes no file.

The time left counts the epochs still to be trained, each as long as the epochs of the same system that were measured in
this study.
"""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd

from mammo_utils.config import ParameterError
from mammo_utils.io import read_json
from mammo_utils.study import Study, load_study
from mammo_utils.training.run_state import METRICS, progress, run_state

COLUMNS = ["run", "system", "state", "epochs", "of", "seconds", "reason"]
KINDS = ("done", "stale", "running", "failed", "damaged", "stopped", "waiting")


def run_table(study: Study) -> pd.DataFrame:
    """One row per run of the grid, in its order.

    Columns: run, system; state (kind of `RunState`); epochs (finished ones) of `of`; seconds per epoch, NaN before the
    first; reason.
    """
    rows = []
    for spec in study.runs():
        state = run_state(spec.folder, spec)
        row: dict[str, Any] = {"run": spec.id, "system": spec.system, "state": state.kind, "reason": state.reason}
        row |= {"epochs": 0, "of": spec.training.epochs, "seconds": float("nan")}
        if state.finished and not state.to_train and not state.other_settings:
            metrics = read_json(spec.folder / METRICS)
            row |= {"epochs": metrics["epochs"], "seconds": metrics["seconds"] / metrics["epochs"]}
        elif state.kind in ("running", "stopped"):
            row |= progress(spec.folder)
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def time_left(runs: pd.DataFrame, at_once: int = 1) -> float:
    """Seconds until all runs but the failed ones are trained; NaN if a system has no measured epoch.

    The longest run is the lower limit, because no run is trained in parts.

    Args:
        runs: What `run_table` returns.
        at_once: Runs that are trained at the same time.
    """
    measured = runs.groupby("system")["seconds"].median()
    waiting = runs[~runs["state"].isin(["done", "failed"]) & (runs["epochs"] < runs["of"])]
    times = (waiting["of"] - waiting["epochs"]) * waiting["system"].map(measured)
    return max(times.sum(skipna=False) / at_once, times.max()) if len(times) else 0.0


def describe_progress(study: Study, at_once: int = 1) -> list[str]:
    """The lines of the report. See `time_left` for `at_once`."""
    runs = run_table(study)
    counts = runs["state"].value_counts()
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if kind in counts)
    lines = [f"study {study.name}: {len(runs)} runs, {kinds}"]
    for row in runs.itertuples():
        if row.state in ("running", "stopped"):
            lines.append(f"  {row.state}: {row.run}, {row.epochs} of {row.of} epochs")
        elif row.reason:
            lines.append(f"  {row.state}: {row.run}: {row.reason}")
    seconds = time_left(runs, at_once)
    if seconds != seconds:
        lines.append("time left: unknown before the first epoch of each system")
    elif seconds:
        together = f", {at_once} runs at once" if at_once > 1 else ""
        lines.append(f"time left for training: about {in_words(seconds)}{together}, by the epochs trained so far")
    return lines


def describe_runs(study: Study, at_once: int = 1) -> str:
    """Such as "3 of 6 runs done, about 8 min left"; the time is left out while it is unknown."""
    runs = run_table(study)
    seconds = time_left(runs, at_once)
    left = f", about {in_words(seconds)} left" if seconds > 0 else ""
    return f"{(runs['state'] == 'done').sum()} of {len(runs)} runs done{left}"


def in_words(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m mammo_utils.workflow.status", description=__doc__.splitlines()[0])
    parser.add_argument("study", help="the study file")
    parser.add_argument("settings", nargs="*", help="settings that replace the file's, as the study was started with")
    parser.add_argument("--at-once", type=int, default=1, help="runs that are trained at the same time")
    a = parser.parse_args(arguments)
    try:
        print("\n".join(describe_progress(load_study(a.study, a.settings), a.at_once)))
    except ParameterError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
