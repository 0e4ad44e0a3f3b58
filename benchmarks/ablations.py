"""Whether an ablation of training changes the AUC: `python -m benchmarks ablations`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.epochs import list_variants
from mammo_utils.config import Evaluation
from mammo_utils.evaluation.bootstrap import Sample, interval, paired_difference
from mammo_utils.evaluation.runs import probabilities
from mammo_utils.provenance import environment
from mammo_utils.study import RunSpec
from mammo_utils.training.loop import prepare_model, train
from mammo_utils.training.predict import predict, prediction_table
from mammo_utils.training.run import RunData, build, device_name, load_data, pick_device
from mammo_utils.vocabulary import SUBSETS


def vary(spec: RunSpec, compiled: bool = False) -> Iterator[tuple[str, RunSpec]]:
    """Yield the name of each variant of `list_variants` and the run with it."""
    for name, training, model in list_variants(compiled):
        changed = spec.training.model_copy(update={"store": "device"} | training)
        yield name, spec.model_copy(update={"training": changed, "model": spec.model.model_copy(update=model)})


def train_and_predict(spec: RunSpec, data: RunData, task: str) -> Sample:
    """Train a run on these data and predict the labelled breasts of the reported part."""
    exams = data.parts[data.reported]
    model = prepare_model(build(spec).to(exams.device), spec.training)
    options: dict[str, Any] = {"learning_rate": spec.learning_rate, "seed": spec.seed, "identity": {}}
    with TemporaryDirectory() as folder:
        train(model, data.parts, spec.training, checkpoint=Path(folder) / "checkpoint.pt", **options)
    table = prediction_table(exams, data.reported, *predict(model, exams, spec.training))
    table = table[table[task] >= 0].sort_values(["exam", "side"])
    classes = (0, 1) if task == "diagnosis" else SUBSETS[spec.subset]
    labels = table[task].map({category: index for index, category in enumerate(classes)}).to_numpy()
    return Sample(labels, probabilities(table, task, classes)[None], table["group"].to_numpy(str))


def compare_ablations(
    spec: RunSpec, seeds: Sequence[int], evaluation: Evaluation, compiled: bool = False
) -> dict[str, Any]:
    """Measure the AUC of each variant of `list_variants` and its difference to the first.

    Both are means over seeds with a 95 % interval over patients. The AUC of each seed is kept as well, because two
    trainings differ by more than an ablation may change. Notebooks 01 and 02 of the study must have been run; its own
    runs stay untouched.

    Args:
        spec: The run.
        seeds: Seeds of the trainings.
        evaluation: The study's settings of the bootstrap.
        compiled: Whether to train with compiled encoders, too.
    """
    task = "birads" if spec.task_mode == "birads" else "diagnosis"
    data: dict[str, RunData] = {}
    rows: list[dict[str, Any]] = []
    first = None
    for name, variant in vary(spec, compiled):
        store = variant.training.store
        data[store] = data.get(store) or load_data(variant, pick_device(spec.training))
        samples = [train_and_predict(variant.model_copy(update={"seed": s}), data[store], task) for s in seeds]
        found = replace(samples[0], probabilities=np.concatenate([sample.probabilities for sample in samples]))
        first = first or found
        bootstrap = {"resamples": evaluation.resamples, "seed": evaluation.seed}
        auc = interval(found, "auc", **bootstrap)
        difference = paired_difference(found, first, "auc", **bootstrap)
        row = {key: [i.value, i.low, i.high] for key, i in (("auc", auc), ("difference", difference))}
        row["auc_of_seeds"] = [interval(sample, "auc", resamples=0, seed=0).value for sample in samples]
        rows.append({"name": name, **row})
        by_seed = " ".join(f"{value:.3f}" for value in row["auc_of_seeds"])
        print(f"  {name:40}AUC {auc}, difference {difference}; by seed {by_seed}", flush=True)
    device, stored = pick_device(spec.training), data["device"]
    facts = {"run": spec.id, "study": spec.study, "synthetic": stored.synthetic, "task": task, "part": stored.reported}
    facts |= {"epochs": spec.training.epochs, "exams": len(stored.parts[stored.reported]), "breasts": len(first.labels)}
    facts |= {"seeds": list(seeds), "rows": rows}
    return facts | {"environment": environment(device_name(device), spec.training.threads)}
