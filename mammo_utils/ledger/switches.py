"""Whether a switch of training leaves the AUC as it is: ``python -m mammo_utils.ledger.switches`` trains one run of a
study once with each switch and compares the answers for the same patients.

The study's notebooks 01 and 02 must have run; its own runs are not touched.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from mammo_utils.config import RunSpec, Training, load_study
from mammo_utils.data.subsets import SUBSETS
from mammo_utils.evidence.intervals import Sample, interval, paired_difference
from mammo_utils.evidence.runs import probabilities
from mammo_utils.files import environment, read_json, write_json
from mammo_utils.ledger.epochs import SWITCHES
from mammo_utils.training.loop import arranged, predict, prediction_table, train
from mammo_utils.training.run import RunData, build, device_name, load_data, pick_device


def answers(spec: RunSpec, data: RunData, settings: Training, task: str) -> Sample:
    """A run trained with these settings, and what it says of the reported part's breasts."""
    exams = data.parts[data.reported]
    model = arranged(build(spec).to(exams.device), settings)
    with tempfile.TemporaryDirectory() as folder:
        train(
            model, data.parts, settings, learning_rate=spec.learning_rate, seed=spec.seed,
            checkpoint=Path(folder) / "checkpoint.pt", identity={},
        )  # fmt: skip
    table = prediction_table(exams, data.reported, *predict(model, exams, settings))
    table = table[table[task] >= 0].sort_values(["exam", "side"])
    classes = (0, 1) if task == "diagnosis" else SUBSETS[spec.subset]
    labels = table[task].map({category: index for index, category in enumerate(classes)}).to_numpy()
    return Sample(labels, probabilities(table, task, classes)[None], table["group"].to_numpy(str))


def compare_switches(spec: RunSpec, resamples: int = 1000) -> dict[str, Any]:
    """The AUC with each of ledger.epochs.SWITCHES, one more each time, and its difference to the first, both with the
    95 % interval over patients; one seed, so that the spread over trainings is not in it."""
    task = "birads" if spec.task_mode == "birads" else "diagnosis"
    data = load_data(spec, pick_device(spec.training))
    rows, changes, first = [], {}, None
    for name, change in SWITCHES:
        changes = changes | change
        found = answers(spec, data, spec.training.model_copy(update=changes), task)
        first = first or found
        auc = interval(found, "auc", resamples=resamples)
        difference = paired_difference(found, first, "auc", resamples=resamples)
        row = {what: [v.value, v.low, v.high] for what, v in (("auc", auc), ("difference", difference))}
        rows.append({"name": name, **row})
        print(f"  {name:32}AUC {auc}, difference {difference}", flush=True)
    breasts, exams = len(first.labels), len(data.parts[data.reported])
    return {
        "run": spec.id, "study": spec.study, "synthetic": data.synthetic, "task": task, "part": data.reported,
        "epochs": spec.training.epochs, "exams": exams, "breasts": breasts, "seed": spec.seed, "rows": rows,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m mammo_utils.ledger.switches", description=__doc__.split("\n\n")[0])
    parser.add_argument("--study", default="config/demo.yaml")
    parser.add_argument("--settings", nargs="*", default=[], help="settings in place of the study file's")
    parser.add_argument("--system", default="hybrid_shared")
    parser.add_argument("--json", type=Path, help="a record, to which the figures are added")
    a = parser.parse_args(arguments)
    study = load_study(a.study, a.settings)
    spec = study.run(a.system, study.grid.task_modes[0], study.grid.subsets[0], study.grid.seeds[0])
    torch.set_num_threads(spec.training.threads)
    found = compare_switches(spec, study.evidence.resamples)
    if a.json:
        device = pick_device(spec.training)
        found["environment"] = environment(device_name(device), spec.training.threads)
        write_json(a.json, (read_json(a.json) if a.json.is_file() else {}) | {"switches": found})


if __name__ == "__main__":
    main()
