"""The tables hold the numbers of the predictions, comparisons are on the same patients, statements are computed."""

import subprocess

import numpy as np
import pandas as pd
import pytest

from mammo_utils.config import Grid
from mammo_utils.evaluation.bootstrap import Sample
from mammo_utils.evaluation.comparisons import (
    _correct,
    check_claims,
    compare_systems,
    compare_variants,
    statements,
    with_tested_interval,
)
from mammo_utils.evaluation.paper import paper_layout
from mammo_utils.evaluation.runs import group_by_seed, read_runs, sample
from mammo_utils.evaluation.shortcut_baselines import Baseline, baseline_table
from mammo_utils.evaluation.tables import (
    BLOCK_COLUMNS,
    blocks_table,
    class_table,
    results_table,
    run_list,
    settings_table,
    state_classes,
)
from mammo_utils.metrics import auc
from mammo_utils.parameters import NotebookParameters
from tests.evaluation.fakes import write_run


@pytest.fixture
def demo(fake_study):
    for spec in fake_study.runs():
        write_run(spec)
    return fake_study


def test_results_have_the_value_its_interval_and_what_it_is_based_on(demo):
    runs = read_runs(demo)
    table = results_table(runs, demo, NotebookParameters(settings=["training.epochs=3"]))
    assert len(table) == 6 * 2 * (2 * 3 + 1) and set(table["side"]) == {"both", "L", "R", "mean of sides"}
    row = table.query("system == 'vssm_shared' and task == 'diagnosis' and metric == 'auc' and side == 'both'").iloc[0]
    answers = sample([next(r for r in runs if r.spec.system == "vssm_shared")], "diagnosis")
    assert row["value"] == auc(answers.labels, answers.probabilities[0])
    assert row["low"] < row["value"] < row["high"] and row["paper"] == 0.9319
    assert (row["n_breasts"], row["n_exams"], row["n_patients"], row["n_seeds"]) == (91, 60, 60, 1)
    assert (row["method"], row["reason"]) == ("logit", "one training: its spread is not in the interval")
    positives = int((answers.labels == 1).sum())
    assert row["n_by_class"] == f"{91 - positives} / {positives}"
    assert min(map(int, row["patients_by_class"].split(" / "))) <= 60
    assert row["part"] == "test" and row["synthetic"] and not row["stale"]
    assert row["command"] == (
        "papermill notebooks/04_train.ipynb out.ipynb -p study config/demo.yaml -p system vssm_shared "
        """-p task_mode multi -p subset 1v5 -p seed 0 -y '{"settings": ["training.epochs=3"]}'"""
    )
    sides = table.query("system == 'vssm_shared' and task == 'diagnosis' and metric == 'auc' and side != 'both'")
    assert sides["paper"].isna().all()
    sides = sides.set_index("side")
    assert sides.loc[["L", "R"], "n_breasts"].sum() == sides.at["mean of sides", "n_breasts"] == 91
    assert sides.at["mean of sides", "value"] == pytest.approx(sides.loc[["L", "R"], "value"].mean())
    assert sides.at["mean of sides", "low"] > sides["low"].min()


def test_the_command_of_a_row_trains_all_of_its_seeds_and_folds(fake_study):
    split = fake_study.split.model_copy(update={"kind": "kfold", "folds": 3})
    grid = Grid(systems=("resnet18",), task_modes=("multi",), subsets=("1v5",), seeds=(0, 4), folds=(0, 1, 2))
    study = fake_study.model_copy(update={"split": split, "grid": grid})
    for spec in study.runs():
        write_run(spec)
    table = results_table(read_runs(study), study)
    (command,) = set(table["command"])
    script = f"papermill() {{ echo $*; }}; {command}"
    lines = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    words = "notebooks/04_train.ipynb out.ipynb -p study config/demo.yaml -p system resnet18 -p task_mode multi"
    expected = {f"{words} -p subset 1v5 -p seed {seed} -p fold {fold}" for seed in (0, 4) for fold in (0, 1, 2)}
    assert len(lines) == 6 and set(lines) == expected
    assert table["runs"].iloc[0].count(",") == 5, "as many as the row is made of"


def test_the_papers_values_are_beside_the_studys(demo):
    table = paper_layout("1v5", results_table(read_runs(demo), demo), "auc")
    row = table.loc["VSSM (View-specific)", "both tasks"]
    assert row["Diagnosis, paper"] == "", "unreadable stays empty"
    assert row["Diagnosis, this study"].startswith("0.")
    alone = table.xs("each task alone", level="trained on")
    assert (alone[["Diagnosis, this study", "BI-RADS, this study"]] == "").all(axis=None), "not run"
    assert (table.index.names, table.columns.name) == (
        ["system", "trained on"],
        "Table 2: binary tasks (BI-RADS 1 vs. 5), AUC",
    )


def test_comparisons_are_paired_with_the_reference_and_have_a_question(demo):
    write_run(demo.run("resnet18", "diagnosis", "1v5", 0), strength=4.0)
    table = compare_systems(read_runs(demo), demo)
    against = table[table["reference"] == "hybrid_shared multi"]
    assert set(against["system"]) == set(demo.grid.systems) - {"hybrid_shared"}
    assert (table["question"].str.endswith("?")).all() and set(table["metric"]) == {"auc", "f1_macro"}
    weak = table.query("system == 'vssm_view_specific' and metric == 'auc'")
    assert weak["answer"].tolist() == [
        "told apart: Hybrid (Shared) better" if p < 0.05 else "not told apart" for p in weak["p_holm"]
    ]
    assert (weak["p_holm"] < 0.05).any() and (weak["high"] < 0).all()
    assert (table["p_holm"] >= table["p"]).all() and (table["p_bh"] >= table["p"]).all()
    five = table.query("task == 'birads' and metric == 'auc'")
    assert len(five) == 5 and five["p_holm"].min() == pytest.approx(5 * five["p"].min())
    single = table.query("reference == 'resnet18 multi'")  # beside the one with the reference: a family of several
    assert set(single["corrected_by"]) == {"Holm"}
    told = single["p_holm"] < 0.05
    assert (
        single["answer"] == np.where(told, "told apart: diagnosis alone better", "not told apart")
    ).all() and told.any()
    assert set(single["task"]) == {"diagnosis"} and set(single["task_mode"]) == {"diagnosis"}


def test_a_comparison_that_is_alone_in_its_family_is_corrected_with_the_whole_study():
    """Holm's correction of one p value changes nothing, so 0.011 would be called a difference among 24 comparisons."""
    p = [0.011, *np.linspace(0.1, 1, 23)]
    table = pd.DataFrame({"p": p, "difference": -0.1, "names": [("one", "other")] * 24, "task": ["a"] + ["b"] * 23})
    alone, *others = _correct(table, ["task"]).to_dict("records")
    assert np.isnan(alone["p_holm"]) and alone["p_bh"] == pytest.approx(24 * 0.011), "it has no family"
    assert (alone["corrected_by"], alone["answer"]) == ("Benjamini-Hochberg", "not told apart")
    assert {row["corrected_by"] for row in others} == {"Holm"}
    (only,) = _correct(table[:1].copy(), ["task"]).to_dict("records")
    assert only["answer"] == "told apart: other better", "with one comparison in all there is nothing to correct"


def test_the_tested_interval_is_the_one_that_belongs_to_p(demo):
    for system in ("resnet18", "hybrid_shared"):
        write_run(demo.run(system, "multi", "1v5", 1))
    compared = compare_systems(read_runs(demo), demo)
    found = with_tested_interval(compared)
    several = found["system"] == "resnet18"
    assert (found["over"] == np.where(several, "patients and trainings", "patients")).all() and several.any()
    assert (found.loc[several, "low"] == compared.loc[several, "low_all"]).all()
    assert (found.loc[~several, "low"] == compared.loc[~several, "low"]).all()
    assert (found["low_patients"] == compared["low"]).all() and (found["high_patients"] == compared["high"]).all()
    by_formula = found[found["metric"] == "auc"]  # where interval and test have the same standard error
    assert (((by_formula["low"] > 0) | (by_formula["high"] < 0)) == (by_formula["p"] < 0.05)).all()


def test_seeds_are_one_row_with_their_spread(demo):
    for seed in (1, 2):
        write_run(demo.run("resnet50", "multi", "1v5", seed))
    row = (
        results_table(read_runs(demo), demo)
        .query("system == 'resnet50' and metric == 'auc' and side == 'both'")
        .iloc[0]
    )
    seeds = group_by_seed(read_runs(demo))["1v5", "multi", "resnet50"]
    values = [auc(s.labels, s.probabilities[0]) for s in (sample([run], row["task"]) for run in seeds)]
    assert row["n_seeds"] == 3
    assert row["value"] == pytest.approx(np.mean(values)) and row["sd_seeds"] == pytest.approx(np.std(values, ddof=1))


def test_statements_are_computed(demo):
    write_run(demo.run("resnet18", "diagnosis", "1v5", 0), strength=0.0)
    runs = read_runs(demo)
    answers = sample([next(r for r in runs if r.spec.system == "resnet18")], "diagnosis")
    noise = np.random.default_rng(0).random(len(answers.labels))
    layer = np.stack([1 - noise, noise], axis=-1)
    weak = Baseline(
        "thumbnails", True, Sample(answers.labels, layer[None], answers.groups), auc(answers.labels, layer), 60
    )
    table = statements(runs, {("1v5", "diagnosis"): [weak]}, demo).set_index(["system", "task_mode", "task"])
    strong = table.loc["hybrid_shared", "multi", "diagnosis"]
    assert strong["beats_chance"] and strong["beats_shortcuts"] and strong["surely_ahead"]
    assert "beats chance; its AUC is above that of every shortcut, and told apart from the best" in strong["statement"]
    assert strong["statement"].startswith("Diagnosis, Hybrid (Shared), both tasks, BI-RADS 1 vs 5: AUC 0.")
    blind = table.loc["resnet18", "diagnosis", "diagnosis"]
    assert not blind["beats_chance"] and "is not told apart from chance" in blind["statement"]
    assert not blind["surely_ahead"]
    for run in runs:
        if run.spec.system == "vssm_shared":
            run.predictions["diagnosis_p"] = 0.4
    flat = statements(runs, {}, demo).query("system == 'vssm_shared' and task == 'diagnosis'").iloc[0]
    assert (
        not flat["beats_chance"]
        and flat["beats_chance"] is not None
        and "AUC 0.500 (no interval) is not told apart from" in flat["statement"]
    )
    assert table.loc["hybrid_shared", "multi", "birads"]["beats_shortcuts"] is None
    assert "no shortcut to compare it with" in table.loc["hybrid_shared", "multi", "birads"]["statement"]


def test_without_runs_all_tables_are_empty(fake_study):
    runs = read_runs(fake_study)
    assert results_table(runs, fake_study).empty and compare_systems(runs, fake_study).empty
    assert statements(runs, {}, fake_study).empty
    assert paper_layout("1to5", results_table(runs, fake_study), "auc").shape == (12, 4)


def test_claims_hold_only_where_the_numbers_do(demo):
    runs = read_runs(demo)
    answers = sample([next(r for r in runs if r.spec.system == "resnet18")], "diagnosis")
    noise = np.random.default_rng(0).random(len(answers.labels))
    layer = np.stack([1 - noise, noise], axis=-1)
    weak = Baseline(
        "thumbnails", True, Sample(answers.labels, layer[None], answers.groups), auc(answers.labels, layer), 60
    )
    baselines = {("1v5", "diagnosis"): [weak]}
    stated = statements(runs, baselines, demo)
    table = check_claims(runs, stated, baseline_table(baselines, resamples=20, seed=0))
    ahead = stated.loc[stated["task"] == "diagnosis", "surely_ahead"]
    assert list(table["holds"]) == [True, True, True, bool(ahead.all()), True], table
    assert table["count"].iloc[3] == f"{ahead.sum()} of 6"
    good = Sample(answers.labels, np.eye(2)[answers.labels][None], answers.groups)
    baselines = {("1v5", "diagnosis"): [Baseline("thumbnails", True, good, 1.0, 60)]}
    (demo.runs()[0].folder / "metrics.json").unlink()
    runs = read_runs(demo)
    table = check_claims(runs, statements(runs, baselines, demo), baseline_table(baselines, resamples=20, seed=0))
    assert list(table["holds"]) == [False, True, True, False, False]
    assert (
        table["exceptions"].iloc[0] == "ResNet-18, both tasks, BI-RADS 1 vs 5, seed 0"
        and table["count"].iloc[0] == "5 of 6"
    )
    assert table["exceptions"].iloc[4] == "thumbnails, BI-RADS 1 vs 5"


def test_a_claim_that_one_system_refutes_fails_even_if_another_cannot_be_decided(demo):
    table = statements(read_runs(demo), {}, demo)
    table = table.astype({"beats_chance": object, "surely_ahead": object})
    table.loc[table.index[:2], "beats_chance"] = [None, False]
    table.loc[table.index[1:4], "beats_chance"] = False
    holds = check_claims(read_runs(demo), table, baseline_table({}, resamples=20, seed=0))["holds"]
    assert list(holds)[2:] == [False, None, None]


def test_the_auc_of_each_class_is_one_vs_rest(fake_study):
    write_run(fake_study.run("resnet18", "multi", "1to5", 0))
    runs = read_runs(fake_study)
    table = class_table(runs, fake_study)
    assert table["class"].tolist() == [1, 2, 3, 4, 5] and set(table["task"]) == {"birads"}
    answers = sample([run for run in runs if run.finished], "birads")
    first = answers.probabilities[0][:, 0]
    assert table["value"].iloc[0] == auc((answers.labels == 0).astype(int), np.stack([1 - first, first], axis=-1))
    assert (table["low"].isna() == (table["patients_class"] < 5)).all(), "too few for an interval"
    assert (table["n_class"] + table["n_rest"] == len(answers.labels)).all()
    assert table["n_predicted"].tolist() == np.bincount(answers.probabilities[0].argmax(1), minlength=5).tolist()
    assert class_table([], fake_study).empty and state_classes(class_table([], fake_study)) == []


def test_classes_that_are_hardly_predicted_or_not_ranked_are_named():
    row = {"subset": "1to5", "system": "hybrid_shared", "task_mode": "multi", "task": "birads"}
    rows = [(1, 100, 120, 0.8), (2, 9, 0, 0.6), (3, 30, 0, 0.49), (4, 40, 11, 0.4), (5, 80, 40, np.nan)]
    names = ("class", "n_class", "n_predicted", "low")
    table = pd.DataFrame([row | dict(zip(names, values, strict=True)) for values in rows]).assign(high=0.9)
    assert state_classes(table) == [
        "Hybrid (Shared), both tasks, BI-RADS 1 to 5: BI-RADS 2 and 3 are never predicted; BI-RADS 4 is predicted less "
        "than half as often as it occurs; the intervals of the AUCs of BI-RADS 3 and 4 include 0.5."
    ]
    assert "every category is predicted at least half as often" in state_classes(table[:1])[0]
    more = table.assign(n_predicted=1).iloc[[1, 2, 3]]
    assert "BI-RADS 2, 3 and 4 are predicted less than half as often as they occur" in state_classes(more)[0]


def test_without_runs_no_claim_holds(fake_study):
    runs = read_runs(fake_study)
    table = check_claims(runs, statements(runs, {}, fake_study), baseline_table({}, resamples=20, seed=0))
    assert list(table["holds"]) == [False, None, None, None, None]
    assert (run_list(runs)["state"] == "waiting").all()


def test_the_settings_are_compared_with_the_papers(fake_study):
    table = settings_table(fake_study)
    assert table.loc["image size, pixels per side"].tolist() == [512, fake_study.images.size, "yes"]
    assert table.loc["dropout", "differs"] == ""
    augmentation = table[table.index.str.startswith("augmentation")]
    assert list(augmentation["paper"]) == ["±10°", "±5 %", "±5 %", 0.5] and (augmentation["differs"] == "").all()
    assert table.loc["drop path of the last state space block"].tolist() == ["not stated", "none", ""], (
        "an open setting cannot differ"
    )
    assert table.loc["learning rate, VSSM (Shared)", "paper"] == 1e-5
    assert table.loc["trainings of a system", "this study"] == "1"


def test_the_settings_of_one_run_are_compared_with_the_papers(fake_study):
    table = settings_table(fake_study.run("vssm_shared", "multi", "1v5", 0))
    assert table.loc["image size, pixels per side"].tolist() == [512, fake_study.images.size, "yes"]
    assert [name for name in table.index if name.startswith("learning rate")] == ["learning rate, VSSM (Shared)"]
    assert "trainings of a system" not in table.index
    initial = {"initial weights of the ResNets"} & {*table.index}
    assert initial, "patches pretrain the VSSM, too"
    for weights, system, shown in (("imagenet", "resnet18", True), ("imagenet", "vssm_shared", False)):
        variant = fake_study.run(system, "multi", "1v5", 0, variant=[f"model.weights={weights}", "model.width=1"])
        assert (initial <= {*settings_table(variant).index}) == shown
    turned = fake_study.run("resnet18", "multi", "1v5", 0, variant=["training.augmentation={rotation: 15}"])
    assert settings_table(turned).loc["augmentation: rotation"].tolist() == ["±10°", "±15°", "yes"]


def test_the_search_for_the_number_of_blocks(fake_study):
    """Runs with another number of blocks are in a table of their own, and in no other."""
    for seed in (0, 1):
        write_run(fake_study.run("hybrid_shared", "multi", "1v5", seed))
        for blocks in (1, 3):
            write_run(fake_study.run("hybrid_shared", "multi", "1v5", seed, blocks), strength=blocks)
    write_run(fake_study.run("resnet18", "multi", "1v5", 0))
    write_run(fake_study.run("vssm_shared", "multi", "1v5", 0))
    runs = read_runs(fake_study)
    assert {run.spec.blocks for run in runs if run.finished} == {0, 1, 3}, "found in the folder too"
    found = blocks_table(runs, fake_study)
    assert list(found.columns) == BLOCK_COLUMNS and set(found["system"]) == {"hybrid_shared"}
    rows = found[found["task"] == "diagnosis"].set_index("blocks")
    assert rows.index.tolist() == [2, 1, 3] and rows["searched"].tolist() == [False, True, True]
    assert (rows["low"] < rows["value"]).all() and (rows["value"] < rows["high"]).all()
    assert rows.at[3, "value"] > rows.at[1, "value"] and (rows["n_seeds"] == 2).all() and (rows["sd_seeds"] > 0).all()
    plain = results_table(runs, fake_study).query(
        "system == 'hybrid_shared' and side == 'both' and task == 'diagnosis'"
    )
    assert plain.query("metric == 'auc'")["value"].item() == rows.at[2, "value"] and (plain["n_seeds"] == 2).all()
    assert blocks_table([run for run in runs if not run.spec.blocks], fake_study).empty
    assert blocks_table([], fake_study).empty


def test_a_variant_is_compared_with_its_run_alone(fake_study):
    for seed in (0, 1):
        write_run(fake_study.run("resnet18", "multi", "1v5", seed), strength=0.5)
    write_run(fake_study.run("resnet18", "multi", "1v5", 1, variant=["model.fusion=mean"]), strength=3.0)
    write_run(fake_study.run("resnet50", "multi", "1v5", 1, variant=["model.fusion=mean"]))  # its run is not trained
    table = compare_variants(read_runs(fake_study), fake_study)
    assert list(table["run"]) == ["resnet18-multi-1v5-seed1"] * 2 and set(table["variant"]) == {"model.fusion=mean"}
    assert (table["answer"] == "told apart: variant better").all() and (table["low"] > 0).all()
    assert compare_variants([], fake_study).empty
