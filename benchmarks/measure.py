"""Measure time and memory: interleaved rounds, medians, and the peak of extra memory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

MEGABYTE = 2**20


def time_call(function: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds of one call."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    start = time.perf_counter()
    function()
    synchronise()
    return 1e3 * (time.perf_counter() - start)


def interleaved_medians(
    functions: dict[Any, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    before: Callable[[], Any] = lambda: None,
) -> dict[Any, float]:
    """Median milliseconds of each function over interleaved rounds, so that a busy machine slows all of them alike.

    Args:
        functions: Name -> call without arguments.
        rounds: Rounds that count. One more comes first, in which code is compiled and caches are filled.
        device: Where the functions compute.
        before: Called before each function, outside the measured time.
    """
    times: dict[Any, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            before()
            times[name].append(time_call(function, device))
    return {name: median(found[1:]) for name, found in times.items()}


def peak_memory(function: Callable[[], Any], device: torch.device) -> float:
    """Megabytes allocated above the start at the worst moment of one call.

    On a GPU this is torch's own count, on a CPU the profiler's record of torch's allocations in order of time. The
    scan's scratch on a CPU, some 90 kB a thread, is not counted.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / MEGABYTE
    with _without_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        function()
    level = worst = 0
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        worst = max(worst, level)
    return worst / MEGABYTE


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Silence file descriptor 2, to which the profiler's library writes about missing GPUs and older blocks."""
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
    """Compare functions of the same tensors: one row each of times, peak memory and the ratio to the first.

    No gradient is kept between calls: freed or added to in the next one, it would count there in time and memory.

    Args:
        functions: Name -> function of `tensors`.
        tensors: Arguments; peak memory is also given in units of the first.
        rounds: Interleaved rounds whose median is taken.
        device: Where the tensors are.
        others: Further tensors that may get a gradient, such as weights.
    """
    with_gradients = [*tensors, *others]

    def forward(function: Callable[..., Tensor]) -> None:
        with torch.no_grad():
            function(*tensors)

    def forward_backward(function: Callable[..., Tensor]) -> None:
        function(*tensors).float().sum().backward()

    def clear() -> None:
        for tensor in with_gradients:
            tensor.grad = None

    kinds = {"forward_ms": forward, "forward_backward_ms": forward_backward}
    calls = {(name, kind): partial(call, f) for name, f in functions.items() for kind, call in kinds.items()}
    times = interleaved_medians(calls, rounds, device, clear)
    rows: list[dict[str, Any]] = []
    for name, function in functions.items():
        clear()
        memory = peak_memory(partial(forward_backward, function), device)
        row = {"name": name, **{kind: times[name, kind] for kind in kinds}, "peak_memory_mb": memory}
        row["peak_memory_in_input"] = memory * MEGABYTE / tensors[0].nbytes
        row["times_slower"] = row["forward_backward_ms"] / (rows or [row])[0]["forward_backward_ms"]
        rows.append(row)
    clear()
    return rows
