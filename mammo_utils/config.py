"""The sections of a study's settings: validated, frozen, and without unknown names.

Defaults are the paper's (§3.1, §4) or, where the paper is silent, those of `docs/choices.md`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    field_validator,
    model_validator,
)

from mammo_utils.data.sources import SOURCES
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
    difficulty: Annotated[float, Field(ge=0, le=1)] = 0.0  # how faint findings are; 1: half are invisible
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
    window: bool = False  # apply the window of each header
    workers: Annotated[int, Field(ge=0)] = 0  # processes; 0: one per available CPU


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
    """The systems; see `docs/choices.md`."""

    weights: str = ""  # "": none; "imagenet": torchvision's; "patches": small encoders, synthetic patches; or a file
    resnet_cut: Literal["layer1", "layer2", "layer3"] = "layer2"
    vssm_blocks: Annotated[int, Field(ge=BLOCKS["vssm_blocks"][0], le=BLOCKS["vssm_blocks"][1])] = 4  # §4.2
    hybrid_blocks: Annotated[int, Field(ge=BLOCKS["hybrid_blocks"][0], le=BLOCKS["hybrid_blocks"][1])] = (
        2  # §4.2: half as many
    )
    width: Annotated[float, Field(ge=0.125, le=1, multiple_of=0.125)] = 1.0  # share of every layer's channels
    block: Literal["shuffle", "inner"] = "shuffle"
    fusion: Literal["gated", "concat", "mean", "per_breast", "sigmoid"] = "gated"  # Eq. 8-10
    missing: Literal["zeros", "masked"] = "zeros"  # §3.1
    birads_head: Literal["softmax", "corn"] = "softmax"  # corn: ordered categories, see docs/choices.md
    dropout: Fraction = 0.5  # §4.3
    drop_path: Fraction = 0.0  # probability in the last state space block; rises from 0 in the first
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
    schedule: Literal["plateau", "cosine"] = "plateau"  # §4.3: plateau; cosine falls to 0 at the last epoch
    patience: Count = 10  # plateau: epochs without a better mean AUC until the rate falls
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of the learning rate
    clip: Positive = 1.0  # largest norm of the gradient
    early_stopping: Annotated[int, Field(ge=0)] = 0  # epochs without a better mean AUC until training ends; 0: never
    average: Fraction = 0.0  # decay per step of a running average of the weights, which is evaluated; 0: none
    batch_norm: Literal["running", "recomputed"] = "running"  # statistics used in evaluation; see docs/choices.md
    task_weights: TaskWeights = TaskWeights()  # Eq. 11
    augmentation: Augmentation = Augmentation()
    recombine: Annotated[float, Field(ge=0, le=1)] = 0.0  # probability that a batch's exams exchange right breasts
    view_dropout: Fraction = 0.0  # probability that a present view is dropped in training, never all of an exam
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of all but the scan; auto: bfloat16 on a GPU
    # (float32 on a GPU keeps torch's default, TF32 convolutions)
    threads: Count = 1  # per process on a CPU; another number changes the last bits
    processes: Count = 1  # that share each batch, one per GPU
    store: Literal["auto", "device", "mapped"] = "auto"  # images on the device, or read batch by batch
    channels_last: bool = True  # memory format of the convolutions
    fused: bool = True  # AdamW in one kernel
    compile: bool = False  # compile the encoders; needs a C++ compiler
    saliency: Annotated[int, Field(ge=0)] = 40  # outlined views of which saliency maps are kept
    tensorboard: bool = False  # also write each epoch for TensorBoard, into the run's folder

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _fill_learning_rates(cls, given: Any) -> Any:
        """A study file may name some systems only; the others keep their default."""
        default = {name: entry.learning_rate for name, entry in SYSTEMS.items()}
        return {**default, **given} if isinstance(given, dict) else given


class FurtherRun(Frozen):
    """A run beside the combinations of the grid."""

    system: System
    task_mode: TaskMode = "multi"
    subset: Subset = "1v5"
    seed: NonNegativeInt = 0


class Grid(Frozen):
    """The runs of a study: every combination, and further ones."""

    systems: tuple[System, ...] = Field(default_factory=lambda: tuple(SYSTEMS))
    task_modes: tuple[TaskMode, ...] = TASK_MODES
    subsets: tuple[Subset, ...] = tuple(SUBSETS)
    seeds: tuple[NonNegativeInt, ...] = (0,)
    folds: tuple[NonNegativeInt, ...] = ()  # folds to train and pool; empty: that of the split's settings
    more_seeds: dict[System, tuple[NonNegativeInt, ...]] = {}  # further seeds of a system
    blocks: dict[System, tuple[int, ...]] = {}  # further runs of a system with other numbers of blocks
    more_runs: tuple[FurtherRun, ...] = ()

    @model_validator(mode="after")
    def _nothing_is_listed_twice(self) -> Grid:
        for name in ("systems", "task_modes", "subsets", "seeds", "folds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"grid.{name} lists {list(getattr(self, name))}, one of them twice")
        for system in self.more_seeds:
            if system not in self.systems:
                raise ValueError(f"grid.more_seeds names {system}, which is not in grid.systems")
        return self

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
