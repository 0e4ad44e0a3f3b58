"""What each part of the paper's design buys where the truth is known: `python -m benchmarks.planted --out FILE`.

The study `config/planted.yaml` has findings that only one view of a breast shows, and cancers in both breasts in a
fifth of the four-view exams. Every variant differs from the paper's design in one thing and is trained with the same
seeds. Before the first use, run `snakemake --config study=config/planted.yaml --until preprocessing`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.ablations import train_and_predict
from mammo_utils.evaluation.bootstrap import Sample, interval, paired_difference
from mammo_utils.io import read_json, write_json
from mammo_utils.provenance import environment
from mammo_utils.study import Study, load_study
from mammo_utils.training.run import device_name, load_data, pick_device

HYBRID = "hybrid_shared"
# question -> task, reference, others; each a name with system, task mode and changed settings
Variant = tuple[str, str, str, tuple[str, ...]]
PAPER: Variant = ("the paper's design", HYBRID, "multi", ())
QUESTIONS: dict[str, tuple[str, list[Variant]]] = {
    "gated fusion against others": (
        "diagnosis",
        [
            PAPER,
            ("mean of the views", HYBRID, "multi", ("model.fusion=mean",)),
            ("concatenated views", HYBRID, "multi", ("model.fusion=concat",)),
            ("sigmoid gates", HYBRID, "multi", ("model.fusion=sigmoid",)),
            ("a gate for each breast", HYBRID, "multi", ("model.fusion=per_breast",)),
        ],
    ),
    "hybrid against CNN and VSSM": (
        "diagnosis",
        [PAPER, ("ResNet-18", "resnet18", "multi", ()), ("VSSM", "vssm_shared", "multi", ())],
    ),
    "two tasks against one: diagnosis": ("diagnosis", [PAPER, ("diagnosis alone", HYBRID, "diagnosis", ())]),
    "two tasks against one: BI-RADS": ("birads", [PAPER, ("BI-RADS alone", HYBRID, "birads", ())]),
    "absent views as zeros against masked": (
        "diagnosis",
        [PAPER, ("absent views masked", HYBRID, "multi", ("model.missing=masked",))],
    ),
}


def compare_designs(study: Study, seeds: Sequence[int], file: Path | None = None) -> dict[str, Any]:
    """Train every variant of QUESTIONS and compare it with the paper's design on the same patients.

    Args:
        study: The planted study; notebooks 01 and 02 must have been run.
        seeds: Seeds of the trainings.
        file: Where each sample is kept as soon as it is found, so that an interrupted measurement continues.

    Returns:
        The study's facts; per question one row per variant with the mean AUC over seeds and its difference to the
        paper's design, both as [value, low, high] over patients, and the AUC of each seed.
    """
    subset = study.grid.subsets[0]
    first = study.run(HYBRID, "multi", subset, 0)
    torch.set_num_threads(first.training.threads)
    data = load_data(first, pick_device(first.training))
    found: dict[tuple[Any, ...], Sample] = {}
    kept = read_json(file) if file and file.is_file() else {}

    def sample(variant: Variant, task: str) -> Sample:
        _, system, mode, settings = variant
        parts = []
        for seed in seeds:
            spec = study.run(system, mode, subset, seed, variant=settings)
            key = f"{spec.id} {spec.hash} {task}"
            if key not in kept:
                other = load_data(spec, pick_device(spec.training)) if settings else data
                one = train_and_predict(spec, other, task)
                kept[key] = {
                    "labels": one.labels.tolist(),
                    "probabilities": one.probabilities.tolist(),
                    "groups": one.groups.tolist(),
                }
                if file:
                    write_json(file, kept)
            values = kept[key]
            parts.append(
                Sample(np.array(values["labels"]), np.array(values["probabilities"]), np.array(values["groups"]))
            )
        return replace(parts[0], probabilities=np.concatenate([part.probabilities for part in parts]))

    bootstrap = {"resamples": study.evaluation.resamples, "seed": study.evaluation.seed}
    answers = {}
    for question, (task, variants) in QUESTIONS.items():
        rows = []
        for variant in variants:
            key = (variant, task)
            found[key] = found.get(key) or sample(variant, task)
            auc = interval(found[key], "auc", **bootstrap)
            row = {"name": variant[0], "auc": [auc.value, auc.low, auc.high]}
            if variant != PAPER:
                change = paired_difference(found[key], found[PAPER, task], "auc", **bootstrap)
                row["difference"] = [change.value, change.low, change.high]
            row["auc_of_seeds"] = [
                interval(replace(found[key], probabilities=p[None]), "auc", resamples=0, seed=0).value
                for p in found[key].probabilities
            ]
            rows.append(row)
            print(f"{question:40} {variant[0]:24} AUC {auc}  {row.get('difference', '')}", flush=True)
        answers[question] = {"task": task, "rows": rows}
    exams = data.parts[data.reported]
    facts = {"study": study.name, "synthetic": data.synthetic, "part": data.reported, "exams": len(exams)}
    facts |= {"breasts": len(found[PAPER, "diagnosis"].labels), "subset": subset, "seeds": list(seeds)}
    facts |= {"epochs": first.training.epochs, "questions": answers}
    return facts | {"environment": environment(device_name(exams.device), first.training.threads)}


def run_command(
    name: str,
    about: str,
    measure: Callable[[Study, argparse.Namespace], dict[str, Any]],
    arguments: list[str] | None = None,
) -> None:
    """Run a measurement on the planted study as a command, and write its record.

    Args:
        name: Of the module and, without a path, of the record.
        about: Its docstring; the first line is the command's description.
        measure: Takes the study and the command's options, and returns the record.
        arguments: Words of the command line; by default those of the process.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about.splitlines()[0])
    parser.add_argument("--study", default="config/planted.yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--settings", nargs="*", default=[], help="settings that replace those of the study file")
    parser.add_argument("--out", type=Path, default=Path(f"{name}.json"), help="file for the record")
    options = parser.parse_args(arguments)
    try:
        record = measure(load_study(options.study, options.settings), options)
    except (ValueError, FileNotFoundError) as error:  # the message is for the user
        parser.exit(2, f"{error}\n")
    write_json(options.out, record)


def main(arguments: list[str] | None = None) -> None:
    """Run the command `python -m benchmarks.planted`."""

    def measure(study: Study, options: argparse.Namespace) -> dict[str, Any]:
        return compare_designs(study, options.seeds, options.out.with_suffix(".samples.json"))

    run_command("planted", __doc__, measure, arguments)


if __name__ == "__main__":
    main()
