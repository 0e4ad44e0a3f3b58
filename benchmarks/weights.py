"""Whether a gate weighs the view that shows the finding: `python -m benchmarks.weights --out FILE`.

In the study `config/planted.yaml` one view of a breast shows a cancer, and the program that draws it knows which. The
runs are kept in the study's folder, so that an interrupted measurement continues. Before the first use, run
`snakemake --config study=config/planted.yaml --until preprocessing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.planted import HYBRID, run_command
from benchmarks.remedies import REMEDIES
from mammo_utils.evaluation.gate import CompleteExams, complete_exams
from mammo_utils.evaluation.intervals import wilson_interval
from mammo_utils.evaluation.runs import read_runs, read_views
from mammo_utils.provenance import environment
from mammo_utils.study import Study
from mammo_utils.synthetic.cases import Settings, appearances, exams_of
from mammo_utils.training.run import device_name, pick_device, train_run
from mammo_utils.vocabulary import VIEWS

DESIGNS = ("the paper's design", "sigmoid gates", "a gate for each breast")  # of REMEDIES, those of the gate itself


def shown_views(study: Study) -> dict[str, np.ndarray]:
    """Find which views of each exam of a synthetic cohort show a structure as suspicious: exam -> (4,) bool.

    Args:
        study: A study on a synthetic cohort with `visible: one`.

    Raises:
        ValueError: The study has another cohort.
    """
    drawn = study.data.synthetic
    if drawn is None or drawn.visible != "one":
        raise ValueError(f"The study {study.name} has no synthetic cohort with `visible: one`.")
    settings = Settings(**drawn.model_dump(exclude={"n_exams"}))
    found = {}
    for exam in exams_of(drawn.n_exams, settings.seed, settings.bilateral):
        looks = appearances(exam, settings)
        suspicion = [looks.get(tuple(view.split("_")), (0.0, 0.0))[0] for view in VIEWS]
        found[exam.id] = np.array(suspicion) > 0
    return found


def locate_findings(exams: CompleteExams, shown: np.ndarray) -> dict[str, Any]:
    """Compare the view that shows a cancer with the other views, over exams with exactly one positive breast.

    Args:
        exams: E exams with four views.
        shown: (E, 4) whether a view shows a suspicious structure.

    Returns:
        `n`; the mean `weights` of the finding's view, of the other view of its breast and of a view of the other
        breast; and as [value, low, high]: `largest_weight` and `largest_contribution`, the share of exams in which the
        finding's view has the largest of the four weights or of the four contributions to the log-odds of its breast;
        `weight_in_breast` and `contribution_in_breast`, the same of the two views of the breast. By chance the shares
        are 1/4 and 1/2. Contributions are absolute values.
    """
    of_positive = shown.reshape(-1, 2, 2) & (exams.positive == 1)[:, :, None]  # (E, side, projection)
    kept = (exams.positive.min(1) >= 0) & (exams.positive.sum(1) == 1) & (of_positive.sum((1, 2)) == 1)
    view = of_positive[kept].reshape(-1, 4).argmax(1)
    row, side, partner = np.arange(len(view)), view // 2, view ^ 1
    alpha, groups = exams.alpha[kept], exams.groups[kept]
    contributions = np.abs(exams.contributions[kept][row, side])
    others = alpha.sum(1) - alpha[row, view] - alpha[row, partner]
    record: dict[str, Any] = {
        "n": len(view),
        "weights": [float(np.mean(w)) for w in (alpha[row, view], alpha[row, partner], others / 2)],
    }
    for name, values in (("weight", alpha), ("contribution", contributions)):
        largest = values.argmax(1) == view
        in_breast = values[row, view] > values[row, partner]
        record[f"largest_{name}"] = list(wilson_interval(largest, groups))
        record[f"{name}_in_breast"] = list(wilson_interval(in_breast, groups))
    return record


def measure_weights(study: Study, seeds: Sequence[int]) -> dict[str, Any]:
    """Train what is missing and locate findings.

    Args:
        study: The planted study; notebooks 01 and 02 must have been run.
        seeds: Seeds of the trainings.

    Returns:
        The study's facts and one row per design and seed, see `locate_findings`.
    """
    shown, names = shown_views(study), {}
    for design in DESIGNS:
        for seed in seeds:
            spec = study.run(HYBRID, "multi", study.grid.subsets[0], seed, variant=REMEDIES[design])
            torch.set_num_threads(spec.training.threads)
            print(f"{design}, seed {seed}", flush=True)
            train_run(spec)
            names[spec.id] = {"design": design, "seed": seed}
    rows = []
    runs = {run.id: run for run in read_runs(study)}
    for run in (runs[name] for name in names):  # in the order of the designs
        exams = complete_exams(run, read_views(run))
        row = locate_findings(exams, np.array([shown[exam] for exam in exams.exams]))
        rows.append(names[run.id] | row)
        print(rows[-1], flush=True)
    facts = {"study": study.name, "synthetic": True, "part": run.reported, "subset": study.grid.subsets[0]}
    facts |= {"epochs": spec.training.epochs, "seeds": list(seeds), "rows": rows}
    return facts | {"environment": environment(device_name(pick_device(spec.training)), spec.training.threads)}


def main(arguments: list[str] | None = None) -> None:
    """Run the command `python -m benchmarks.weights`."""
    run_command("weights", __doc__, lambda study, a: measure_weights(study, a.seeds), arguments)


if __name__ == "__main__":
    main()
