"""Predictions of a system for the exams of one part of the split."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import nn

from mammo_utils.config import Training
from mammo_utils.metrics import auc, softmax
from mammo_utils.training.dataset import Batch, ExamSet
from mammo_utils.training.distributed import rank_and_size, sum_over_ranks
from mammo_utils.training.memory import autocast, with_oom_backoff
from mammo_utils.vocabulary import SIDES, VIEWS


@torch.no_grad()
def predict(
    model: nn.Module, exams: ExamSet, settings: Training, micro: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Predict every exam once, without augmentation.

    Args:
        model: The system; switched to eval mode.
        exams: The exams.
        settings: Batch size and precision.
        micro: Exams per micro-batch to start with; 0 for a whole batch.

    Returns:
        Task -> logits (E, 2, K), and view weights (E, 4); float32.
    """
    model.eval()
    predicted = {
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
                    predicted[task][at] = values.float()
                view_weights[at] = weights.float()

        _, micro = with_oom_backoff(attempt, micro or settings.batch_size, batch)
    # each process filled the rows of its own batches and left 0 elsewhere
    summed = {task: sum_over_ranks(values).cpu().numpy() for task, values in predicted.items()}
    return summed, sum_over_ranks(view_weights).cpu().numpy()


def validation_scores(model: nn.Module, exams: ExamSet, settings: Training, micro: int = 0) -> dict[str, float]:
    """Task -> AUC over the breasts of both sides; NaN if a class does not occur.

    Args:
        model: The system; switched to eval mode.
        exams: The validation part.
        settings: Batch size and precision.
        micro: Exams per micro-batch to start with; 0 for a whole batch.
    """
    logits, _ = predict(model, exams, settings, micro)
    return {
        task: auc(exams.labels[task].cpu().numpy().ravel(), softmax(values.reshape(-1, values.shape[-1])))
        for task, values in logits.items()
    }


def prediction_table(
    exams: ExamSet, part: str, logits: dict[str, np.ndarray], view_weights: np.ndarray
) -> pd.DataFrame:
    """The rows of `breast_table` whose breast has a label of an active task.

    Args:
        exams: The exams that were predicted.
        part: Their part of the split.
        logits: Task -> (E, 2, K).
        view_weights: (E, 4).
    """
    table = breast_table(exams, part, logits, view_weights)
    return table[(table[list(logits)] >= 0).any(axis=1)].reset_index(drop=True)


def breast_table(
    exams: ExamSet,
    part: str,
    logits: dict[str, np.ndarray],
    view_weights: np.ndarray,
    contributions: dict[str, np.ndarray] | None = None,
) -> pd.DataFrame:
    """One row per breast of each exam, with a label or without.

    Args:
        exams: The exams that were predicted.
        part: Their part of the split.
        logits: Task -> (E, 2, K).
        view_weights: (E, 4).
        contributions: Task -> (E, 2, 4, K), see `System.contributions`; left out if None.

    Returns:
        Columns exam, group, side, part; diagnosis (0, 1, -1) and diagnosis_p; birads (1-5, -1) and birads_p<category>;
        the logits, diagnosis_logit_<0 or 1> and birads_logit_<category>, which keep their ranks where float32
        probabilities are all 0 or 1; weight_<view> and present_<view>; <task>_from_<view>_<class>, the contributions.
        Sorted by exam and side.
    """
    tables = []
    categories = np.array((*exams.categories, -1))
    classes = {"diagnosis": (0, 1), "birads": exams.categories}
    for position, side in enumerate(SIDES):
        labels = {task: exams.labels[task][:, position].cpu().numpy() for task in logits}
        table = pd.DataFrame({"exam": exams.names, "group": exams.groups, "side": side, "part": part})
        probabilities = {task: softmax(values[:, position]).astype(np.float32) for task, values in logits.items()}
        if "diagnosis" in logits:
            table["diagnosis"] = labels["diagnosis"]
            table["diagnosis_p"] = probabilities["diagnosis"][:, 1]
        if "birads" in logits:
            table["birads"] = categories[labels["birads"]]
            for index, category in enumerate(exams.categories):
                table[f"birads_p{category}"] = probabilities["birads"][:, index]
        for task, values in logits.items():
            for index, category in enumerate(classes[task]):
                table[f"{task}_logit_{category}"] = values[:, position, index]
        for index, view in enumerate(VIEWS):
            table[f"weight_{view}"] = view_weights[:, index]
            table[f"present_{view}"] = exams.present[:, index].cpu().numpy()
        shares = {
            f"{task}_from_{view}_{category}": values[:, position, i, k]
            for task, values in (contributions or {}).items()
            for i, view in enumerate(VIEWS)
            for k, category in enumerate(classes[task])
        }
        tables.append(table.assign(**shares))
    return pd.concat(tables).sort_values(["exam", "side"], ignore_index=True)
