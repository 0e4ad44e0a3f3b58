"""The encoders of §2.1: an image (batch, 3, H, W) becomes a feature map and, pooled, a vector (Figures 1-3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torchvision
from torch import Tensor, nn

from mammo_utils.config import BLOCKS, ModelSettings
from mammo_utils.models.ss2d import PatchEmbedding, PatchMerging, SSConvSSM
from mammo_utils.models.weights import load_resnet_weights

CUTS = {"layer1": 64, "layer2": 128, "layer3": 256}  # ResNet-18's channels after each


class Encoder(nn.Module):
    """A feature map (batch, D, h, w) by :meth:`maps`; its mean over pixels (batch, D) by calling it."""

    features: int  # D

    def maps(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).mean(dim=(2, 3))


class ResNet(Encoder):
    """ResNet-18 or -50 of torchvision without its classifier: 512 or 2048 features, stride 32."""

    def __init__(self, depth: int, weights: str | Path | None = None):
        super().__init__()
        self.body = resnet_layers(depth, "layer4", weights)
        self.features = {18: 512, 50: 2048}[depth]

    def maps(self, x: Tensor) -> Tensor:
        return self.body(x)


class VSSM(Encoder):
    """Patches, then stages of SS-Conv-SSM blocks with patch merging between: four stages of one by default."""

    def __init__(
        self,
        blocks: int = 4,
        widths: Sequence[int] | None = None,
        patch: int = 4,
        variant: str = "shuffle",
        backend: str = "auto",
    ):
        super().__init__()
        depths = stage_depths(blocks, "vssm_blocks")
        widths = check_widths(widths, depths, 96)
        self.embedding = PatchEmbedding(widths[0], patch)
        self.stages = stages(depths, widths, variant, backend)
        self.features = widths[-1]

    def maps(self, x: Tensor) -> Tensor:
        return self.stages(self.embedding(x)).permute(0, 3, 1, 2)


class Hybrid(Encoder):
    """§2.1.3: ResNet-18 up to `cut`, then SS-Conv-SSM blocks on its map, patch merging between."""

    def __init__(
        self,
        blocks: int = 2,
        widths: Sequence[int] | None = None,
        cut: str = "layer2",
        weights: str | Path | None = None,
        variant: str = "shuffle",
        backend: str = "auto",
    ):
        super().__init__()
        if cut not in CUTS:
            raise ValueError(f"ResNet-18 cannot be cut after {cut!r}; accepted are {', '.join(CUTS)}.")
        depths = stage_depths(blocks, "hybrid_blocks")
        widths = check_widths(widths, depths, CUTS[cut])
        if widths[0] != CUTS[cut]:
            raise ValueError(f"The first width is {widths[0]}, but ResNet-18 gives {CUTS[cut]} channels after {cut}.")
        self.cnn = resnet_layers(18, cut, weights)
        self.stages = stages(depths, widths, variant, backend)
        self.features = widths[-1]

    def maps(self, x: Tensor) -> Tensor:
        return self.stages(self.cnn(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def stage_depths(blocks: int, kind: str) -> tuple[int, ...]:
    """How many blocks each stage has: up to four blocks, one a stage; from five on the extra ones join the third."""
    first, last = BLOCKS[kind]
    if not first <= blocks <= last:
        raise ValueError(f"{kind} is {blocks}; it must be {first} to {last}.")
    return (1,) * blocks if blocks <= 4 else (1, 1, blocks - 3, 1)


def check_widths(widths: Sequence[int] | None, depths: tuple[int, ...], first: int) -> tuple[int, ...]:
    """The widths of the stages, each twice the one before; by default from `first`."""
    expected = tuple((widths[0] if widths else first) * 2**i for i in range(len(depths)))
    if widths is not None and tuple(widths) != expected:
        raise ValueError(f"The widths are {tuple(widths)}; {len(depths)} stages that double need {expected}.")
    return expected


def stages(depths: Sequence[int], widths: Sequence[int], variant: str, backend: str) -> nn.Sequential:
    modules: list[nn.Module] = []
    for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        modules += [PatchMerging(width // 2)] if i else []
        modules += [SSConvSSM(width, variant=variant, backend=backend) for _ in range(depth)]
    return nn.Sequential(*modules)


def resnet_layers(depth: int, last: str, weights: str | Path | None) -> nn.Sequential:
    """The layers of torchvision's ResNet up to `last`, named as there."""
    resnet = {18: torchvision.models.resnet18, 50: torchvision.models.resnet50}[depth](weights=None)
    if weights:
        load_resnet_weights(resnet, depth, weights)
    layers = nn.Sequential()
    for name, module in resnet.named_children():
        layers.add_module(name, module)
        if name == last:
            break
    return layers


ENCODERS: dict[str, Callable[[ModelSettings], Encoder]] = {  # by the `encoder` of an entry of SYSTEMS
    "resnet18": lambda s: ResNet(18, s.weights),
    "resnet50": lambda s: ResNet(50, s.weights),
    "vssm": lambda s: VSSM(s.vssm_blocks, variant=s.block, backend=s.backend),
    "hybrid": lambda s: Hybrid(s.hybrid_blocks, None, s.resnet_cut, s.weights, s.block, s.backend),
}
