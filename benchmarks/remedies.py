"""Whether remedies make a system read each breast from its own views: `python -m benchmarks.remedies --out FILE`.

Each system of a study is trained with the paper's design and with each remedy, and exams are recombined of the breasts
of two patients. The runs are kept in a study of their own, so that an interrupted measurement continues. Before its
first use, run `snakemake --config 'settings=["name=remedies"]' --until preprocessing`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mammo_utils.evaluation.recombination import recombination_table
from mammo_utils.evaluation.runs import read_runs
from mammo_utils.io import plain_values, write_json
from mammo_utils.provenance import environment
from mammo_utils.study import RunSpec, Study, load_study
from mammo_utils.training.run import device_name, load_data, pick_device, train_run

REMEDIES: dict[str, tuple[str, ...]] = {
    "the paper's design": (),
    "a gate for each breast": ("model.fusion=per_breast",),
    "sigmoid gates": ("model.fusion=sigmoid",),
    "breasts exchanged in training": ("training.recombine=1",),
}


def list_runs(study: Study) -> Iterator[tuple[str, RunSpec]]:
    """Yield the name of each remedy with a run of each system, of the study's first task mode, subset and seed."""
    grid = study.grid
    for system in grid.systems:
        for name, settings in REMEDIES.items():
            yield name, study.run(system, grid.task_modes[0], grid.subsets[0], grid.seeds[0], variant=settings)


def compare_remedies(study: Study) -> dict[str, Any]:
    """Train what is missing and recombine exams.

    Args:
        study: The study.

    Returns:
        The study's facts and one row per run and task of `recombination_table`, with the system and the remedy.
    """
    names = {}
    for name, spec in list_runs(study):
        torch.set_num_threads(spec.training.threads)
        print(f"{spec.system}: {name}", flush=True)
        train_run(spec)
        names[spec.id] = {"system": spec.system, "remedy": name}
    runs = [run for run in read_runs(study) if run.id in names]
    table = recombination_table(runs, study)
    rows = [names[row["run"]] | row for row in plain_values(table.to_dict("records"))]
    first = runs[0].spec
    data = load_data(first, pick_device(first.training))
    facts = {"study": study.name, "synthetic": data.synthetic, "part": data.reported, "epochs": first.training.epochs}
    facts |= {"exams": len(data.parts[data.reported]), "seed": first.seed, "rows": rows}
    return facts | {"environment": environment(device_name(pick_device(first.training)), first.training.threads)}


def main(arguments: list[str] | None = None) -> None:
    """Run the command `python -m benchmarks.remedies`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remedies", description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="config/demo.yaml")
    parser.add_argument(
        "--settings", nargs="*", default=["name=remedies"], help="settings that replace those of the study file"
    )
    parser.add_argument("--out", type=Path, default=Path("remedies.json"), help="file for the record")
    a = parser.parse_args(arguments)
    try:
        record = compare_remedies(load_study(a.study, a.settings))
    except (ValueError, FileNotFoundError) as error:  # the message is for the user
        parser.exit(2, f"{error}\n")
    write_json(a.out, record)


if __name__ == "__main__":
    main()
