"""The reading room without a browser: what it lists, what it shows of an exam, and what it answers."""

import json
import shutil
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mammo_utils.evaluation.runs import read_runs, read_views
from mammo_utils.evaluation.view_ablation import stored_prediction
from mammo_utils.io import read_json
from mammo_utils.plots.style import write_signed
from mammo_utils.reading_room import ReadingRoom, draw_room, open_room
from mammo_utils.reading_room.exams import FINDINGS, ORDERS, choose, exam_predictions, first_exam
from mammo_utils.training.run import train_run
from mammo_utils.training.saliency import METHODS
from mammo_utils.training.views import VIEW_SUBSETS, shown_views
from mammo_utils.vocabulary import SIDES, VIEWS
from tests.conftest import CHECKOUT, SMALL
from tests.evaluation.test_notebooks import run_notebook


@pytest.fixture(scope="module")
def spec(small_study, small_project):
    """A trained run that no other test trains."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAMMO_PROJECT", str(small_project))
        spec = small_study.run("resnet18", "multi", "1v5", 707)
        train_run(spec)
        yield spec
        shutil.rmtree(spec.folder)


@pytest.fixture(scope="module")
def room(spec, small_study):
    return open_room(read_runs(small_study), spec.id, "synthetic cohort")


@pytest.fixture(scope="module")
def table(room):
    return room.table()


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def complete_exam(room):
    return room.exams.names[int(np.flatnonzero(room.exams.present.all(1).numpy())[0])]


def one_sided_exam(room):
    return room.exams.names[int(np.flatnonzero(room.exams.present.sum(1).numpy() == 2)[0])]


def test_each_subset_has_exactly_the_stored_prediction(room, spec):
    run, views = room.runs[0], read_views(room.runs[0])
    for exam in (complete_exam(room), one_sided_exam(room)):
        found = room.payload(exam)["runs"][spec.id]
        present = sum(1 << i for i, there in enumerate(room.exams.present[room.exams.names.index(exam)]) if there)
        assert {int(subset) for subset in found} == {subset for subset in VIEW_SUBSETS if not subset & ~present}
        for subset, values in found.items():
            stored = stored_prediction(run, views, exam, shown_views(int(subset)).tolist())
            assert values["tasks"] == {task: p.tolist() for task, p in stored.probabilities.items()}
            assert values["weights"] == stored.weights.tolist()
            assert values["shares"] == stored.contributions.tolist()


def test_contributions_that_no_view_has_are_none_and_valid_json(room):
    run = room.runs[0]
    rows = room.views[run.id][complete_exam(room)]
    found = exam_predictions(run, rows.drop(columns=[name for name in rows if "_from_" in name]))
    assert found["15"]["shares"] == [[None] * 4] * 2
    json.dumps(found, allow_nan=False)


def test_the_list_has_the_truth_and_the_worst_exams_first(room, table):
    predictions = room.runs[0].predictions
    rows = predictions[(predictions["part"] == room.runs[0].reported) & (predictions["diagnosis"] >= 0)]
    error = (rows["diagnosis"] - rows["diagnosis_p"]).abs().groupby(rows["exam"]).max()
    listed = choose(table, {})
    assert sorted(listed["exam"]) == sorted(room.exams.names)
    assert listed["error"].dropna().to_numpy() == pytest.approx(error[listed["exam"]].dropna(), abs=1e-6)
    assert listed["wrong"].tolist() == sorted(listed["wrong"], reverse=True)
    for _, group in listed.groupby("wrong"):
        assert group["error"].dropna().is_monotonic_decreasing
    assert choose(table, {"order": "by name"})["exam"].is_monotonic_increasing
    assert choose(table, {"order": "heat maps first"})["mapped"].is_monotonic_decreasing
    assert set(ORDERS) == set(room.options()["order"])


def test_filters_keep_the_exams_that_they_name_and_can_be_combined(room, table):
    facts = room.facts.loc[list(room.exams.names)]

    def expected(test):
        return sorted(name for name, exam in facts.iterrows() if test(exam))

    def kept(**filters):
        return sorted(choose(table, filters)["exam"])

    assert kept(label="malignant") == expected(lambda e: "malignant" in (e["L_class"], e["R_class"]))
    assert kept(label="BI-RADS 5") == expected(lambda e: 5 in (e["L_birads"], e["R_birads"]))
    assert kept(density="scattered") == expected(lambda e: "scattered" in (e["L_density"], e["R_density"]))
    assert kept(views="4") == expected(lambda e: e[list(VIEWS)].all())
    assert sum(len(kept(finding=side)) for side in FINDINGS) == len(table)
    left = set(kept(finding="left"))
    assert left and all(facts.loc[e, "L_diagnosis"] == 1 or facts.loc[e, "L_lesions"] for e in left)
    both = kept(label="malignant", views="4")
    assert both == sorted(set(kept(label="malignant")) & set(kept(views="4")))
    assert kept(label="", density="") == sorted(table["exam"])
    assert kept(density="fatty", label="BI-RADS 4") == [], "no exam, and no error"


def test_it_opens_on_an_exam_with_four_views_and_a_lesion(table):
    rows = [("a", 4, False, False), ("b", 2, True, True), ("c", 4, True, False), ("d", 4, True, True)]
    made_up = pd.DataFrame(rows, columns=["exam", "n_views", "outlined", "mapped"])
    assert first_exam(made_up) == "d" and first_exam(made_up[:3]) == "c" and first_exam(made_up[:2]) == "a"
    assert first_exam(table) in set(table["exam"])


def test_a_missing_view_has_no_image_and_its_breast_no_label(room):
    name = one_sided_exam(room)
    found, present = room.payload(name), room.exams.present[room.exams.names.index(name)].tolist()
    assert [view["image"] is not None for view in found["views"]] == present
    absent = SIDES[0 if not present[0] else 1]
    assert found["labels"][SIDES.index(absent)] == "no label"
    assert all(not view["outlines"] for view, there in zip(found["views"], present, strict=True) if not there)


def test_images_are_those_of_the_store_with_the_proportions_of_the_original(room):
    name = complete_exam(room)
    view, row = room.payload(name)["views"][2], int(room.exams.rows[room.exams.names.index(name), 2])
    assert np.array_equal(np.frombuffer(view["image"], np.uint8).reshape(32, 32), room.exams.images[row].numpy())
    assert view["aspect"] == pytest.approx(80 / 96), "of the release's images, which the store has stretched"


def test_outlines_lie_in_the_picture_and_exams_without_a_lesion_have_none(room, table):
    outlined = table[table["outlined"]]["exam"]
    for name in outlined:
        points = [p for view in room.payload(name)["views"] for line in view["outlines"] for p in line["points"]]
        assert points and np.all((np.array(points) > -0.05) & (np.array(points) < 1.05))
    for name in table[~table["outlined"]]["exam"]:
        assert not any(view["outlines"] for view in room.payload(name)["views"])


def test_maps_are_those_of_the_run_where_it_has_any(room, table, spec):
    maps = room.maps[spec.id]
    found = room.payload(maps.exams[0])["maps"][spec.id][str(VIEWS.index(maps.views[0]))]
    assert list(found) == list(METHODS)
    for method, values in found.items():
        stored = np.maximum(maps.maps[method][0], 0)
        assert (values["rows"], values["columns"]) == stored.shape
        drawn = np.frombuffer(values["values"], np.uint8).reshape(stored.shape) / 255
        assert drawn == pytest.approx(stored / (stored.max() or 1), abs=0.5 / 255 + 1e-6)
    without = table[~table["mapped"]]["exam"].iloc[0]
    assert room.payload(without)["maps"] == {}
    bare = replace(room, maps={})
    assert not bare.table()["mapped"].any() and bare.payload(maps.exams[0])["maps"] == {}


def test_a_run_without_the_exam_predicts_nothing_for_it(room):
    name, other = complete_exam(room), replace(room.runs[0], spec=room.runs[0].spec.model_copy(update={"seed": 8}))
    both = replace(room, runs=[room.runs[0], other], views=dict(room.views) | {other.id: {}})
    assert list(both.payload(name)["runs"]) == [room.runs[0].id]
    assert [run["title"] for run in both.about()["runs"]] == ["ResNet-18, seed 707", "ResNet-18, seed 8"]


def test_the_widget_answers_each_request_with_its_number(room):
    widget = ReadingRoom(room)
    assert widget.answer["exam"] == first_exam(room.table()) and widget.answer["number"] == 0
    assert len(widget.listed) == len(room.exams) == widget.about["exams"]
    name = one_sided_exam(room)
    widget.request = {"number": 7, "filters": {"views": "2"}, "exam": name}
    assert (widget.answer["exam"], widget.answer["number"], widget.answer["error"]) == (name, 7, "")
    assert len(widget.listed) == int((room.exams.present.sum(1) == 2).sum())
    widget.request = {"number": 8, "filters": {}, "exam": "nobody"}
    assert widget.answer["exam"] == name and widget.answer["number"] == 8, "the exam before it stays"
    assert "'nobody' is not in the list" in widget.answer["error"]
    assert widget.about["note"] == "synthetic cohort"
    json.dumps([widget.about, widget.listed, widget.answer["runs"]], allow_nan=False)


def test_the_twin_gives_no_probability_for_a_breast_without_an_image(room):
    about = room.about()
    found = room.payload(one_sided_exam(room))
    figure = draw_room(found, about, "x")
    notes = [[text.get_text() for text in axis.texts] for sub in figure.subfigs for axis in sub.axes]
    assert sum("no image" in note for view in notes[:4] for note in view) == 2
    assert sorted(len(axis.patches) for axis in figure.subfigs[1].axes) == [0, len(about["runs"])]
    assert ["no image,\nno prediction"] in notes
    found = room.payload(complete_exam(room))
    figure = draw_room(found, about, "x")
    assert all(len(axis.patches) == len(about["runs"]) for axis in figure.subfigs[1].axes)
    shares = found["runs"][about["runs"][0]["id"]]["15"]["shares"]
    for axis, name in zip(figure.subfigs[0].axes, ("R_CC", "L_CC", "R_MLO", "L_MLO"), strict=True):
        left, right = (of[VIEWS.index(name)] for of in shares)
        given = f"\nleft {write_signed(left)}, right {write_signed(right)}"
        assert axis.texts[0].get_text().endswith(given), "what the view contributes"
        assert (axis.get_xlim() == (1, 0)) == name.startswith("R"), "the chest walls meet in the middle"


def test_notebook_09_runs_to_its_end_with_and_without_images(spec, small_study, in_small_project, capsys):
    shutil.copytree(CHECKOUT / "notebooks", in_small_project / "notebooks", dirs_exist_ok=True)
    parameters = {"study": "config/paper.yaml", "settings": [*SMALL], "run": spec.id}
    plt.switch_backend("Agg")
    shutil.rmtree(small_study.folder / "figures", ignore_errors=True)  # of other tests
    run_notebook("09_reading_room", **parameters)
    (entry,) = read_json(small_study.folder / "figures" / "manifest.json")
    assert entry["figure"] == "reading-room.png" and entry["synthetic"] and spec.id in entry["runs"]
    shutil.rmtree(small_study.folder / "figures")
    (small_study.folder / "store").rename(small_study.folder / "away")
    try:
        run_notebook("09_reading_room", **parameters)
    finally:
        (small_study.folder / "away").rename(small_study.folder / "store")
    printed = capsys.readouterr().out
    assert "Without images there is no reading room." in printed and "holds no finished image store" in printed
    assert not (small_study.folder / "figures").exists()
