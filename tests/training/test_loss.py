import pytest
import torch
from torch.nn import functional as F

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
