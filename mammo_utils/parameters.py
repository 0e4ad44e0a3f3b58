"""The parameters of the notebooks, checked before a cell runs."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from mammo_utils.config import Frozen, ParameterError, Subset, System, TaskMode
from mammo_utils.study import PREPARED, Study, describe_mistake, load_study


class NotebookParameters(Frozen):
    """Parameters of every notebook."""

    study: str = "config/demo.yaml"  # the study file
    settings: list[str] = []  # noqa: RUF012 (pydantic copies it); settings that replace the file's, such as "training.epochs=3"

    @cached_property
    def loaded(self) -> Study:
        """The study, read once."""
        return load_study(self.study, self.settings)


class TrainParameters(NotebookParameters):
    """Parameters of 04_train."""

    system: System = "hybrid_shared"
    task_mode: TaskMode = "multi"
    subset: Subset = "1v5"
    seed: int = 0
    blocks: int = 0
    fold: int = -1


class AttentionParameters(NotebookParameters):
    """Parameters of 06_attention."""

    run: str = ""  # a run's ID; "": the first hybrid_shared run of the study


NOTEBOOKS: dict[str, type[NotebookParameters]] = {
    "01_data_exploration": NotebookParameters,
    "02_preprocessing": NotebookParameters,
    "03_models": NotebookParameters,
    "04_train": TrainParameters,
    "05_results": NotebookParameters,
    "06_attention": AttentionParameters,
}


def check_parameters(notebook: str, values: Mapping[str, Any]) -> NotebookParameters:
    """Validate and freeze a notebook's parameters, including the study file that they name.

    Raises ParameterError, one sentence naming the notebook, the parameter and what is accepted.
    """
    model = NOTEBOOKS[notebook]
    try:
        parameters = model(**values)
    except ValidationError as error:
        raise ParameterError(f"{notebook}: {describe_mistake(error, model)}") from None
    study = parameters.loaded  # a mistake in the study file is found here, before a kernel starts
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
    """
    values = {name: namespace[name] for name in NOTEBOOKS[notebook].model_fields if name in namespace}
    for source in namespace.get("In", []):
        if source.lstrip().startswith("# Parameters\n"):
            targets = (t for node in ast.parse(source).body if isinstance(node, ast.Assign) for t in node.targets)
            values |= {t.id: namespace[t.id] for t in targets if isinstance(t, ast.Name)}
    return check_parameters(notebook, values)
