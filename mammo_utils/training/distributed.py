"""One training in several processes, each with a share of every batch (data parallel).

The processes are started anew, since an interactive kernel cannot be forked, and meet at a file. Gradients are
summed, not averaged: the loss of a share already has the denominators of the whole batch. That, a share without
exams and an encoder whose views are all absent are why torch's DistributedDataParallel is not used.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, get_context, start_processes


class ProcessesError(RuntimeError):
    """A process of a training ended without a reason of its own."""


def rank_and_size() -> tuple[int, int]:
    """(i, n): this is process i of n; (0, 1) where a training has one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of the processes' values, in place; the same to the last bit in each of them."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def sum_gradients(model: nn.Module) -> None:
    """Each gradient becomes the sum over the processes."""
    if dist.is_initialized():
        gradients = [p.grad for p in model.parameters()]
        flat = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def average_buffers(model: nn.Module) -> None:
    """Batch norm's running statistics become the mean over the processes, each of which saw its shares alone."""
    if dist.is_initialized():
        for buffer in model.buffers():
            sum_over_ranks(buffer)
            buffer.copy_(buffer / rank_and_size()[1])


def run_distributed(
    function: Callable[..., None],
    n: int,
    arguments: tuple,
    on_message: Callable[[Any], None],
    errors: tuple[type, ...],
    cuda: bool = False,
) -> None:
    """Call ``function(say, *arguments)`` in `n` processes that know of each other and wait for them all.

    cuda: whether they work on GPUs, each on its own as far as there are so many.

    What process 0 says comes to `on_message`. The first error is raised here, as itself where it is one of
    `errors`, else as ProcessesError; then, and where this is interrupted, the other processes are ended.
    """
    kinds = {kind.__name__: kind for kind in errors}
    with tempfile.TemporaryDirectory() as folder:
        queue = get_context("spawn").SimpleQueue()
        meeting = (Path(folder) / "meeting").as_uri()
        common = (function, n, meeting, queue, cuda, os.getpid(), arguments)
        running = start_processes(_work, common, n, join=False, start_method="spawn")
        failed = None

        def listen() -> None:
            nonlocal failed
            while not queue.empty():
                kind, message = queue.get()
                if not kind:
                    on_message(message)
                elif failed is None:  # the others fail after it, for want of a partner
                    failed = kinds[kind](message) if kind in kinds else ProcessesError(f"{kind}: {message}")

        try:
            while not running.join(timeout=0.1):
                listen()
            listen()
        except (ProcessRaisedException, ProcessExitedException) as error:
            listen()
            killed = [-p.exitcode for p in running.processes if (p.exitcode or 0) < 0 and -p.exitcode != signal.SIGTERM]
            if killed:  # what the others say is that they lost it; SIGTERM is how they are ended
                names = ", ".join(signal.Signals(number).name for number in killed)
                failed = ProcessesError(f"A process of the training was ended by {names}; give the same command again.")
            raise failed or ProcessesError(f"A process of the training ended: {str(error).strip()}") from error
        finally:
            for process in running.processes:
                process.terminate()


def _watch(parent: int) -> None:
    """End this process with its parent, however that ends: an orphan would write into the next start's files."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(
    rank: int, function: Callable, n: int, meeting: str, queue, cuda: bool, parent: int, arguments: tuple
) -> None:
    Thread(target=_watch, args=(parent,), daemon=True).start()
    if cuda:
        torch.cuda.set_device(rank % torch.cuda.device_count())
    # two processes on one GPU, which NCCL refuses, talk by way of the host
    backend = "nccl" if cuda and n <= torch.cuda.device_count() else "gloo"
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=n)
    try:
        function((lambda message: queue.put(("", message))) if rank == 0 else (lambda message: None), *arguments)
    except Exception as error:
        queue.put((type(error).__name__, str(error)))
        raise
    finally:
        dist.destroy_process_group()
