"""Ordered categories where the answer is known."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from mammo_utils.evaluation.bootstrap import group_weights
from mammo_utils.evaluation.ordinal import ANSWERS, ordinal_metrics, ordinal_table
from mammo_utils.evaluation.runs import read_runs
from mammo_utils.plots.results import draw_ordinal
from tests.evaluation.fakes import write_run
from tests.test_metrics import answers

FIVE = (1, 2, 3, 4, 5)


def values(classes, labels, p, answer="argmax"):
    return {name: metric.value(labels, p) for name, metric in ordinal_metrics(classes, answer).items()}


@pytest.mark.parametrize("answer", ANSWERS)
def test_perfect_answers_and_answers_one_step_off(answer):
    labels = np.repeat(np.arange(5), 4)
    perfect = values(FIVE, labels, np.eye(5)[labels], answer)
    assert perfect == {"kappa": 1, "mae": 0, "exact": 1, "adjacent": 0, "off": 0, "rps": 0}
    low = labels[labels < 4]
    off = values(FIVE, low, np.eye(5)[low + 1], answer)
    assert (off["mae"], off["adjacent"], off["exact"], off["rps"]) == (1, 1, 0, 0.25)
    assert values((1, 3, 5), np.array([0, 1]), np.eye(3)[[1, 2]], answer)["mae"] == 2, "a step of 1v3v5 counts 2"


def test_the_median_is_between_two_likely_ends():
    p = np.array([[0.4, 0.15, 0.45], [0.5, 0.1, 0.4]])
    labels = np.array([1, 0])
    assert values((1, 3, 5), labels, p)["exact"] == 0.5 and values((1, 3, 5), labels, p, "median")["exact"] == 1


def test_weighted_metrics_equal_those_of_the_resampled_breasts():
    labels, p = answers(90, 5)
    weights = group_weights(np.repeat(np.arange(45), 2), 20, seed=1)
    for name, metric in ordinal_metrics(FIVE, "argmax").items():
        for found, counts in zip(metric.weighted(labels, p, weights), weights.astype(int), strict=True):
            drawn = np.repeat(np.arange(90), counts)
            assert found == pytest.approx(metric.value(labels[drawn], p[drawn])), name
    assert values(FIVE, labels, p)["kappa"] == pytest.approx(
        cohen_kappa_score(labels, p.argmax(1), weights="quadratic")
    )


def test_the_table_of_a_study(fake_study):
    write_run(fake_study.run("resnet18", "multi", "1v3v5", 0))
    write_run(fake_study.run("resnet18", "multi", "1v5", 0))
    write_run(fake_study.run("resnet50", "birads", "1to5", 0))  # no breast has BI-RADS 2, which needs no interval
    table = ordinal_table(read_runs(fake_study), fake_study)
    assert set(table["subset"]) == {"1v3v5", "1to5"} and len(table) == 2 * 2 * 6
    shares = table[table["metric"].isin(["exact", "adjacent", "off"])].groupby(["subset", "answer"])["value"].sum()
    assert shares.tolist() == pytest.approx([1] * 4)
    assert (table["low"] <= table["value"]).all() and set(table["method"]) == {"percentile bootstrap"}
    figure = draw_ordinal(table[table["subset"] == "1v3v5"], "made up")
    assert len(figure.axes) == 1 and len(figure.axes[0].patches) == 6
    plt.close("all")
    assert ordinal_table([], fake_study).empty
