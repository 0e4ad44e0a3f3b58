"""A system or a metric that is added as one registry entry appears in every table, and notebook 05 runs with it."""

import json
import shutil
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mammo_utils.evaluation.comparisons import check_claims, compare_systems, statements
from mammo_utils.evaluation.paper import paper_layout
from mammo_utils.evaluation.runs import read_runs
from mammo_utils.evaluation.shortcut_baselines import baseline_table, shortcut_baselines
from mammo_utils.evaluation.tables import blocks_table, results_table, run_list, settings_table
from mammo_utils.io import read_json
from mammo_utils.metrics import METRICS, Metric
from mammo_utils.study import load_study
from mammo_utils.training.run import RunData
from mammo_utils.vocabulary import SYSTEMS, SystemEntry
from tests.conftest import CHECKOUT
from tests.evaluation.exams import exam_set_of
from tests.evaluation.fakes import write_run
from tests.evaluation.test_decisions import cohort_of

LENET = SystemEntry(
    title="LeNet",
    colour="#123456",
    encoder="resnet18",
    encoders=1,
    learning_rate=1e-3,
    question="Is more depth better?",
)
SETTINGS = [
    "grid.systems=[lenet, resnet18, hybrid_shared]",
    "grid.task_modes=[multi, diagnosis]",
    "grid.blocks={hybrid_shared: [1]}",
    "grid.more_seeds={}",
    "grid.more_runs=[]",
    "evaluation.resamples=50",
]


@pytest.fixture
def study(fake_study, monkeypatch):
    """A finished study of LeNet and two real systems, whose data are made up."""
    monkeypatch.setitem(SYSTEMS, "lenet", LENET)
    study = load_study("config/demo.yaml", SETTINGS)
    for spec in study.runs():
        write_run(spec)
    return study


def exam_parts():
    return {part: exam_set_of(40, seed, signal="mean") for seed, part in enumerate(("train", "validation", "test"))}


def test_an_added_system_is_in_every_table(study):
    runs = read_runs(study)
    assert {run.state for run in runs} == {"done"}
    results = results_table(runs, study)
    assert len(results[results["system"] == "lenet"]) == (2 + 1) * (2 * 3 + 1) and results["value"].notna().all()
    layout = paper_layout("1v5", results, "auc")
    assert len(layout) == 2 * 7
    assert (layout.loc["LeNet"].filter(like="paper") == "").all(axis=None)
    assert layout.loc[("LeNet", "both tasks"), "Diagnosis, this study"].startswith("0.")
    compared = compare_systems(runs, study)
    against = compared[(compared["system"] == "lenet") & (compared["reference"] == "hybrid_shared multi")]
    assert set(against["question"]) == {LENET.question}
    shortcuts = {("1v5", "diagnosis"): shortcut_baselines(exam_parts(), "test", "diagnosis")}
    stated = statements(runs, shortcuts, study)
    assert stated["statement"].str.startswith("Diagnosis, LeNet, both tasks, BI-RADS 1 vs 5: AUC").sum() == 1
    claims = check_claims(runs, stated, baseline_table(shortcuts, resamples=20, seed=0))
    assert claims["count"].iloc[0] == "8 of 8" and claims["count"].iloc[2].endswith("of 6")
    assert set(blocks_table(runs, study)["system"]) == {"hybrid_shared"}, "LeNet has no blocks"
    assert settings_table(study).loc["learning rate, LeNet"].tolist() == ["not stated", 1e-3, ""]
    assert "lenet-multi-1v5-seed0" in run_list(runs).index


def test_an_added_system_without_a_question_is_compared(study, monkeypatch):
    monkeypatch.setitem(SYSTEMS, "lenet", replace(LENET, question=""))
    compared = compare_systems(read_runs(study), study)
    against = compared[(compared["system"] == "lenet") & (compared["reference"] == "hybrid_shared multi")]
    assert set(against["question"]) == {"Is LeNet better than the reference?"}


def test_the_blocks_of_an_added_system_are_those_of_its_setting(fake_study, monkeypatch):
    monkeypatch.setitem(SYSTEMS, "lenet", replace(LENET, blocks="vssm_blocks"))
    study = load_study("config/demo.yaml", ["grid.systems=[lenet]", "grid.blocks={lenet: [3]}", *SETTINGS[3:]])
    for spec in study.runs():
        write_run(spec)
    blocks = blocks_table(read_runs(study), study)
    rows = blocks[blocks["task"] == "diagnosis"]
    assert rows["blocks"].tolist() == [study.model.vssm_blocks, 3] and rows["searched"].tolist() == [False, True]


def test_an_added_metric_is_in_every_table(study, monkeypatch):
    def accuracy(labels, probabilities):
        return float((probabilities.argmax(1) == labels).mean())

    def weighted_accuracy(labels, probabilities, weights):
        return weights @ (probabilities.argmax(1) == labels) / weights.sum(1)

    monkeypatch.setitem(METRICS, "accuracy", Metric("Accuracy", accuracy, weighted_accuracy))
    runs = read_runs(study)
    results = results_table(runs, study)
    row = results.query("system == 'hybrid_shared' and task_mode == 'multi' and task == 'diagnosis' and side == 'both'")
    row = row[row["metric"] == "accuracy"].iloc[0]
    predictions = next(run for run in runs if run.id == row["runs"]).predictions.query("part == 'test'")
    assert row["value"] == pytest.approx(((predictions["diagnosis_p"] > 0.5) == predictions["diagnosis"]).mean())
    assert row["low"] < row["value"] < row["high"] and np.isnan(row["paper"])
    layout = paper_layout("1v5", results, "accuracy")
    assert layout.columns.name.endswith(", Accuracy") and (layout["Diagnosis, paper"] == "").all()
    assert layout.loc[("LeNet", "both tasks"), "Diagnosis, this study"].startswith("0.")
    assert "accuracy" in set(compare_systems(runs, study)["metric"])
    baselines = {("1v5", "diagnosis"): shortcut_baselines(exam_parts(), "test", "diagnosis")}
    assert (baseline_table(baselines, resamples=20, seed=0)["metric"] == "accuracy").sum() == 10


def run_cells(notebook, settings=SETTINGS):
    """Run the code cells of a notebook as a script, with other settings."""
    namespace = {}
    with pd.option_context("display.max_colwidth", 50, "display.max_rows", 60, "display.max_columns", 20):
        for cell in json.loads((CHECKOUT / "notebooks" / f"{notebook}.ipynb").read_text("utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"cell {cell['id']}", "exec"), namespace)
            if "parameters" in cell["metadata"].get("tags", []):
                namespace["settings"] = settings
    plt.close("all")


@pytest.mark.parametrize("finished", [True, False])
def test_notebook_07_runs_to_its_end_without_images(study, finished, monkeypatch, tmp_path):
    """Every table and figure but the gallery is made from run files and the cohort's tables, even of no run."""
    plt.switch_backend("Agg")
    shutil.copytree(CHECKOUT / "notebooks", tmp_path / "notebooks")
    runs = [run for run in read_runs(study) if run.finished]
    cohort = cohort_of(runs, np.random.default_rng(0))
    if not finished:
        shutil.rmtree(study.folder / "runs")
    monkeypatch.setattr("mammo_utils.data.cohort.load_cohort", lambda folder: cohort)
    run_cells("07_decisions")
    record = read_json(study.folder / "decisions.json")
    figures = {path.stem for path in (study.folder / "figures").glob("*.png")}
    if not finished:
        assert not figures and not record["calibration"]
        return
    systems = {row["system"] for row in record["calibration"]}
    assert systems == {"lenet", "resnet18", "hybrid_shared"}
    kinds = ("reliability", "net-benefit", "subgroups", "plan")
    expected = {f"{kind}-1v5-{mode}" for kind in kinds for mode in ("multi", "diagnosis")}
    assert figures == expected | {"operating-points-1v5", "conformal-1v5", "heads-1v5"}


def test_notebook_05_runs_to_its_end_with_an_added_system(study, monkeypatch, tmp_path):
    """Its code cells as a script: every table and every figure."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    plt.switch_backend("Agg")
    shutil.copytree(CHECKOUT / "notebooks", tmp_path / "notebooks")
    data = RunData(parts=exam_parts(), reported="test", hash="d", synthetic=True)
    monkeypatch.setattr("mammo_utils.evaluation.shortcut_baselines.load_data", lambda spec, store=None: data)
    run_cells("05_results")
    assert "lenet" in set(pd.read_csv(study.folder / "results.csv")["system"])
    record = read_json(study.folder / "results.json")
    assert "lenet" in {row["system"] for row in record["comparisons"]} and not any(
        "stale" in str(r) for r in record["runs"]
    )
    figures = {path.stem for path in (study.folder / "figures").glob("*.png")}
    panels = [
        f"{mode}-{task}" for mode, task in (("multi", "diagnosis"), ("multi", "birads"), ("diagnosis", "diagnosis"))
    ]
    expected = {f"{kind}-1v5-{panel}" for kind in ("roc", "confusion") for panel in panels}
    assert figures == expected | {f"{kind}-1v5" for kind in ("comparisons", "levels", "training", "systems", "blocks")}
