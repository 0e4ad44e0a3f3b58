"""From runs to the tables of notebook 05: results, comparisons and statements, all computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mammo_utils.config import Study
from mammo_utils.evaluation.bootstrap import Interval, Sample, interval, paired_difference
from mammo_utils.evaluation.paper import KEY, paper_values
from mammo_utils.evaluation.runs import RunResult, group_by_seed, labelled_breasts, sample
from mammo_utils.metrics import METRICS
from mammo_utils.parameters import NotebookParameters

if TYPE_CHECKING:
    from mammo_utils.evaluation.shortcut_baselines import Baseline

REFERENCE = "hybrid_shared"  # the paper's best system: the row to which the others are compared
QUESTIONS = {
    "resnet18": "Do state space blocks after the cut ResNet-18 add to ResNet-18?",
    "resnet50": "Does the hybrid do better than a deeper CNN?",
    "vssm_shared": "Does a convolutional stem add to a pure VSSM?",
    "vssm_view_specific": "Does it also add where the VSSM has an encoder each for CC and MLO?",
    "hybrid_view_specific": "Is one encoder for all views better than one each for CC and MLO?",
}
SIDES_REPORTED = ("both", "L", "R")
RESULT_COLUMNS = [
    *["subset", "system", "task_mode", "task", "metric", "side", "part", "value", "low", "high"],
    *["n_exams", "n_breasts", "n_patients", "n_seeds", "sd_seeds", "resamples", "dropped", "reason"],
    *["paper", "paper_note", "synthetic", "stale", "runs", "command"],
]
COMPARISON_COLUMNS = [
    *["subset", "task", "metric", "system", "task_mode", "reference", "question", "difference", "low", "high"],
    *["answer", "n_exams", "n_breasts", "n_seeds", "reference_seeds", "dropped", "reason"],
]
BLOCK_COLUMNS = [
    *["subset", "task_mode", "system", "task", "blocks", "value", "low", "high", "searched"],
    *["n_exams", "n_breasts", "n_seeds", "sd_seeds"],
]


def results_table(
    runs: Sequence[RunResult], study: Study, parameters: NotebookParameters | None = None
) -> pd.DataFrame:
    """One row a (subset, system, task mode, task, metric, side): the number, its interval and what it rests on.

    Runs that differ in their seed alone make one row: the mean over seeds, sd_seeds their standard deviation
    (NaN for one seed). side: "both" pools the breasts of both sides; "L" and "R" stand beside it. resamples
    and dropped: bootstrap resamples in which the metric is defined and is not. paper: the paper's value.
    parameters: the notebook's, for the command that trains the row.
    """
    printed = paper_values().set_index(KEY)
    rows = []
    for (subset, mode, system), seeds in group_by_seed(runs).items():
        for task, side in product(seeds[0].tasks, SIDES_REPORTED):
            answers = sample(seeds, task, side=side)
            breasts = labelled_breasts(seeds[0], task, side=side)
            for metric in METRICS:
                ours = interval(answers, metric, **_settings(study))
                key = (subset, system, mode, task, metric)
                row = dict(zip(KEY, key, strict=True))
                row |= {"side": side, "part": seeds[0].reported}
                row |= {"value": ours.value, "low": ours.low, "high": ours.high}
                row |= {"n_exams": breasts["exam"].nunique(), "n_breasts": len(breasts)}
                row |= {"n_patients": breasts["group"].nunique()}
                row |= {"n_seeds": len(seeds), "sd_seeds": _spread(answers, metric)}
                row |= {"resamples": ours.used, "dropped": ours.dropped, "reason": ours.reason}
                if side == "both" and key in printed.index:
                    row |= {"paper": printed.loc[key, "value"], "paper_note": printed.loc[key, "note"]}
                row |= {"synthetic": any(run.metrics["synthetic"] for run in seeds)}
                row |= {"stale": any(run.stale for run in seeds), "runs": ", ".join(run.id for run in seeds)}
                rows.append(row | {"command": command(parameters or NotebookParameters(), seeds[0])})
    return pd.DataFrame(rows, columns=RESULT_COLUMNS)


def blocks_table(runs: Sequence[RunResult], study: Study) -> pd.DataFrame:
    """§4.2's search: the AUC of each system and number of blocks that were trained, with its interval over patients.

    One row a subset, task mode, system, number of blocks and task, in the columns of BLOCK_COLUMNS; searched: False
    for the number that the tables have. Empty without runs of other numbers.
    """
    rows = []
    for blocks in sorted({run.spec.blocks for run in runs}):
        for (subset, mode, system), seeds in group_by_seed(runs, blocks).items():
            settings = seeds[0].spec.model.model_dump()
            number = settings.get(f"{system.split('_')[0]}_blocks")
            for task in seeds[0].tasks if number else ():
                answers = sample(seeds, task)
                found = interval(answers, "auc", **_settings(study))
                breasts = labelled_breasts(seeds[0], task)
                rows.append(
                    dict(zip(BLOCK_COLUMNS[:5], (subset, mode, system, task, number), strict=True))
                    | {"value": found.value, "low": found.low, "high": found.high, "searched": blocks > 0}
                    | {"n_exams": breasts["exam"].nunique(), "n_breasts": len(breasts)}
                    | {"n_seeds": len(seeds), "sd_seeds": _spread(answers, "auc")}
                )
    table = pd.DataFrame(rows, columns=BLOCK_COLUMNS)
    return table[table["searched"].any() & table["system"].isin(table.loc[table["searched"], "system"])]


def _settings(study: Study) -> dict[str, int]:
    return {"resamples": study.evaluation.resamples, "seed": study.evaluation.seed}


def _spread(answers: Sample, metric: str) -> float:
    """Standard deviation of the metric over training seeds; NaN for fewer than two."""
    values = [interval(one, metric, resamples=1).value for one in _layers(answers)]
    return float(np.std(values, ddof=1)) if len(values) > 1 else np.nan


def _layers(answers: Sample) -> list[Sample]:
    return [Sample(answers.labels, layer[None], answers.groups) for layer in answers.probabilities]


def command(parameters: NotebookParameters, run: RunResult) -> str:
    """The command that trains a row's run, from the project's folder."""
    spec = run.spec
    named = {"study": parameters.study, "system": spec.system, "task_mode": spec.task_mode, "subset": spec.subset}
    words = " ".join(f"-p {name} {value}" for name, value in {**named, "seed": spec.seed}.items())
    settings = f" -y '{json.dumps({'settings': parameters.settings})}'" if parameters.settings else ""
    return f"papermill notebooks/04_train.ipynb out.ipynb {words}{settings}"


def compare_systems(runs: Sequence[RunResult], study: Study) -> pd.DataFrame:
    """Each system less the reference row (hybrid_shared of the same subset and task mode), and each single-task
    system less its multi-task self, on the same patients; the question that the difference answers beside it.

    answer: "better", "worse" or "not told apart" (the interval of the difference holds 0).
    """
    together = group_by_seed(runs)
    rows = []
    for (subset, mode, system), seeds in together.items():
        pairs = []
        if system != REFERENCE:
            pairs.append(((subset, mode, REFERENCE), QUESTIONS[system]))
        if mode != "multi":
            pairs.append(((subset, "multi", system), "Does learning one task alone do better than learning both?"))
        for key, question in pairs:
            if key not in together:
                continue
            for task, metric in product([t for t in seeds[0].tasks if t in together[key][0].tasks], METRICS):
                difference = _difference(sample(seeds, task), sample(together[key], task), metric, study)
                breasts = labelled_breasts(seeds[0], task)
                row = {"subset": subset, "task": task, "metric": metric, "system": system, "task_mode": mode}
                row |= {"reference": f"{key[2]} {key[1]}", "question": question}
                row |= {"difference": difference.value, "low": difference.low, "high": difference.high}
                row |= {"answer": answer(difference), "n_exams": breasts["exam"].nunique()}
                row |= {"n_breasts": len(breasts), "n_seeds": len(seeds), "reference_seeds": len(together[key])}
                row |= {"dropped": difference.dropped}
                rows.append(row | {"reason": difference.reason})
    table = pd.DataFrame(rows, columns=COMPARISON_COLUMNS)
    return table.sort_values(["subset", "task", "metric", "task_mode"], kind="stable", ignore_index=True)


def _difference(ours: Sample, reference: Sample, metric: str, study: Study) -> Interval:
    """The paired difference, or none with the reason where the two are not of the same breasts."""
    try:
        return paired_difference(ours, reference, metric, **_settings(study))
    except ValueError as error:
        return Interval(np.nan, np.nan, np.nan, 0, 0, str(error))


def answer(difference: Interval) -> str:
    """What the interval of a difference says."""
    if np.isnan(difference.low):
        return "no interval"
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else "not told apart"


def statements(
    runs: Sequence[RunResult], baselines: Mapping[tuple[str, str], Sequence[Baseline]], study: Study
) -> pd.DataFrame:
    """For each system and task: does it beat chance, and the shortcuts, on the reported part?

    baselines: (subset, task) -> the fitted shortcuts. Columns: beats_chance (the lower end of the AUC's
    interval lies above 0.5), best_shortcut and its AUC, beats_shortcuts (the AUC lies above that of every
    shortcut), ahead with its interval (the paired difference to the best shortcut), surely_ahead (its lower
    end lies above 0), and `statement`, the sentence that these make. None where it cannot be said.
    """
    rows = []
    for (subset, mode, system), seeds in group_by_seed(runs).items():
        for task in seeds[0].tasks:
            answers = sample(seeds, task)
            ours = interval(answers, "auc", **_settings(study))
            row = {"subset": subset, "task_mode": mode, "system": system, "task": task}
            row |= {"auc": ours.value, "low": ours.low, "high": ours.high}
            row["beats_chance"] = None if np.isnan(ours.low) else bool(ours.low > 0.5)
            shortcuts = [b for b in baselines.get((subset, task), ()) if b.shortcut and not np.isnan(b.auc)]
            best = max(shortcuts, key=lambda b: b.auc, default=None)
            row |= {"best_shortcut": best.name if best else "", "shortcut_auc": best.auc if best else np.nan}
            row["beats_shortcuts"] = None if best is None or np.isnan(ours.value) else bool(ours.value > best.auc)
            ahead = _difference(answers, best.sample, "auc", study) if best else Interval(*[np.nan] * 3, 0, 0)
            row |= {"ahead": ahead.value, "ahead_low": ahead.low, "ahead_high": ahead.high}
            row["surely_ahead"] = None if np.isnan(ahead.low) else bool(ahead.low > 0)
            rows.append(row | {"statement": _sentence(row)})
    return pd.DataFrame(rows)


def _sentence(row: Mapping) -> str:
    chance = {
        None: "has no interval to hold against chance",
        True: "beats chance",
        False: "is not told apart from chance",
    }[row["beats_chance"]]
    if row["beats_shortcuts"] is None:
        shortcuts = "no shortcut to hold it against"
    elif not row["beats_shortcuts"]:
        shortcuts = f"does not beat the shortcut {row['best_shortcut']}"
    else:
        sure = "also by the paired interval" if row["surely_ahead"] else "by its value; the paired interval holds 0"
        shortcuts = f"beats every shortcut ({sure})"
    return f"{row['system']} ({row['task_mode']}, {row['subset']}, {row['task']}) {chance}; {shortcuts}."


# --- the study as a whole -------------------------------------------------------------------------------


def run_list(runs: Sequence[RunResult]) -> pd.DataFrame:
    """One row a run of the grid or the folder: its state, why, whether it still matches, what it was made with."""
    rows = []
    for run in runs:
        row = {"run": run.id, "state": run.state + ("" if run.in_grid else ", not in the grid")}
        row |= {"stale or why not": run.reason}
        if run.finished:
            row |= {"best epoch": f"{run.metrics['best_epoch']} of {run.metrics['epochs']}"}
            row |= {"parameters": f"{run.metrics['parameters']:,}", "minutes": round(run.metrics["seconds"] / 60, 1)}
            row |= {"device": run.environment.get("device"), "commit": str(run.environment.get("commit"))[:7]}
        rows.append(row)
    columns = ["run", "state", "stale or why not", "best epoch", "parameters", "minutes", "device", "commit"]
    return pd.DataFrame(rows, columns=columns).fillna("").set_index("run")


def settings_table(study: Study) -> pd.DataFrame:
    """The paper's training setting (§3.1, §4) beside this study's; `differs` marks what is the study's own."""
    rates = study.training.learning_rate
    rows = [
        ("data", "TOMPEI-CMMD, 1,360 patients", _data_name(study)),
        ("split", "80 % training, 20 % validation, by patient", _split_name(study)),
        (
            "reported on",
            "validation (best epoch)",
            "test" if study.split.kind == "nested" else "validation (best epoch)",
        ),
        ("image size, pixels a side", 512, study.images.size),
        ("ImageNet weights of the ResNets", "yes", "yes" if study.model.weights == "imagenet" else "no"),
        ("epochs, at most", 100, study.training.epochs),
        *((f"learning rate, {s}", PAPER_RATES.get(s, "not stated"), rates[s]) for s in study.grid.systems),
        ("weight decay (AdamW)", 0.05, study.training.weight_decay),
        ("learning rate halved after epochs", 10, study.training.patience),
        ("gradient norm clipped at", 1.0, study.training.clip),
        ("dropout", 0.5, study.model.dropout),
        ("VSSM blocks, pure and hybrid", "4, 2", f"{study.model.vssm_blocks}, {study.model.hybrid_blocks}"),
        ("batch size, exams", "not stated", study.training.batch_size),
        ("training seeds", "not stated", len(study.grid.seeds)),
    ]
    table = pd.DataFrame(rows, columns=["setting", "paper", "this study"]).set_index("setting")
    return table.assign(differs=["" if ours == paper else "yes" for paper, ours in table.to_numpy()])


PAPER_RATES = {"resnet18": 1e-4, "hybrid_shared": 1e-4, "hybrid_view_specific": 1e-4}  # §4.3
PAPER_RATES |= {"vssm_shared": 1e-5, "vssm_view_specific": 1e-5}


def _data_name(study: Study) -> str:
    if study.data.source != "synthetic":
        return f"{study.data.source}, cohort {study.data.cohort}"
    return f"synthetic cohort, {study.data.synthetic.n_exams} exams"


def _split_name(study: Study) -> str:
    split = study.split
    if split.kind == "paper":
        return f"{1 - split.validation:.0%} training, {split.validation:.0%} validation, by patient"
    rest = 1 - split.validation - split.test
    return f"{rest:.0%} training, {split.validation:.0%} validation, {split.test:.0%} test, by patient"


SHORTCUT_LIMIT = 0.65  # a cohort whose shortcuts do better is solved without looking for lesions


def check_claims(runs: Sequence[RunResult], said: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """What the study claims of itself, each claim held against the numbers: holds is True, False, or None where
    it cannot be said. said: :func:`statements`; baselines: evidence.baselines.baseline_table."""
    grid = [run for run in runs if run.in_grid]
    done, stale = [run for run in grid if run.finished], [run.id for run in grid if run.stale]
    missing = [run.id for run in grid if not run.finished]
    rows = [
        ("every run of the grid is finished", not missing, f"{len(done)} of {len(grid)}", missing),
        ("every finished run matches configuration, data and code", not stale if done else None, "", stale),
    ]
    told = said[said["task"] == "diagnosis"] if len(said) else said
    for column, claim in (
        ("beats_chance", "diagnosis: each system's AUC has its lower end above 0.5"),
        ("beats_shortcuts", "diagnosis: each system's AUC lies above every shortcut's"),
    ):
        holds = list(told[column]) if len(told) else []
        against = [f"{r.system} {r.task_mode} {r.subset}" for r in told.itertuples() if getattr(r, column) is not True]
        known = None if not holds or any(value is None for value in holds) else all(holds)
        rows.append((claim, known, f"{sum(v is True for v in holds)} of {len(holds)}", against))
    weak = baselines[(baselines["metric"] == "auc") & (baselines["task"] == "diagnosis")]
    weak = weak[weak["baseline"] != "majority class"]
    above = weak[weak["value"] > SHORTCUT_LIMIT]
    claim = f"diagnosis: every shortcut's AUC is at most {SHORTCUT_LIMIT}"
    highest = f"highest {weak['value'].max():.3f}" if len(weak) else ""
    rows.append(
        (claim, above.empty if len(weak) else None, highest, [f"{r.baseline} {r.subset}" for r in above.itertuples()])
    )
    table = pd.DataFrame(rows, columns=["claim", "holds", "count", "not so"])
    return table.assign(**{"not so": table["not so"].map(", ".join)}).set_index("claim").astype({"holds": object})
