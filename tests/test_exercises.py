"""The exercises as scripts on a small study, as they are and with their printed solution."""

import json
import re

import matplotlib.pyplot as plt
import pytest

from mammo_utils.training.run import train_run
from tests.conftest import CHECKOUT, SMALL

EXERCISES = sorted((CHECKOUT / "notebooks" / "exercises").glob("*.ipynb"))
STUDY = {"study": "config/paper.yaml", "settings": [*SMALL]}


def cells_of(name):
    return json.loads((CHECKOUT / "notebooks" / "exercises" / f"{name}.ipynb").read_text("utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def changed_cell(cells):
    (cell,) = [cell for cell in cells if "change" in cell["metadata"].get("tags", [])]
    return cell


def solution_of(cells):
    """The first block of code that is folded away after the cell to be changed."""
    after = cells[cells.index(changed_cell(cells)) + 1 :]
    folded = [source(c) for c in after if c["cell_type"] == "markdown" and source(c).startswith("<details>")]
    return re.search(r"```python\n(.+?)```", folded[0], re.S)[1]


def work_through(name, solved, **parameters):
    """Execute the code cells, with the solution in place of the cell that a reader changes; return the names."""
    cells, namespace = cells_of(name), {"display": print}
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        code = solution_of(cells) if solved and cell is changed_cell(cells) else source(cell)
        exec(compile(code, f"{name}, cell {cell['id']}", "exec"), namespace)
        if "parameters" in cell["metadata"].get("tags", []):
            namespace |= parameters
    return namespace


@pytest.fixture(autouse=True)
def _figures():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_each_exercise_has_a_question_a_prediction_a_change_and_a_folded_solution(path):
    cells = cells_of(path.stem)
    text = "\n".join(source(cell) for cell in cells if cell["cell_type"] == "markdown")
    for part in ("**Question.**", "**Why it matters.**", "## Predict", "## Change one line", "**What this shows.**"):
        assert part in text, part
    assert "**What it does not show.**" in text and solution_of(cells) != source(changed_cell(cells))
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")


def test_the_scan_exercise_fails_the_checks_that_its_solution_names():
    assert work_through("3_scan", False)["passed"].loc["euler, 0.2"].all()
    names = work_through("3_scan", True)
    failed = {case: set(row.index[~row.astype(bool)]) for case, row in names["passed"].iterrows()}
    assert failed == {
        "Eq. 5, 0.2": set(),
        "simplified, 0.01": {"exact", "halves", "steady"},
        "euler, 0.01": {"exact", "halves"},
        "euler, 0.2": {"exact", "halves", "steady", "stable"},
        "Eq. 5, sign of A": {"steady", "stable"},
    }


@pytest.mark.usefixtures("in_small_project")
def test_the_leak_exercise_counts_patients_in_both_parts(small_study):
    names = work_through("2_leak", True, **STUDY)
    assert names["shared"]["by patient"] == 0 < names["shared"]["by image"]
    assert len(names["scores"]["by image"]) == 20 and names["best"][50][-1] > names["best"][1000][-1] > 0.5


@pytest.mark.usefixtures("in_small_project")
def test_the_fusion_exercise_compares_three_fusions(small_study):
    run = small_study.run("resnet18", "multi", "1v5", 53)  # no other test trains it
    train_run(run)
    names = work_through("1_fusion", True, **STUDY, run=run.id)
    assert list(names["found"]) == ["gated", "per_breast", "mean"]
    assert names["changes"]["per_breast"] == 0 < names["changes"]["gated"]
    assert names["found"]["per_breast"]["auc"].value is not None
