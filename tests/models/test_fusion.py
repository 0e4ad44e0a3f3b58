"""Identities of the fusion (§2.2)."""

import pytest
import torch

from mammo_utils.models.fusion import FUSIONS, GatedFusion

PRESENT = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]).bool()


@pytest.fixture
def v():
    torch.manual_seed(0)
    return torch.randn(4, 4, 6)


@pytest.mark.parametrize("kind", FUSIONS)
@pytest.mark.parametrize("missing", ["zeros", "masked"])
def test_weights_add_up_to_one(kind, missing, v):
    fused, weights = FUSIONS[kind](6, missing)(v, PRESENT)
    assert ((weights >= 0) & (weights <= 1)).all()
    expected = torch.ones(4)
    if missing == "masked":
        expected[3] = 0  # no view at all
        assert (weights[~PRESENT] == 0).all() and (weights[PRESENT] > 0).all()
    if kind == "per_breast":
        expected = torch.tensor([[1.0, 1], [1, 1], [0, 1], [0, 0]] if missing == "masked" else [[1.0, 1]] * 4)
        torch.testing.assert_close(weights.unflatten(1, (2, 2)).sum(2), expected)
    elif kind != "sigmoid":
        torch.testing.assert_close(weights.sum(1), expected)
    assert torch.isfinite(fused).all()


def test_equation_10_by_hand(v):
    gate = GatedFusion(6, hidden=5)
    fused, alpha = gate(v, PRESENT)
    first, _, second = gate.mlp
    for i in range(4):
        hidden = (first.weight @ torch.cat([*v[i]]) + first.bias).clamp_min(0)
        logits = second.weight @ hidden + second.bias
        expected = logits.exp() / logits.exp().sum()
        torch.testing.assert_close(alpha[i], expected)
        torch.testing.assert_close(fused[i], torch.cat([a * x for a, x in zip(expected, v[i], strict=True)]))


def test_the_gate_depends_on_all_views(v):
    """Each weight depends on every view, by Eq. 8."""
    torch.manual_seed(0)
    gate = GatedFusion(6)
    v.requires_grad_()
    for i in range(4):
        (gradient,) = torch.autograd.grad(gate(v, PRESENT)[1][0, i], v, retain_graph=True)
        assert (gradient[0].abs().sum(1) > 0).all() and (gradient[1:] == 0).all()


@pytest.mark.parametrize("kind", FUSIONS)
def test_an_absent_view_has_no_influence_only_where_masked(kind, v):
    torch.manual_seed(0)
    fusion = FUSIONS[kind](6, "masked")
    other = torch.where(PRESENT[:, :, None], v, torch.full_like(v, float("nan")))
    for a, b in zip(fusion(v, PRESENT), fusion(other, PRESENT), strict=True):
        assert torch.equal(a, b)
    fusion.masked = False
    assert fusion(other, PRESENT)[0][1:].isnan().any()


@pytest.mark.parametrize("missing", ["zeros", "masked"])
def test_per_breast_weights_and_fused_views_are_those_of_the_own_breast(missing, v):
    torch.manual_seed(0)
    fusion = FUSIONS["per_breast"](6, missing)
    present = torch.ones(4, 4, dtype=torch.bool)
    other = v.clone()
    other[:, 2:] = torch.randn(4, 2, 6)
    (fused, alpha), (changed, beta) = fusion(v, present), fusion(other, present)
    assert torch.equal(alpha[:, :2], beta[:, :2]) and torch.equal(fused[:, 0], changed[:, 0])
    assert not torch.equal(alpha[:, 2:], beta[:, 2:]) and fused.shape == (4, 2, 12)
    swapped, gamma = fusion(v[:, [2, 3, 0, 1]], present)
    assert torch.equal(swapped[:, [1, 0]], fused) and torch.equal(gamma[:, [2, 3, 0, 1]], alpha), "the same for both"


def test_a_sigmoid_gate_weighs_each_view_by_itself(v):
    torch.manual_seed(0)
    gate = FUSIONS["sigmoid"](6)
    before = gate(v, PRESENT)[1]
    with torch.no_grad():
        gate.mlp[2].bias[1] += 5
    after = gate(v, PRESENT)[1]
    assert torch.equal(after[:, [0, 2, 3]], before[:, [0, 2, 3]]) and (after[:, 1] > before[:, 1]).all()
    torch.testing.assert_close(before, torch.sigmoid(gate.mlp(v.flatten(1)) - torch.tensor([0.0, 5.0, 0.0, 0.0])))


def test_a_constant_added_to_the_logits_changes_nothing(v):
    gate = GatedFusion(6)
    before = gate(v, PRESENT)[1]
    with torch.no_grad():
        gate.mlp[2].bias += 3
    torch.testing.assert_close(gate(v, PRESENT)[1], before)


def test_plain_baselines(v):
    fused, weights = FUSIONS["concat"](6)(v, PRESENT)
    assert torch.equal(fused, v.flatten(1)) and (weights == 0.25).all()
    fused, _ = FUSIONS["mean"](6)(v, PRESENT)
    torch.testing.assert_close(fused, v.mean(1))
    fused, weights = FUSIONS["mean"](6, "masked")(v, PRESENT)
    torch.testing.assert_close(fused[1], v[1, [0, 2, 3]].mean(0))
    torch.testing.assert_close(weights[1], torch.tensor([1, 0, 1, 1]) / 3)


def test_an_unknown_setting_is_named():
    with pytest.raises(ValueError, match="'zeros' or 'masked'"):
        GatedFusion(6, "drop")
