"""The selective scan and SS2D beside what one would use instead, and beside the floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import compare, timed
from mammo_utils.models.selective_scan import pick_backend, scan_paths, selective_scan
from mammo_utils.models.ss2d import PATHS, SS2D, four_paths

COPIES = "SS2D, four copies"


def plain_loop(u, delta, A, B, C):
    """What one writes first: every step's decay and input at once, then a loop over unbound steps."""
    decay = torch.exp(delta[..., None] * A[:, None]).unbind(2)  # L of (batch, D, N)
    step = ((delta * u)[..., None] * B.transpose(1, 2)[:, None]).unbind(2)
    h, ys = torch.zeros_like(step[0]), []
    for a, x, c in zip(decay, step, C.unbind(2), strict=True):
        h = a * h + x
        ys.append((h * c[:, None]).sum(-1))
    return torch.stack(ys, 2)


class ParallelScan(torch.autograd.Function):
    """h_t = a_t h_(t-1) + x_t for all t by Blelloch's two sweeps (1990), over arrays (batch, L, D, N).

    The way of the library mamba.py: in place on copies, with a backward of its own, the same scan from the end.
    It combines pairs (a, x), (b, y) into (a b, b x + y) and divides nothing.
    """

    @staticmethod
    def sweep(a: Tensor, x: Tensor) -> None:
        """Both arrays are overwritten; x becomes h."""

        def join(step: int, right: int, left: int) -> None:
            count = len(range(right, x.shape[1], 2 * step))
            to, of = (slice(i, i + 2 * step * count, 2 * step) for i in (right, left))
            x[:, to] += a[:, to] * x[:, of]
            a[:, to] *= a[:, of]

        step = 1
        while 2 * step <= x.shape[1]:
            join(step, 2 * step - 1, step - 1)
            step *= 2
        while step > 1:
            step //= 2
            join(step, 3 * step - 1, 2 * step - 1)

    @staticmethod
    def forward(ctx, a, x):
        h = x.clone()
        ParallelScan.sweep(a.clone(), h)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx, dh):
        a, h = ctx.saved_tensors
        later = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1).flip(1)
        g = dh.flip(1)
        ParallelScan.sweep(later, g)
        g = g.flip(1)
        return torch.cat([torch.zeros_like(h[:, :1]), g[:, 1:] * h[:, :-1]], 1), g


def parallel_scan(u, delta, A, B, C):
    """The scan with every state held, L x D x N numbers, by :class:`ParallelScan`."""
    delta, u = delta.transpose(1, 2)[..., None], u.transpose(1, 2)[..., None]  # (batch, L, D, 1)
    h = ParallelScan.apply(torch.exp(delta * A), delta * u * B.transpose(1, 2)[:, :, None])
    return (h @ C.transpose(1, 2)[..., None]).squeeze(-1).transpose(1, 2)


def candidates(device: torch.device) -> dict[str, Callable[..., Tensor]]:
    """Ours by the backend that `auto` means, and what it is compared with."""
    ours = pick_backend("auto", device)
    found = {f"backend {ours}": lambda *x: selective_scan(*x, backend=ours)}
    if ours != "reference":
        found["backend reference"] = lambda *x: selective_scan(*x, backend="reference")
    return found | {"plain loop over unbound steps": plain_loop, "parallel scan as in mamba.py": parallel_scan}


def inputs(batch: int, channels: int, states: int, length: int, device: torch.device) -> list[Tensor]:
    """u, delta, A, B, C drawn from a fixed seed, positive deltas up to 0.1, all requiring gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, channels, length)] * 2 + [(channels, states)] + [(batch, states, length)] * 2
    u, delta, A, B, C = (torch.randn(shape, generator=generator) for shape in shapes)
    tensors = [u, 0.1 * delta.sigmoid(), -A.exp(), B, C]
    return [t.to(device).requires_grad_() for t in tensors]


def floor(inputs: Sequence[Tensor], output: Tensor, exponentials: int, device: torch.device) -> dict[str, float]:
    """The least that forward and backward must do, in milliseconds: their exponentials and their bytes.

    Measured here: torch's own exp over as many numbers, twice, for the backward computes them again; and a copy of
    as many bytes as are read and written: inputs and output forward; again inputs, the output's gradient and the
    gradients of the inputs backward.
    """
    numbers = torch.rand(2**24 if device.type == "cuda" else 2**20, device=device)
    into = torch.empty_like(numbers)
    exp = median(timed(lambda: torch.exp(numbers, out=into), device) for _ in range(20)) / numbers.numel()
    copy = median(timed(lambda: into.copy_(numbers), device) for _ in range(20)) / (2 * numbers.nbytes)
    moved = 3 * sum(x.nbytes for x in inputs) + 2 * output.nbytes
    return {"exponentials_ms": 2 * exponentials * exp, "bytes_ms": moved * copy}


def compare_scans(
    lengths: Sequence[int], batch: int, channels: int, states: int, rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """For each length the shape, one row a candidate and the floor."""
    found = []
    for length in lengths:
        tensors = inputs(batch, channels, states, length, device)
        shape = {"length": length, "batch": batch, "channels": channels, "states": states}
        rows = compare(candidates(device), tensors, rounds, device)
        found.append(shape | {"rows": rows, "floor": floor(tensors, tensors[0], tensors[0].numel() * states, device)})
    return found


class FourCopies(nn.Module):
    """SS2D as VMamba and MedMamba write it: four reordered copies of the image by stack, flip and cat, scanned as
    four times the channels, and their outputs turned back and added. The weights are those of `module`."""

    def __init__(self, module: SS2D):
        super().__init__()
        self.module = module

    def scan(self, x: Tensor, height: int, width: int) -> Tensor:
        """What stands in the place of :meth:`SS2D.scan`; x (batch, L, E)."""
        m, (batch, length, inner) = self.module, x.shape
        K = len(PATHS)
        x = x.transpose(1, 2).reshape(batch, inner, height, width)
        both = torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], 1)  # rows and columns, (batch, 2, E, L)
        copies = torch.cat([both, both.flip(-1)], 1)  # (batch, K, E, L)
        parameters = torch.einsum("bkel,kce->bkcl", copies, m.x_proj.to(x.dtype))
        dt, B, C = parameters.split([m.rank, m.states, m.states], dim=2)
        delta = torch.einsum("bkrl,ker->bkel", dt, m.dt_weight.to(x.dtype))
        y = selective_scan(
            copies.float().view(batch, -1, length),
            delta.float().reshape(batch, -1, length),
            -torch.exp(m.A_log.float()).view(-1, m.states),
            B.float().contiguous(),
            C.float().contiguous(),
            m.D.float().view(-1),
            delta_bias=m.dt_bias.float().view(-1),
            delta_softplus=True,
            backend=m.backend,
        ).view(batch, K, inner, length)
        rows, columns = y[:, :2].unbind(1)
        rows_back, columns_back = y[:, 2:].flip(-1).unbind(1)

        def turned(y: Tensor) -> Tensor:
            return y.view(batch, inner, width, height).transpose(2, 3).reshape(batch, inner, length)

        return (rows + rows_back + turned(columns) + turned(columns_back)).transpose(1, 2).contiguous()

    def forward(self, image: Tensor) -> Tensor:
        _, height, width, _ = image.shape
        own, self.module.scan = self.module.scan, lambda x, _: self.scan(x, height, width)
        try:
            return self.module(image)
        finally:
            self.module.scan = own


def compare_ss2d(
    channels: int, side: int, rounds: int, device: torch.device, *, batch: int = 1, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """The four bare scans, SS2D by the backend that `auto` means (on a GPU by Triton's, too), and SS2D with four
    copies of the image on the same backend.

    On side x side tokens. dtype: of the autocast around SS2D, and of the bare scans' inputs. The floor is that of
    the bare scans.
    """
    torch.manual_seed(0)
    module = SS2D(channels).to(device)
    image = torch.randn(batch, side, side, channels, device=device, requires_grad=True)
    inner, length, paths = module.D.shape[1], side * side, four_paths(side, side, device)
    shapes = [(batch, length, inner), (batch, 4, length, inner), *[(batch, 4, length, module.states)] * 2]
    arrays = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]
    u, delta, B, C = arrays

    def scans(_):
        A = -torch.exp(module.A_log)
        return scan_paths(u, delta, A, B, C, module.D, module.dt_bias, paths)

    def by(backend: str, module: nn.Module):
        def call(image):
            own.backend = backend
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                return module(image)

        own = module.module if isinstance(module, FourCopies) else module
        return call

    auto = pick_backend("auto", device)
    functions = {"four bare scans": scans, f"SS2D, {auto}": by(auto, module)}
    if device.type == "cuda":
        functions["SS2D, triton"] = by("triton", module)
    functions[f"{COPIES}, {auto}"] = by(auto, FourCopies(module))
    rows = compare(functions, [image], rounds, device, [*arrays, *module.parameters()])
    return {"rows": rows, "floor": floor(arrays, u, delta.numel() * module.states, device)}
