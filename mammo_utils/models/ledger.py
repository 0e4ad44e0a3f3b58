"""The speed ledger: ``python -m mammo_utils.models.ledger`` times the scans beside named alternatives.

It prints a table, and with ``--json FILE`` writes the same as JSON: milliseconds forward and forward + backward
and the peak of extra memory, beside the floor, on the device asked for. The alternatives are timed in turn,
round after round in one process, and medians are compared, so that a busy machine is unjust to none.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mammo_utils.files import environment, write_json
from mammo_utils.models.selective_scan import pick_backend, scan_paths, selective_scan
from mammo_utils.models.ss2d import SS2D, four_paths

MEGABYTE = 2**20


def plain_loop(u, delta, A, B, C):
    """What one writes first: every step's decay and input at once, then a loop over unbound steps."""
    decay = torch.exp(delta[..., None] * A[:, None]).unbind(2)  # L of (batch, D, N)
    step = ((delta * u)[..., None] * B.transpose(1, 2)[:, None]).unbind(2)
    h, ys = torch.zeros_like(step[0]), []
    for a, x, c in zip(decay, step, C.unbind(2), strict=True):
        h = a * h + x
        ys.append((h * c[:, None]).sum(-1))
    return torch.stack(ys, 2)


def parallel_scan(u, delta, A, B, C):
    """A scan of log2(L) doublings over L x D x N arrays (Hillis and Steele 1986), the kind that torch allows.

    It combines pairs (a, x), (b, y) into (a b, b x + y) and divides nothing.
    """
    decay = torch.exp(delta[..., None] * A[:, None])
    h = (delta * u)[..., None] * B.transpose(1, 2)[:, None]  # (batch, D, L, N)
    reach = 1
    while reach < u.shape[2]:
        h = torch.cat([h[:, :, :reach], h[:, :, reach:] + decay[:, :, reach:] * h[:, :, :-reach]], 2)
        decay = torch.cat([decay[:, :, :reach], decay[:, :, reach:] * decay[:, :, :-reach]], 2)
        reach *= 2
    return (h * C.transpose(1, 2)[:, None]).sum(-1)


def candidates(device: torch.device) -> dict[str, Callable[..., Tensor]]:
    """Ours by the backend that `auto` means, and what it is compared with."""
    ours = pick_backend("auto", device)
    found = {f"backend {ours}": lambda *x: selective_scan(*x, backend=ours)}
    if ours != "reference":
        found["backend reference"] = lambda *x: selective_scan(*x, backend="reference")
    return found | {"plain loop over unbound steps": plain_loop, "parallel scan in torch": parallel_scan}


def inputs(batch: int, channels: int, states: int, length: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, channels, length)] * 2 + [(channels, states)] + [(batch, states, length)] * 2
    u, delta, A, B, C = (torch.randn(shape, generator=generator) for shape in shapes)
    tensors = [u, 0.1 * delta.sigmoid(), -A.exp(), B, C]
    return [t.to(device).requires_grad_() for t in tensors]


def timed(function: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def peak_memory(function: Callable[[], Any], device: torch.device) -> float:
    """Megabytes allocated above the start at the worst moment of one call.

    On a GPU by torch's own count. On a CPU by the profiler's record of torch's allocations, in order of time;
    the scan's scratch, some 50 kB a thread, is not in it.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / MEGABYTE
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        function()
    level = worst = 0
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        worst = max(worst, level)
    return worst / MEGABYTE


def compare(
    functions: dict[str, Callable[..., Tensor]], tensors: list[Tensor], rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """One row a function: median milliseconds over `rounds` interleaved rounds, and peak memory, of which u is one."""

    def forward(function):
        with torch.no_grad():
            function(*tensors)

    def both(function):
        for tensor in tensors:
            tensor.grad = None
        function(*tensors).sum().backward()

    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "both": []} for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            for kind, call in (("forward", forward), ("both", both)):
                taken = timed(lambda call=call, function=function: call(function), device)
                if turn:  # the first round compiles and warms
                    times[name][kind].append(taken)
    size = tensors[0].numel() * tensors[0].element_size() / MEGABYTE
    rows = []
    for name, function in functions.items():
        memory = peak_memory(lambda function=function: both(function), device)
        found = {"forward_ms": median(times[name]["forward"]), "forward_backward_ms": median(times[name]["both"])}
        rows.append({"name": name, **found, "peak_memory_mb": memory, "peak_memory_in_u": memory / size})
    first = rows[0]["forward_backward_ms"]
    return [row | {"times_slower": row["forward_backward_ms"] / first} for row in rows]


def floor(tensors: list[Tensor], device: torch.device) -> dict[str, float]:
    """The least that a scan must do: its exponentials (twice, for the backward recomputes them) and its bytes.

    Measured here: milliseconds of torch's own exp over as many numbers, and of copying as many bytes as inputs,
    output and their gradients have.
    """
    u, _, A, B, C = tensors
    numbers = torch.rand(2**20, device=device)
    into = torch.empty_like(numbers)
    exp = median(timed(lambda: torch.exp(numbers, out=into), device) for _ in range(20)) / numbers.numel()
    copy = median(timed(lambda: into.copy_(numbers), device) for _ in range(20)) / (2 * numbers.numel())
    moved = 2 * (3 * u.numel() + A.numel() + B.numel() + C.numel()) + 3 * u.numel()
    return {"exponentials_ms": 2 * u.numel() * A.shape[1] * exp, "bytes_ms": moved * copy}


def compare_ss2d(channels: int, side: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """SS2D beside its four bare scans alone, on one image of side x side tokens."""
    torch.manual_seed(0)
    module = SS2D(channels).to(device)
    image = torch.randn(1, side, side, channels, device=device, requires_grad=True)
    inner, length, paths = module.D.shape[1], side * side, four_paths(side, side)
    shapes = [(1, length, inner), (1, 4, length, inner), (1, 4, length, 16), (1, 4, length, 16)]
    u, delta, B, C = (torch.randn(shape, device=device, requires_grad=True) for shape in shapes)

    def scans(_):
        A = -torch.exp(module.A_log)
        return scan_paths(u, delta, A, B, C, module.D, module.dt_bias, paths)

    return compare({"four bare scans": scans, "SS2D": module}, [image], rounds, device)


def ledger(
    lengths: tuple[int, ...], batch: int, channels: int, states: int, rounds: int, device: torch.device
) -> dict[str, Any]:
    """Everything that the command prints."""
    record: dict[str, Any] = {"environment": environment(str(device), torch.get_num_threads()), "scans": [], "ss2d": []}
    for length in lengths:
        tensors = inputs(batch, channels, states, length, device)
        shape = {"length": length, "batch": batch, "channels": channels, "states": states}
        rows = compare(candidates(device), tensors, rounds, device)
        record["scans"].append(shape | {"rows": rows, "floor": floor(tensors, device)})
    for width, side in ((64, 64), (128, 32)):  # the hybrid's two blocks at 512 px
        rows = compare_ss2d(width, side, rounds, device)
        record["ss2d"].append({"channels": width, "side": side, "rows": rows})
    return record


def table(record: dict[str, Any]) -> str:
    lines = []
    for part in record["scans"]:
        lines.append("B={batch} D={channels} N={states} L={length}".format(**part))
        lines += _lines(part["rows"])
        floors = part["floor"]
        lines.append(f"  floor: exponentials {floors['exponentials_ms']:.1f} ms, bytes {floors['bytes_ms']:.1f} ms")
    for part in record["ss2d"]:
        lines.append(f"SS2D of {part['channels']} channels, {part['side']} x {part['side']} tokens, one image")
        lines += _lines(part["rows"])
    return "\n".join(lines)


def _lines(rows: list[dict[str, Any]]) -> list[str]:
    head = f"  {'':32}{'forward':>10}{'+ backward':>12}{'slower':>9}{'peak memory':>14}"
    return [head] + [
        f"  {r['name']:32}{r['forward_ms']:>7.1f} ms{r['forward_backward_ms']:>9.1f} ms{r['times_slower']:>8.1f}x"
        f"{r['peak_memory_in_u']:>9.1f} x in"
        for r in rows
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--channels", type=int, default=192)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args(arguments)
    torch.set_num_threads(a.threads)
    record = ledger(tuple(a.lengths), a.batch, a.channels, a.states, a.rounds, torch.device(a.device))
    print(table(record))
    if a.json:
        write_json(a.json, record)


if __name__ == "__main__":
    main()
