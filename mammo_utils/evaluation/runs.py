"""What the runs of a study have left, and whether it still is what the study asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mammo_utils.config import FREE, RunSpec, Study
from mammo_utils.evaluation.bootstrap import Sample
from mammo_utils.io import read_json
from mammo_utils.provenance import training_code

TASKS = ("diagnosis", "birads")
RUN_ID = re.compile(
    r"(?P<system>[a-z0-9_]+)-(?P<task_mode>[a-z]+)-(?P<subset>[a-z0-9]+)-seed(?P<seed>-?\d+)(-blocks(?P<blocks>\d+))?"
)


@dataclass(frozen=True)
class RunResult:
    """One run as its folder has it.

    state: "finished", "failed", "not finished" (no metrics yet), "not run" (no folder) or "unreadable"; reason:
    one sentence unless finished. stale: sentences, one for each way in which a finished run no longer matches
    the study's configuration, data or code. predictions: one row a breast (see training.loop.prediction_table).
    """

    spec: RunSpec
    state: str
    reason: str = ""
    stale: tuple[str, ...] = ()
    in_grid: bool = True
    metrics: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    predictions: pd.DataFrame = field(default_factory=pd.DataFrame)
    epochs: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def reported(self) -> str:
        """The part of the split whose numbers are reported: "test" (nested) or "validation" (paper)."""
        return self.metrics["reported"]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(task for task in TASKS if task in self.predictions)


def read_runs(study: Study, data_hashes: Mapping[str, str] | None = None) -> list[RunResult]:
    """Every run of the study's grid, and after them those in its folder that the grid does not name.

    data_hashes: subset -> hash of the data as they are now (RunData.hash), to find runs made from others;
    without it the data are not compared.
    """
    grid = study.runs()
    known = {spec.id for spec in grid}
    folders = sorted((study.folder / "runs").glob("*/")) if (study.folder / "runs").is_dir() else []
    found = {f.name: RUN_ID.fullmatch(f.name) for f in folders if f.name not in known}
    others = []
    for match in filter(None, found.values()):
        try:
            numbers = int(match["seed"]), int(match["blocks"] or 0)
            others.append(study.run(match["system"], match["task_mode"], match["subset"], *numbers))
        except ValueError:
            continue  # a folder that only looks like a run's
    hashes = data_hashes or {}
    return [
        *(_read_run(spec, True, hashes.get(spec.subset, "")) for spec in grid),
        *(_read_run(spec, False, hashes.get(spec.subset, "")) for spec in others),
    ]


def _read_run(spec: RunSpec, in_grid: bool, data_hash: str) -> RunResult:
    folder = spec.folder
    if not folder.is_dir():
        return RunResult(spec, "not run", "It has not been started.", in_grid=in_grid)
    if not (folder / "metrics.json").is_file():
        if (folder / "failed.json").is_file():
            return RunResult(spec, "failed", _failure(folder / "failed.json"), in_grid=in_grid)
        return RunResult(spec, "not finished", "It has left no metrics yet; the same command goes on.", in_grid=in_grid)
    try:
        record = read_json(folder / "config.json")
        result = RunResult(
            spec,
            "finished",
            in_grid=in_grid,
            metrics=read_json(folder / "metrics.json"),
            environment=read_json(folder / "environment.json"),
            predictions=pd.read_parquet(folder / "predictions.parquet"),
            epochs=pd.read_csv(folder / "epochs.csv"),
            stale=tuple(_stale(spec, record, read_json(folder / "environment.json"), data_hash)),
        )
        _check(result)
    except (OSError, ValueError, KeyError) as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return RunResult(spec, "unreadable", f"Its files do not fit together ({what}); train it anew.", in_grid=in_grid)
    return result


def _failure(path: Path) -> str:
    """The reason that failed.json gives, as one line."""
    values = read_json(path)
    text = next(
        (values[key] for key in ("reason", "message", "error") if isinstance(values, dict) and values.get(key)), values
    )
    return " ".join(str(text).split())


def _stale(spec: RunSpec, record: dict[str, Any], environment: dict[str, Any], data_hash: str) -> list[str]:
    """One sentence for each way in which a run is not what the study asks for now."""
    sentences = []
    now, then = _flat(spec.model_dump(mode="json")), _flat(record)
    for name in sorted(set(now) - set(FREE)):
        if name.startswith("training.learning_rate.") and not name.endswith(f".{spec.system}"):
            continue  # another system's
        if then.get(name) != now[name]:
            sentences.append(f"{name} was {then.get(name)!r}, the study now says {now[name]!r}.")
    if not sentences and record.get("hash") != spec.hash:
        sentences.append("Its configuration has another hash than the study's.")
    if data_hash and record.get("data_hash") != data_hash:
        sentences.append("Its data are not those of the study's folder now.")
    if environment.get("code") != training_code(environment.get("scan", "")):
        sentences.append("The code that can change its numbers has changed since.")
    return sentences


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _check(run: RunResult) -> None:
    """Raise ValueError or KeyError where the files of one run contradict each other."""
    table = run.predictions
    if run.metrics.get("run") != run.id:
        raise ValueError(f"metrics.json is of the run {run.metrics.get('run')!r}")
    if not run.tasks:
        raise ValueError("predictions.parquet has neither diagnosis nor birads")
    if table.duplicated(["exam", "side"]).any():
        raise ValueError("predictions.parquet has a breast twice")
    shares = table[["exam", "group", "part"]].drop_duplicates()
    if shares.groupby("group")["part"].nunique().max() > 1:
        raise ValueError("a patient of predictions.parquet is in two parts of the split")
    for task in run.tasks:
        stated = run.metrics["parts"][run.reported][task]["n_breasts"]
        found = len(labelled_breasts(run, task))
        if stated != found:
            raise ValueError(f"metrics.json counts {stated} breasts for {task}, predictions.parquet {found}")


# --- from predictions to samples ------------------------------------------------------------------------


def categories(run: RunResult, task: str) -> tuple[int, ...]:
    """The task's classes in the order of its probabilities: (0, 1), or the BI-RADS categories of the subset."""
    if task == "diagnosis":
        return (0, 1)
    return tuple(sorted(int(c.removeprefix("birads_p")) for c in run.predictions if c.startswith("birads_p")))


def labelled_breasts(run: RunResult, task: str, part: str = "", side: str = "both") -> pd.DataFrame:
    """The rows of a part (the reported one if not named) whose breasts have a label of the task."""
    table = run.predictions
    kept = (table["part"] == (part or run.reported)) & (table[task] >= 0)
    return table[kept if side == "both" else kept & (table["side"] == side)]


def probabilities(table: pd.DataFrame, task: str, classes: Sequence[int]) -> np.ndarray:
    """(n, K), one column a class in the order of `classes`."""
    if task == "diagnosis":
        return np.stack([1 - table["diagnosis_p"], table["diagnosis_p"]], axis=1)
    return table[[f"birads_p{c}" for c in classes]].to_numpy()


def sample(runs: Sequence[RunResult], task: str, part: str = "", side: str = "both") -> Sample:
    """The answers of the same system trained with one or more seeds.

    Raises ValueError where the seeds were not judged on the same breasts.
    """
    tables = [labelled_breasts(run, task, part, side).sort_values(["exam", "side"]) for run in runs]
    key = ["exam", "side", "group", task]
    for run, table in zip(runs[1:], tables[1:], strict=True):
        if not np.array_equal(tables[0][key].to_numpy(str), table[key].to_numpy(str)):
            raise ValueError(f"The runs {runs[0].id} and {run.id} were judged on different breasts; train them anew.")
    classes = categories(runs[0], task)
    labels = tables[0][task].map({category: index for index, category in enumerate(classes)})
    return Sample(
        labels.to_numpy(np.int64),
        np.stack([probabilities(table, task, classes) for table in tables]),
        tables[0]["group"].to_numpy(str),
    )


def group_by_seed(runs: Sequence[RunResult], blocks: int = 0) -> dict[tuple[str, str, str], list[RunResult]]:
    """(subset, task mode, system) -> its finished runs, one a seed, in the order in which they come; those with the
    number of blocks of the study's settings, or with another one.

    Seeds that do not go together are not averaged: a stale one stays out beside one that is not, and one judged
    on other breasts than the first stays out. The list of runs says of each whether it is stale.
    """
    together: dict[tuple[str, str, str], list[RunResult]] = {}
    for run in runs:
        if run.finished and run.spec.blocks == blocks:
            together.setdefault((run.spec.subset, run.spec.task_mode, run.spec.system), []).append(run)
    for key, seeds in together.items():
        fresh = [run for run in seeds if not run.stale] or seeds
        together[key] = [run for run in fresh if _same_breasts(fresh[0], run)]
    return together


def _same_breasts(one: RunResult, other: RunResult) -> bool:
    def breasts(run: RunResult) -> np.ndarray:
        table = run.predictions[run.predictions["part"] == run.reported].sort_values(["exam", "side"])
        return table[["exam", "side", "group", *run.tasks]].to_numpy(str)

    return one.reported == other.reported and np.array_equal(breasts(one), breasts(other))
