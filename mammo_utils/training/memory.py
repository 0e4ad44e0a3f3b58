"""What fits into memory: the precision of the forward pass, and smaller micro-batches when memory is short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mammo_utils.config import Training
from mammo_utils.training.dataset import Batch


class TrainingError(RuntimeError):
    """Training cannot continue; the last complete checkpoint is kept."""


def precision(device: torch.device, settings: Training) -> str:
    """The precision of the settings; "auto" is bfloat16 on a GPU and float32 on a CPU."""
    automatic = "bfloat16" if device.type == "cuda" else "float32"
    return automatic if settings.precision == "auto" else settings.precision


def autocast(device: torch.device, settings: Training) -> torch.autocast:
    """The autocast context of the settings' precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(device, settings) == "bfloat16")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that memory was short; CPUs, GPU libraries and Triton each raise their own kind."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def with_oom_backoff(attempt: Callable[[int], Any], micro: int, batch: Batch) -> tuple[Any, int]:
    """Call ``attempt(micro)``, with half the micro-batch after each shortage of memory.

    Each attempt starts from the beginning of the batch. Batch norm's running statistics, however, keep the updates
    made before the shortage.

    Args:
        attempt: Called with the exams per micro-batch.
        micro: Exams per micro-batch of the first attempt.
        batch: The batch of the attempts.

    Returns:
        The attempt's result and the micro-batch that fitted.

    Raises:
        TrainingError: A single exam does not fit.
    """
    while True:
        try:
            return attempt(micro), micro
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        micro = min(micro, len(batch.exams))  # outside `except`, whose traceback would keep activations alive
        if micro == 1:
            raise TrainingError(
                f"One exam of {batch.images.shape[-1]} px does not fit into memory; lower images.size or use a "
                "smaller system or another device."
            )
        if batch.images.is_cuda:
            torch.cuda.empty_cache()
        micro = (micro + 1) // 2
