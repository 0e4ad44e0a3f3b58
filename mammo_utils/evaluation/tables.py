"""The tables of notebook 05: results, comparisons, statements and claims, all computed from the runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mammo_utils.evaluation.bootstrap import Interval, Sample, interval, paired_difference
from mammo_utils.evaluation.paper import KEY, paper_values
from mammo_utils.evaluation.runs import RunResult, group_by_seed, labelled_breasts, sample
from mammo_utils.metrics import METRICS
from mammo_utils.parameters import NotebookParameters
from mammo_utils.study import RunSpec, Study
from mammo_utils.vocabulary import REFERENCE, SIDES, SYSTEMS

if TYPE_CHECKING:
    from mammo_utils.evaluation.shortcut_baselines import Baseline

RESULT_COLUMNS = """subset system task_mode task metric side part value low high n_exams n_breasts n_patients n_seeds
sd_seeds resamples dropped reason paper paper_note synthetic stale runs command""".split()
COMPARISON_COLUMNS = """subset task metric system task_mode reference question difference low high answer n_exams
n_breasts n_seeds reference_seeds dropped reason""".split()
BLOCK_COLUMNS = """subset task_mode system task blocks value low high searched n_exams n_breasts n_seeds
sd_seeds""".split()
VARIANT_COLUMNS = "run variant task difference low high answer n_exams n_breasts reason".split()
STATEMENT_COLUMNS = """subset task_mode system task auc low high beats_chance best_shortcut shortcut_auc beats_shortcuts
ahead ahead_low ahead_high surely_ahead statement""".split()
RECOMBINATION = {  # measures of `recombination_table` -> title
    "auc": "AUC, own exams",
    "recombined_auc": "AUC, recombined",
    "auc_change": "change",
    "both_seen": "two cancers: both flagged",
    "none_flagged_wrong": "no cancer: any flagged",
    "one_right": "one cancer: it alone flagged",
}
SHORTCUT_LIMIT = 0.65  # AUC; a cohort with better shortcuts can be solved without looking for lesions


def results_table(
    runs: Sequence[RunResult], study: Study, parameters: NotebookParameters | None = None
) -> pd.DataFrame:
    """Score every finished system; runs that differ only in their seed form one row, their mean.

    Args:
        runs: The runs of the study.
        study: The study, for the settings of the bootstrap.
        parameters: The notebook's parameters, for the command that trains the row.

    Returns:
        One row per subset, system, task mode, task, metric and side ("both" pools the breasts of both sides).
        `sd_seeds` is the standard deviation over seeds, NaN for one seed; `resamples` and `dropped` count the
        resamples in which the metric is defined and is not; `paper` is the paper's value.
    """
    rows = []
    for (subset, mode, system), seeds in group_by_seed(runs).items():
        row = {"subset": subset, "system": system, "task_mode": mode, "part": seeds[0].reported}
        row |= {"synthetic": any(run.metrics["synthetic"] for run in seeds), "stale": any(run.stale for run in seeds)}
        row["runs"] = ", ".join(name for run in seeds for name in run.folds or (run.id,))
        folds = study.grid.folds if seeds[0].folds else ()
        row["command"] = training_command([run.spec for run in seeds], folds, parameters or NotebookParameters())
        for task, side, metric in product(seeds[0].tasks, ("both", *SIDES), METRICS):
            rows.append(row | {"side": side} | _score(seeds, task, metric, study, side))
    paper = paper_values().rename(columns={"value": "paper", "note": "paper_note"}).assign(side="both")
    table = pd.DataFrame(rows, columns=RESULT_COLUMNS).drop(columns=["paper", "paper_note"])
    return table.merge(paper, how="left", on=[*KEY, "side"])[RESULT_COLUMNS]


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


def compare_variants(runs: Sequence[RunResult], study: Study) -> pd.DataFrame:
    """Compare each variant with the run that has the study's settings, the same system and the same seed.

    One row per variant and task. `difference` is the variant's AUC minus the run's on the same patients; `answer` names
    the better of the two, or is "not distinguishable" if the interval contains 0.
    """
    finished = {run.id: run for run in runs if run.finished}
    rows = []
    for run in finished.values():
        base = finished.get(run.spec.model_copy(update={"variant": ()}).id)
        for task in run.tasks if base and run.spec.variant else ():
            difference = _difference(sample([run], task), sample([base], task), "auc", study)
            row = {"run": base.id, "variant": ", ".join(run.spec.variant), "task": task, "difference": difference.value}
            row |= {"answer": _answer(difference, "variant", "study's run")} | asdict(difference)
            rows.append(row | _count([run], task))
    return pd.DataFrame(rows, columns=VARIANT_COLUMNS)


def compare_systems(runs: Sequence[RunResult], study: Study) -> pd.DataFrame:
    """Compare each system with the reference, and each single-task system with its multi-task counterpart.

    One row per comparison, task and metric. `difference` is the system's metric minus the reference's on the same
    patients; `answer` names the better of the two, or is "not distinguishable" if the interval contains 0.
    """
    groups = group_by_seed(runs)
    rows = []
    for (subset, mode, system), seeds in groups.items():
        comparisons = []  # key of the reference, names of the two in the answer, question
        if system != REFERENCE:
            question = SYSTEMS[system].question or f"Is {SYSTEMS[system].title} better than the reference?"
            comparisons.append(((subset, mode, REFERENCE), (system, REFERENCE), question))
        if mode != "multi":
            question = "Does learning one task alone do better than learning both?"
            comparisons.append(((subset, "multi", system), ("single-task", "multi-task"), question))
        for key, names, question in comparisons:
            reference = groups.get(key, [])
            row = {"subset": subset, "system": system, "task_mode": mode, "reference": f"{key[2]} {key[1]}"}
            row |= {"question": question, "reference_seeds": len(reference)}
            for task, metric in product(seeds[0].tasks, METRICS):
                if reference and task in reference[0].tasks:
                    difference = _difference(sample(seeds, task), sample(reference, task), metric, study)
                    found = {"difference": difference.value, "answer": _answer(difference, *names)}
                    found |= {"task": task, "metric": metric} | asdict(difference) | _count(seeds, task)
                    rows.append(row | found)
    table = pd.DataFrame(rows, columns=COMPARISON_COLUMNS)
    return table.sort_values(["subset", "task", "metric", "task_mode"], kind="stable", ignore_index=True)


def statements(
    runs: Sequence[RunResult], baselines: Mapping[tuple[str, str], Sequence[Baseline]], study: Study
) -> pd.DataFrame:
    """State for each system and task whether its AUC on the reported part beats chance and the shortcuts.

    Args:
        runs: The runs of the study.
        baselines: (subset, task) -> the fitted baselines.
        study: The study, for the settings of the bootstrap.

    Returns:
        `beats_chance`: the interval lies above 0.5; `beats_shortcuts`: the AUC is higher than every shortcut's;
        `ahead`: the paired difference to the best shortcut; `surely_ahead`: its interval lies above 0; `statement`:
        all of this in one sentence. None where a comparison is not possible.
    """
    rows = []
    for (subset, mode, system), seeds in group_by_seed(runs).items():
        for task in seeds[0].tasks:
            predictions = sample(seeds, task)
            auc = interval(predictions, "auc", **_bootstrap(study))
            shortcuts = [b for b in baselines.get((subset, task), ()) if b.shortcut and not np.isnan(b.auc)]
            best = max(shortcuts, key=lambda baseline: baseline.auc, default=None)
            ahead = _difference(predictions, best.sample, "auc", study) if best else Interval()
            row = {"subset": subset, "task_mode": mode, "system": system, "task": task}
            row |= {"auc": auc.value, "low": auc.low, "high": auc.high, "beats_chance": _exceeds(auc.low, 0.5)}
            row |= {"best_shortcut": best.name if best else "", "shortcut_auc": best.auc if best else np.nan}
            row |= {"beats_shortcuts": _exceeds(auc.value, row["shortcut_auc"])}
            row |= {"ahead": ahead.value, "ahead_low": ahead.low, "ahead_high": ahead.high}
            row |= {"surely_ahead": _exceeds(ahead.low, 0)}
            rows.append(row | {"statement": _write_statement(row)})
    return pd.DataFrame(rows, columns=STATEMENT_COLUMNS)


def _write_statement(row: Mapping[str, Any]) -> str:
    chance = {None: "has no interval to compare with chance", True: "beats chance"}
    shortcuts = {
        None: "there is no shortcut to compare it with",
        True: f"it beats every shortcut (the paired interval {'excludes' if row['surely_ahead'] else 'contains'} 0)",
        False: f"it does not beat the shortcut {row['best_shortcut']}",
    }
    subject = f"{row['system']} ({row['task_mode']}, {row['subset']}, {row['task']})"
    verdict = chance.get(row["beats_chance"], "is not distinguishable from chance")
    return f"{subject} {verdict}; {shortcuts[row['beats_shortcuts']]}."


def check_claims(runs: Sequence[RunResult], statements: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """Check what the study claims about itself.

    Args:
        runs: The runs of the study.
        statements: The table made by `statements`.
        baselines: The table made by `evaluation.shortcut_baselines.baseline_table`.

    Returns:
        One row per claim: `holds` (True, False, or None if it cannot be checked), `count` and `exceptions`.
    """
    grid = [run for run in runs if run.in_grid]
    unfinished, stale = [run.id for run in grid if not run.finished], [run.id for run in grid if run.stale]
    n_finished = len(grid) - len(unfinished)
    diagnosis = statements[statements["task"] == "diagnosis"]
    names = diagnosis["system"] + " " + diagnosis["task_mode"] + " " + diagnosis["subset"]

    def check(claim: str, column: str) -> tuple:
        values = list(diagnosis[column])
        holds = None if not values or None in values else all(values)
        exceptions = [name for name, value in zip(names, values, strict=True) if not value]
        return claim, holds, f"{values.count(True)} of {len(values)}", exceptions

    shortcuts = baselines[(baselines["metric"] == "auc") & (baselines["task"] == "diagnosis")]
    shortcuts = shortcuts[shortcuts["baseline"] != "majority class"]
    strong = [f"{row.baseline} {row.subset}" for row in shortcuts.itertuples() if row.value > SHORTCUT_LIMIT]
    highest = f"highest {shortcuts['value'].max():.3f}" if len(shortcuts) else ""
    limit = f"diagnosis: the AUC of every shortcut is at most {SHORTCUT_LIMIT}"
    rows = [
        ("every run of the grid is finished", not unfinished, f"{n_finished} of {len(grid)}", unfinished),
        ("every finished run matches configuration, data and code", not stale if n_finished else None, "", stale),
        check("diagnosis: the interval of each system's AUC lies above 0.5", "beats_chance"),
        check("diagnosis: each system's AUC is higher than that of every shortcut", "beats_shortcuts"),
        (limit, not strong if len(shortcuts) else None, highest, strong),
    ]
    table = pd.DataFrame(rows, columns=["claim", "holds", "count", "exceptions"]).astype({"holds": object})
    return table.assign(exceptions=table["exceptions"].map(", ".join)).set_index("claim")


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


def settings_table(settings: Study | RunSpec) -> pd.DataFrame:
    """List the paper's settings (§3.1, §4) beside those of a study or of one run; `differs` marks the differences."""
    is_study = isinstance(settings, Study)
    data, split, model, training = settings.data, settings.split, settings.model, settings.training
    systems = settings.grid.systems if is_study else (settings.system,)
    cohort = f"{data.source}, cohort {data.cohort}"
    if data.source == "synthetic":
        cohort = f"synthetic cohort, {data.synthetic.n_exams} exams"
    held_out = {"paper": {}, "nested": {"test": split.test}, "kfold": {"test": 1 / split.folds}}[split.kind]
    parts = {"validation": split.validation, **held_out}
    shares = {"training": 1 - sum(parts.values()), **parts}
    rows = [
        ("data", "TOMPEI-CMMD, 1,360 patients", cohort),
        (
            "split by patient",
            "80 % training, 20 % validation",
            ", ".join(f"{100 * v:.0f} % {k}" for k, v in shares.items()),
        ),
        ("reported on", "validation (best epoch)", "test" if held_out else "validation (best epoch)"),
        ("image size, pixels per side", 512, settings.images.size),
        ("ImageNet weights of the ResNets", "yes", "yes" if model.weights == "imagenet" else "no"),
        ("maximum number of epochs", 100, training.epochs),
        ("weight decay (AdamW)", 0.05, training.weight_decay),
        ("learning-rate schedule", "plateau", training.schedule),
        ("plateau: epochs without a new best until the rate is halved (any gain counts)", 10, training.patience),
        ("decay of the running average of the weights", "no average", training.average or "no average"),
        ("batch norm's statistics in evaluation", "not stated", training.batch_norm),
        ("precision", "not stated", training.precision),
        ("maximum gradient norm", 1.0, training.clip),
        ("dropout", 0.5, model.dropout),
        ("drop path of the last state space block", "not stated", model.drop_path or "none"),
        ("blocks of the VSSM, of the hybrid", "4, 2", f"{model.vssm_blocks}, {model.hybrid_blocks}"),
        ("batch size, exams", "not stated", training.batch_size),
    ]
    rates = [
        (SYSTEMS[system].paper_learning_rate or "not stated", training.learning_rate[system]) for system in systems
    ]
    rows[6:6] = [(f"learning rate, {system}", *pair) for system, pair in zip(systems, rates, strict=True)]
    if not any(SYSTEMS[system].pretrained for system in systems):
        del rows[4]
    if is_study:
        rows.append(("training seeds", "not stated", len(settings.grid.seeds)))
    table = pd.DataFrame(rows, columns=["setting", "paper", "this study" if is_study else "this run"])
    return table.assign(differs=["" if row[2] == row[1] else "yes" for row in rows]).set_index("setting")


def with_intervals(table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Write measures with their intervals as text, one column each, by run.

    Args:
        table: Made by `gate_table` or `recombination_table`.
        columns: Measure -> title. Measures that the table lacks are left out, as are empty values.
    """

    def write(row: pd.Series, name: str) -> str:
        if pd.isna(row[name]):
            return ""
        low, high = row.get(f"{name}_low", np.nan), row.get(f"{name}_high", np.nan)
        return f"{row[name]:.3f}" + ("" if pd.isna(low) else f" ({low:.3f} to {high:.3f})")

    known = {name: title for name, title in columns.items() if name in table}
    written = {title: [write(row, name) for _, row in table.iterrows()] for name, title in known.items()}
    return pd.DataFrame(written, index=pd.Index(table["run"] if len(table) else [], name="run"))


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


def _bootstrap(study: Study) -> dict[str, int]:
    return {"resamples": study.evaluation.resamples, "seed": study.evaluation.seed}


def _score(seeds: Sequence[RunResult], task: str, metric: str, study: Study, side: str = "both") -> dict[str, Any]:
    """A system's metric with its interval, its deviation over seeds and the numbers it is based on."""
    predictions = sample(seeds, task, side=side)
    by_seed = [METRICS[metric].value(predictions.labels, p) for p in predictions.probabilities]
    row = {"task": task, "metric": metric, "sd_seeds": float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else np.nan}
    return row | asdict(interval(predictions, metric, **_bootstrap(study))) | _count(seeds, task, side)


def _count(seeds: Sequence[RunResult], task: str, side: str = "both") -> dict[str, int]:
    breasts = labelled_breasts(seeds[0], task, side=side)
    counts = {"n_exams": breasts["exam"].nunique(), "n_breasts": len(breasts)}
    return counts | {"n_patients": breasts["group"].nunique(), "n_seeds": len(seeds)}


def _difference(system: Sample, reference: Sample, metric: str, study: Study) -> Interval:
    """The paired difference; if the two are not of the same breasts, none and the reason."""
    try:
        return paired_difference(system, reference, metric, **_bootstrap(study))
    except ValueError as error:
        return Interval(reason=str(error))


def _answer(difference: Interval, system: str, reference: str) -> str:
    if np.isnan(difference.low):
        return "no interval"
    if difference.low <= 0 <= difference.high:
        return "not distinguishable"
    return f"{system if difference.low > 0 else reference} better"


def _exceeds(value: float, limit: float) -> bool | None:
    return None if np.isnan(value) or np.isnan(limit) else bool(value > limit)
