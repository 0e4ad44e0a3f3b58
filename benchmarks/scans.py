"""The selective scan and SS2D beside their alternatives and beside a floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import compare, time_call
from mammo_utils.models.selective_scan import pick_backend, scan_paths, selective_scan
from mammo_utils.models.ss2d import PATHS, SS2D, four_paths


def loop_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The scan as a first draft has it: decay and input of every step at once, then a loop over unbound steps."""
    decay = torch.exp(delta[..., None] * A[:, None]).unbind(2)  # L tensors of (batch, D, N)
    step = ((delta * u)[..., None] * B.transpose(1, 2)[:, None]).unbind(2)  # L tensors of (batch, D, N)
    h, ys = torch.zeros_like(step[0]), []
    for a, x, c in zip(decay, step, C.unbind(2), strict=True):
        h = a * h + x
        ys.append((h * c[:, None]).sum(-1))
    return torch.stack(ys, 2)  # (batch, D, L)


def parallel_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The scan with every state held, L x D x N numbers, by `ParallelScan`."""
    delta, u = delta.transpose(1, 2)[..., None], u.transpose(1, 2)[..., None]  # (batch, L, D, 1)
    h = ParallelScan.apply(torch.exp(delta * A), delta * u * B.transpose(1, 2)[:, :, None])  # (batch, L, D, N)
    return (h @ C.transpose(1, 2)[..., None]).squeeze(-1).transpose(1, 2)  # (batch, L, D) -> (batch, D, L)


class ParallelScan(torch.autograd.Function):
    """h_t = a_t h_(t-1) + x_t for all t by Blelloch's two sweeps (1990), over arrays (batch, L, D, N).

    As in the library mamba.py: in place on copies, with a backward of its own, which is the same scan from the end. It
    combines pairs (a, x), (b, y) into (a b, b x + y) and divides nothing.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, x: Tensor) -> Tensor:
        h = _sweep(a.clone(), x.clone())
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        later = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1).flip(1)
        g = _sweep(later, dh.flip(1)).flip(1)
        return torch.cat([torch.zeros_like(h[:, :1]), g[:, 1:] * h[:, :-1]], 1), g


def _sweep(a: Tensor, x: Tensor) -> Tensor:
    """Overwrite both arrays by Blelloch's sweep up and down; x becomes h and is returned."""

    def join(earlier: slice, later: slice) -> None:
        x[:, later] += a[:, later] * x[:, earlier]
        a[:, later] *= a[:, earlier]

    if x.shape[1] > 1:
        join(slice(0, -1, 2), slice(1, None, 2))
        _sweep(a[:, 1::2], x[:, 1::2])
        join(slice(1, -1, 2), slice(2, None, 2))
    return x


def list_scans(device: torch.device) -> dict[str, Callable[..., Tensor]]:
    """The scan by the backend that `auto` picks on the device, first, and its alternatives."""
    backends = dict.fromkeys((pick_backend("auto", device), "reference"))
    backends.pop("triton", None)  # scans images only
    found = {f"backend {b}": lambda *x, b=b: selective_scan(*x, backend=b) for b in backends}
    return found | {"plain loop over unbound steps": loop_scan, "parallel scan as in mamba.py": parallel_scan}


def draw_inputs(batch: int, channels: int, states: int, length: int, device: torch.device) -> list[Tensor]:
    """u, delta, A, B, C drawn from a fixed seed, positive deltas up to 0.1, all requiring gradients.

    In memory channels or states are neighbours, as in SS2D and in mamba.py.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, length, channels)] * 2 + [(channels, states)] + [(batch, length, states)] * 2
    u, delta, A, B, C = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    drawn = u.mT, 0.1 * delta.sigmoid().mT, -A.exp(), B.mT, C.mT  # (batch, channels or states, length)
    return [t.requires_grad_() for t in drawn]


def measure_floor(
    inputs: Sequence[Tensor], output: Tensor, exponentials: int, device: torch.device
) -> dict[str, float]:
    """The least that forward and backward must do, in milliseconds: their exponentials and their bytes.

    Both are measured here: torch's exp over as many numbers, twice, because the backward computes them again; and a
    copy of as many bytes as are read and written. The forward moves inputs and output, the backward the inputs, the
    output's gradient and the inputs' gradients.
    """
    numbers = torch.rand(2**24 if device.type == "cuda" else 2**20, device=device)
    into = torch.empty_like(numbers)
    exp = median(time_call(lambda: torch.exp(numbers, out=into), device) for _ in range(20)) / numbers.numel()
    copy = median(time_call(lambda: into.copy_(numbers), device) for _ in range(20)) / (2 * numbers.nbytes)
    moved = 3 * sum(x.nbytes for x in inputs) + 2 * output.nbytes
    return {"exponentials_ms": 2 * exponentials * exp, "bytes_ms": moved * copy}


def compare_scans(
    lengths: Sequence[int], batch: int, channels: int, states: int, rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """Compare the scans of `list_scans`: for each length its shape, one row a scan and the floor."""
    found = []
    for length in lengths:
        tensors = draw_inputs(batch, channels, states, length, device)
        part = {"length": length, "batch": batch, "channels": channels, "states": states}
        part["rows"] = compare(list_scans(device), tensors, rounds, device)
        part["floor"] = measure_floor(tensors, tensors[0], tensors[0].numel() * states, device)
        found.append(part)
    return found


class FourCopies(SS2D):
    """SS2D as VMamba and MedMamba write it: four reordered copies of the image, scanned as four times the channels.

    The copies are made by stack, flip and cat; their outputs are turned back and added.
    """

    def scan(self, x: Tensor, height: int, width: int) -> Tensor:
        """Scan like `SS2D.scan`."""
        batch, length, inner = x.shape
        x = x.transpose(1, 2).unflatten(2, (height, width))  # (batch, L, E) -> (batch, E, H, W)
        both = torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], 1)  # rows and columns, (batch, 2, E, L)
        copies = torch.cat([both, both.flip(-1)], 1)  # (batch, K, E, L)
        parameters = torch.einsum("bkel,kce->bkcl", copies, self.x_proj.to(x.dtype))
        dt, B, C = parameters.split([self.rank, self.states, self.states], dim=2)
        delta = torch.einsum("bkrl,ker->bkel", dt, self.dt_weight.to(x.dtype))
        y = selective_scan(
            copies.float().flatten(1, 2),  # (batch, K*E, L), so is delta
            delta.float().flatten(1, 2),
            -torch.exp(self.A_log.float()).flatten(0, 1),  # (K*E, N)
            B.float().contiguous(),
            C.float().contiguous(),
            self.D.float().flatten(),
            delta_bias=self.dt_bias.float().flatten(),
            delta_softplus=True,
            backend=self.backend,
        ).view(batch, len(PATHS), inner, length)
        rows, columns, rows_back, columns_back = torch.cat([y[:, :2], y[:, 2:].flip(-1)], 1).unbind(1)
        turned = (columns + columns_back).unflatten(2, (width, height)).transpose(2, 3).flatten(2)  # (batch, E, L)
        return (rows + rows_back + turned).transpose(1, 2).contiguous()  # (batch, L, E)


def compare_ss2d(
    channels: int, side: int, rounds: int, device: torch.device, *, batch: int = 1, dtype: str = "float32"
) -> dict[str, Any]:
    """Compare four bare scans, SS2D and SS2D with four copies of the image, on side x side tokens.

    SS2D runs by the backend that `auto` picks, on a GPU by Triton's as well. The floor is that of the bare scans.

    Args:
        channels: C.
        side: Tokens a side.
        rounds: Interleaved rounds whose median is taken.
        device: Where to compute.
        batch: Images.
        dtype: Of the autocast around SS2D and of the inputs of the bare scans, "float32" or "bfloat16".
    """
    torch.manual_seed(0)
    module, kind = SS2D(channels).to(device), getattr(torch, dtype)
    image = torch.randn(batch, side, side, channels, device=device, requires_grad=True)
    inner, length, paths = module.D.shape[1], side * side, four_paths(side, side, device)
    shapes = [(batch, length, inner), (batch, 4, length, inner), *[(batch, 4, length, module.states)] * 2]
    arrays = [torch.randn(shape, device=device, dtype=kind, requires_grad=True) for shape in shapes]
    u, delta, B, C = arrays
    copies = FourCopies(channels).to(device)
    copies.load_state_dict(module.state_dict())

    def scan(_: Tensor) -> Tensor:
        return scan_paths(u, delta, -torch.exp(module.A_log), B, C, module.D, module.dt_bias, paths)

    def run(module: nn.Module, backend: str) -> Callable[[Tensor], Tensor]:
        def call(image: Tensor) -> Tensor:
            module.backend = backend
            with torch.autocast(device.type, kind, enabled=dtype != "float32"):
                return module(image)

        return call

    auto = pick_backend("auto", device)
    functions = {"four bare scans": scan, f"SS2D, {auto}": run(module, auto)}
    if device.type == "cuda":
        functions["SS2D, triton"] = run(module, "triton")
    if auto != "triton":  # which cannot scan sequences
        functions[f"SS2D, four copies, {auto}"] = run(copies, auto)
    facts = {"channels": channels, "side": side, "batch": batch, "dtype": dtype}
    facts["rows"] = compare(functions, [image], rounds, device, [*arrays, *module.parameters(), *copies.parameters()])
    return facts | {"floor": measure_floor(arrays, u, delta.numel() * module.states, device)}
