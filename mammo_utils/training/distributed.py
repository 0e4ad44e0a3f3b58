"""One training in several processes, each with a share of every batch (data parallel).

Processes are spawned, because an interactive kernel cannot be forked, and meet at a file. Gradients are summed, not
averaged: the loss of a share already has the denominators of the full batch. For this reason, and because a share may
be empty and an encoder may get no view at all, torch's DistributedDataParallel is not used.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, get_context, start_processes

from mammo_utils.io import exit_with_parent


class ProcessesError(RuntimeError):
    """A training process died, or raised an error of an unexpected kind."""


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) in an ordinary training."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum over the processes, in place; every process gets the same bits."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def sum_gradients(model: nn.Module) -> None:
    """Replace each gradient by its sum over the processes, in one collective call."""
    if dist.is_initialized():
        gradients = [p.grad for p in model.parameters()]
        flat = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def average_buffers(model: nn.Module) -> None:
    """Average batch norm's running statistics over the processes, each of which saw only its shares."""
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
    """Call ``function(send, *arguments)`` in `n` connected processes and wait for all of them.

    Args:
        function: A function of a module, so that other processes can import it.
        n: Number of processes.
        arguments: Its arguments after `send`; they are pickled.
        on_message: Called in this process with everything that rank 0 passes to `send`.
        errors: Exception classes that are raised again here; others become a ProcessesError.
        cuda: Whether the processes use GPUs. Each has its own, if there are enough.

    Raises:
        ProcessesError: A process ended by an error of another kind or by a signal. On any error, and on Ctrl-C, the
            other processes are ended.
    """
    kinds = {kind.__name__: kind for kind in errors}
    with tempfile.TemporaryDirectory() as folder:
        queue = get_context("spawn").SimpleQueue()
        meeting = (Path(folder) / "meeting").as_uri()
        common = (function, n, meeting, queue, cuda, arguments)
        running = start_processes(_run_rank, common, n, join=False, start_method="spawn")
        failed = None

        def receive() -> None:
            nonlocal failed
            while not queue.empty():
                kind, message = queue.get()
                if not kind:
                    on_message(message)
                elif failed is None:  # later errors only follow from the first: a rank lost its partner
                    failed = kinds[kind](message) if kind in kinds else ProcessesError(f"{kind}: {message}")

        try:
            while not running.join(timeout=0.1):
                receive()
            receive()
        except (ProcessRaisedException, ProcessExitedException) as error:
            receive()
            # the others are ended below by SIGTERM, so a process that SIGTERM ended is not the cause
            killed = [-p.exitcode for p in running.processes if (p.exitcode or 0) < 0 and -p.exitcode != signal.SIGTERM]
            if killed:
                names = ", ".join(signal.Signals(number).name for number in killed)
                failed = ProcessesError(f"A training process was killed by {names}; run the same command again.")
            raise failed or ProcessesError(f"A training process ended: {str(error).strip()}") from error
        finally:
            for process in running.processes:
                process.terminate()


def _run_rank(rank: int, function: Callable, n: int, meeting: str, queue, cuda: bool, arguments: tuple) -> None:
    exit_with_parent()  # an orphan would write into files that the next command uses
    if cuda:
        torch.cuda.set_device(rank % torch.cuda.device_count())
    # NCCL refuses two processes on one GPU; gloo goes through the host instead
    backend = "nccl" if cuda and n <= torch.cuda.device_count() else "gloo"
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=n)
    try:
        function((lambda message: queue.put(("", message))) if rank == 0 else (lambda message: None), *arguments)
    except Exception as error:
        queue.put((type(error).__name__, str(error)))
        raise
    finally:
        dist.destroy_process_group()
