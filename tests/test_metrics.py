"""AUC and macro F1: equal to scikit-learn's; where undefined, NaN with a reason."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from mammo_utils.metrics import auc, explain_undefined, f1_macro, softmax, weighted_auc


def answers(n, k, seed=0):
    """Random labels and probabilities of n breasts and k classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    probabilities = rng.dirichlet(np.ones(k), n).round(2) + 1e-3  # rounded: ties occur
    return labels, probabilities / probabilities.sum(1, keepdims=True)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_equal_to_scikit_learn(k):
    labels, p = answers(120, k)
    ovr = roc_auc_score(labels, p[:, 1]) if k == 2 else roc_auc_score(labels, p, multi_class="ovr", average="macro")
    assert auc(labels, p) == pytest.approx(ovr, abs=1e-12)
    assert f1_macro(labels, p) == pytest.approx(f1_score(labels, p.argmax(1), average="macro"), abs=1e-12)


def test_a_breast_without_a_label_is_ignored():
    labels, p = answers(40, 2)
    masked = np.r_[labels, [-1, -1]]
    wrong = np.r_[p, [[0.0, 1.0], [np.nan, np.nan]]]
    assert auc(masked, wrong) == auc(labels, p) and f1_macro(masked, wrong) == f1_macro(labels, p)


def test_a_class_that_is_absent_gives_nan_and_the_reason():
    labels, p = answers(30, 3)
    labels[labels == 1] = 2
    assert np.isnan(auc(labels, p)) and np.isnan(f1_macro(labels, p))
    assert explain_undefined(labels, 3) == "no breast of class 1 of 3"
    assert explain_undefined(np.array([-1, -1]), 2) == "no labelled breast"
    assert np.isnan(auc(np.array([], int), np.empty((0, 2))))
    assert explain_undefined(np.array([0, 1, -1]), 2) == ""


def test_perfect_and_reversed_predictions():
    labels, p = np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.1, 0.9]])
    assert auc(labels, p) == 1 and auc(1 - labels, p) == 0 and f1_macro(labels, p) == 1


def test_predictions_that_are_not_finite_or_do_not_match_raise():
    labels, p = answers(5, 2)
    p[2] = np.nan
    with pytest.raises(ValueError, match="1 of 5 breasts are not finite; the model diverged"):
        auc(labels, p)
    with pytest.raises(ValueError, match=r"\(5,\) and probabilities \(4, 2\)"):
        auc(labels, p[:4])
    with pytest.raises(ValueError, match="label 2 has no column among 2"):
        f1_macro(np.array([0, 2]), np.full((2, 2), 0.5))


def test_predictions_that_round_to_0_or_1_keep_the_ranks_of_their_logits():
    """float32 turns log-odds above 17 into a probability of 1, float64 those above 37."""
    odds = np.array([-90.0, -60.0, -45.0, -20.0, 20.0, 45.0, 60.0, 90.0])
    labels = np.array([0, 0, 1, 0, 1, 0, 1, 1])
    logits = np.stack([-odds / 2, odds / 2], axis=1).astype(np.float32)
    p = softmax(logits)
    assert auc(labels, p) == roc_auc_score(labels, odds) == 13 / 16
    assert weighted_auc(labels, p, np.ones((1, 8)))[0] == 13 / 16
    rounded = p.astype(np.float32)
    assert auc(labels, np.stack([1 - rounded[:, 1], rounded[:, 1]], 1)) != 13 / 16, "what was reported before"
