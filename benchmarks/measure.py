"""How the ledger measures: functions in turn, medians compared, and the worst moment of extra memory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor

MEGABYTE = 2**20


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

    with without_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        function()
    level = worst = 0
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        worst = max(worst, level)
    return worst / MEGABYTE


@contextmanager
def without_stderr() -> Iterator[None]:
    """The profiler's library writes of missing GPUs and of older blocks to the file descriptor itself."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def compare(
    functions: dict[str, Callable[..., Tensor]],
    tensors: list[Tensor],
    rounds: int,
    device: torch.device,
    others: Iterable[Tensor] = (),
) -> list[dict[str, Any]]:
    """One row a function: median milliseconds over `rounds` interleaved rounds, and peak memory in units of the
    first tensor. `tensors` are the arguments; those that require a gradient get one, and so may `others`. No
    gradient is held when a call begins: freed or added to in it, it would count in time and memory."""
    with_gradients = [*tensors, *others]

    def forward(function):
        with torch.no_grad():
            function(*tensors)

    def both(function):
        function(*tensors).float().sum().backward()

    def clear():
        for tensor in with_gradients:
            tensor.grad = None

    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "both": []} for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            for kind, call in (("forward", forward), ("both", both)):
                clear()
                taken = timed(lambda call=call, function=function: call(function), device)
                if turn:  # the first round compiles and warms
                    times[name][kind].append(taken)
    size = tensors[0].numel() * tensors[0].element_size() / MEGABYTE
    rows = []
    for name, function in functions.items():
        clear()
        memory = peak_memory(lambda function=function: both(function), device)
        found = {"forward_ms": median(times[name]["forward"]), "forward_backward_ms": median(times[name]["both"])}
        rows.append({"name": name, **found, "peak_memory_mb": memory, "peak_memory_in_input": memory / size})
    clear()
    first = rows[0]["forward_backward_ms"]
    return [row | {"times_slower": row["forward_backward_ms"] / first} for row in rows]
