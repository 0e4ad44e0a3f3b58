"""Shapes and rules of the encoders."""

import pytest
import torch

from mammo_utils.models.encoders import VSSM, Hybrid, ResNet, stage_depths
from mammo_utils.models.ss2d import PatchMerging, SSConvSSM
from mammo_utils.models.system import build_system


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


@pytest.mark.parametrize(
    ("build", "rates"),
    [
        (lambda p: VSSM(4, width=8, drop_path=p), [0, 1 / 3, 2 / 3, 1]),
        (lambda p: VSSM(6, width=8, drop_path=p), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (lambda p: Hybrid(2, drop_path=p), [0, 1]),
        (lambda p: Hybrid(1, drop_path=p), [0]),
    ],
)
@pytest.mark.parametrize("p", [0, 0.1])
def test_drop_path_rises_linearly_over_the_blocks(build, rates, p):
    found = [m.drop_path.p for m in build(p).modules() if isinstance(m, SSConvSSM)]
    assert found == pytest.approx([p * rate for rate in rates])


@pytest.mark.parametrize(("system", "count"), [("vssm_view_specific", 8), ("hybrid_shared", 2), ("resnet18", 0)])
def test_the_setting_reaches_the_blocks_and_changes_no_weight(system, count):
    torch.manual_seed(3)
    with_path = build_system(system, drop_path=0.1)
    torch.manual_seed(3)
    without = build_system(system)
    assert all(torch.equal(a, b) for a, b in zip(with_path.parameters(), without.parameters(), strict=True))
    rates = [m.drop_path.p for m in with_path.modules() if isinstance(m, SSConvSSM)]
    assert len(rates) == count and (not rates or max(rates) == 0.1)


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
