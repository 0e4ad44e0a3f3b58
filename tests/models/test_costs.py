"""What a system costs, counted by hand for small cases."""

import pytest
import torch

from mammo_utils.models.costs import count_operations, receptive_field, time_exam, trace_layers
from mammo_utils.models.encoders import VSSM, Hybrid, ResNet
from mammo_utils.models.fusion import FUSIONS
from mammo_utils.models.system import System, build_system


def test_operations_of_resnet18_are_the_published_ones():
    """1.814 billion multiply-adds at 224 px (torchvision's own table), less the classifier's 0.0005."""
    system = build_system("resnet18", fusion="concat", task_mode="diagnosis")
    heads = 2 * 2 * 4 * 512 * 2
    per_image = (count_operations(system, 224) - heads) / 4
    assert per_image / 2 == pytest.approx(1.8136e9, rel=2e-3)


def test_operations_of_ss2d_by_hand():
    """One VSSM of two narrow blocks: the scans by formula, the rest as torch counts it."""
    system = System([VSSM(2, width=8)], FUSIONS["concat"](16), {"birads": 2})
    pixels, heads = (16 * 16, 8 * 8), 2 * 2 * 4 * 16 * 2
    expected = 2 * 3 * 16 * 8 * pixels[0] + 2 * 32 * 16 * pixels[1]  # embedding, merging
    for half, area in zip((4, 8), pixels, strict=True):
        inner, rank = 2 * half, 1
        convolutions = (9 + 9 + 1) * half * half
        linear = half * 2 * inner + 9 * inner + 4 * inner * (rank + 32) + 4 * rank * inner + inner * half
        expected += 2 * area * (convolutions + linear) + 4 * area * inner * (7 * 16 + 4)  # 4 paths, 16 states
    assert count_operations(system, 64) == 4 * expected + heads
    assert count_operations(system, 128) == 4 * 4 * expected + heads


def test_each_layer_is_listed_with_its_shape():
    layers = trace_layers(Hybrid(), 64)
    assert [(x.name, x.shape) for x in layers if x.kind in ("Sequential", "SSConvSSM", "PatchMerging")] == [
        ("layer1", (64, 16, 16)),
        ("layer2", (128, 8, 8)),
        ("0", (128, 8, 8)),
        ("1", (256, 4, 4)),
        ("2", (256, 4, 4)),
    ]
    encoder = VSSM(2)
    assert sum(x.parameters for x in trace_layers(encoder, 32)) == sum(p.numel() for p in encoder.parameters())


def test_receptive_field_of_convolutions_agrees_with_arithmetic():
    field = receptive_field(ResNet(18).eval().body[:5], 96)  # up to layer1: 1 + 6 + 2*2 + 4*2*4 = 43 px
    assert (field > 0).any(0).sum() == 43 and (field > 0).any(1).sum() == 43


def test_measuring_does_not_change_the_system():
    system = build_system("hybrid_shared").train()
    assert time_exam(system, 32, backward=True, repeats=1) > 0
    count_operations(system, 32)
    assert system.training and all(p.grad is None for p in system.parameters())
    assert torch.is_grad_enabled()
