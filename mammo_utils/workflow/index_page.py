"""The index page of a study: results first, then claims, findings, the most telling pictures, and all the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from itertools import groupby
from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from mammo_utils.data.cohort import load_cohort
from mammo_utils.evaluation.readable import readable, write_range
from mammo_utils.evaluation.runs import RunResult, run_title
from mammo_utils.evaluation.tables import RECOMBINATION, run_list, settings_table
from mammo_utils.io import read_json
from mammo_utils.metrics import METRICS
from mammo_utils.provenance import environment
from mammo_utils.study import Study
from mammo_utils.vocabulary import MODE_TITLES, SUBSET_TITLES, SYSTEMS, TASK_TITLES
from mammo_utils.workflow.pages import TEMPLATES, Link, table_html
from mammo_utils.workflow.pictures import Pictures, figure_html
from mammo_utils.workflow.study_state import failures

ORDER = "05 07 06 09 01 02 03 08"  # order in which the notebooks' figures are shown
N_TELLING = 6
TELLING = {  # patterns of figures, the most telling ones first -> what to see; the last ones step in for missing ones
    "systems-*": "AUC of each system with its 95 % interval. Do the intervals lie right of the grey shortcuts, "
    "statistics of whole images? Whether two systems differ is not seen here but in their paired difference.",
    "comparisons-*": "Each system minus the reference on the same patients. Intervals are not corrected for the number "
    "of comparisons; the title counts what is told apart after correction.",
    "roc-*-diagnosis": "The further a curve bends to the upper left, the more cancers are found at the same share of "
    "false alarms. The width of the band shows how much the curve depends on the choice of patients.",
    "recombination": "Left and right breast of two patients in one exam. Are the filled points near the diamonds, what "
    "breasts flagged by themselves would give, or near the dashed line of a system that answers “which side?”",
    "failures-*": "The most certain mistakes: missed cancers at the left, false alarms at the right. The framed breast "
    "is the one in question. Was the lesion visible, and which view decided?",
    "exam": "The four views of an exam as a radiologist hangs them. Each breast has its own labels; an outline marks "
    "a lesion.",
    "reliability-*": "Points on the diagonal: of the breasts with a predicted probability of 0.7, 70 % are malignant.",
    "attention-weights": "A view that weighs much should also contribute much to the breast that has the cancer.",
    "confusion-*-birads": "Rows are labels. Dark cells off the diagonal are the categories that a system confuses.",
    "training-*": "Loss and validation AUC by epoch. A dot marks the epoch whose weights were kept.",
    "flow-*": "How many images and exams were found, excluded for which reason, and used.",
}


def index_facts(study: Study, results: pd.DataFrame) -> dict[str, Any]:
    """What the index page and `docs/demo/README.md` both state: the results, the claims and what notebook 06 found."""
    cohort = load_cohort(study.folder / ("cohort" if (study.folder / "cohort").is_dir() else "found"))
    found, decisions, views = (_record(study, name) for name in ("results", "decisions", "views"))
    results = results[results["side"] == "both"]
    tables, marked = results_tables(results, found.get("comparisons", []))
    return {
        "study": study,
        "cohort": cohort,
        "synthetic": cohort.synthetic,
        "results": tables,
        "notes": _notes(results, marked) if len(results) else [],
        "headlines": state_headlines(study, results, found, views),
        "sentences": [*found.get("summary", []), *decisions.get("summary", [])],
        "checks": found.get("checks", []),
        "views": views,
    }


def index_body(
    study: Study, pages: Sequence[Link], runs: Sequence[RunResult], results: pd.DataFrame, pictures: Pictures
) -> str:
    """Write the body of the index page.

    Args:
        study: The study.
        pages: The other pages, in their order.
        runs: The study's runs.
        results: The result of `tables.results_table`.
        pictures: The pictures of the study's pages.
    """
    shared = index_facts(study, results)
    cohort, views = shared["cohort"], shared["views"]
    if views:
        views["said"] = [finding["finding"] for finding in views.get("findings", [])]
        recombined = pd.DataFrame(views.get("recombination", []))
        if len(recombined) and (recombined["task"] == "diagnosis").any():  # other tasks flag no cancers
            recombined = recombined[recombined["task"] == "diagnosis"]
        views["tables"] = [table_html(readable(recombined, ["run"], measures)) for measures in RECOMBINATION]
    trainings = {link.address.removesuffix(".html"): link for link in pages if link.address.startswith("04_train-")}
    telling, others = choose_figures(pictures.figures)
    excluded = cohort.excluded.groupby(["kind", "reason"]).size().rename("number").reset_index()
    facts, settings = environment(), settings_table(study)
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return TEMPLATES.get_template("index.html.j2").render(
        **shared,
        failed=failures(study),
        telling=[figure_html(pictures.figure(name), TELLING[pattern], name) for name, pattern in telling.items()],
        others={
            notebook: [figure_html(pictures.figure(name), pictures.figures[name]["caption"], name) for name in names]
            for notebook, names in others.items()
        },
        titles={link.address.removesuffix(".html"): link.title for link in pages} | {"04_train": "04"},
        pages=[link for link in pages if link not in trainings.values()],
        trainings=list(trainings.values()),
        runs=_runs_table(runs, trainings),
        settings=table_html(settings[settings["differs"] != ""].drop(columns="differs")),
        other_settings=table_html(settings[settings["differs"] == ""].drop(columns="differs")),
        n_exams=len(cohort.exams),
        n_images=(cohort.images["status"] == "used").sum(),
        excluded=table_html(excluded.set_index("kind"), "Excluded, by reason") if len(excluded) else "",
        made_with=f"{versions}; {facts['platform']}; commit {facts['commit'][:12] or 'unknown'}; {facts['written']}",
    )


# --- results --------------------------------------------------------------------------------------------


def with_interval(value: float, low: float, high: float) -> Markup:
    """Write a value with three significant digits and its interval, on one line.

    Args:
        value: The value; NaN if there is none.
        low: Lower end of the interval; NaN if there is none.
        high: Its upper end.
    """
    text = f"{value:#.3g}" + ("" if pd.isna(low) else f" [{low:#.3g}, {high:#.3g}]")
    return Markup('<span class="interval">{}</span>').format("–" if pd.isna(value) else text)


def results_tables(results: pd.DataFrame, comparisons: Sequence[dict[str, Any]]) -> tuple[list[Markup], int]:
    """Write one table per BI-RADS subset, and count the values marked as the best of their column.

    A value is marked only if the corrected comparison of its system with each other one of the column tells the two
    apart.

    Args:
        results: Rows of `tables.results_table` for both sides together.
        comparisons: Rows of `comparisons.compare_systems`.
    """
    apart = {
        (
            row["subset"],
            row["task"],
            row["metric"],
            frozenset((f"{row['system']} {row['task_mode']}", row["reference"])),
        )
        for row in comparisons
        if row["answer"].startswith("told apart")
    }
    tables, marked = [], 0
    for subset, rows in results.groupby("subset", sort=False):
        wide: dict[tuple[str, str], dict[str, Markup]] = {}
        for (task, metric), column in rows.groupby(["task", "metric"], sort=False):
            best = column.loc[column["value"].idxmax()] if column["value"].notna().any() else None
            for row in column.itertuples():
                system, best_system = (f"{r.system} {r.task_mode}" for r in (row, row if best is None else best))
                others = set(column["system"] + " " + column["task_mode"]) - {system}
                pairs = {(subset, task, metric, frozenset((system, other))) for other in others}
                cell = with_interval(row.value, row.low, row.high)
                if system == best_system and others and pairs <= apart:
                    marked, cell = marked + 1, Markup('<b class="best">{}</b>').format(cell)
                names = SYSTEMS[row.system].short, MODE_TITLES[row.task_mode], str(row.n_seeds)
                wide.setdefault(names, {})[f"{TASK_TITLES[task]}, {METRICS[metric].title}"] = cell
        columns = list(dict.fromkeys(title for cells in wide.values() for title in cells))
        table = [[*names, *(cells.get(title, "") for title in columns)] for names, cells in wide.items()]
        frame = pd.DataFrame(table, columns=["System", "Trained on", "Trainings", *columns]).map(escape)
        tables.append(table_html(frame.set_index("System"), SUBSET_TITLES[str(subset)], escaped=True))
    return tables, marked


def _counts(results: pd.DataFrame) -> str:
    """On what the numbers are based, by subset and task."""
    rows = results.drop_duplicates(["subset", "task", "n_breasts", "n_exams", "n_patients"]).itertuples()
    counts = [
        f"{SUBSET_TITLES[row.subset]}, {TASK_TITLES[row.task]}: {row.n_breasts} breasts, {row.n_exams} exams, "
        f"{row.n_patients} patients"
        for row in rows
    ]
    return "; ".join(counts) + "."


def _notes(results: pd.DataFrame, marked: int) -> list[str]:
    """What the numbers are, and what a mark means."""
    parts = " and ".join(f"“{part}”" for part in results["part"].unique())
    note = f"Part {parts} of the split; the unit is the breast. In brackets: 95 % intervals over patients alone."
    note += " A value of several trainings is their mean."
    if (results["n_seeds"] > 1).any():
        note += " Notebook 05 has its interval over patients and trainings."
    if "validation" in set(results["part"]):
        note += " The same part chose the epoch, so the values are optimistic."
    mark = "Highlighted: a value that is told apart from every other one of its column (level 5 %, corrected)."
    return [note, _counts(results), *([mark] if marked else [])]


def state_headlines(study: Study, results: pd.DataFrame, found: dict[str, Any], views: dict[str, Any]) -> list[str]:
    """What the study found, in a few sentences.

    Args:
        study: The study.
        results: Rows of `tables.results_table` for both sides together.
        found: The record of notebook 05.
        views: The record of notebook 06.
    """
    sentences = []
    areas = results[(results["metric"] == "auc") & (results["task"] == "diagnosis")]
    for subset, rows in areas.groupby("subset", sort=False):
        shortcuts = [row["value"] for row in found.get("shortcuts", []) if _is_rival(row, subset)]
        text = f"{SUBSET_TITLES[subset]}: the systems' AUC of the diagnosis is {write_range(rows['value'], '.2f')}"
        text += f" ({rows['n_patients'].max()} patients)"
        text += f"; that of statistics of whole images is at most {max(shortcuts):.2f}" if shortcuts else ""
        sentences.append(f"{text}.")
    if compared := [row["answer"] for row in found.get("comparisons", []) if row["p"] is not None]:
        apart = sum(answer.startswith("told apart") for answer in compared)
        text = f"{apart} of {len(compared)} comparisons of two systems are told apart after correction"
        sentences.append(text + ("." if apart else ": these patients cannot rank the systems."))
    sentences += [finding["finding"] for finding in views.get("findings", [])]
    if study.model.weights == "patches" and study.data.source == "synthetic":
        sentences.append(
            "All encoders were first trained, with labels, on patches of other synthetic exams to recognise the "
            "structure that decides the diagnosis. The AUCs show what fusion and heads make of encoders that know it, "
            "not what encoders learn from the exams of this study."
        )
    return sentences


def _is_rival(row: dict[str, Any], subset: str) -> bool:
    """Whether a row of the shortcuts is an AUC of the diagnosis that could be above 0.5."""
    same = (row["subset"], row["task"], row["metric"]) == (subset, "diagnosis", "auc")
    return same and row["baseline"] != "majority class" and row["value"] is not None


# --- figures and runs -----------------------------------------------------------------------------------


def choose_figures(figures: dict[str, dict[str, Any]]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Choose the most telling figures, and group the others by their notebook.

    Args:
        figures: Name -> entry of the manifest.

    Returns:
        Name of a chosen figure -> its pattern in TELLING; notebook -> names of its other figures.
    """
    chosen: dict[str, str] = {}
    for pattern in TELLING:
        names = [name for name in figures if fnmatch(name, pattern)]
        names.sort(key=lambda name: ("1v5" not in name, "multi" not in name, name))  # the subset that all systems have
        if names and len(chosen) < N_TELLING:
            chosen[names[0]] = pattern
    rest = sorted(set(figures) - set(chosen), key=lambda name: (ORDER.find(figures[name]["notebook"][:2]), name))
    return chosen, {key: list(names) for key, names in groupby(rest, lambda name: figures[name]["notebook"])}


def _runs_table(runs: Iterable[RunResult], trainings: dict[str, Link]) -> Markup:
    """The list of runs, each linked to its page."""
    table = run_list(list(runs)).map(escape)
    names = [
        Markup('<a href="{}">{}</a>').format(trainings[page].address, run_title(run))
        if (page := f"04_train-{run}") in trainings
        else escape(run_title(run))
        for run in table.index
    ]
    return table_html(table.set_axis(pd.Index(names, name="run")), escaped=True)


def _record(study: Study, name: str) -> dict[str, Any]:
    """What a notebook recorded; {} if it has not run."""
    file = study.folder / f"{name}.json"
    return read_json(file) if file.is_file() else {}
