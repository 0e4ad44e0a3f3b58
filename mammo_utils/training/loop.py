"""The training loop of §4.3, resumable to the last bit.

A plain loop: the batches are made on the device, so a Trainer's loaders, samplers and hooks would only stand
between the reader and the recipe, and its checkpoints are pickles.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from mammo_utils.config import Training
from mammo_utils.io import atomic_write
from mammo_utils.metrics import auc
from mammo_utils.training.dataset import Batch, ExamSet, derive_seed
from mammo_utils.training.distributed import average_buffers, rank_and_size, sum_gradients, sum_over_ranks
from mammo_utils.training.loss import class_weights, total_loss
from mammo_utils.vocabulary import SIDES, VIEWS


class TrainingError(RuntimeError):
    """Training cannot go on; the last whole checkpoint stays."""


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
    """Train `model` on ``parts["train"]`` and leave it with the weights of its best epoch.

    Best is the highest mean AUC of the active tasks on ``parts["validation"]``, the earliest where several
    are equal. After every epoch the whole state is written to `checkpoint`; a call that finds one with the
    same `identity` goes on from there and ends with the same numbers as if never stopped.

    Where a batch does not fit into memory, its gradient is summed over parts of half as many exams. Of several
    processes each takes its share of a batch, and all end with the same numbers; the first one writes.

    Returns one row an epoch (epoch, loss, validation AUCs, learning rate, exams at once, seconds) and the best epoch,
    from 1. Raises TrainingError if the loss is no longer finite, one exam does not fit or the state cannot be written.
    """
    train_set, device = parts["train"], parts["train"].device
    weights = {
        task: class_weights(train_set.labels[task], classes).to(device) for task, classes in model.classes.items()
    }
    optimizer = make_optimizer(model, settings, learning_rate)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        # torch counts the epochs that it lets pass before it acts, hence the -1; the AUC's least gain counts
        optimizer,
        mode="max",
        factor=settings.factor,
        patience=settings.patience - 1,
        threshold=0.0,
    )
    rows: list[dict[str, Any]] = []
    best = {"epoch": 0, "score": -math.inf, "model": None}
    state = load_checkpoint(checkpoint, identity, device)
    begun = len(state["rows"]) if state else 0
    if sum_over_ranks(torch.tensor(float(begun), device=device)) != begun * rank_and_size()[1]:
        state = None  # it is not of every process's device: all begin anew
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        rows, best = state["rows"], state["best"]
    micro = rows[-1]["micro_batch"] if rows else settings.micro_batch or settings.batch_size

    for epoch in range(len(rows) + 1, settings.epochs + 1):
        start = time.perf_counter()
        try:
            loss, micro = train_epoch(model, train_set, optimizer, weights, settings, seed, epoch, micro)
            scores = validation_scores(model, parts["validation"], settings, micro)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                "Memory ran out beside the exams, for the optimiser's state maybe; take a smaller system, "
                "training.store=mapped or another device."
            ) from error
        known = [score for score in scores.values() if not math.isnan(score)]
        score = float(np.mean(known)) if known else math.nan  # §4.3: a combined score of both AUCs
        used = optimizer.param_groups[0]["lr"]
        schedule.step(score)
        if score > best["score"] or best["model"] is None:
            kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            best = {"epoch": epoch, "score": -math.inf if math.isnan(score) else score, "model": kept}
        row = {
            "epoch": epoch,
            "loss": loss,
            **{f"validation_{task}_auc": value for task, value in scores.items()},
            "validation_auc": score,
            "learning_rate": used,
            "micro_batch": micro,
            "seconds": time.perf_counter() - start,
        }
        rows.append(row)
        state = {
            "identity": identity,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
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
) -> tuple[float, int]:
    """One pass over the exams, `micro` of a batch at once; returns the mean of the batches' losses, weighted by their
    exams, and how many exams at once fitted into memory.

    Dropout draws from a stream of its own step, whatever came before and however often memory was short. Nothing waits
    for the device before the epoch's end; what is not finite is found then. Raises TrainingError, naming its step and
    exams.
    """
    model.train()
    total, steps = torch.zeros((), device=exams.device), []
    batches = exams.epoch(seed, epoch, settings.batch_size, settings.augmentation, rank_and_size())
    for step, batch in enumerate(batches):

        def attempt(micro: int, step: int = step, batch: Batch = batch) -> torch.Tensor:
            torch.manual_seed(derive_seed("dropout", seed, epoch, step, rank_and_size()[0]))
            return backward(model, batch, optimizer, weights, settings, micro)

        loss, micro = with_oom_backoff(attempt, micro, batch)
        sum_gradients(model)
        loss = sum_over_ranks(loss)
        norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        total += loss * len(batch.whole_exams)
        steps.append((loss, norm.detach(), batch.whole_exams))
    average_buffers(model)
    mean = float(total) / len(exams)
    whole = torch.stack([p.detach().isfinite().all() for p in model.parameters()]).all()
    if not (math.isfinite(mean) and whole):
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
    """Leave the gradient of a batch's loss in the model, summed over parts of `micro` exams; returns the loss.

    The means of Eq. 12 and 13 run over the whole batch, so the sum is its gradient, not a mean of means. Batch
    norm sees the parts. A parameter that had no part in the loss has a gradient of 0.
    """
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=batch.images.device)
    for part in batch.split(micro):
        with autocast(batch.images.device, settings):
            logits, _ = model(part.images, part.present)
        loss = total_loss(logits, part.labels, weights, settings.task_weights.model_dump(), batch.whole)
        loss.backward()
        total += loss.detach()
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return total


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory was short: a CPU, a GPU's libraries and Triton say so in errors of other kinds."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def with_oom_backoff(attempt: Callable[[int], Any], micro: int, batch: Batch) -> tuple[Any, int]:
    """What ``attempt(micro)`` returns, `micro` exams at once halved as long as memory is short, and what fitted.

    An attempt begins anew. Raises TrainingError where one exam is too much. Batch norm's running statistics keep what
    the parts before the shortage gave them.
    """
    while True:
        try:
            return attempt(micro), micro
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        micro = min(micro, len(batch.exams))  # here, where the error's traceback holds no activations any more
        if micro == 1:
            raise TrainingError(
                f"One exam of {batch.images.shape[-1]} px does not fit into memory; lower images.size or take a "
                "smaller system or another device."
            )
        if batch.images.is_cuda:
            torch.cuda.empty_cache()
        micro = (micro + 1) // 2


def describe_divergence(steps: list, exams: ExamSet, epoch: int, learning_rate: float) -> str:
    """A sentence on the first step of an epoch whose loss or gradient is not finite; on the last, where neither tells.

    steps: (loss, norm of the gradient, positions of exams) each. What a step leaves shows in the next one's loss.
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


@torch.no_grad()
def predict(
    model: nn.Module, exams: ExamSet, settings: Training, micro: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Probabilities, task -> (E, 2, K), and view weights (E, 4), of every exam once, without augmentation.

    micro: exams at once to begin with; 0: a batch.
    """
    model.eval()
    probabilities = {
        task: torch.zeros(len(exams), 2, classes, device=exams.device) for task, classes in model.classes.items()
    }
    view_weights = torch.zeros(len(exams), len(VIEWS), device=exams.device)
    for batch in exams.in_order(settings.batch_size, rank_and_size()):

        def attempt(micro: int, batch: Batch = batch) -> None:
            for part in batch.split(micro):
                with autocast(exams.device, settings):
                    logits, weights = model(part.images, part.present)
                at = slice(int(part.exams[0]), int(part.exams[-1]) + 1)
                for task, values in logits.items():
                    probabilities[task][at] = values.float().softmax(-1)
                view_weights[at] = weights.float()

        _, micro = with_oom_backoff(attempt, micro or settings.batch_size, batch)
    found = {task: sum_over_ranks(values).cpu().numpy() for task, values in probabilities.items()}
    return found, sum_over_ranks(view_weights).cpu().numpy()


def validation_scores(model: nn.Module, exams: ExamSet, settings: Training, micro: int = 0) -> dict[str, float]:
    """The AUC of each active task over the breasts of both sides; NaN where a class does not occur."""
    probabilities, _ = predict(model, exams, settings, micro)
    return {
        task: auc(exams.labels[task].cpu().numpy().ravel(), values.reshape(-1, values.shape[-1]))
        for task, values in probabilities.items()
    }


def prediction_table(
    exams: ExamSet, part: str, probabilities: dict[str, np.ndarray], view_weights: np.ndarray
) -> pd.DataFrame:
    """One row a breast that has a label of an active task: labels, probabilities and its exam's view weights.

    Columns: exam, group, side, part; diagnosis (0, 1, -1) and diagnosis_p; birads (1-5, -1) and birads_p of
    each category of the subset; weight_ and present_ of each view.
    """
    tables = []
    categories = np.array((*exams.categories, -1))
    for position, side in enumerate(SIDES):
        labels = {task: exams.labels[task][:, position].cpu().numpy() for task in probabilities}
        table = pd.DataFrame({"exam": exams.names, "group": exams.groups, "side": side, "part": part})
        if "diagnosis" in probabilities:
            table["diagnosis"] = labels["diagnosis"]
            table["diagnosis_p"] = probabilities["diagnosis"][:, position, 1]
        if "birads" in probabilities:
            table["birads"] = categories[labels["birads"]]
            for index, category in enumerate(exams.categories):
                table[f"birads_p{category}"] = probabilities["birads"][:, position, index]
        for index, view in enumerate(VIEWS):
            table[f"weight_{view}"] = view_weights[:, index]
            table[f"present_{view}"] = exams.present[:, index].cpu().numpy()
        labelled = np.any([values >= 0 for values in labels.values()], axis=0)
        tables.append(table[labelled])
    return pd.concat(tables).sort_values(["exam", "side"], ignore_index=True)


# --- pieces ---------------------------------------------------------------------------------------------


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """All parameters decay but those marked ``_no_weight_decay`` (A and D of the state space model)."""
    free = [p for p in model.parameters() if getattr(p, "_no_weight_decay", False)]
    decayed = [p for p in model.parameters() if not getattr(p, "_no_weight_decay", False)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, settings: Training, learning_rate: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=learning_rate, fused=settings.fused)


def prepare_model(model: nn.Module, settings: Training) -> nn.Module:
    """The model in the memory format of the settings, its encoders compiled if they ask for it."""
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    if settings.compile:
        for encoder in model.encoders:
            encoder.compile(dynamic=True)  # how many views there are changes from batch to batch
    return model


def precision(device: torch.device, settings: Training) -> str:
    """That of the settings; by "auto" bfloat16 on a GPU, float32 on a CPU."""
    automatic = "bfloat16" if device.type == "cuda" else "float32"
    return automatic if settings.precision == "auto" else settings.precision


def autocast(device: torch.device, settings: Training) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(device, settings) == "bfloat16")


def save_checkpoint(path: Path, state: dict[str, Any], epoch: int) -> None:
    """Write the whole state, or leave the one before it. Raises TrainingError, where the disk is full for one."""
    try:
        with atomic_write(path) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where a write fails
        raise TrainingError(
            f"The state after epoch {epoch} could not be written ({error}); the one after epoch {epoch - 1} is kept. "
            f"Make room on the disk and give the same command again."
        ) from error


def load_checkpoint(path: Path, identity: dict[str, str], device: torch.device) -> dict[str, Any] | None:
    """The state at `path` if it is of the same configuration, data and code; nothing is unpickled but tensors
    and plain values."""
    if not path.is_file():
        return None
    state = torch.load(path, map_location=device, weights_only=True)
    return state if state["identity"] == identity else None
