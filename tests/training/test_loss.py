import math

import pytest
import torch
from torch.nn import functional as F

from mammo_utils.models.system import log_probabilities
from mammo_utils.training.loss import class_weights, task_loss, total_loss


def test_task_loss_is_the_mean_of_the_two_heads_weighted_cross_entropies():
    """Eq. 12 against torch's own weighted mean, a side at a time."""
    torch.manual_seed(0)
    logits, weights = torch.randn(7, 2, 3, requires_grad=True), torch.tensor([0.5, 2.0, 0.5])
    labels = torch.randint(-1, 3, (7, 2))
    sides = [F.cross_entropy(logits[:, s], labels[:, s], weights, ignore_index=-1) for s in range(2)]
    expected = (sides[0] + sides[1]) / 2
    actual = task_loss(logits, labels, weights)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, logits, retain_graph=True)[0], torch.autograd.grad(expected, logits)[0]
    )


def test_absent_breasts_neither_count_nor_send_gradients():
    logits = torch.randn(4, 2, 2, requires_grad=True)
    labels = torch.tensor([[1, -1], [0, -1], [1, -1], [-1, -1]])
    loss = task_loss(logits, labels, torch.ones(2))
    loss.backward()
    assert (logits.grad[:, 1] == 0).all() and (logits.grad[3] == 0).all() and (logits.grad[:3, 0] != 0).all()
    torch.testing.assert_close(loss, F.cross_entropy(logits[:3, 0], labels[:3, 0]) / 2)
    assert task_loss(logits, torch.full((4, 2), -1), torch.ones(2)) == 0, "no label gives 0, not NaN"


def test_class_weights_are_inverse_frequencies_with_mean_one():
    labels = torch.tensor([[0, 0], [0, 1], [-1, 0], [1, 2]])  # counts 4, 2, 1
    weights = class_weights(labels, 3)
    torch.testing.assert_close(weights * torch.tensor([4.0, 2.0, 1.0]), (weights[0] * 4).expand(3))
    assert weights.mean() == pytest.approx(1)
    assert class_weights(labels, 4)[3] == 0, "a class without a breast"
    assert class_weights(torch.tensor([-1]), 2).tolist() == [0, 0]


def test_total_loss_weighs_the_tasks_and_leaves_a_single_task_alone():
    """Eq. 11."""
    logits = {"diagnosis": torch.randn(5, 2, 2), "birads": torch.randn(5, 2, 3)}
    labels = {"diagnosis": torch.randint(0, 2, (5, 2)), "birads": torch.randint(0, 3, (5, 2))}
    weights = {"diagnosis": torch.ones(2), "birads": torch.ones(3)}
    parts = {task: task_loss(logits[task], labels[task], weights[task]) for task in logits}
    both = total_loss(logits, labels, weights, {"diagnosis": 0.3, "birads": 0.7})
    torch.testing.assert_close(both, 0.3 * parts["diagnosis"] + 0.7 * parts["birads"])
    alone = total_loss({"birads": logits["birads"]}, labels, weights, {"diagnosis": 0.3, "birads": 0.7})
    torch.testing.assert_close(alone, parts["birads"])


def corn_loss_by_conditions(logits, labels):
    """CORN's loss of one side as published: a binary task for each step, on the breasts that have reached it."""
    total, count = torch.zeros(()), 0
    for k in range(logits.shape[1]):
        reached = labels >= k
        total = total + F.binary_cross_entropy_with_logits(
            logits[reached, k], (labels[reached] > k).float(), reduction="sum"
        )
        count += int(reached.sum())
    return total / count


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_ordinal_loss_is_corns(classes):
    torch.manual_seed(classes)
    conditional = torch.randn(9, 2, classes - 1, requires_grad=True)
    labels = torch.randint(0, classes, (9, 2))
    actual = task_loss(log_probabilities(conditional), labels, torch.ones(classes), ordinal=True)
    expected = sum(corn_loss_by_conditions(conditional[:, s], labels[:, s]) for s in range(2)) / 2
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(loss, conditional, retain_graph=True)[0] for loss in (actual, expected)]
    torch.testing.assert_close(*gradients)


def test_the_ordinal_loss_has_the_value_of_the_reference_implementation():
    """The example in the documentation of coral_pytorch.losses.corn_loss 1.4.0, whose answer is 0.7127."""
    torch.manual_seed(123)
    x, labels = torch.rand(8, 99), torch.tensor([0, 1, 2, 2, 2, 3, 4, 4])
    logits = torch.nn.Linear(99, 4)(x)
    both = log_probabilities(torch.stack([logits, logits], 1))
    loss = task_loss(both, torch.stack([labels, labels], 1), torch.ones(5), ordinal=True)
    assert loss.item() == pytest.approx(0.7127, abs=5e-5)


def test_the_ordinal_loss_weighs_breasts_and_leaves_absent_ones_out():
    torch.manual_seed(0)
    conditional = torch.randn(6, 2, 2, requires_grad=True)
    labels = torch.tensor([[0, -1], [1, 2], [2, 0], [-1, 1], [2, 2], [0, -1]])
    weights = torch.tensor([0.5, 2.0, 1.0])
    loss = task_loss(log_probabilities(conditional), labels, weights, ordinal=True)
    sides = []
    for side in range(2):
        total = count = 0.0
        for z, y in zip(conditional[:, side].tolist(), labels[:, side].tolist(), strict=True):
            for k in range(min(y + 1, 2)) if y >= 0 else ():
                p = 1 / (1 + math.exp(-z[k]))
                total -= weights[y].item() * math.log(p if y > k else 1 - p)
                count += weights[y].item()
        sides.append(total / count)
    assert loss.item() == pytest.approx(sum(sides) / 2, rel=1e-5)
    loss.backward()
    assert (conditional.grad[labels < 0] == 0).all()
    parts = [
        task_loss(log_probabilities(conditional[rows]), labels[rows], weights, labels, ordinal=True)
        for rows in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(sum(parts), loss)
    assert task_loss(log_probabilities(conditional), torch.full((6, 2), -1), weights, ordinal=True) == 0
