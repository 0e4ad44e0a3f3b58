"""What a system costs: parameters, operations and time per exam, and its parts with their shapes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mammo_utils.models.encoders import Encoder
from mammo_utils.models.ss2d import PATHS, SS2D
from mammo_utils.models.system import System


@dataclass(frozen=True)
class Part:
    """One step of an encoder: its name, kind, the shape (channels, h, w) that leaves it, its parameters."""

    name: str
    kind: str
    shape: tuple[int, int, int]
    parameters: int


def scan_operations(pixels: int, channels: int, states: int, paths: int = len(PATHS)) -> int:
    """Operations of Eq. 6 along the paths, an exponential and a product counted as one each.

    A state of a channel at a pixel: delta A, its exponential, times h, times B, their sum, times C, added up: 7.
    A channel at a pixel: delta u, D u and two sums: 4.
    """
    return paths * pixels * channels * (7 * states + 4)


def count_operations(system: System, size: int) -> int:
    """Operations of one exam's forward pass at size x size pixels; a multiply-add counts as two.

    Matrix products and convolutions as torch counts them, and the scans, which torch does not see; element-wise
    steps are left out. The encoders are counted at 64 pixels and scaled by area, exact for multiples of 32.
    """
    small = 64 if size % 32 == 0 else size
    scans = 0

    def add_scan(module: SS2D, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal scans
        batch, height, width, _ = output.shape
        scans += batch * scan_operations(height * width, module.D.shape[1], module.states)

    hooks = [m.register_forward_hook(add_scan) for m in system.modules() if isinstance(m, SS2D)]
    parameter = next(system.parameters())
    images, present = noise_exam(parameter, small)
    training = system.training
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            v = system.eval().features(images, present)
        with torch.no_grad(), FlopCounterMode(display=False) as rest:
            fused, _ = system.fusion(v, present)
            for head in system.heads.values():
                head(fused)
    finally:
        system.train(training)
        for hook in hooks:
            hook.remove()
    return (counter.get_total_flops() + scans) * size**2 // small**2 + rest.get_total_flops()


def time_exam(system: System, size: int, *, backward: bool, repeats: int = 3) -> float:
    """Seconds of one exam of four views, forward or forward and backward: the median of `repeats` after one."""
    images, present = noise_exam(next(system.parameters()), size, exams=2)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.set_grad_enabled(backward):
            logits, _ = system(images, present)
            if backward:
                sum(x.square().mean() for x in logits.values()).backward()
        if images.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / len(images))
    system.zero_grad(set_to_none=True)
    return median(seconds[1:])


def noise_exam(like: Tensor, size: int, exams: int = 1) -> tuple[Tensor, Tensor]:
    """Images of noise, all views present, on the device of `like`."""
    images = torch.randn(exams, 4, 3, size, size, generator=torch.Generator().manual_seed(0))
    return images.to(like.device), torch.ones(exams, 4, dtype=torch.bool, device=like.device)


def outline(encoder: Encoder, size: int) -> list[Part]:
    """The steps of an encoder as they run on one image, seen by hooks: what the diagrams are drawn from."""
    parts: list[Part] = []

    def record(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            kind = type(module).__name__
            first, second, third = output.shape[1:]
            channels_last = kind in ("PatchEmbedding", "PatchMerging", "SSConvSSM")
            shape = (third, first, second) if channels_last else (first, second, third)
            parts.append(Part(name, kind, shape, sum(p.numel() for p in module.parameters())))

        return hook

    hooks = []
    for name, module in encoder.named_children():
        inner = module.named_children() if isinstance(module, nn.Sequential) else [(name, module)]
        hooks += [child.register_forward_hook(record(inner_name)) for inner_name, child in inner]
    training = encoder.training
    with torch.no_grad():
        encoder.eval()(torch.zeros(1, 3, size, size, device=next(encoder.parameters()).device))
    encoder.train(training)
    for hook in hooks:
        hook.remove()
    return parts


def receptive_field(maps: Callable[[Tensor], Tensor], size: int, *, samples: int = 4, seed: int = 0) -> Tensor:
    """How much each pixel moves the map's central position: mean |d sum(map at the centre) / d pixel|, (size, size).

    maps: images (n, 3, H, W) to a map (n, D, h, w), in eval mode. The effective receptive field of Luo et al.
    2016, over `samples` images of noise, of trained or untrained weights.
    """
    images = torch.randn(samples, 3, size, size, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    found = maps(images)
    found[:, :, found.shape[2] // 2, found.shape[3] // 2].sum().backward()
    return images.grad.abs().mean((0, 1))
