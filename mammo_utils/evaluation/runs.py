"""The runs of a study as tables, each with its state."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mammo_utils.evaluation.bootstrap import Sample
from mammo_utils.io import display_path, read_json
from mammo_utils.metrics import softmax
from mammo_utils.study import RunSpec, Study
from mammo_utils.training.run_state import METRICS, RunState, run_state
from mammo_utils.vocabulary import SYSTEMS, TASKS

RUN_ID = re.compile(
    r"(?P<system>[a-z0-9_]+)-(?P<task_mode>[a-z]+)-(?P<subset>[a-z0-9]+)-seed(?P<seed>-?\d+)(-blocks(?P<blocks>\d+))?"
    r"(-fold(?P<fold>\d+))?"
    r"(?P<variant>-.+=.+)?"
)


@dataclass(frozen=True)
class RunResult:
    """One run as its folder holds it.

    Attributes:
        spec: The run that the study asks for.
        status: Its state, see `training.run_state`.
        in_grid: Whether the study's grid has it.
        metrics, environment, epochs: Its files; empty unless it is finished.
        folds: The runs whose predictions are pooled in this one, see `pool_folds`.
        predictions: One row per breast (see `training.predict.prediction_table`); empty unless it is finished.
    """

    spec: RunSpec
    status: RunState
    in_grid: bool = True
    folds: tuple[RunResult, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    predictions: pd.DataFrame = field(default_factory=pd.DataFrame)
    epochs: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def id(self) -> str:
        """Name of the run's folder."""
        return self.spec.id

    @property
    def members(self) -> tuple[RunResult, ...]:
        """The trainings that it consists of: its folds, or itself."""
        return self.folds or (self,)

    @property
    def state(self) -> str:
        """The kind of its state, such as "done"."""
        return self.status.kind

    @property
    def reason(self) -> str:
        """Why it is stale, failed, damaged or stopped, "" otherwise."""
        return self.status.reason

    @property
    def finished(self) -> bool:
        """Whether its results can be read."""
        return self.status.finished

    @property
    def stale(self) -> bool:
        """Whether it is finished, but settings, data or code have changed since."""
        return self.status.kind == "stale"

    @property
    def reported(self) -> str:
        """The part of the split whose metrics are reported: "test", or "validation" with the paper's split."""
        return self.metrics["reported"]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The active tasks."""
        return tuple(task for task in TASKS if task in self.predictions)


def read_runs(study: Study, data_hashes: Mapping[str, str] | None = None) -> list[RunResult]:
    """Read every run of the study's grid, and after them the other runs in its folder.

    Args:
        study: The study.
        data_hashes: `RunSpec.data_name` -> hash of the data as they are now (`RunData.hash`). Runs trained on other
            data are stale; without it the data are not compared.
    """
    grid = study.runs()
    known = {spec.id for spec in grid}
    folders = sorted((study.folder / "runs").glob("*/"))
    others = [spec for folder in folders if folder.name not in known and (spec := _other_run(study, folder))]
    hashes = data_hashes or {}
    return [_read_run(spec, spec.id in known, hashes.get(spec.data_name, "")) for spec in (*grid, *others)]


def _other_run(study: Study, folder: Path) -> RunSpec | None:
    """The run in a folder that is not of the study's grid, None if the folder's name only resembles a run's."""
    match = RUN_ID.fullmatch(folder.name)
    if not match:
        return None
    fold = int(match["fold"]) if match["fold"] else None
    numbers = int(match["seed"]), int(match["blocks"] or 0)
    try:
        variant = read_json(folder / "config.json")["variant"] if match["variant"] else ()
        spec = study.run(match["system"], match["task_mode"], match["subset"], *numbers, variant, fold)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # its config.json is damaged
    return spec if spec.id == folder.name else None


def run_title(run_id: str) -> str:
    """Name a run for readers by its id, as `RunSpec.title` does; the id itself if it names no run."""
    match = RUN_ID.fullmatch(run_id)
    if not match or match["system"] not in SYSTEMS:
        return run_id
    fold = int(match["fold"]) if match["fold"] else None
    variant = tuple(re.findall(r"-([^-=]+=.*?)(?=-[^-=]+=|$)", match["variant"] or ""))
    numbers = {"seed": int(match["seed"]), "blocks": int(match["blocks"] or 0), "fold": fold, "variant": variant}
    names = {name: match[name] for name in ("system", "task_mode", "subset")}
    return RunSpec.model_construct(**names, **numbers).title


def _read_run(spec: RunSpec, in_grid: bool, data_hash: str) -> RunResult:
    folder = spec.folder
    state = run_state(folder, spec, data_hash)
    if not state.finished:
        return RunResult(spec, state, in_grid)
    return RunResult(
        spec,
        state,
        in_grid,
        metrics=read_json(folder / METRICS),
        environment=read_json(folder / "environment.json"),
        predictions=pd.read_parquet(folder / "predictions.parquet"),
        epochs=pd.read_csv(folder / "epochs.csv"),
    )


def read_views(run: RunResult) -> pd.DataFrame:
    """Predictions of the reported part from every subset of an exam's views, see `training.views.subset_predictions`.

    Raises:
        FileNotFoundError: An earlier version trained the run; the message names the file.
    """
    path = run.spec.folder / "views.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"{display_path(path)} is missing; delete the run's folder and train the run again.")
    return pd.read_parquet(path)


def with_views(runs: Sequence[RunResult]) -> list[RunResult]:
    """The finished runs that have `views.parquet`; those of an earlier version lack it."""
    return [run for run in runs if run.finished and (run.spec.folder / "views.parquet").is_file()]


# --- from predictions to samples ------------------------------------------------------------------------


def categories(run: RunResult, task: str) -> tuple[int, ...]:
    """The task's classes in the order of its probabilities: (0, 1), or the subset's BI-RADS categories."""
    if task == "diagnosis":
        return (0, 1)
    return tuple(sorted(int(c.removeprefix("birads_p")) for c in run.predictions if c.startswith("birads_p")))


def labelled_breasts(run: RunResult, task: str, part: str = "", side: str = "both") -> pd.DataFrame:
    """Predictions of the breasts that have a label of the task, sorted by exam and side.

    Args:
        run: A finished run.
        task: "diagnosis" or "birads".
        part: Part of the split; the reported one if "".
        side: "L", "R" or "both".
    """
    table = run.predictions
    kept = (table["part"] == (part or run.reported)) & (table[task] >= 0)
    kept &= (table["side"] == side) | (side == "both")
    return table[kept].sort_values(["exam", "side"], ignore_index=True)


def probabilities(table: pd.DataFrame, task: str, classes: Sequence[int]) -> np.ndarray:
    """Probabilities (n, K) from rows of a prediction table, one column per class, in float64 from the logits.

    The stored float32 probabilities are used only if the table has no logits.

    Args:
        table: Predictions of n breasts.
        task: "diagnosis" or "birads".
        classes: The classes, see `categories`.
    """
    logits = [f"{task}_logit_{c}" for c in classes]
    if set(logits) <= set(table):
        return softmax(table[logits])
    if task == "diagnosis":
        return np.stack([1 - table["diagnosis_p"], table["diagnosis_p"]], axis=1)
    return table[[f"birads_p{c}" for c in classes]].to_numpy()


def sample(runs: Sequence[RunResult], task: str, part: str = "", side: str = "both") -> Sample:
    """Labels and probabilities of one system trained with one or more seeds, in the order of `labelled_breasts`.

    Args:
        runs: Runs that differ in their seed only.
        task: "diagnosis" or "birads".
        part: Part of the split; the reported one if "".
        side: "L", "R" or "both".

    Raises:
        ValueError: The seeds were not evaluated on the same breasts.
    """
    tables = [labelled_breasts(run, task, part, side) for run in runs]
    key = ["exam", "side", "group", task]
    for run, table in zip(runs[1:], tables[1:], strict=True):
        if not np.array_equal(tables[0][key].to_numpy(str), table[key].to_numpy(str)):
            raise ValueError(f"The runs {runs[0].id} and {run.id} differ in their breasts; train them again.")
    classes = categories(runs[0], task)
    labels = tables[0][task].map({category: index for index, category in enumerate(classes)})
    return Sample(
        labels.to_numpy(np.int64),
        np.stack([probabilities(table, task, classes) for table in tables]),
        tables[0]["group"].to_numpy(str),
    )


def group_by_seed(runs: Sequence[RunResult], blocks: int = 0) -> dict[tuple[str, str, str], list[RunResult]]:
    """(subset, task mode, system) -> its finished runs, one per seed.

    Seeds that do not belong together are not averaged: a stale run is left out if another seed is not stale, and so
    is a run that was evaluated on other breasts than the first. The folds of a seed are pooled once all are finished.

    Args:
        runs: What `read_runs` returns.
        blocks: Number of blocks of the runs to take; 0 for those with the number of the study's settings. Variants that
            are not in the grid are left out.
    """
    together: dict[tuple[str, str, str], list[RunResult]] = {}
    for run in runs:
        if run.finished and run.spec.blocks == blocks and (run.in_grid or not run.spec.variant):
            together.setdefault((run.spec.subset, run.spec.task_mode, run.spec.system), []).append(run)
    folds = {run.spec.fold for run in runs if run.in_grid and run.spec.fold is not None}
    if not folds:
        together = {key: [run for run in found if run.spec.fold is None] for key, found in together.items()}
        together = {key: found for key, found in together.items() if found}
    else:
        pooled = {key: pool_folds(found, folds) for key, found in together.items()}
        together = {key: found for key, found in pooled.items() if found}
    for key, seeds in together.items():
        fresh = [run for run in seeds if not run.stale] or seeds
        together[key] = [run for run in fresh if _same_breasts(fresh[0], run)]
    return together


def pool_folds(runs: Sequence[RunResult], folds: Collection[int]) -> list[RunResult]:
    """Pool the predictions for the reported parts of all folds: one result per seed, with every patient tested once.

    The column `fold` of the predictions is the position of the breast's run in `folds`. The folds' systems are trained
    apart, so their probabilities need not be on one scale; pooling counts that against them. Seeds that lack a fold are
    left out.

    Args:
        runs: Finished runs of one system that differ in their seed and fold only.
        folds: Numbers of the folds.
    """
    by_seed: dict[int, list[RunResult]] = {}
    for run in runs:
        if run.spec.fold in folds:
            by_seed.setdefault(run.spec.seed, []).append(run)
    pooled = []
    for found in by_seed.values():
        if len(found) == len(folds):
            tables = [
                run.predictions[run.predictions["part"] == run.reported].assign(fold=position)
                for position, run in enumerate(found)
            ]
            worst = next((run for run in found if run.stale), found[0])
            pooled.append(replace(worst, folds=tuple(found), predictions=pd.concat(tables, ignore_index=True)))
    return pooled


def repeat_by_fold(run: RunResult, task: str, values: Sequence[Any]) -> np.ndarray:
    """Repeat what was fitted on the validation part of each fold for the fold's reported breasts.

    So a threshold or a scaling is applied to the patients of its own fold alone.

    Args:
        run: A run, or pooled folds.
        task: "diagnosis" or "birads".
        values: One value of each of `run.members`: a number, or several.

    Returns:
        The value of each breast of `labelled_breasts(run, task)`, in that order.
    """
    breasts = labelled_breasts(run, task)
    return np.array(values)[breasts["fold"] if run.folds else np.zeros(len(breasts), int)]


def _same_breasts(one: RunResult, other: RunResult) -> bool:
    def breasts(run: RunResult) -> np.ndarray:
        table = run.predictions[run.predictions["part"] == run.reported].sort_values(["exam", "side"])
        return table[["exam", "side", "group", *run.tasks]].to_numpy(str)

    return one.reported == other.reported and np.array_equal(breasts(one), breasts(other))
