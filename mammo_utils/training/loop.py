"""The training loop of §4.3, resumable to the last bit.

It is a plain loop. Batches are made on the device, so a framework's loaders and samplers would gain nothing; and to
resume to the last bit, the states of the schedule, the optimizer and the best epoch are kept in one file that is read
without unpickling.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mammo_utils.config import Training
from mammo_utils.io import atomic_write, display_path
from mammo_utils.training.dataset import Batch, ExamSet, derive_seed
from mammo_utils.training.distributed import average_buffers, rank_and_size, sum_gradients, sum_over_ranks
from mammo_utils.training.loss import class_weights, total_loss
from mammo_utils.training.memory import TrainingError, autocast, is_out_of_memory, with_oom_backoff
from mammo_utils.training.predict import validation_scores

STATE = {"identity", "model", "optimizer", "schedule", "average", "rows", "best"}  # what a checkpoint holds


def train(
    model: nn.Module,
    parts: dict[str, ExamSet],
    settings: Training,
    *,
    learning_rate: float,
    seed: int,
    checkpoint: Path,
    identity: dict[str, str],
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
) -> tuple[list[dict[str, Any]], int]:
    """Train `model` and leave it with the weights of its best epoch.

    The best epoch has the highest mean AUC of the active tasks on the validation part; of equal epochs the first is
    taken. The whole state is saved after every epoch. A later call with the same `identity` continues from it and
    ends with the same bits as an uninterrupted training.

    If a batch does not fit into memory, its gradient is summed over micro-batches of half as many exams. Several
    processes share each batch and end with the same weights; rank 0 writes.

    Args:
        model: The system, on the device of its exams.
        parts: "train" and "validation" -> exams.
        settings: The recipe.
        learning_rate: Initial learning rate of AdamW.
        seed: Of order, augmentation and dropout.
        checkpoint: File of the state.
        identity: What the state depends on: a state with another identity is ignored.
        on_epoch: Called with each epoch's row.

    Returns:
        One row per epoch (epoch, loss, validation AUCs, learning rate, micro-batch, seconds); the best epoch, from 1.

    Raises:
        TrainingError: The loss is not finite, one exam does not fit into memory, or the state cannot be written.
    """
    train_set, device = parts["train"], parts["train"].device
    weights = {
        task: class_weights(train_set.labels[task], classes).to(device) for task, classes in model.classes.items()
    }
    optimizer = make_optimizer(model, settings, learning_rate)
    schedule = make_schedule(optimizer, settings)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.average)) if settings.average else None
    evaluated = average.module if average else model
    rows: list[dict[str, Any]] = []
    best = {"epoch": 0, "score": -math.inf, "model": None}
    state = load_checkpoint(checkpoint, identity, device)
    done = len(state["rows"]) if state else 0
    if sum_over_ranks(torch.tensor(float(done), device=device)) != done * rank_and_size()[1]:
        state = None  # not every process found a valid checkpoint, so all of them restart
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        if average:
            average.load_state_dict(state["average"])
        rows, best = state["rows"], state["best"]
    # the size that fitted last time: trying larger ones again would change batch norm's statistics
    micro = rows[-1]["micro_batch"] if rows else settings.micro_batch or settings.batch_size

    for epoch in range(len(rows) + 1, settings.epochs + 1):
        if settings.early_stopping and len(rows) - best["epoch"] >= settings.early_stopping:
            break
        start = time.perf_counter()
        try:
            loss, micro = train_epoch(model, train_set, optimizer, weights, settings, seed, epoch, micro, average)
            if average or settings.batch_norm == "recomputed":  # averaged weights have no running statistics
                plain = train_set.in_order(settings.batch_size, rank_and_size())
                recompute_batch_norm(evaluated, plain, settings, micro)
            scores = validation_scores(evaluated, parts["validation"], settings, micro)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                "Out of memory outside the forward and backward pass, perhaps in the optimiser state; use a smaller "
                "system, training.store=mapped or another device."
            ) from error
        known = [score for score in scores.values() if not math.isnan(score)]
        score = float(np.mean(known)) if known else math.nan  # §4.3: a combined score of both AUCs
        rate = optimizer.param_groups[0]["lr"]  # of this epoch, before the schedule changes it
        schedule.step(*[score] if settings.schedule == "plateau" else [])
        if score > best["score"] or best["model"] is None:
            kept = {name: tensor.detach().clone() for name, tensor in evaluated.state_dict().items()}
            best = {"epoch": epoch, "score": -math.inf if math.isnan(score) else score, "model": kept}
        row = {
            "epoch": epoch,
            "loss": loss,
            **{f"validation_{task}_auc": value for task, value in scores.items()},
            "validation_auc": score,
            "learning_rate": rate,
            "micro_batch": micro,
            "seconds": time.perf_counter() - start,
        }
        rows.append(row)
        state = {
            "identity": identity,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "average": average.state_dict() if average else None,
            "rows": rows,
            "best": best,
        }
        if rank_and_size()[0] == 0:
            save_checkpoint(checkpoint, state, epoch)
        on_epoch(row)
    model.load_state_dict(best["model"])
    return rows, best["epoch"]


def train_epoch(
    model: nn.Module,
    exams: ExamSet,
    optimizer: torch.optim.Optimizer,
    weights: dict[str, torch.Tensor],
    settings: Training,
    seed: int,
    epoch: int,
    micro: int,
    average: AveragedModel | None = None,
) -> tuple[float, int]:
    """Make one pass over the exams.

    Dropout draws from a stream of its own in each step, independent of earlier steps and of retries when memory is
    short. Nothing waits for the device before the end of the epoch; values that are not finite are found there.

    Args:
        model: The system.
        exams: The training part.
        optimizer: Updated in place.
        weights: Task -> (K,) class weights.
        settings: The recipe.
        seed: The run's seed.
        epoch: From 1.
        micro: Exams per micro-batch.
        average: Running average of the weights, updated after each step.

    Returns:
        The mean loss per exam and the micro-batch that fitted into memory.

    Raises:
        TrainingError: A loss or gradient is not finite; the message names step and exams.
    """
    model.train()
    total, steps = torch.zeros((), device=exams.device), []
    batches = exams.epoch(seed, epoch, settings, rank_and_size())
    for step, batch in enumerate(batches):

        def attempt(micro: int, step: int = step, batch: Batch = batch) -> torch.Tensor:
            # seeded per step and rank, so that neither a resume nor a retry changes what dropout draws
            torch.manual_seed(derive_seed("dropout", seed, epoch, step, rank_and_size()[0]))
            return backward(model, batch, optimizer, weights, settings, micro)

        loss, micro = with_oom_backoff(attempt, micro, batch)
        sum_gradients(model)
        loss = sum_over_ranks(loss)
        norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        if average:
            average.update_parameters(model)
        total += loss * len(batch.full_exams)
        steps.append((loss, norm.detach(), batch.full_exams))
    average_buffers(model)
    mean = float(total) / len(exams)  # the one synchronisation with the device
    finite = torch.stack([p.detach().isfinite().all() for p in model.parameters()]).all()
    if not (math.isfinite(mean) and finite):
        raise TrainingError(describe_divergence(steps, exams, epoch, optimizer.param_groups[0]["lr"]))
    return mean, micro


def backward(
    model: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    weights: dict[str, torch.Tensor],
    settings: Training,
    micro: int,
) -> torch.Tensor:
    """Compute the gradient of a batch's loss, summed over its micro-batches.

    The means of Eq. 12 and 13 run over the full batch, so the sum over micro-batches is its gradient. Batch norm,
    however, uses the statistics of each micro-batch. Parameters that do not affect the loss get a gradient of 0.

    Args:
        model: The system; its gradients are replaced.
        batch: The batch, or this process's share of it.
        optimizer: Its gradients are cleared first.
        weights: Task -> (K,) class weights.
        settings: Precision and task weights.
        micro: Exams per micro-batch.

    Returns:
        The loss, a scalar on the device.
    """
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=batch.images.device)
    for part in batch.split(micro):
        with autocast(batch.images.device, settings):
            logits, _ = model(part.images, part.present)
        shares = settings.task_weights.model_dump()
        loss = total_loss(logits, part.labels, weights, shares, batch.full_labels, model.ordinal)
        loss.backward()
        total += loss.detach()
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return total


def describe_divergence(steps: list, exams: ExamSet, epoch: int, learning_rate: float) -> str:
    """A sentence that names the first step of an epoch whose loss or gradient is not finite, and its exams.

    If all losses and gradients are finite, the last update was not finite: an earlier one would have made the next loss
    infinite or NaN.

    Args:
        steps: (loss, norm of the gradient, positions of exams) of each step.
        exams: The training part.
        epoch: From 1.
        learning_rate: That of the epoch.
    """
    bad = [
        (number, "gradient" if loss.isfinite() else "loss")
        for number, (loss, norm, _) in enumerate(steps)
        if not (loss + norm).isfinite()
    ]
    number, what = bad[0] if bad else (len(steps) - 1, "update")
    names = ", ".join(exams.names[i] for i in steps[number][2].tolist())
    value = f", {float(steps[number][0])}" if what == "loss" else ""
    return (
        f"The {what} of epoch {epoch} is not finite{value} at step {number + 1} of {len(steps)}, exams {names}; the "
        f"state after epoch {epoch - 1} is kept. "
        f"Lower training.learning_rate (now {learning_rate:g}) or training.clip."
    )


def make_optimizer(model: nn.Module, settings: Training, learning_rate: float) -> torch.optim.AdamW:
    """AdamW (§4.3). Parameters marked ``_no_weight_decay`` (A and D of the state space model) do not decay.

    Args:
        model: The system.
        settings: Weight decay, and whether the update is one fused kernel.
        learning_rate: Initial learning rate.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        groups[not getattr(parameter, "_no_weight_decay", False)].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": group, "weight_decay": settings.weight_decay if decays else 0.0}
            for decays, group in groups.items()
            if group
        ],
        lr=learning_rate,
        fused=settings.fused,
    )


def make_schedule(optimizer: torch.optim.Optimizer, settings: Training) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate's schedule, stepped once per epoch: the plateau of §4.3, or a cosine that falls to 0."""
    if settings.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        # torch lets `patience` epochs pass and acts after the next one, hence the -1; any gain in AUC counts
        optimizer,
        mode="max",
        factor=settings.factor,
        patience=settings.patience - 1,
        threshold=0.0,
    )


@torch.no_grad()
def recompute_batch_norm(model: nn.Module, batches: Iterable[Batch], settings: Training, micro: int) -> None:
    """Replace batch norm's running statistics by their mean over batches.

    As `torch.optim.swa_utils.update_bn`, for systems that take images and a mask of the present views.

    Args:
        model: The system; left in training mode.
        batches: This process's batches of the training part.
        settings: Precision.
        micro: Exams per micro-batch.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    model.train()
    for batch in batches:
        for part in batch.split(micro):
            with autocast(part.images.device, settings):
                model(part.images, part.present)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if rank_and_size()[1] > 1:  # a process may have had fewer batches, or none
            n = norm.num_batches_tracked.to(norm.running_mean.dtype)
            total = sum_over_ranks(n.clone()).clamp(min=1)
            for statistic in (norm.running_mean, norm.running_var):
                statistic.copy_(sum_over_ranks(statistic * n) / total)


def prepare_model(model: nn.Module, settings: Training) -> nn.Module:
    """Give the model the memory format of the settings and compile its encoders if they ask for it."""
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    if settings.compile:
        for encoder in model.encoders:
            encoder.compile(dynamic=True)  # the number of views changes from batch to batch
    return model


def save_checkpoint(path: Path, state: dict[str, Any], epoch: int) -> None:
    """Write the whole state, or keep the previous one.

    Args:
        path: File of the state.
        state: What `train` continues from.
        epoch: The last finished epoch.

    Raises:
        TrainingError: The state could not be written, for instance because the disk is full.
    """
    try:
        with atomic_write(path) as temporary:
            torch.save(state, temporary)
            checksum = _checksum(np.memmap(temporary, np.uint8, "r"))
            with temporary.open("ab") as file:  # torch's reader ignores what follows the archive
                file.write(checksum)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError if a write fails
        raise TrainingError(
            f"The state after epoch {epoch} could not be written ({error}); the one after epoch {epoch - 1} is kept. "
            f"Free some disk space and run the same command again."
        ) from error


def load_checkpoint(path: Path, identity: dict[str, str], device: torch.device) -> dict[str, Any] | None:
    """Read the state; None if there is none, it is damaged or its identity differs.

    Only tensors and plain values are unpickled. torch reads a file with changed bytes without complaint, hence the
    checksum at its end.

    Args:
        path: File of the state.
        identity: What the state must depend on, see `train`.
        device: Where its tensors are loaded.
    """
    if not path.is_file():
        return None
    try:
        content = np.memmap(path, np.uint8, "r")
        whole = content[-4:].tobytes() == _checksum(content[:-4])
        state = torch.load(path, map_location=device, weights_only=True) if whole else None
    except Exception as error:  # a foreign file raises anything, from ValueError to UnpicklingError
        if isinstance(error, PermissionError | MemoryError) or is_out_of_memory(error):
            raise
        state = None
    if not isinstance(state, dict) or state.keys() != STATE:
        if rank_and_size()[0] == 0:
            print(f"{display_path(path)} is damaged; the run starts over.", flush=True)
        return None
    return state if state["identity"] == identity else None


def _checksum(content: np.ndarray) -> bytes:
    return crc32(content).to_bytes(4, "little")
