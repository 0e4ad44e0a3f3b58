"""Run folders read back: finished, failed, half done, broken, stale."""

import numpy as np

from mammo_utils.config import Grid
from mammo_utils.evaluation.runs import categories, group_by_seed, labelled_breasts, probabilities, read_runs, sample
from mammo_utils.metrics import rank_scores
from mammo_utils.study import load_study
from tests.evaluation.fakes import write_run


def by_id(study, **more):
    return {run.id: run for run in read_runs(study, **more)}


def test_a_study_without_runs_lists_its_grid_as_waiting(fake_study):
    runs = read_runs(fake_study)
    assert len(runs) == 6 and {run.state for run in runs} == {"waiting"}
    assert group_by_seed(runs) == {}


def test_a_run_of_other_settings_code_or_data_is_stale_with_its_reason(fake_study):
    one, two, three, four, five, six = fake_study.runs()
    write_run(one, training={**one.training.model_dump(mode="json"), "epochs": 99})
    write_run(two, code="0" * 64)
    write_run(three, data_hash="other")
    others = {**four.training.model_dump(mode="json")}
    others["learning_rate"] = {**others["learning_rate"], "resnet18": 0.5}  # not this run's
    write_run(four, training=others)
    write_run(five, data={**five.data.model_dump(mode="json"), "folder": "elsewhere"})
    older = six.data.model_dump(mode="json")
    del older["conflicts"]
    write_run(six, data=older)  # of a release that lacked this setting, whose default has not changed its meaning
    runs = by_id(fake_study, data_hashes={"1v5": "d"})
    reasons = {spec.id: runs[spec.id].status.reasons for spec in fake_study.runs()}
    assert reasons[one.id] == (f"training.epochs was 99; the study now has {one.training.epochs}.",)
    assert reasons[two.id] == ("The training code has changed since.",)
    assert reasons[three.id] == ("The study's data have changed since.",)
    assert reasons[four.id] == reasons[five.id] == reasons[six.id] == ()
    assert [runs[spec.id].stale for spec in fake_study.runs()] == [True, True, True, False, False, False]
    assert not by_id(fake_study)[three.id].stale, "without hashes the data are not compared"


def test_runs_outside_the_grid_are_found_and_marked(fake_study):
    write_run(fake_study.run("resnet18", "birads", "1to5", 3))
    (fake_study.folder / "runs" / "notes").mkdir()
    (fake_study.folder / "runs" / "lenet-multi-1v5-seed0").mkdir()
    extra = [run for run in read_runs(fake_study) if not run.in_grid]
    assert [run.id for run in extra] == ["resnet18-birads-1to5-seed3"] and extra[0].finished
    assert extra[0].tasks == ("birads",) and categories(extra[0], "birads") == (1, 2, 3, 4, 5)


def test_a_sample_has_the_reported_part_and_the_labelled_breasts(fake_study):
    spec = fake_study.run("hybrid_shared", "multi", "1v3v5", 0)
    write_run(spec)
    run = by_id(fake_study)[spec.id]
    table = run.predictions
    kept = table[(table["part"] == "test") & (table["birads"] > 0)].sort_values(["exam", "side"])
    found = sample([run], "birads")
    assert found.labels.tolist() == [(1, 3, 5).index(c) for c in kept["birads"]]
    np.testing.assert_array_equal(found.probabilities[0], kept[["birads_p1", "birads_p3", "birads_p5"]])
    sides = [len(labelled_breasts(run, "birads", side=side)) for side in ("L", "R")]
    assert sum(sides) == len(kept) and len(sample([run], "birads", side="L").labels) == sides[0]


def test_seeds_go_together_but_a_stale_one_does_not(fake_study):
    specs = [fake_study.run("resnet18", "multi", "1v5", seed) for seed in range(3)]
    write_run(specs[0])
    write_run(specs[1], seed=7)
    write_run(specs[2])
    ((key, seeds),) = group_by_seed(read_runs(fake_study)).items()
    assert key == ("1v5", "multi", "resnet18") and [run.spec.seed for run in seeds] == [0, 2]
    assert sample(seeds, "diagnosis").probabilities.shape == (2, 91, 2)


def test_variants_are_found_beside_their_run(fake_study):
    """Settings under the study's own name make variants, with folders of their own."""
    write_run(fake_study.run("resnet18", "multi", "1v5", 0))
    variant = load_study("config/demo.yaml", ["training.epochs=3", "model.missing=masked"])
    write_run(variant.run("resnet18", "multi", "1v5", 0))
    assert by_id(fake_study)["resnet18-multi-1v5-seed0-missing=masked-epochs=3"].state == "done"
    (key,) = group_by_seed(read_runs(fake_study)).items()
    assert [run.id for run in key[1]] == ["resnet18-multi-1v5-seed0"], "not averaged with the run itself"
    assert [run.spec.training.epochs for run in read_runs(fake_study) if run.finished] == [
        fake_study.training.epochs,
        3,
    ]


def test_folds_are_pooled_once_all_of_a_seed_are_finished(fake_study, monkeypatch):
    split = fake_study.split.model_copy(update={"kind": "kfold", "folds": 2})
    grid = Grid(systems=("resnet18",), task_modes=("multi",), subsets=("1v5",), seeds=(0, 1), folds=(0, 1))
    study = fake_study.model_copy(update={"split": split, "grid": grid})
    names = [run.id for run in study.runs()]
    assert names[:2] == ["resnet18-multi-1v5-seed0-fold0", "resnet18-multi-1v5-seed0-fold1"] and len(names) == 4
    for run in study.runs()[:3]:
        write_run(run)
    runs = read_runs(study, {"1v5 fold 0": "d", "1v5 fold 1": "of other data"})
    assert [run.state for run in runs] == ["done", "stale", "done", "waiting"], "each fold has data of its own"
    ((_, seeds),) = group_by_seed(read_runs(study)).items()
    assert [[fold.id for fold in run.folds] for run in seeds] == [names[:2]], "seed 1 lacks a fold"
    one = labelled_breasts(runs[0], "diagnosis")
    assert len(labelled_breasts(seeds[0], "diagnosis")) == 2 * len(one) > 0
    assert set(seeds[0].predictions["part"]) == {"test"}
    assert [run.id for run in read_runs(fake_study) if run.finished] == names[:3], "found without the grid, too"


def test_probabilities_come_from_the_logits_if_a_run_has_them(fake_study):
    spec = fake_study.runs()[0]
    write_run(spec)
    run = next(found for found in read_runs(fake_study) if found.id == spec.id)
    table = labelled_breasts(run, "diagnosis")
    odds = np.linspace(-200, 200, len(table))
    with_logits = table.assign(diagnosis_logit_0=0.0, diagnosis_logit_1=odds)
    found = probabilities(with_logits, "diagnosis", (0, 1))
    assert (np.diff(rank_scores(found, 1)) > 0).all(), "no ties, in the order of the logits"
    np.testing.assert_array_equal(probabilities(table, "diagnosis", (0, 1))[:, 1], table["diagnosis_p"])
