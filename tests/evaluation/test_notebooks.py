"""Notebooks 05 to 07 as scripts, on two small trained runs whose images and store are gone."""

import json
import shutil

import matplotlib.pyplot as plt
import pytest
from markupsafe import escape

from mammo_utils.evaluation.tables import results_table
from mammo_utils.io import read_json
from mammo_utils.training.run import train_run
from mammo_utils.workflow.index_page import index_body
from mammo_utils.workflow.pictures import Pictures
from tests.conftest import CHECKOUT, SMALL


def run_notebook(name, **parameters):
    """Execute the code cells one after the other."""
    namespace = {"display": print}
    for cell in json.loads((CHECKOUT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {cell['id']}", "exec"), namespace)
        if "parameters" in cell["metadata"].get("tags", []):
            namespace |= parameters
    plt.close("all")


def test_they_need_the_files_of_the_runs_alone(small_study, in_small_project, monkeypatch, tmp_path):
    spec = small_study.run("resnet18", "multi", "1v5", 0)
    alone = small_study.run("resnet18", "multi", "1v5", 0, variant=["model.fusion=per_breast"])
    for run in (spec, alone):
        train_run(run)
    # a project of its own, without images, store and the runs of other tests
    others = {folder.name for folder in spec.folder.parent.iterdir()} - {spec.id, alone.id}
    project, away = tmp_path / "project", {str(small_study.folder / "store"), str(small_study.data_folder)}
    shutil.copytree(
        in_small_project, project, ignore=lambda at, names: [n for n in names if n in others or f"{at}/{n}" in away]
    )
    for run in (spec, alone):
        shutil.rmtree(run.folder)
    shutil.copytree(CHECKOUT / "notebooks", project / "notebooks", dirs_exist_ok=True)
    monkeypatch.setenv("MAMMO_PROJECT", str(project))
    shutil.rmtree(small_study.folder / "figures", ignore_errors=True)
    plt.switch_backend("Agg")
    settings = [*SMALL, "real_exams=false"]
    run_notebook("05_results", study="config/paper.yaml", settings=settings)
    run_notebook("07_decisions", study="config/paper.yaml", settings=settings)
    shutil.rmtree(small_study.folder / "figures")
    run_notebook("06_attention", study="config/paper.yaml", settings=settings, run=spec.id)
    results = read_json(small_study.folder / "results.json")
    assert {row["baseline"] for row in results["shortcuts"]} >= {"mean intensity", "8x8 thumbnails"}
    assert results["statements"][0]["best_shortcut"] and results["data"].keys() == {"1v5", "1v3v5", "1to5"}
    assert len(read_json(small_study.folder / "decisions.json")["calibration"]) == 3
    record = read_json(small_study.folder / "views.json")
    gates = {row["run"]: row for row in record["gates"]}
    assert not (small_study.folder / "store").exists() and not small_study.data_folder.exists()
    assert {spec.id, alone.id} == set(gates) == {row["run"] for row in record["recombination"]}
    assert gates[alone.id]["negative_other"] == gates[alone.id]["positive_other"] == 0
    assert gates[spec.id]["negative_other"] > 0
    subsets = {(row["task"], row["views"]): row for row in record["subsets"]}
    full = subsets["diagnosis", 15]
    assert len(subsets) == 30 and {row["run"] for row in record["subsets"]} == {spec.id}
    assert full["n_exams"] < full["n_all"] + 1 and full["change"] == 0 and full["trained"]
    assert {(row["run"], row["n_views"] + row["n_small"]) for row in record["saliency"]} == {
        (spec.id, 2),
        (alone.id, 2),
    }
    figures = {path.stem for path in (small_study.folder / "figures").glob("*.png")}
    expected = {"recombination", "attention-weights", "view-subsets-diagnosis", "view-subsets-birads"}
    assert figures == expected | {"saliency", "saliency-maps"}
    page = index_body(small_study, [], [], results_table([], small_study), Pictures(small_study.folder))
    assert "two cancers: both flagged" in page and escape(record["statements"][0]) in page


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")
