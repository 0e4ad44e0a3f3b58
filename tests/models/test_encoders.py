"""Shapes and rules of the encoders."""

import pytest
import torch

from mammo_utils.models.encoders import VSSM, Hybrid, ResNet, stage_depths
from mammo_utils.models.ss2d import PatchMerging, SSConvSSM


def test_blocks_join_the_third_stage_beyond_four():
    assert [stage_depths(n, "vssm_blocks") for n in (2, 3, 4, 5, 10)] == [
        (1, 1), (1, 1, 1), (1, 1, 1, 1), (1, 1, 2, 1), (1, 1, 7, 1),
    ]  # fmt: skip
    assert [sum(stage_depths(n, "hybrid_blocks")) for n in range(1, 6)] == [1, 2, 3, 4, 5]


def count(module, kind):
    return sum(isinstance(m, kind) for m in module.modules())


def test_the_papers_sizes():
    vssm, hybrid = VSSM(), Hybrid()
    assert (count(vssm, SSConvSSM), count(vssm, PatchMerging), vssm.out_features) == (4, 3, 768)
    assert (count(hybrid, SSConvSSM), count(hybrid, PatchMerging), hybrid.out_features) == (2, 1, 256)
    assert "layer2" in dict(hybrid.cnn.named_children()) and "layer3" not in dict(hybrid.cnn.named_children())


ENCODERS = {
    "resnet18": (lambda: ResNet(18), 512, 32),
    "resnet50": (lambda: ResNet(50), 2048, 32),
    "vssm": (lambda: VSSM(), 768, 32),
    "vssm of 2, patch 2": (lambda: VSSM(2, width=8, patch=2), 16, 4),
    "hybrid": (lambda: Hybrid(), 256, 16),
    "hybrid cut early": (lambda: Hybrid(1, cut="layer1", variant="inner"), 64, 4),
    "hybrid cut late": (lambda: Hybrid(1, cut="layer3"), 256, 16),
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("size", [(64, 64), (33, 70)])
def test_feature_maps_and_vectors(name, size):
    build, features, stride = ENCODERS[name]
    encoder = build().eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps, vector = encoder.feature_map(x), encoder(x)
    assert maps.shape == (2, features, -(-size[0] // stride), -(-size[1] // stride))
    torch.testing.assert_close(vector, maps.mean((2, 3)))
    assert encoder.out_features == features


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: VSSM(1), "vssm_blocks is 1; it must be 2 to 10"),
        (lambda: Hybrid(6), "hybrid_blocks is 6; it must be 1 to 5"),
        (lambda: Hybrid(cut="layer4"), "cannot be cut after 'layer4'; accepted are layer1, layer2, layer3"),
    ],
)
def test_unfit_arguments_are_named(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
