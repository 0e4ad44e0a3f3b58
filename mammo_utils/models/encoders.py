"""Image encoders (§2.1, Figures 1-3): an image becomes a feature map and, averaged over pixels, a feature vector.

Images are (batch, 3, H, W), feature maps (batch, D, h, w), feature vectors (batch, D); D is `out_features`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from mammo_utils.config import BLOCKS, ModelSettings
from mammo_utils.models.ss2d import PatchEmbedding, PatchMerging, SSConvSSM
from mammo_utils.models.weights import WeightsError, load_patch_weights, load_resnet_weights

CUT_CHANNELS = {"layer1": 64, "layer2": 128, "layer3": 256}  # channels of ResNet-18 after each layer


class Encoder(nn.Module):
    """Base class: `feature_map` is the encoder's last map, calling the encoder gives its mean over pixels."""

    out_features: int

    def feature_map(self, x: Tensor) -> Tensor:
        """Encode images (batch, 3, H, W) as maps (batch, D, h, w)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Encode images (batch, 3, H, W) as vectors (batch, D)."""
        return self.feature_map(x).mean(dim=(2, 3))


class ResNet(Encoder):
    """ResNet-18 or -50 of torchvision without its classifier (§2.1.1): D is 512 or 2048, the stride 32."""

    def __init__(self, depth: int, weights: str | Path = "", width: float = 1.0):
        super().__init__()
        self.body = build_resnet(depth, "layer4", weights, width)
        self.out_features = int(width * {18: 512, 50: 2048}[depth])

    def feature_map(self, x: Tensor) -> Tensor:
        """Encode images (batch, 3, H, W) as maps (batch, D, H/32, W/32)."""
        return self.body(x)


class VSSM(Encoder):
    """A pure state space encoder (§2.1.2): patch embedding, then stages of SS-Conv-SSM blocks.

    Between stages, patch merging halves the sides and doubles the channels. `width` is the channels of the first stage,
    `patch` the side of a patch in pixels; for `variant` and `backend` see `SSConvSSM` and `selective_scan`. `drop_path`
    is that of the last block; it rises linearly from 0 in the first.
    """

    def __init__(
        self,
        blocks: int = 4,
        width: int = 96,
        patch: int = 4,
        variant: str = "shuffle",
        backend: str = "auto",
        drop_path: float = 0.0,
    ):
        super().__init__()
        depths = stage_depths(blocks, "vssm_blocks")
        self.embedding = PatchEmbedding(width, patch)
        self.stages = _build_stages(depths, width, variant, backend, drop_path)
        self.out_features = width * 2 ** (len(depths) - 1)

    def feature_map(self, x: Tensor) -> Tensor:
        """Encode images (batch, 3, H, W) as maps (batch, D, h, w)."""
        return self.stages(self.embedding(x)).permute(0, 3, 1, 2)  # (batch, h, w, D) -> (batch, D, h, w)


class Hybrid(Encoder):
    """The paper's hybrid (§2.1.3): the early layers of ResNet-18, then stages of SS-Conv-SSM blocks on their map.

    `cut` is the last layer of ResNet-18 that is kept, which the paper does not name; for `weights` see
    `load_resnet_weights` ("" for random ones), for `width` `build_resnet`, for `drop_path` `VSSM`. Two blocks are half
    as many as in the VSSM (§4.2).
    """

    def __init__(
        self,
        blocks: int = 2,
        cut: str = "layer2",
        weights: str | Path = "",
        variant: str = "shuffle",
        backend: str = "auto",
        width: float = 1.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        if cut not in CUT_CHANNELS:
            raise ValueError(f"ResNet-18 cannot be cut after {cut!r}; accepted are {', '.join(CUT_CHANNELS)}.")
        depths, channels = stage_depths(blocks, "hybrid_blocks"), int(width * CUT_CHANNELS[cut])
        self.cnn = build_resnet(18, cut, weights, width)
        self.stages = _build_stages(depths, channels, variant, backend, drop_path)
        self.out_features = channels * 2 ** (len(depths) - 1)

    def feature_map(self, x: Tensor) -> Tensor:
        """Encode images (batch, 3, H, W) as maps (batch, D, h, w)."""
        x = self.cnn(x).permute(0, 2, 3, 1)  # (batch, C, H', W') -> (batch, H', W', C)
        return self.stages(x).permute(0, 3, 1, 2)  # (batch, h, w, D) -> (batch, D, h, w)


def stage_depths(blocks: int, setting: str) -> tuple[int, ...]:
    """Distribute the blocks: one a stage up to four; from five on, the third stage takes the extra ones."""
    first, last = BLOCKS[setting]
    if not first <= blocks <= last:
        raise ValueError(f"{setting} is {blocks}; it must be {first} to {last}.")
    return (1,) * blocks if blocks <= 4 else (1, 1, blocks - 3, 1)


def _build_stages(depths: tuple[int, ...], width: int, variant: str, backend: str, drop_path: float) -> nn.Sequential:
    """Build the stages, (batch, H, W, width) -> (batch, h, w, D); each has twice the channels of the one before."""
    modules: list[nn.Module] = []
    rates = iter(np.linspace(0, drop_path, sum(depths)).tolist())  # a single block has 0
    for stage, depth in enumerate(depths):
        channels = width * 2**stage
        modules += [PatchMerging(channels // 2)] if stage else []
        modules += [SSConvSSM(channels, variant=variant, backend=backend, drop_path=next(rates)) for _ in range(depth)]
    return nn.Sequential(*modules)


class _ScaledResNet(torchvision.models.ResNet):
    """A torchvision ResNet whose layers all have `width` times the usual channels."""

    def __init__(self, block: type[nn.Module], layers: list[int], width: float):
        self.width = width
        super().__init__(block, layers)
        self.conv1 = nn.Conv2d(3, int(64 * width), 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(int(64 * width))
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def _make_layer(self, block: type[nn.Module], planes: int, *args: Any, **options: Any) -> nn.Sequential:
        if planes == 64:  # the first layer
            self.inplanes = int(64 * self.width)
        return super()._make_layer(block, int(planes * self.width), *args, **options)


RESNETS = {18: (BasicBlock, [2, 2, 2, 2]), 50: (Bottleneck, [3, 4, 6, 3])}  # block, blocks of each layer


def build_resnet(depth: int, last: str, weights: str | Path = "", width: float = 1.0) -> nn.Sequential:
    """Build a torchvision ResNet up to one of its layers; the names of the layers stay.

    Args:
        depth: 18 or 50.
        last: Name of the last layer, such as "layer2".
        weights: ImageNet weights, see `load_resnet_weights`; none if empty.
        width: Share of the usual channels, 0.125 to 1.

    Raises:
        WeightsError: The weights cannot be loaded, or the width is not that of pretrained weights.
    """
    if width == 1:
        resnet = {18: torchvision.models.resnet18, 50: torchvision.models.resnet50}[depth](weights=None)
    else:
        resnet = _ScaledResNet(*RESNETS[depth], width)
    if weights and width != 1:
        raise WeightsError(
            f"model.width is {width}, but pretrained weights need 1; set model.width to 1 or weights to ''."
        )
    if weights:
        load_resnet_weights(resnet, depth, weights)
    layers = OrderedDict(resnet.named_children())
    while next(reversed(layers)) != last:
        layers.popitem()
    return nn.Sequential(layers)


ENCODERS: dict[str, Callable[[ModelSettings], Encoder]] = {  # the `encoder` of a system's entry -> its builder
    "resnet18": lambda s: ResNet(18, s.weights, s.width),
    "resnet50": lambda s: ResNet(50, s.weights, s.width),
    "vssm": lambda s: VSSM(s.vssm_blocks, int(96 * s.width), variant=s.block, backend=s.backend, drop_path=s.drop_path),
    "hybrid": lambda s: Hybrid(s.hybrid_blocks, s.resnet_cut, s.weights, s.block, s.backend, s.width, s.drop_path),
}


def build_encoder(name: str, settings: ModelSettings) -> Encoder:
    """Build an encoder with the initial weights of the settings.

    Args:
        name: Key of `ENCODERS`.
        settings: Of the study.

    Raises:
        WeightsError: The weights cannot be loaded.
    """
    if settings.weights != "patches":
        return ENCODERS[name](settings)
    encoder = ENCODERS[name](settings.model_copy(update={"weights": ""}))
    load_patch_weights(encoder, name)
    return encoder
