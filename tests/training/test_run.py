"""Runs through the entry point that the notebooks use, at small size."""

import multiprocessing
import os
import shutil
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mammo_utils.config import ParameterError
from mammo_utils.data.cohort import DataError
from mammo_utils.data.split import Split, load_split
from mammo_utils.images.store import load_store
from mammo_utils.prepared import check_found
from mammo_utils.study import load_study
from mammo_utils.training import run as runs
from mammo_utils.training.predict import predict, prediction_table
from tests.conftest import SMALL, prepare
from tests.kill import kill

ALL = [run.id for run in load_study("config/paper.yaml").runs()]
SOME = [run for run in ALL if run.startswith("hybrid_shared-") or "-multi-1v5-" in run]  # the others take minutes


@pytest.fixture(autouse=True)
def _project(in_small_project):
    return in_small_project


def spec_of(study, run_id, **training):
    spec = next(run for run in study.runs() if run.id == run_id)
    return spec.model_copy(update={"training": spec.training.model_copy(update=training)})


@pytest.mark.parametrize("run_id", [run if run in SOME else pytest.param(run, marks=pytest.mark.slow) for run in ALL])
def test_each_of_the_54_runs_trains_saves_reloads_and_predicts_the_same(small_study, run_id):
    spec = spec_of(small_study, run_id)
    metrics = runs.train_run(spec)
    loaded, model = runs.load_run(spec.folder)
    assert loaded == spec
    saved = pd.read_parquet(spec.folder / "predictions.parquet")
    data = runs.load_data(spec)
    tables = [
        prediction_table(exams, part, *predict(model, exams, spec.training))
        for part, exams in data.parts.items()
        if part != "train"
    ]
    pd.testing.assert_frame_equal(saved, pd.concat(tables, ignore_index=True), atol=1e-6)  # logits may be near 0
    tasks = {"multi": {"diagnosis", "birads"}}.get(spec.task_mode, {spec.task_mode})
    assert set(metrics["parts"]["test"]) == tasks == set(model.classes)
    first = runs.build(spec).state_dict()
    trained = load_file(spec.folder / "weights.safetensors")
    moved = [name for name, tensor in first.items() if not torch.equal(tensor, trained[name])]
    assert len(moved) > 0.9 * len(first), "a step changes the weights"
    shutil.rmtree(spec.folder, ignore_errors=True)


def test_a_finished_run_is_neither_trained_again_nor_replaced(small_study):
    spec = spec_of(small_study, "resnet18-multi-1v5-seed0")
    runs.train_run(spec)
    before = {file.name: file.stat().st_mtime_ns for file in spec.folder.iterdir()}
    seen = []
    runs.train_run(spec, seen.append)
    assert not seen and all((spec.folder / n).stat().st_mtime_ns == t for n, t in before.items() if n != ".lock")
    with pytest.raises(ParameterError, match=r"holds a finished run with other settings. training.epochs was 1;"):
        runs.train_run(spec_of(small_study, spec.id, epochs=2), seen.append)
    assert not seen and (spec.folder / "metrics.json").stat().st_mtime_ns == before["metrics.json"]
    variant = load_study("config/paper.yaml", SMALL).run("resnet18", "multi", "1v5", 0, variant=["training.epochs=2"])
    runs.train_run(variant, seen.append)
    assert [row["epoch"] for row in seen] == [1, 2] and variant.folder.name == f"{spec.id}-epochs=2"
    shutil.rmtree(variant.folder)


@pytest.mark.parametrize(
    ("setting", "then", "now"),
    [
        ("images.size=48", 32, 48),
        ("images.resize=crop", "stretch", "crop"),
        ("split.seed=9", 0, 9),
        ("split.kind=paper", "nested", "paper"),
        ("data.cohort=complete", "usable", "complete"),
        ("data.conflicts=keep", "exclude", "keep"),
        ("data.corrections=false", True, False),
        ("data.source=vindr", "synthetic", "vindr"),
        ("data.synthetic.seed=4", 3, 4),
    ],
)
def test_a_run_is_not_trained_on_data_of_other_settings(small_study, setting, then, now):
    spec = load_study("config/paper.yaml", [*SMALL, setting]).run("resnet18", "multi", "1v5", 0)
    name = setting.partition("=")[0]
    with pytest.raises(DataError, match=rf"was prepared with {name} = {then!r}, but the run has {now!r}; run notebook"):
        runs.load_data(spec)


def test_images_and_split_must_be_those_that_were_recorded(small_study):
    spec = small_study.run("resnet18", "multi", "1v5", 0)
    path = small_study.folder / "split.json"
    good = path.read_bytes()
    split = load_split(path)
    try:
        Split(split.kind, split.seed, split.part.replace("validation", "test"), split.groups).save(path)
        with pytest.raises(DataError, match="are not those that notebook 02 wrote last; run"):
            runs.load_data(spec)
    finally:
        path.write_bytes(good)


def killed(spec, epoch):
    def on_epoch(row):
        if row["epoch"] == epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    runs.train_run(spec, on_epoch)


def without_times(metrics):
    """epochs.csv holds seconds, environment.json the date."""
    return {name: value for name, value in metrics.items() if name not in ("seconds", "files")}


@pytest.mark.parametrize("system", ["resnet18", "hybrid_view_specific"])
def test_a_killed_run_ends_as_an_undisturbed_one(small_study, system):
    spec = spec_of(small_study, f"{system}-multi-1v3v5-seed0", epochs=3)
    metrics = runs.train_run(spec)
    weights = load_file(spec.folder / "weights.safetensors")
    predictions = pd.read_parquet(spec.folder / "predictions.parquet")
    shutil.rmtree(spec.folder, ignore_errors=True)
    process = multiprocessing.get_context("spawn").Process(target=killed, args=(spec, 1))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (spec.folder / "metrics.json").exists()
    seen = []
    again = runs.train_run(spec, seen.append)
    assert [row["epoch"] for row in seen] == [2, 3]
    assert without_times(again) == without_times(metrics)
    pd.testing.assert_frame_equal(pd.read_parquet(spec.folder / "predictions.parquet"), predictions, check_exact=True)
    for name, tensor in load_file(spec.folder / "weights.safetensors").items():
        assert torch.equal(tensor, weights[name]), name


def test_what_was_begun_on_another_device_or_by_another_torch_is_begun_anew(small_study, monkeypatch):
    spec = spec_of(small_study, "resnet18-multi-1v5-seed0", epochs=2)

    def epochs_until(stop):
        seen = []

        def on_epoch(row):
            seen.append(row["epoch"])
            if row["epoch"] == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) if stop else nullcontext():
            runs.train_run(spec, on_epoch)
        return seen

    shutil.rmtree(spec.folder, ignore_errors=True)
    assert epochs_until(1) == [1]
    monkeypatch.setattr(runs, "device_name", lambda device: "another")
    assert epochs_until(1) == [1]
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert epochs_until(1) == [1]
    assert epochs_until(0) == [2], "the same goes on"
    shutil.rmtree(spec.folder, ignore_errors=True)


def test_killed_at_random_moments_it_ends_the_same(small_study):
    lines = kill(spec_of(small_study, "hybrid_shared-multi-1v5-seed0", epochs=4), times=3, seed=1)
    assert sum("SIGKILL" in line for line in lines) == 3 and lines[-1].endswith("equal to the last bit")


def test_a_study_without_its_store_says_which_notebook_to_run(small_study):
    spec = spec_of(small_study, "resnet18-multi-1v5-seed0").model_copy(update={"study": "elsewhere"})
    with pytest.raises(FileNotFoundError, match=r"cohort is missing; run notebook 02"):
        runs.train_run(spec)


def test_a_split_of_other_data_or_with_a_twin_in_two_parts_is_refused(small_study, monkeypatch):
    """Whatever groups its file claims: the store's pixels and the exam table decide."""
    spec = spec_of(small_study, "resnet18-multi-1v5-seed0")
    folder, path = small_study.folder, small_study.folder / "split.json"
    good, split = path.read_bytes(), load_split(path)
    first = split.part.index[split.part == "train"][0]
    other = split.part.index[split.part == "test"][0]
    store = load_store(folder / "store")
    twin = store.index.query("exam == @first").iloc[:1].assign(exam=other)[["exam", "view", "path", "sha256"]]
    try:
        shared = replace(store, unused=pd.concat([store.unused, twin]))
        monkeypatch.setattr(runs, "load_store", lambda _: shared)
        with pytest.raises(DataError, match="or its duplicate in two parts; run notebook 02"):
            runs.load_data(spec)
        monkeypatch.undo()
        monkeypatch.setenv("MAMMO_PROJECT", str(folder.parents[1]))
        Split(split.kind, split.seed, split.part.drop(first), split.groups.drop(first)).save(path)
        with pytest.raises(DataError, match=f"is of other data: it lacks {first}"):
            runs.load_data(spec)
    finally:
        path.write_bytes(good)
    runs.load_data(spec)


def test_a_gpu_that_is_not_there_is_said(small_study):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="torch sees no GPU here"):
        runs.pick_device(spec_of(small_study, "resnet18-multi-1v5-seed0", device="cuda").training)


def test_the_folds_of_a_study_test_every_patient_once(small_study):
    """One split.json serves all folds."""
    study = load_study("config/paper.yaml", [*SMALL, "name=folds", "split={kind: kfold, folds: 3, validation: 0.2}"])
    study = study.model_copy(update={"grid": study.grid.model_copy(update={"folds": (0, 1, 2)})})
    prepare(study)
    parts = [runs.load_data(study.run("resnet18", "multi", "1to5", 0, fold=k)).parts for k in (0, 1, 2)]
    tested = [name for part in parts for name in part["test"].names]
    everyone = {name for part in parts[0].values() for name in part.names}
    assert len(tested) == len(set(tested)) and set(tested) == everyone
    assert not any(set(part["test"].groups) & set(part["train"].groups) for part in parts)
    shutil.rmtree(study.folder)


def test_notebook_02_asks_for_the_reading_of_its_own_settings(small_study):
    check_found(small_study)
    other = small_study.model_copy(update={"data": small_study.data.model_copy(update={"cohort": "complete"})})
    with pytest.raises(
        DataError, match=r"read the data with data.cohort = 'usable', but the study has 'complete'; run"
    ):
        check_found(other)


def test_an_altered_cohort_is_noticed(small_study):
    file = small_study.folder / "cohort" / "excluded.csv"
    good = file.read_bytes()
    try:
        file.write_bytes(good + b"file,x,y\n")
        with pytest.raises(DataError, match="are not those that notebook 02 wrote last"):
            runs.load_data(small_study.run("resnet18", "multi", "1v5", 0))
    finally:
        file.write_bytes(good)


def test_training_ends_early_and_its_table_of_epochs_grows_with_it(small_study, monkeypatch):
    """The score is made to fall after epoch 2, and the run is interrupted after epoch 3."""
    from mammo_utils.training import loop

    spec = small_study.run("resnet18", "multi", "1v5", 47, variant=("training.early_stopping=2", "training.epochs=9"))
    scores = iter([0.6, 0.8, 0.7, 0.75, 0.9])
    monkeypatch.setattr(loop, "validation_scores", lambda *a, **k: {"diagnosis": next(scores)})
    table = spec.folder / "epochs.csv"

    def stop_at_three(row):
        assert pd.read_csv(table)["epoch"].tolist() == list(range(1, row["epoch"] + 1))
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.train_run(spec, stop_at_three)
    metrics = runs.train_run(spec, stop_at_three)
    assert metrics["epochs"] == 4 and metrics["best_epoch"] == 2
    assert pd.read_csv(table)["epoch"].tolist() == [1, 2, 3, 4]


def test_tensorboard_is_asked_for_where_it_is_missing(small_study, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    spec = small_study.run("resnet18", "multi", "1v5", 48, variant=("training.tensorboard=true",))
    with pytest.raises(ParameterError, match="pip install tensorboard"):
        runs.train_run(spec)
