"""Whether a switch of training leaves the AUC as it is: ``python -m benchmarks.ablations`` trains one run of a
study with each switch and compares the answers for the same patients.

The study's notebooks 01 and 02 must have run; its own runs are not touched.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.epochs import SWITCHES, alternatives
from mammo_utils.config import RunSpec, load_study
from mammo_utils.evaluation.bootstrap import Sample, interval, paired_difference
from mammo_utils.evaluation.runs import probabilities
from mammo_utils.io import read_json, write_json
from mammo_utils.provenance import environment
from mammo_utils.training.loop import prepare_model, train
from mammo_utils.training.predict import predict, prediction_table
from mammo_utils.training.run import RunData, build, device_name, load_data, pick_device
from mammo_utils.vocabulary import SUBSETS


def variants(spec: RunSpec, compiled: bool = False) -> Iterator[tuple[str, RunSpec]]:
    """The run with each of ledger.epochs.SWITCHES, one more each time, then each alternative on top of all."""
    on: dict[str, Any] = {"store": "device"}  # but where an alternative says otherwise
    for name, change in SWITCHES:
        on = on | change
        yield name, changed(spec, on)
    for name, change, of_model in alternatives(compiled):
        yield name, changed(spec, on | change, of_model)


def changed(spec: RunSpec, of_training: dict[str, Any], of_model: dict[str, Any] | None = None) -> RunSpec:
    parts = {"training": of_training, "model": of_model or {}}
    return spec.model_copy(update={k: getattr(spec, k).model_copy(update=change) for k, change in parts.items()})


def answers(spec: RunSpec, data: RunData, task: str) -> Sample:
    """What a run of this specification, trained on these data, says of the reported part's breasts."""
    exams = data.parts[data.reported]
    model = prepare_model(build(spec).to(exams.device), spec.training)
    with tempfile.TemporaryDirectory() as folder:
        train(
            model, data.parts, spec.training, learning_rate=spec.learning_rate, seed=spec.seed,
            checkpoint=Path(folder) / "checkpoint.pt", identity={},
        )  # fmt: skip
    table = prediction_table(exams, data.reported, *predict(model, exams, spec.training))
    table = table[table[task] >= 0].sort_values(["exam", "side"])
    classes = (0, 1) if task == "diagnosis" else SUBSETS[spec.subset]
    labels = table[task].map({category: index for index, category in enumerate(classes)}).to_numpy()
    return Sample(labels, probabilities(table, task, classes)[None], table["group"].to_numpy(str))


def compare_switches(
    spec: RunSpec, seeds: Sequence[int], resamples: int = 1000, compiled: bool = False
) -> dict[str, Any]:
    """The AUC of each of :func:`variants`, the mean over seeds, and its difference to the first, both with the 95 %
    interval over patients; and the AUC of each seed, for two trainings differ by more than a switch may do."""
    task = "birads" if spec.task_mode == "birads" else "diagnosis"
    data, rows, first = {}, [], None
    for name, variant in variants(spec, compiled):
        store = variant.training.store
        data[store] = data.get(store) or load_data(variant, pick_device(spec.training))
        trained = [answers(variant.model_copy(update={"seed": seed}), data[store], task) for seed in seeds]
        found = replace(trained[0], probabilities=np.concatenate([sample.probabilities for sample in trained]))
        first = first or found
        auc = interval(found, "auc", resamples=resamples)
        difference = paired_difference(found, first, "auc", resamples=resamples)
        row = {what: [v.value, v.low, v.high] for what, v in (("auc", auc), ("difference", difference))}
        row["auc_of_seeds"] = [interval(sample, "auc", resamples=0).value for sample in trained]
        rows.append({"name": name, **row})
        by_seed = " ".join(f"{value:.3f}" for value in row["auc_of_seeds"])
        print(f"  {name:40}AUC {auc}, difference {difference}; by seed {by_seed}", flush=True)
    reported = data["device"].reported
    breasts, exams = len(first.labels), len(data["device"].parts[reported])
    return {
        "run": spec.id, "study": spec.study, "synthetic": data["device"].synthetic, "task": task, "part": reported,
        "epochs": spec.training.epochs, "exams": exams, "breasts": breasts, "seeds": list(seeds), "rows": rows,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations", description=__doc__.split("\n\n")[0])
    parser.add_argument("--study", default="config/demo.yaml")
    parser.add_argument("--settings", nargs="*", default=[], help="settings in place of the study file's")
    parser.add_argument("--system", default="hybrid_shared")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--compile", action="store_true", help="with compiled encoders too: minutes more")
    parser.add_argument("--json", type=Path, help="a record, to which the figures are added")
    a = parser.parse_args(arguments)
    try:
        study = load_study(a.study, a.settings)
        spec = study.run(a.system, study.grid.task_modes[0], study.grid.subsets[0], study.grid.seeds[0])
        torch.set_num_threads(spec.training.threads)
        found = compare_switches(spec, a.seeds, study.evaluation.resamples, a.compile)
    except (ValueError, FileNotFoundError) as error:  # each of ours is one sentence
        parser.exit(2, f"{error}\n")
    if a.json:
        device = pick_device(spec.training)
        found["environment"] = environment(device_name(device), spec.training.threads)
        write_json(a.json, (read_json(a.json) if a.json.is_file() else {}) | {"switches": found})


if __name__ == "__main__":
    main()
