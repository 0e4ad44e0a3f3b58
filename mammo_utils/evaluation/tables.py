"""The tables of notebook 05 about single systems: results by side and class, numbers of blocks, runs and settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from mammo_utils.evaluation.bootstrap import ONE_TRAINING, Sample, bootstrap_settings, interval
from mammo_utils.evaluation.paper import KEY, paper_values
from mammo_utils.evaluation.readable import name_system
from mammo_utils.evaluation.runs import RunResult, categories, group_by_seed, labelled_breasts, sample
from mammo_utils.metrics import METRICS, Metric, auc, auc_influence
from mammo_utils.parameters import NotebookParameters
from mammo_utils.study import RunSpec, Study
from mammo_utils.vocabulary import SIDES, SYSTEMS, TASK_TITLES

INTERVAL_COLUMNS = "value low high low_all high_all".split()
COUNT_COLUMNS = "n_exams n_breasts n_patients n_by_class patients_by_class n_seeds sd_seeds".split()
KEY_COLUMNS = "subset system task_mode task".split()
MADE_BY = "method resamples dropped reason paper paper_note synthetic stale runs command".split()
RESULT_COLUMNS = [*KEY_COLUMNS, "metric", "side", "part", *INTERVAL_COLUMNS, *COUNT_COLUMNS, *MADE_BY]
BLOCK_COLUMNS = [*KEY_COLUMNS, "blocks", "searched", *INTERVAL_COLUMNS, "n_exams", "n_breasts", "n_seeds", "sd_seeds"]
CLASS_COLUMNS = [
    *KEY_COLUMNS,
    "class",
    *INTERVAL_COLUMNS,
    "n_class",
    "n_predicted",
    "n_rest",
    "patients_class",
    "reason",
]
MEAN_OF_SIDES = "mean of sides"
RECOMBINATION = (  # measures of `recombination_table` -> title, as two tables
    {"auc": "AUC, own exams", "recombined_auc": "AUC, recombined", "auc_change": "change"},
    {
        "both_seen": "two cancers: both flagged",
        "none_flagged_wrong": "no cancer: any flagged",
        "one_right": "one cancer: it alone flagged",
        "n": "exams of each of the four truths",
    },
)


def results_table(
    runs: Sequence[RunResult], study: Study, parameters: NotebookParameters | None = None
) -> pd.DataFrame:
    """Score every finished system; runs that differ only in their seed form one row, their mean.

    Args:
        runs: The runs of the study.
        study: The study, for the settings of the bootstrap.
        parameters: The notebook's parameters, for the command that trains the row.

    Returns:
        One row per subset, system, task mode, task, metric and side: "both" pools the breasts of both sides, whose
        heads may have different scales; "mean of sides" averages the two AUCs. `low` and `high` are over patients,
        `low_all` and `high_all` also over trainings; `sd_seeds` is the standard deviation over seeds. `n_by_class` and
        `patients_by_class` list the breasts of each class and their patients. `paper` is the paper's value.
    """
    rows = []
    for (subset, mode, system), seeds in group_by_seed(runs).items():
        row = {"subset": subset, "system": system, "task_mode": mode, "part": seeds[0].reported}
        row |= {"synthetic": any(run.metrics["synthetic"] for run in seeds), "stale": any(run.stale for run in seeds)}
        row["runs"] = ", ".join(member.id for run in seeds for member in run.members)
        folds = study.grid.folds if seeds[0].folds else ()
        row["command"] = training_command([run.spec for run in seeds], folds, parameters or NotebookParameters())
        for task, side, metric in product(seeds[0].tasks, ("both", *SIDES), METRICS):
            rows.append(row | {"side": side} | _score(seeds, task, metric, study, side))
        for task in seeds[0].tasks:
            rows.append(row | {"side": MEAN_OF_SIDES} | _score(seeds, task, "auc", study, MEAN_OF_SIDES))
    paper = paper_values().rename(columns={"value": "paper", "note": "paper_note"}).assign(side="both")
    table = pd.DataFrame(rows, columns=RESULT_COLUMNS).drop(columns=["paper", "paper_note"])
    return table.merge(paper, how="left", on=[*KEY, "side"])[RESULT_COLUMNS]


def class_table(runs: Sequence[RunResult], study: Study) -> pd.DataFrame:
    """Tabulate the one-vs-rest AUC of each class, for tasks with more than two: a macro AUC hides the rare ones.

    One row per subset, system, task mode, task and class, with the numbers of its breasts, of the others and of its
    patients; `n_predicted` is the number of breasts for which it is the most probable class, averaged over trainings.
    """
    rows = []
    for (subset, mode, system), seeds in group_by_seed(runs).items():
        for task in seeds[0].tasks:
            predictions, classes = sample(seeds, task), categories(seeds[0], task)
            chosen = predictions.probabilities.argmax(2)  # (S, n)
            for index, name in enumerate(classes if len(classes) > 2 else ()):
                own, p = predictions.labels == index, predictions.probabilities[:, :, index]
                binary = Sample(own.astype(int), np.stack([1 - p, p], axis=-1), predictions.groups)
                row = {"subset": subset, "task_mode": mode, "system": system, "task": task, "class": name}
                row |= {"n_class": own.sum(), "n_predicted": (chosen == index).sum(1).mean(), "n_rest": (~own).sum()}
                row["patients_class"] = len(set(predictions.groups[own]))
                rows.append(row | asdict(interval(binary, "auc", **bootstrap_settings(study))))
    return pd.DataFrame(rows, columns=CLASS_COLUMNS)


def state_classes(classes: pd.DataFrame) -> list[str]:
    """State for each system which classes it hardly predicts and which it does not rank above chance.

    Args:
        classes: The result of `class_table`.
    """
    sentences = []
    for (subset, mode, system, task), rows in classes.groupby(["subset", "task_mode", "system", "task"], sort=False):
        never = rows["n_predicted"] == 0
        seldom = ~never & (rows["n_predicted"] < rows["n_class"] / 2)
        by_chance = (rows["low"] <= 0.5) & (rows["high"] >= 0.5)
        found = []
        for which, one, several in (
            (never, "{} is never predicted", "{} are never predicted"),
            (
                seldom,
                "{} is predicted less than half as often as it occurs",
                "{} are predicted less than half as often as they occur",
            ),
            (
                by_chance,
                "the interval of the AUC of {} includes 0.5",
                "the intervals of the AUCs of {} include 0.5",
            ),
        ):
            *first, last = [str(name) for name in rows.loc[which, "class"]] or [""]
            if last:
                names = f"{TASK_TITLES[task]} {' and '.join(filter(None, (', '.join(first), last)))}"
                found.append((several if first else one).format(names))
        none = "every category is predicted at least half as often as it occurs, and no interval includes 0.5"
        sentences.append(f"{name_system(system, mode, subset)}: {'; '.join(found) or none}.")
    return sentences


def blocks_table(runs: Sequence[RunResult], study: Study) -> pd.DataFrame:
    """Tabulate the AUC by number of state space blocks (§4.2), for systems trained with more than one number.

    One row per subset, task mode, system, number of blocks and task. `searched` is False for the number of the study's
    settings, which all other tables use.
    """
    rows = []
    for blocks in sorted({run.spec.blocks for run in runs}):
        for (subset, mode, system), seeds in group_by_seed(runs, blocks).items():
            if setting := SYSTEMS[system].blocks:
                row = {"subset": subset, "task_mode": mode, "system": system, "searched": blocks > 0}
                row["blocks"] = getattr(seeds[0].spec.model, setting)
                rows += [row | _score(seeds, task, "auc", study) for task in seeds[0].tasks]
    table = pd.DataFrame(rows, columns=BLOCK_COLUMNS)
    return table[table["system"].isin(table.loc[table["searched"].astype(bool), "system"])]


def run_list(runs: Sequence[RunResult]) -> pd.DataFrame:
    """List the runs of the grid and of the folder: state, reason if not finished or stale, and how they were made."""
    rows = []
    for run in runs:
        row = {"run": run.id, "state": run.state + ("" if run.in_grid else ", not in the grid")}
        row["reason"] = run.reason
        if run.finished:
            row |= {"best epoch": f"{run.metrics['best_epoch']} of {run.metrics['epochs']}"}
            row |= {"parameters": f"{run.metrics['parameters']:,}", "minutes": round(run.metrics["seconds"] / 60, 1)}
            row |= {"device": run.environment.get("device"), "commit": str(run.environment.get("commit"))[:7]}
        rows.append(row)
    columns = ["run", "state", "reason", "best epoch", "parameters", "minutes", "device", "commit"]
    return pd.DataFrame(rows, columns=columns).fillna("").set_index("run")


def parts_table(runs: Sequence[RunResult]) -> pd.DataFrame:
    """Tabulate the AUC of each finished run on the part that chose its epoch and on the reported part.

    Runs that report the validation part itself are left out.

    Returns:
        run, task, and `validation` and `reported` with their intervals over patients (`_low`, `_high`).
    """
    rows = []
    for run in runs:
        for task in run.tasks if run.finished and run.reported != "validation" else ():
            row: dict[str, Any] = {"run": run.id, "task": task}
            for name, part in (("validation", "validation"), ("reported", run.reported)):
                found = interval(sample([run], task, part), "auc", resamples=0)
                row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
            rows.append(row)
    columns = [f"{name}{end}" for name in ("validation", "reported") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["run", "task", *columns])


def settings_table(settings: Study | RunSpec) -> pd.DataFrame:
    """List the paper's settings (§3.1, §4) beside those of a study or of one run.

    `differs` marks the settings that the paper states and that are different here.
    """
    is_study = isinstance(settings, Study)
    data, split, model, training = settings.data, settings.split, settings.model, settings.training
    systems = settings.grid.systems if is_study else (settings.system,)
    cohort = f"{data.source}, cohort {data.cohort}"
    if data.source == "synthetic":
        cohort = f"synthetic cohort, {data.synthetic.n_exams} exams drawn"
    held_out = {"paper": {}, "nested": {"test": split.test}, "kfold": {"test": 1 / split.folds}}[split.kind]
    parts = {"validation": split.validation, **held_out}
    shares = {"training": 1 - sum(parts.values()), **parts}
    initial = {"": "random", "imagenet": "ImageNet"}
    initial["patches"] = "all encoders pretrained on patches, to tell the cue of the synthetic diagnosis"
    tasks, augmentation = training.task_weights, training.augmentation
    starts = model.weights == "patches" or any(SYSTEMS[system].pretrained for system in systems)
    patience = training.patience if training.schedule == "plateau" else "not used"
    rates = [
        (
            f"learning rate, {SYSTEMS[system].short}",
            SYSTEMS[system].paper_learning_rate or "not stated",
            training.learning_rate[system],
        )
        for system in systems
    ]
    rows = [
        ("data", "TOMPEI-CMMD, 1,360 of 1,775 patients", cohort),
        (
            "split by patient",
            "80 % training, 20 % validation",
            ", ".join(f"{100 * v:.0f} % {k}" for k, v in shares.items()),
        ),
        ("reported on", "validation (best epoch)", "test" if held_out else "validation (best epoch)"),
        ("image size, pixels per side", 512, settings.images.size),
        ("augmentation: rotation", "±10°", f"±{augmentation.rotation:g}°"),
        ("augmentation: shift, share of the side", "±5 %", f"±{100 * augmentation.translation:g} %"),
        ("augmentation: scale", "±5 %", f"±{100 * augmentation.scale:g} %"),
        ("augmentation: probability of a flip", 0.5, augmentation.flip),
        *([("initial weights of the ResNets", "ImageNet", initial.get(model.weights, "a file"))] if starts else []),
        ("maximum number of epochs", 100, training.epochs),
        *rates,
        ("weight decay (AdamW)", 0.05, training.weight_decay),
        ("learning-rate schedule", "plateau", training.schedule),
        ("plateau: epochs without a new best until the rate is halved (any gain counts)", 10, patience),
        ("epochs without a new best until training ends", "not stated", training.early_stopping or "no early stopping"),
        ("decay of the running average of the weights", "no average", training.average or "no average"),
        ("batch norm's statistics in evaluation", "not stated", training.batch_norm),
        ("precision", "not stated", training.precision),
        ("maximum gradient norm", 1.0, training.clip),
        ("absent views", "zeros", model.missing),
        ("fusion of the views", "gated", model.fusion),
        ("task weights: diagnosis, BI-RADS", "0.5, 0.5", f"{tasks.diagnosis}, {tasks.birads}"),
        ("dropout", 0.5, model.dropout),
        ("head of BI-RADS", "softmax", model.birads_head),
        ("drop path of the last state space block", "not stated", model.drop_path or "none"),
        ("blocks of the VSSM, of the hybrid", "4, 2", f"{model.vssm_blocks}, {model.hybrid_blocks}"),
        ("share of the encoders' channels", 1.0, model.width),
        ("batch size, exams", "not stated", training.batch_size),
    ]
    if is_study:
        grid = settings.grid
        numbers = sorted({len({*grid.seeds, *grid.more_seeds.get(system, ())}) for system in systems})
        rows.append(("trainings of a system", "not stated", " or ".join(map(str, numbers))))
    table = pd.DataFrame(rows, columns=["setting", "paper", "this study" if is_study else "this run"])
    return table.assign(differs=["" if row[1] in (row[2], "not stated") else "yes" for row in rows]).set_index(
        "setting"
    )


# --- parts of the tables --------------------------------------------------------------------------------


def training_command(specs: Sequence[RunSpec], folds: Sequence[int], parameters: NotebookParameters) -> str:
    """Write the command that trains the runs behind a row, to be entered in the project's folder.

    Args:
        specs: Runs that differ in their seed only.
        folds: The folds of each of them that are pooled; none if they have no folds.
        parameters: The notebook's parameters.
    """
    spec = specs[0]
    values = {"study": parameters.study, "system": spec.system, "task_mode": spec.task_mode, "subset": spec.subset}
    numbers = {"seed": [spec.seed for spec in specs]} | ({"fold": folds} if folds else {})
    values |= {name: f"${name}" if len(found) > 1 else found[0] for name, found in numbers.items()}
    words = " ".join(f"-p {name} {value}" for name, value in values.items())
    settings = f" -y '{json.dumps({'settings': parameters.settings})}'" if parameters.settings else ""
    command = f"papermill notebooks/04_train.ipynb out.ipynb {words}{settings}"
    for name, found in numbers.items():
        if len(found) > 1:
            command = f"for {name} in {' '.join(map(str, found))}; do {command}; done"
    return command


def _score(seeds: Sequence[RunResult], task: str, metric: str, study: Study, side: str = "both") -> dict[str, Any]:
    """A system's metric with its intervals, its deviation over seeds and the numbers it is based on."""
    breasts = labelled_breasts(seeds[0], task, side="both" if side == MEAN_OF_SIDES else side)
    entry = _mean_of_sides(breasts["side"].to_numpy()) if side == MEAN_OF_SIDES else METRICS[metric]
    predictions = sample(seeds, task, side="both" if side == MEAN_OF_SIDES else side)
    by_seed = [entry.value(predictions.labels, p) for p in predictions.probabilities]
    row = {"task": task, "metric": metric, "sd_seeds": float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else np.nan}
    found = asdict(interval(predictions, entry, **bootstrap_settings(study)))
    found["reason"] = found["reason"] or (ONE_TRAINING if len(seeds) == 1 else "")
    return row | found | list_counts(predictions) | count_breasts(breasts, seeds)


def _mean_of_sides(sides: np.ndarray) -> Metric:
    """The mean of the AUCs of left and right breasts; `sides` (n,) are those of the sample."""

    def value(labels: np.ndarray, probabilities: np.ndarray) -> float:
        return float(np.mean([auc(labels[sides == side], probabilities[sides == side]) for side in SIDES]))

    def influence(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        found = np.zeros(len(labels))
        for side in SIDES:
            found[sides == side] = auc_influence(labels[sides == side], probabilities[sides == side]) / len(SIDES)
        return found

    return Metric("mean AUC of sides", value, influence=influence)


def count_breasts(breasts: pd.DataFrame, seeds: Sequence[RunResult]) -> dict[str, int]:
    """Count the exams, breasts, patients and trainings on which a number is based."""
    counts = {"n_exams": breasts["exam"].nunique(), "n_breasts": len(breasts)}
    return counts | {"n_patients": breasts["group"].nunique(), "n_seeds": len(seeds)}


def list_counts(sample: Sample) -> dict[str, str]:
    """List the number of breasts (or exams) of each class, and that of their patients, in the order of the classes."""
    own = [sample.labels == k for k in range(sample.probabilities.shape[2])]
    patients = [len(set(sample.groups[rows])) for rows in own]
    return {
        "n_by_class": " / ".join(str(rows.sum()) for rows in own),
        "patients_by_class": " / ".join(map(str, patients)),
    }
