"""Copy a study's figures and results into the project's `figures/`, with what each was made from.

README's table of results is written from the copy, and `docs/demo/` from the executed notebooks.

python -m mammo_utils.workflow.publish config/demo.yaml [settings ...]
python -m mammo_utils.workflow.publish --check        lists what is out of date or altered
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd

from mammo_utils.config import ParameterError
from mammo_utils.io import atomic_write, display_path, project_root, read_json, write_json, write_text
from mammo_utils.plots.save import MANIFEST, drawing_code, read_manifest
from mammo_utils.provenance import file_hash, hash_of, notebook_hash, training_code
from mammo_utils.study import Study, load_study
from mammo_utils.vocabulary import SUBSET_TITLES, SYSTEMS, TASK_TITLES
from mammo_utils.workflow.walkthrough import changed_notebooks, executed, stale_chapters, write_walkthrough

RESULTS = "results.json"
START, END = "<!-- results: snakemake figures -->", "<!-- /results -->"


class StaleFigures(ValueError):
    """The study's figures do not match the code as it is; the message names the first one."""


def publish(study: Study, study_file: str) -> list[Path]:
    """Replace `figures/*.png`, their manifest and `docs/demo/` by those of this study, and return their paths.

    Raises:
        StaleFigures: The function that draws a figure, an executed notebook, or the training code has changed.
    """
    target = project_root() / "figures"
    entries = read_manifest(study.folder / "figures")
    for entry in entries:
        environments = [read_json(study.folder / "runs" / run / "environment.json") for run in entry["runs"]]
        entry["training"] = {e["scan"]: e["code"] for e in environments}  # the backend of the scan -> code
        if sentences := list(_changes(entry)):
            raise StaleFigures(f"{sentences[0]} Run the study again, then publish.")
    if sentences := changed_notebooks(study):
        raise StaleFigures(f"{sentences[0]} Run the study again, then publish.")
    for entry in entries:
        with atomic_write(target / entry["figure"]) as file:
            file.write_bytes((study.folder / "figures" / entry["figure"]).read_bytes())
    for old in set(target.glob("*.png")) - {target / entry["figure"] for entry in entries}:
        old.unlink()
    values = {"study": study_file, "configuration": study_hash(study), "figures": entries}
    write_json(target / MANIFEST, values)
    if (study.folder / "results.csv").is_file():
        write_json(target / RESULTS, collect_results(study))
        update_readme(project_root() / "README.md", read_json(target / RESULTS))
    pages = write_walkthrough(study) if executed(study) else []
    return [*(target / entry["figure"] for entry in entries), *pages]


def collect_results(study: Study) -> dict[str, Any]:
    """The AUCs of the first subset and task mode of a study, and what notebook 06 found about its gates."""
    table = pd.read_csv(study.folder / "results.csv").query("metric == 'auc' and side == 'both'")
    table = table[(table["subset"] == study.grid.subsets[0]) & (table["task_mode"] == study.grid.task_modes[0])]
    columns = ["system", "task", "value", "low", "high", "n_patients", "n_breasts", "n_seeds", "part", "subset"]
    views = study.folder / "views.json"
    found = read_json(views)["findings"] if views.is_file() else []
    synthetic = bool(table["synthetic"].all())
    findings = [row["finding"] for row in found]
    return {
        "study": study.name,
        "synthetic": synthetic,
        "rows": table[columns].to_dict("records"),
        "findings": findings,
    }


def describe_results(results: dict[str, Any]) -> str:
    """README's table of results in Markdown; `results` is made by `collect_results`."""
    table = pd.DataFrame(results["rows"])
    first = table.iloc[0]
    cohort = "Synthetic cohort" if results["synthetic"] else f"Study {results['study']}"
    note = (
        f"{cohort}, {SUBSET_TITLES[first['subset']]}, {table['n_patients'].max()} patients of the part "
        f"`{first['part']}`. AUC with its 95 % interval over patients; of several trainings, the mean:"
    )
    lines = [
        fill(note, 120),
        "",
        f"| system | trainings | {' | '.join(TASK_TITLES[task] for task in table['task'].unique())} |",
        "|---" * (table["task"].nunique() + 2) + "|",
    ]
    for system, rows in table.groupby("system", sort=False):
        cells = [f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})" for row in rows.itertuples()]
        lines.append(f"| {SYSTEMS[system].title} | {rows['n_seeds'].max()} | {' | '.join(cells)} |")
    return "\n".join([*lines, *("\n" + fill(finding, 120) for finding in results["findings"])])


def update_readme(readme: Path, results: dict[str, Any]) -> None:
    """Replace the text between README's marks by that of `results`."""
    replace_between(readme, START, END, describe_results(results))


def replace_between(page: Path, start: str, end: str, text: str) -> None:
    """Replace what stands between two marks of a page.

    Args:
        page: The page, a text file.
        start: The first mark, on a line of its own.
        end: The last mark likewise.
        text: What stands between them now.
    """
    whole = "\n".join([start, text, end])
    write_text(page, re.sub(f"{start}.*{end}", lambda _: whole, page.read_text(encoding="utf-8"), flags=re.S))


def stale_figures(folder: Path) -> list[str]:
    """One sentence for each way in which a folder of published figures no longer matches the project."""
    manifest = read_json(folder / MANIFEST)
    sentences = []
    if manifest["configuration"] != study_hash(load_study(manifest["study"])):
        sentences.append(f"{manifest['study']} has changed since the figures were made.")
    try:
        return sentences + [sentence for entry in manifest["figures"] for sentence in _changes(entry)]
    except (KeyError, AttributeError):
        return [
            *sentences,
            f"{display_path(folder / MANIFEST)} is of an earlier version; run the study and publish it.",
        ]


def _changes(entry: dict[str, Any]) -> Iterator[str]:
    """What a figure depends on and has changed: the function that draws it, its notebook, the training of its runs."""
    figure, notebook = entry["figure"], entry["notebook"]
    if entry["code"] != drawing_code(entry["drawn_by"]):
        yield f"The function that draws {figure}, or the style of all figures, has changed."
    if any(code != training_code(backend) for backend, code in entry["training"].items()):
        yield f"The training code of the runs in {figure} has changed."
    if entry["notebook_hash"] != notebook_hash(notebook):
        yield f"The notebook {notebook} has changed since it drew {figure}."


def altered_figures(folder: Path) -> list[str]:
    """One sentence for each published figure that is missing, altered, or not in the manifest."""
    entries = {entry["figure"]: entry["sha256"] for entry in read_json(folder / MANIFEST)["figures"]}
    files = {file.name: file_hash(file) for file in folder.glob("*.png")}
    sentences = [f"{n} is not the file that the study wrote." for n, sha in entries.items() if files.get(n) != sha]
    return sentences + [f"{name} is not in the manifest." for name in files if name not in entries]


def study_hash(study: Study) -> str:
    """Hash of a study's settings."""
    return hash_of(study.model_dump(mode="json"))


def main(arguments: list[str]) -> None:
    """Run the command line."""
    if arguments == ["--check"]:
        folder = project_root() / "figures"
        pages = stale_chapters(project_root() / "docs" / "demo")
        sentences = [*stale_figures(folder), *altered_figures(folder), *pages]
        print("\n".join(f"warning: {s}" for s in sentences) or "All published figures and pages match the project.")
        return
    try:
        for picture in publish(load_study(arguments[0], arguments[1:]), arguments[0]):
            print(picture.relative_to(project_root()))
    except (ParameterError, StaleFigures) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
