"""Curves, confusion matrices and comparisons: drawn from predictions, checked where the answer is known."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgba

from mammo_utils.evaluation.bootstrap import Sample
from mammo_utils.evaluation.comparisons import compare_systems
from mammo_utils.evaluation.runs import read_runs
from mammo_utils.evaluation.tables import blocks_table, results_table
from mammo_utils.metrics import auc
from mammo_utils.plots import results as draw
from mammo_utils.plots.style import COLOURS
from mammo_utils.vocabulary import SYSTEMS, SystemEntry
from tests.evaluation.fakes import write_run
from tests.test_metrics import answers


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.mark.parametrize("k", [2, 4])
def test_the_area_under_the_drawn_curve_is_the_auc(k):
    labels, p = answers(300, k)
    (curve,) = draw.roc_curve(Sample(labels, p[None], np.arange(300)), np.ones((1, 300)))
    assert curve[0] == 0 and curve[-1] == 1 and (np.diff(curve) >= 0).all()
    assert np.trapezoid(curve, draw.GRID) == pytest.approx(auc(labels, p), abs=0.01)


def test_the_band_of_a_curve_is_of_the_studys_seed():
    labels, p = answers(60, 2)
    found = Sample(labels, p[None], np.arange(60))

    def band(seed):
        figure = draw.draw_roc({"resnet18": found}, {"resnet18": "0.7"}, "one", resamples=20, seed=seed)
        return figure.axes[0].collections[0].get_paths()[0].vertices

    assert np.array_equal(band(3), band(3)) and not np.array_equal(band(3), band(4))


def test_a_resample_without_a_class_has_no_curve():
    labels, p = np.array([0, 1]), np.eye(2)
    curves = draw.roc_curve(Sample(labels, p[None], np.arange(2)), np.array([[1.0, 1], [2, 0]]))
    assert np.isfinite(curves[0]).all() and np.isnan(curves[1]).all()


def test_confusion_counts_breasts_by_label_and_predicted_class():
    labels = np.array([0, 0, 0, 1])
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]])
    answers = Sample(labels, np.stack([p, 1 - p]), np.arange(4))
    assert draw.confusion(Sample(labels, p[None], np.arange(4))).tolist() == [[2, 1], [0, 1]]
    assert draw.confusion(answers).tolist() == [[1.5, 1.5], [0.5, 0.5]]


def test_every_figure_is_drawn_from_any_subset_of_runs(fake_study):
    write_run(fake_study.run("hybrid_shared", "multi", "1v3v5", 0))
    write_run(fake_study.run("resnet18", "birads", "1v3v5", 0))
    runs = [run for run in read_runs(fake_study) if run.finished]
    table = results_table(runs, fake_study).query("metric == 'auc' and side == 'both'")
    samples = {"resnet18": Sample(*_three_classes())}
    roc = draw.draw_roc(samples, {"resnet18": "0.7"}, "one", resamples=20, seed=0)
    assert len(roc.axes) == 1
    assert len(draw.draw_confusions(samples, ["1", "3", "5"], "one").axes) == 1
    assert len(draw.draw_training(runs, "two").axes) == 3
    assert len(draw.draw_systems(table, pd.DataFrame(), "made up", paper=True).axes) == 2
    paired = compare_systems(runs, fake_study)
    assert paired.empty, "the reference of the single-task run was not run"


def test_seeds_and_numbers_of_blocks_are_drawn_with_their_spread(fake_study):
    for seed in (0, 1):
        for blocks in (0, 1, 4):
            write_run(fake_study.run("hybrid_shared", "multi", "1v5", seed, blocks))
    runs = read_runs(fake_study)
    table = results_table(runs, fake_study).query("metric == 'auc' and side == 'both'")
    figure = draw.draw_systems(table, pd.DataFrame(), "made up", paper=True)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "± 1 standard deviation over 2 trainings" in texts
    row = table[table["task"] == "diagnosis"].iloc[0]
    (band,) = (lines for lines in figure.axes[0].collections if np.ravel(lines.get_linewidths()).tolist() == [6])
    ends = row["value"] + row["sd_seeds"] * np.array([-1, 1])
    np.testing.assert_allclose(band.get_segments()[0][:, 0], ends)
    blocks = draw.draw_blocks(blocks_table(runs, fake_study), "made up")
    assert _titles(blocks) == ["Diagnosis, trained on both tasks", "BI-RADS, trained on both tasks"]
    assert blocks.axes[0].get_xlabel() == "blocks"
    assert blocks.axes[0].lines[0].get_xdata().tolist() == [1, 2, 4]


def test_training_shows_every_epoch_and_marks_the_kept_one(fake_study):
    for mode in ("multi", "birads"):
        write_run(fake_study.run("resnet18", mode, "1v5", 0))
    runs = [run for run in read_runs(fake_study) if run.finished]
    figure = draw.draw_training(runs, "two")
    names = ["training loss (Eq. 11)", "Diagnosis, validation AUC", "BI-RADS, validation AUC"]
    assert [axis.get_ylabel() for axis in figure.axes] == names
    columns = {"loss": 2, "validation_diagnosis_auc": 1, "validation_birads_auc": 2}  # and the runs that have them
    for axis, (column, n) in zip(figure.axes, columns.items(), strict=True):
        lines = [line for line in axis.lines if line.get_color() == SYSTEMS["resnet18"].colour]
        lines = [line for line in lines if len(line.get_xdata())]
        assert len(lines) == n
        for line in lines:
            np.testing.assert_array_equal(line.get_ydata(), runs[0].epochs.get(column, runs[-1].epochs.get(column)))
        (dots,) = axis.collections
        kept = dots.get_offsets()[~np.isnan(np.asarray(dots.get_offsets())).any(1)]
        assert kept[:, 0].tolist() == [3] * n, "the kept epoch"
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    lowest = min(axis.get_tightbbox().y0 for axis in figure.axes)
    assert box.y1 <= lowest and box.x1 <= figure.bbox.x1, "below, clear of the mark at the right edge"
    rows = runs[0].epochs.to_dict("records")
    assert draw.draw_curves(rows, "one").axes[0].get_ylabel() == names[0]


def test_a_batch_shows_its_views_as_stored_and_as_augmented():
    stored = torch.ones(4, 3, 8, 8)
    stored[2] = 0
    figure = draw.draw_batch(stored, stored / 2, "one exam")
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0] == "L-CC, stored" and titles[6] == "R-CC, augmented (absent)" and len(titles) == 8
    greys = [float(axis.images[0].get_array().max()) for axis in figure.axes]
    assert greys[0] > greys[4] and greys[2] == greys[6] == 1


def test_a_system_added_to_the_registry_alone_is_in_every_figure(fake_study, monkeypatch):
    monkeypatch.setitem(SYSTEMS, "lenet", SystemEntry("LeNet", "#123456", "resnet18", 1, 1e-4, "Is it better?"))
    spec = fake_study.run("hybrid_shared", "multi", "1v5", 0)
    write_run(spec)
    lenet = spec.model_copy(update={"system": "lenet"})
    runs = [replace(run, spec=lenet) for run in read_runs(fake_study) if run.finished]
    samples = {"lenet": Sample(*_three_classes())}
    colour = to_rgba("#123456")

    assert _titles(draw.draw_roc(samples, {"lenet": "0.7"}, "one", resamples=20, seed=0)) == ["LeNet"]
    assert _titles(draw.draw_confusions(samples, ["1", "3", "5"], "one")) == ["LeNet"]
    training = draw.draw_training(runs, "one")
    assert "LeNet" in [text.get_text() for text in training.legends[0].get_texts()]
    assert all(axis.lines[0].get_color() == "#123456" for axis in training.axes)

    row = {"task": "diagnosis", "task_mode": "multi", "system": "lenet", "value": 0.7, "low": 0.6, "high": 0.8}
    row |= {
        "sd_seeds": np.nan,
        "n_seeds": 1,
        "paper": np.nan,
        "blocks": 2,
        "difference": 0.1,
        "reference": "hybrid_shared multi",
    }
    table = pd.DataFrame([row])
    against = draw.draw_systems(table, pd.DataFrame(), "made up", paper=True).axes[0]
    (heights,) = (points.get_offsets()[:, 1] for points in against.collections if _has_colour(points, colour))
    assert against.get_yticklabels()[int(heights[0])].get_text() == "LeNet, both tasks"
    blocks = draw.draw_blocks(table, "one")
    assert [text.get_text() for text in blocks.legends[0].get_texts()] == ["LeNet"]
    compared = draw.draw_comparisons(table.assign(low=0.0, high=0.2), "one").axes[0]
    assert any(_has_colour(points, colour) for points in compared.collections)
    assert [label.get_text() for label in compared.get_yticklabels()] == ["LeNet"]


def test_a_comparison_names_its_reference_only_where_it_is_another():
    row = {
        "task": "diagnosis",
        "task_mode": "diagnosis",
        "system": "resnet18",
        "difference": 0.1,
        "low": 0,
        "high": 0.2,
    }
    rows = [row | {"reference": name} for name in ("hybrid_shared diagnosis", "resnet18 multi", "hybrid_shared multi")]
    axis = draw.draw_comparisons(pd.DataFrame(rows), "one").axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "ResNet-18",
        "ResNet-18, diagnosis alone\nminus both tasks",
        "ResNet-18, diagnosis alone\nminus Hybrid (Shared), both tasks",
    ]


def test_shortcuts_are_drawn_grey_below_the_systems():
    row = {"task": "diagnosis", "task_mode": "multi", "system": "resnet18", "value": 0.7, "low": 0.6, "high": 0.8}
    row |= {"sd_seeds": np.nan, "n_seeds": 1, "paper": 0.9}
    shortcut = {"task": "diagnosis", "baseline": "brightness", "value": 0.55, "low": 0.5, "high": 0.6}
    axis = draw.draw_systems(pd.DataFrame([row]), pd.DataFrame([shortcut]), "made up", paper=True).axes[0]
    (grey,) = (points for points in axis.collections if _has_colour(points, to_rgba(COLOURS["baseline"])))
    assert grey.get_offsets().tolist() == [[0.55, 1]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["ResNet-18, both tasks", "brightness"]
    constant = shortcut | {"value": 0.5, "low": np.nan, "high": np.nan}
    axis = draw.draw_systems(pd.DataFrame([row]), pd.DataFrame([constant]), "made up", paper=True).axes[0]
    bars = [lines for lines in axis.collections if isinstance(lines, LineCollection)]
    drawn = [part for lines in bars for part in lines.get_segments() if len(part)]
    assert [part[0, 1] for part in drawn if np.isfinite(part).all()].count(1) == 0, "a point, and no bar"


def test_the_papers_values_are_drawn_only_on_request():
    row = {"task": "diagnosis", "task_mode": "multi", "system": "resnet18", "value": 0.7, "low": 0.6, "high": 0.8}
    table = pd.DataFrame([row | {"sd_seeds": np.nan, "n_seeds": 1, "paper": 0.9}])
    for paper in (True, False):
        points = draw.draw_systems(table, pd.DataFrame(), "one", paper=paper).axes[0].collections
        assert ([0.9, -0.25] in [p for c in points for p in c.get_offsets().tolist()]) == paper


def _has_colour(points, colour) -> bool:
    return isinstance(points, PathCollection) and any(tuple(face) == colour for face in points.get_facecolor())


def _titles(figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes]


def _three_classes():
    labels, p = answers(40, 3)
    return labels, p[None], np.arange(40)
