"""What a system costs: operations and seconds per exam; its layers with their shapes; its receptive field."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from mammo_utils.models.encoders import Encoder
from mammo_utils.models.ss2d import PATHS, SS2D, PatchEmbedding, PatchMerging, SSConvSSM
from mammo_utils.models.system import System


@dataclass(frozen=True)
class Layer:
    """One layer of an encoder as it ran.

    Attributes:
        name: Its name within its parent module.
        kind: Name of its class.
        shape: Channels, rows and columns of its output.
        parameters: Number of its parameters.
    """

    name: str
    kind: str
    shape: tuple[int, int, int]
    parameters: int


@contextmanager
def _observe(model: nn.Module, hook: Callable[[nn.Module, tuple, Tensor], None]) -> Iterator[None]:
    """Put the model into evaluation mode without gradients; call `hook` after the forward of every module."""
    training, handle = model.training, register_module_forward_hook(hook)
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        model.train(training)
        handle.remove()


def count_operations(system: System, size: int) -> int:
    """Count the operations of one exam's forward pass at size x size pixels; a multiply-add counts as two.

    torch counts matrix products and convolutions, but does not see the scans, whose operations in Eq. 6 are added here.
    Element-wise steps are left out. The encoders are counted at 64 pixels and scaled by the area, which is exact for
    multiples of 32.
    """
    small = 64 if size % 32 == 0 else size
    scans = 0

    def add_scan(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        nonlocal scans
        if isinstance(module, SS2D):
            batch, height, width, _ = output.shape
            # A state takes 7: delta A, its exponential, times h, times B, their sum, times C, added up.
            # Each channel also takes 4: delta u, D u and two sums.
            per_channel = 7 * module.states + 4
            scans += batch * height * width * len(PATHS) * module.D.shape[1] * per_channel

    images, present = _draw_noise(next(system.parameters()), small)
    with _observe(system, add_scan):
        with FlopCounterMode(display=False) as of_encoders:
            v = system.encode_views(images, present)
        with FlopCounterMode(display=False) as of_rest:
            fused, _ = system.fusion(v, present)
            for head in system.heads.values():
                head(fused)
    return (of_encoders.get_total_flops() + scans) * size**2 // small**2 + of_rest.get_total_flops()


def time_exam(system: System, size: int, *, backward: bool, repeats: int = 3) -> float:
    """Measure the seconds of one exam of four views: the median of `repeats` batches of two, after one to warm up.

    Args:
        system: The system; its gradients are cleared.
        size: Side of the images in pixels.
        backward: Whether to time the backward pass, too.
        repeats: Number of timed batches.
    """
    images, present = _draw_noise(next(system.parameters()), size, exams=2)
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


def _draw_noise(like: Tensor, size: int, exams: int = 1) -> tuple[Tensor, Tensor]:
    """Draw exams of noise (exams, 4, 3, size, size), all views present, on the device of `like`."""
    images = torch.randn(exams, 4, 3, size, size, generator=torch.Generator().manual_seed(0))
    return images.to(like.device), torch.ones(exams, 4, dtype=torch.bool, device=like.device)


def trace_layers(encoder: Encoder, size: int) -> list[Layer]:
    """List the layers of an encoder in the order in which they run on an image of size x size pixels."""
    layers: list[Layer] = []
    names: dict[nn.Module, str] = {}
    for name, module in encoder.named_children():  # the members of a Sequential are layers, not the Sequential itself
        members = module.named_children() if isinstance(module, nn.Sequential) else [(name, module)]
        names |= {member: member_name for member_name, member in members}

    def record(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if module in names:
            channels_last = isinstance(module, PatchEmbedding | PatchMerging | SSConvSSM)
            shape = (output.permute(0, 3, 1, 2) if channels_last else output).shape[1:]  # channels, rows, columns
            parameters = sum(p.numel() for p in module.parameters())
            layers.append(Layer(names[module], type(module).__name__, tuple(shape), parameters))

    with _observe(encoder, record):
        encoder(torch.zeros(1, 3, size, size, device=next(encoder.parameters()).device))
    return layers


def receptive_field(feature_map: Callable[[Tensor], Tensor], size: int, *, samples: int = 4, seed: int = 0) -> Tensor:
    """Measure the effective receptive field of a map's central position (Luo et al. 2016).

    Args:
        feature_map: Turns images (n, 3, H, W) into maps (n, D, h, w), in evaluation mode.
        size: Side of the images in pixels.
        samples: Number of images of noise to average over.
        seed: Seed of the noise.

    Returns:
        The mean of |d sum(map at the centre) / d pixel|, (size, size).
    """
    images = torch.randn(samples, 3, size, size, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    maps = feature_map(images)
    maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2].sum().backward()
    return images.grad.abs().mean((0, 1))  # (samples, 3, size, size) -> (size, size)
