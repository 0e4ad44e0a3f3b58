"""Trained runs as one model that can be pointed at exams: systems, calibration, conformal sets, and what it has met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, PositiveFloat

from mammo_utils.config import Evaluation, Frozen
from mammo_utils.data.cohort import load_cohort
from mammo_utils.data.sources import SOURCES
from mammo_utils.evaluation.calibration import SCALINGS, fit_scaling
from mammo_utils.evaluation.conformal import conformal_quantile, one_breast_a_patient
from mammo_utils.evaluation.runs import RunResult, sample
from mammo_utils.images.store import load_store
from mammo_utils.io import display_path, project_root, read_json
from mammo_utils.models.ss2d import SS2D
from mammo_utils.models.system import System
from mammo_utils.predict.exams import measure
from mammo_utils.study import RunSpec, load_study
from mammo_utils.training import run as runs
from mammo_utils.training.run_state import METRICS, RunState, saved_results
from mammo_utils.vocabulary import REFERENCE, SUBSETS, SYSTEMS, TASK_MODES

SYNTHETIC = "Trained on synthetic images, which a program drew. Its predictions mean nothing for a patient."
RESEARCH = "A research model, not a medical device. Its predictions are no diagnosis."


class Member(Frozen):
    """One run: its settings, its `metrics.json`, and the scaling of its log-odds (no temperature: not calibrated)."""

    run: RunSpec
    metrics: dict[str, Any]
    temperature: PositiveFloat | None
    shift: float


class Card(Frozen):
    """What a model is, apart from its weights.

    Attributes:
        format: Version of this layout.
        members: The runs whose probabilities are averaged.
        quantile: Of the conformal sets, see `conformal_quantile`; None if there are none.
        ranges: Fact (see `exams.FACTS`) -> its least and largest value over the images of the training part.
        notes: What is missing or has changed, and why; sentences.
    """

    format: Literal[1] = 1
    members: tuple[Member, ...] = Field(min_length=1, max_length=32)
    quantile: float | None
    ranges: dict[str, tuple[float, float]]
    notes: tuple[str, ...]

    @property
    def run(self) -> RunSpec:
        """The first run: all members have its images, subset and task mode."""
        return self.members[0].run

    @property
    def synthetic(self) -> bool:
        """Whether a member was trained on synthetic images."""
        return any(member.metrics["synthetic"] for member in self.members)

    @property
    def statements(self) -> list[str]:
        """What every output states about the model."""
        names, averaged = "; ".join(m.run.title for m in self.members), " (averaged)" if self.members[1:] else ""
        exams, source = self.members[0].metrics["exams"]["train"], SOURCES[self.run.data.source].title
        known = f"Its only BI-RADS categories are {', '.join(map(str, SUBSETS[self.run.subset]))}."
        trained = f"Trained on {exams} exams of the {source}; runs{averaged}: {names}."
        return [*([SYNTHETIC] if self.synthetic else []), RESEARCH, trained, known, *self.notes]


@dataclass(frozen=True)
class Model:
    """A card and its systems, one per member, with their trained weights, in eval mode on the CPU."""

    card: Card
    systems: tuple[System, ...]


def load_run(*sources: str | Path, system: str = "", task_mode: str = "", subset: str = "") -> Model:
    """Load trained runs as one model, whose probabilities are their mean.

    Args:
        *sources: Run folders; a study's folder or file, for all seeds and folds of one of its systems; or one package.
        system: The system to take of a study; hybrid_shared if it has it, else the first one of `SYSTEMS`.
        task_mode: The task mode likewise, in the order of `TASK_MODES`.
        subset: The subset likewise, in the order of `SUBSETS`.

    Raises:
        ValueError: A source is none of these or has no such run, or the runs do not go together.
        FileNotFoundError: A run is unfinished or damaged; the message names the file.
    """
    from mammo_utils.predict.package import read_package

    paths = [Path(source) for source in sources]
    if len(paths) == 1 and paths[0].suffix == ".zip":
        return read_package(paths[0])
    wanted = {"system": system, "task_mode": task_mode, "subset": subset}
    return _make_model([folder for path in paths for folder in _find_runs(path, wanted)])


def on_cpu(system: System) -> System:
    """The system in eval mode, with scans that run on any CPU whatever backend trained it; changed in place."""
    for module in system.modules():
        if isinstance(module, SS2D):
            module.backend = "auto"
    return system.eval()


def _find_runs(path: Path, wanted: dict[str, str]) -> list[Path]:
    """The run folders that a path stands for."""
    path = load_study(path).folder if path.suffix in (".yaml", ".yml") else path
    path = path if path.is_dir() else project_root() / path
    if (path / "config.json").is_file():
        return [path]
    found = [(file.parent, read_json(file.parent / "config.json")) for file in sorted(path.glob(f"runs/*/{METRICS}"))]
    found = [(folder, run) for folder, run in found if not run["variant"] and not run["blocks"]]
    if not found:
        raise ValueError(f"{display_path(path)} holds no finished run; name a run, a study or a package (.zip).")
    order = {"system": (REFERENCE, *SYSTEMS), "task_mode": TASK_MODES, "subset": SUBSETS}
    for name, names in order.items():
        present = {run[name]: None for _, run in found}
        chosen = wanted[name] or next(value for value in names if value in present)
        if chosen not in present:
            raise ValueError(
                f"{display_path(path)} has no finished run with {name} {chosen}, but: {', '.join(present)}."
            )
        found = [(folder, run) for folder, run in found if run[name] == chosen]
    return [folder for folder, _ in found]


def _make_model(folders: Sequence[Path]) -> Model:
    """The model of some runs, with what they found on validation and met in training."""
    members, systems, results, notes = [], [], [], []
    for folder in folders:
        spec, system = runs.load_run(folder)
        predictions, metrics = pd.read_parquet(folder / "predictions.parquet"), read_json(folder / METRICS)
        results.append(RunResult(spec, RunState("done"), metrics=metrics, predictions=predictions))
        if _shared(spec) != _shared(results[0].spec):
            raise ValueError(
                f"{spec.id} and {results[0].id} differ in data set, subset, tasks or images; average others."
            )
        temperature, shift, reason = None, 0, "the run has no diagnosis"
        if "diagnosis" in results[-1].tasks:  # as notebook 07 scales
            temperature, shift, reason = fit_scaling(sample(results[-1:], "diagnosis", "validation"), SCALINGS[-1])
        fit = {"temperature": None, "shift": 0} if reason else {"temperature": temperature, "shift": shift}
        members.append(Member(run=spec, metrics=metrics, **fit))
        notes += [f"{spec.id} is not calibrated: {reason}."] if reason else []
        notes += [f"{spec.id}: {reason}" for reason in saved_results(folder, spec).reasons]
        systems.append(on_cpu(system))
    quantile, ranges = None, {}
    try:
        quantile = _fit_sets(results)
    except ValueError as error:
        notes.append(f"There are no conformal sets. {error}")
    try:
        ranges = _training_ranges(folders, results)
    except (OSError, ValueError) as error:
        notes.append(f"Exams are not compared with the training images. {error}")
    return Model(Card(members=members, notes=notes, quantile=quantile, ranges=ranges), tuple(systems))


def _shared(spec: RunSpec) -> tuple[Any, ...]:
    """The settings in which the members of a model agree."""
    return spec.data.source, spec.subset, spec.task_mode, spec.images.model_copy(update={"workers": 0})


def _fit_sets(results: list[RunResult]) -> float:
    """The quantile of the conformal sets of the runs' mean; ValueError if they have no common validation part."""
    if "birads" not in results[0].tasks:
        raise ValueError("The run has no BI-RADS.")
    validation = sample(results, "birads", "validation")
    mean = replace(validation, probabilities=validation.probabilities.mean(0, keepdims=True))
    quantile = conformal_quantile(one_breast_a_patient(mean, Evaluation().seed))
    if not np.isfinite(quantile):
        raise ValueError("Validation has too few patients.")
    return quantile


def _training_ranges(folders: Sequence[Path], results: list[RunResult]) -> dict[str, tuple[float, float]]:
    """The ranges of `Card`. Raises ValueError or OSError if the runs' data are not there or not theirs."""
    tables, seen = [], []
    for folder, spec in ((folder, result.spec) for folder, result in zip(folders, results, strict=True)):
        if (spec.study, spec.split) not in seen:  # seeds share a training part, folds do not
            seen.append((spec.study, spec.split))
            data, study = runs.load_data(spec), spec.folder.parents[1]
            if data.hash != read_json(folder / "config.json")["data_hash"]:
                raise ValueError(f"The data of {spec.id} have changed since it was trained.")
            store, trained = load_store(study / "store"), np.unique(data.parts["train"].rows.numpy())
            tables.append(measure(store, load_cohort(study / "cohort").folder).iloc[trained[trained >= 0]])
    table = pd.concat(tables).dropna(axis=1, how="all")
    return {name: (float(table[name].min()), float(table[name].max())) for name in table}
