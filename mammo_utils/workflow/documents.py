"""The model card of a study and its CLAIM table, both filled from the study's files.

CLAIM is the Checklist for Artificial Intelligence in Medical Imaging, update of 2024 (Tejani et al., Radiology:
Artificial Intelligence 6(4), e240300). `claim_items.csv` has its 44 items in our words, and where a study answers them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from mammo_utils.data.cohort import Cohort, DataError, load_cohort
from mammo_utils.data.split import load_split
from mammo_utils.evaluation.readable import name_system, readable, write_range
from mammo_utils.evaluation.runs import RunResult
from mammo_utils.io import read_json
from mammo_utils.metrics import METRICS
from mammo_utils.study import Study
from mammo_utils.vocabulary import CLASSES, DENSITIES, SIDES, SUBSET_TITLES, SYSTEMS, VIEWS

ITEMS = pd.read_csv(Path(__file__).with_name("claim_items.csv"), keep_default_na=False)
PARTS = ("train", "validation", "test")
NOT_DONE = "not done"
EXCLUDED = {"junk": "files left by macOS", "other": "files of other kinds"}  # kind -> what it is, if not its plural
SYNTHETIC = """> **Synthetic cohort.** Every image and label is drawn by a program. The numbers show that the study
> runs; they are no evidence about patients."""
NO_DEVICE = "> **Not a medical device.** No output of these systems may inform the care of a patient."


@dataclass(frozen=True)
class Evidence:
    """What both documents are filled from.

    Attributes:
        study, cohort: The study and its cohort.
        part, groups: Exam -> part of the split, and group of patients; empty before notebook 02 has run.
        runs: The finished runs.
        results: The rows of `tables.results_table` for both sides together.
        records: `results`, `views` and `decisions`: what notebooks 05 to 07 wrote, {} for one that has not run.
    """

    study: Study
    cohort: Cohort
    part: pd.Series
    groups: pd.Series
    runs: list[RunResult]
    results: pd.DataFrame
    records: dict[str, dict[str, Any]]

    def rows(self, record: str, name: str) -> pd.DataFrame:
        """A table of one of the records; empty if there is none."""
        return pd.DataFrame(self.records[record].get(name, []))


def collect_evidence(study: Study, runs: Sequence[RunResult], results: pd.DataFrame) -> Evidence:
    """Read what the documents are filled from.

    Args:
        study: The study; notebook 01 has run.
        runs: Its runs.
        results: The result of `tables.results_table`.
    """
    cohort = load_cohort(study.folder / ("cohort" if (study.folder / "cohort").is_dir() else "found"))
    part = groups = pd.Series(dtype=str)
    with suppress(FileNotFoundError, DataError):  # a damaged split is an error of the runs, which the page names
        split = load_split(study.folder / "split.json")
        part, groups = split.part, split.groups
    files = {name: study.folder / f"{name}.json" for name in ("results", "views", "decisions")}
    records = {name: read_json(file) if file.is_file() else {} for name, file in files.items()}
    finished = [run for run in runs if run.finished]
    return Evidence(study, cohort, part, groups, finished, results[results["side"] == "both"], records)


def describe_parts(cohort: Cohort, part: pd.Series, groups: pd.Series) -> pd.DataFrame:
    """Tabulate exams, patients, age, views and labels, one column per part of the split.

    Args:
        cohort: The cohort.
        part: Exam -> part of the split.
        groups: Exam -> group of patients.
    """
    columns = {}
    for name in PARTS:
        exams = cohort.exams.loc[cohort.exams.index.intersection(part.index[part == name])]
        if len(exams):
            age, unknown = exams["age"].dropna(), exams["age"].isna().sum()
            years = f"{age.median():.0f} ({age.min():.0f} to {age.max():.0f})" if len(age) else "unknown"
            column = {"exams": len(exams), "patients": groups.loc[exams.index].nunique()}
            column |= {"age: median (range)": years, "age unknown": unknown}
            column["exams with four views"] = exams[list(VIEWS)].all(axis=1).sum()
            for label, values in (("class", CLASSES), ("birads", range(1, 6)), ("density", DENSITIES)):
                found = pd.concat([exams[f"{side}_{label}"] for side in SIDES])
                shown = label.replace("birads", "BI-RADS")
                column |= {f"breasts, {shown} {value}": (found == value).sum() for value in values}
            columns[name] = column
    return pd.DataFrame(columns).rename_axis("characteristic")


# --- the model card -------------------------------------------------------------------------------------


def model_card(e: Evidence) -> str:
    """Write the model card in Markdown: models, use, data, numbers with their intervals, limits."""
    rows = [
        {"training": run.spec.title, "parameters": f"{run.metrics['parameters']:,}"}
        | {"kept epoch": f"{run.metrics['best_epoch']} of {run.metrics['epochs']}", "state": run.state}
        for run in e.runs
    ]
    subsets = list(dict.fromkeys([*e.study.grid.subsets, *(run.spec.subset for run in e.runs)]))
    parts = [
        f"# Model card: study “{e.study.name}”",
        *([SYNTHETIC] if e.cohort.synthetic else []),
        NO_DEVICE,
        "## Models",
        "Four mammograms of a patient, any of which may be missing, become the probability of malignancy and of each "
        "BI-RADS category of either breast. The weights are in `runs/<run>/weights.safetensors`.",
        markdown_table(pd.DataFrame(rows)),
        "## Intended use",
        "Research and teaching: to study the method and to repeat its evaluation. Not for diagnosis, screening or "
        "triage, and not for images of other sources than those below, on which nothing has been measured.",
        "## Data",
        f"{e.cohort.label}: {len(e.cohort.exams)} exams are used and split by patient; the table counts all of "
        f"them. Each system is trained and evaluated on one subset of the BI-RADS categories: "
        f"{' or '.join(SUBSET_TITLES[subset] for subset in subsets)}.",
        markdown_table(describe_parts(e.cohort, e.part, e.groups).reset_index()),
        "## Numbers",
        "Each row is one system on the exams of one subset, in the part named; with 95 % intervals over patients. The "
        "last column counts the breasts of each class, in the order of the classes.",
        markdown_table(_numbers(e.results)),
        "## Limits",
        "\n".join(f"- {sentence}" for sentence in limits(e)),
        "## Provenance",
        "`certificate.json` has the hashes of settings, data, code and predictions. The CLAIM table is in `claim.md`.",
    ]
    return "\n\n".join(parts) + "\n"


def _numbers(results: pd.DataFrame) -> pd.DataFrame:
    """One row per subset, task and system, with a column for each metric."""
    systems = zip(results["system"], results["task_mode"], results["subset"], strict=True)
    results, index = results.assign(system=[name_system(*row) for row in systems]), ["system", "task"]
    measures = {"part": "part", "n_seeds": "trainings", "n_patients": "patients", "n_by_class": "breasts by class"}
    tables = [readable(rows, index, {"value": METRICS[m].title}) for m, rows in results.groupby("metric", sort=False)]
    counts = readable(results.drop_duplicates(index), index, measures)
    table = pd.concat([*tables, counts], axis=1).reset_index()
    return table.replace(r"^(\d\.\d+)$", r"\1 (no interval)", regex=True)


def limits(e: Evidence) -> list[str]:
    """State the limits that the study has measured, and those of its design."""
    found = ["No run is scored on the exams of another data set."]
    found += e.records["views"].get("statements", ["It is not measured from which views a breast is read."])
    for name in ("results", "decisions"):
        found += e.records[name].get("summary", [])
    if (e.results["part"] == "validation").any():
        found.append("The reported part also chose the epoch, so the values are optimistic.")
    return found


# --- the CLAIM table ------------------------------------------------------------------------------------


def claim_table(e: Evidence) -> pd.DataFrame:
    """Fill the CLAIM table: number, section, item, where it is answered, and the answer, or "not done".

    An item is answered if the study has the page that answers it, and the value if one belongs to it.
    """
    values, rows = claim_values(e), []
    for item in ITEMS.itertuples():
        place, answer = _place(e.study, item.place), values.get(item.item, "see there")
        if not place or not answer:
            place, answer = "", f"{NOT_DONE}: {item.absent or 'this study has no such result'}"
        rows.append((item.item, item.section, item.name, place, answer))
    return pd.DataFrame(rows, columns=["item", "section", "name", "where", "answer"])


def claim_values(e: Evidence) -> dict[int, str]:
    """The values by item, "" for one that the study lacks. Items without a value are answered by a text."""
    study, part = e.study, e.part
    subsets = dict.fromkeys([*study.grid.subsets, *(run.spec.subset for run in e.runs)])
    seeds = sorted({run.spec.seed for run in e.runs})
    excluded = {EXCLUDED.get(kind, f"{kind}s"): n for kind, n in e.cohort.excluded["kind"].value_counts().items()}
    auc = e.results[(e.results["metric"] == "auc") & e.results["value"].notna()]
    found: dict[int, str] = {
        5: "neither: the exams are drawn by a program" if e.cohort.synthetic else f"retrospective: {e.cohort.name}",
        7: e.cohort.label,
        8: f"cohort `{study.data.cohort}`",
        9: f"{study.images.size} x {study.images.size} pixels, resized by `{study.images.resize}`",
        10: f"{', '.join(SUBSET_TITLES[subset] for subset in subsets)}; rule `{study.subset_rule}`",
        24: f"weights `{study.model.weights or 'random'}`, seeds {', '.join(map(str, seeds))}",
        25: f"{study.training.epochs} epochs, batches of {study.training.batch_size} exams",
        28: ", ".join(metric.title for metric in METRICS.values()),
        35: f"{len(e.cohort.exams)} exams used; excluded: {', '.join(f'{kind} {n}' for kind, n in excluded.items())}",
    }
    found |= dict.fromkeys((1, 17, 19, 20, 23, 26, 32, 36, 37, 43), "")
    if len(part):
        counts = ", ".join(f"{name} {(part == name).sum()}" for name in PARTS if (part == name).any())
        found |= {17: "labels of the same source in every part", 36: "table by part"}
        found[19] = f"`{study.split.kind}`, seed {study.split.seed}; exams: {counts}"
        straddling = (part.groupby(e.groups).nunique() > 1).sum()
        found[20] = (
            f"by patient: {part.index.size} exams of {e.groups.nunique()} patients (patients with an image in common "
            f"count as one), {straddling} of them in two parts"
        )
    if e.runs:
        found[1] = "deep learning: " + ", ".join(dict.fromkeys(SYSTEMS[run.spec.system].title for run in e.runs))
        found[23] = ", ".join(f"{name} {version}" for name, version in e.runs[0].environment["versions"].items())
        epochs = pd.Series([run.metrics["best_epoch"] for run in e.runs])
        found[26] = f"epoch with the highest mean validation AUC: {write_range(epochs, 'd')} of {study.training.epochs}"
        found[43] = f"weights of {len(e.runs)} runs; hashes of data and predictions; code MIT"
    if len(auc):
        found[32] = f"up to {auc['n_exams'].max()} exams of {auc['n_patients'].max()} patients"
        found[37] = (
            f"{len(auc)} AUCs of {write_range(auc['value'], '.3f')}, {auc['low'].notna().sum()} with an interval"
        )
    for item in ITEMS[ITEMS["table"] != ""].itertuples():
        rows = e.rows(*item.table.split("/"))
        found[item.item] = f"{len(rows)} {item.unit}" if len(rows) else ""
    return found


def claim_page(e: Evidence) -> str:
    """Write the CLAIM table in Markdown."""
    table = claim_table(e)
    done = len(table) - table["answer"].str.startswith(NOT_DONE).sum()
    lead = f"{done} of {len(table)} items are answered. Items in our words, after CLAIM 2024 (Tejani et al.)."
    parts = [f"# CLAIM 2024: study “{e.study.name}”", *([SYNTHETIC] if e.cohort.synthetic else []), lead]
    return "\n\n".join([*parts, markdown_table(table)]) + "\n"


def _place(study: Study, place: str) -> str:
    """A link to a page of the study, or the name of a section of the project's pages; "" if the page is missing."""
    name, _, heading = place.partition("#")
    if name in ("", "README") or name.startswith("docs/"):
        return place.replace("#", ".md, ") if heading else name
    if name in ("index.html", "certificate.json"):
        return f"[{name}]({'html/' if name == 'index.html' else ''}{name})"
    page = f"html/{name}.html"
    if name != "model_card" and not (study.folder / page).is_file():
        return ""
    return f"[{name}, {heading}]({page}#{quote(heading.replace(' ', '-'))})"


def markdown_table(table: pd.DataFrame) -> str:
    """Write a table in Markdown, without its index; a sentence if it is empty."""
    if not table.size:
        return "Nothing has been computed yet."
    lines = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    cells = [[re.sub(r"\s*[\n|]\s*", " ", str(value)) for value in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
