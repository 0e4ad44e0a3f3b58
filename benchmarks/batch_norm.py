"""Which statistics of batch norm make the validation AUC jump: `python -m benchmarks batch_norm`.

One run is trained. After each epoch its weights are scored on the validation part with different statistics: those that
training left, and others that each remove one suspect.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from mammo_utils.study import RunSpec
from mammo_utils.training.loop import make_optimizer, make_schedule, prepare_model, recompute_batch_norm, train_epoch
from mammo_utils.training.loss import class_weights
from mammo_utils.training.predict import validation_scores
from mammo_utils.training.run import RunData, build, load_data, pick_device

VARIANTS = {
    "running": "as training left them: an exponential mean over some ten batches, momentum 0.1",
    "before the last batch": "the same before the epoch's last, smaller batch",
    "mean, augmented": "the mean over the epoch's own batches, with the weights of its end: no lag",
    "mean, full batches": "the same without the last, smaller batch",
    "mean, plain": "the mean over batches without augmentation: what `batch_norm: recomputed` takes",
    "mean, plain, present views": "the same with absent views left out instead of passed as zero images",
}


def measure_batch_norm(spec: RunSpec, data: RunData | None = None) -> dict[str, Any]:
    """Train a run and score each of its epochs with each of VARIANTS.

    Args:
        spec: The run. Notebooks 01 and 02 of its study must have been run; its own files stay untouched.
        data: What `load_data` returned for it; loaded here if None.

    Returns:
        The run's facts; per variant the mean validation AUC of each epoch, and the largest fall from one epoch to the
        next after the third.
    """
    device = pick_device(spec.training)
    data = data or load_data(spec, device)
    settings, exams = spec.training, data.parts["train"]
    model = prepare_model(build(spec).to(device), settings)
    weights = {t: class_weights(exams.labels[t], n).to(device) for t, n in model.classes.items()}
    optimizer = make_optimizer(model, settings, spec.learning_rate)
    schedule = make_schedule(optimizer, settings)
    scores: dict[str, list[float]] = {name: [] for name in VARIANTS}
    before_last: dict[str, torch.Tensor] = {}

    def keep_buffers(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if module.training and len(inputs[0]) < settings.batch_size:
            before_last.update(copy.deepcopy(dict(module.named_buffers())))

    for epoch in range(1, settings.epochs + 1):
        hook = model.register_forward_pre_hook(keep_buffers)
        train_epoch(model, exams, optimizer, weights, settings, spec.seed, epoch, settings.batch_size)
        hook.remove()
        batches = list(exams.epoch(spec.seed, epoch, settings))
        full = [batch for batch in batches if len(batch.exams) == settings.batch_size]
        for name in VARIANTS:
            scored = copy.deepcopy(model)
            if name == "before the last batch" and len(full) < len(batches):
                scored.load_state_dict(before_last, strict=False)
            elif name.startswith("mean"):
                plain = "plain" in name
                chosen = exams.in_order(settings.batch_size) if plain else full if "full" in name else batches
                scored.fusion.masked = model.fusion.masked or "present" in name
                recompute_batch_norm(scored, chosen, settings, settings.batch_size)
                scored.fusion.masked = model.fusion.masked
            found = validation_scores(scored, data.parts["validation"], settings)
            scores[name].append(float(np.nanmean(list(found.values()))))
        schedule.step(*[scores["running"][-1]] if settings.schedule == "plateau" else [])
    falls = {name: max([0.0, *-np.diff(values[2:])]) for name, values in scores.items()}
    facts = {"run": spec.id, "synthetic": data.synthetic, "exams": {k: len(part) for k, part in data.parts.items()}}
    return facts | {"learning_rate": spec.learning_rate, "missing": spec.model.missing, "auc": scores, "falls": falls}
