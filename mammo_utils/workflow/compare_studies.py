"""Two studies side by side on one page: settings that differ, data, results, two pictures of each."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import escape
from PIL import Image
from pydantic import ValidationError

from mammo_utils.evaluation.bootstrap import Interval, bootstrap_settings, paired_difference
from mammo_utils.evaluation.intervals import holm
from mammo_utils.evaluation.runs import RunResult, group_by_seed, labelled_breasts, sample
from mammo_utils.evaluation.tables import results_table
from mammo_utils.io import display_path, read_json, write_text
from mammo_utils.metrics import METRICS
from mammo_utils.study import PREPARED, RunSpec, Study, flatten, load_study
from mammo_utils.training.run_state import FIRST_FILES, run_state
from mammo_utils.training.run_state import METRICS as METRICS_FILE
from mammo_utils.vocabulary import MODE_TITLES, SUBSET_TITLES, SYSTEMS, TASK_TITLES
from mammo_utils.workflow.index_page import choose_figures, with_interval
from mammo_utils.workflow.pages import TEMPLATES, style, table_html, write_page
from mammo_utils.workflow.pictures import Picture, compress, describe, figure_html, saved_figures

KEY = "subset task_mode system task metric".split()
SECTIONS = (*PREPARED, "subset_rule", "model", "training")


def write_comparison(study: Study, other: str) -> Path:
    """Write the page `html/compare-<other>.html` of the study, and return it.

    Args:
        study: The study.
        other: File of another study, or its folder of results, here or elsewhere.

    Raises:
        ValueError: One of the two has no finished run; the message names the folder.
    """
    away = Path(other)
    away = away.resolve() if away.is_dir() else load_study(other).folder
    (runs, data), (others, other_data) = read_folder(study.folder), read_folder(away)
    names = (study.name, away.name if away.name != study.name else f"{away.name} (other)")
    page = study.folder / "html" / f"compare-{re.sub('[^A-Za-z0-9_-]', '_', away.name)}.html"
    body = TEMPLATES.get_template("compare.html.j2").render(
        here=names[0],
        there=names[1],
        synthetic=any(run.metrics["synthetic"] for run in (*runs, *others)),
        settings=_settings(runs, others, names),
        data="Both were trained on the same data, image by image: the hashes of the data are equal."
        if data == other_data
        else "The two were trained on different data: their hashes differ.",
        results=_results(runs, others, study, names),
        pictures=list(_pictures(study.folder / "figures", away / "figures", names)),
    )
    write_page(page, f"Compared with {names[1]}", body, study.name)
    write_text(page.with_name("style.css"), style())
    return page


def read_folder(folder: Path) -> tuple[list[RunResult], set[tuple[str, str]]]:
    """Read the finished runs in a folder of results, wherever it lies. Raises ValueError if there is none.

    Returns:
        The runs; name within the study and hash of the data of each.
    """
    found, data = [], set()
    for path in sorted((folder / "runs").glob(f"*/{METRICS_FILE}")):
        run = path.parent
        try:
            record = read_json(run / FIRST_FILES[0])
            spec = RunSpec.model_validate({k: v for k, v in record.items() if k in RunSpec.model_fields})
        except (ValidationError, AttributeError, OSError, ValueError) as error:
            raise ValueError(f"{display_path(run)} has settings of another version and cannot be compared.") from error
        if (state := run_state(run, spec)).finished:
            predictions = pd.read_parquet(run / "predictions.parquet")
            found.append(RunResult(spec, state, not spec.variant, metrics=read_json(path), predictions=predictions))
            data.add((spec.data_name, record.get("data_hash", "")))
    if not found:
        raise ValueError(f"{display_path(folder)} holds no finished run; run the study first.")
    return found, data


def _settings(runs: list[RunResult], others: list[RunResult], names: tuple[str, str]) -> str:
    """The settings that differ, and which runs only one of the two has."""
    pair = [flatten(side[0].spec.model_dump(mode="json", include=set(SECTIONS))) for side in (runs, others)]
    rows = [(name, *(side.get(name, "") for side in pair)) for name in dict.fromkeys((*pair[0], *pair[1]))]
    ids = [[run.id for run in side] for side in (runs, others)]
    rows.append(("runs that the other lacks", *(", ".join(i for i in ids[k] if i not in ids[1 - k]) for k in (0, 1))))
    table = pd.DataFrame([row for row in rows if row[1] != row[2]], columns=["setting", *names])
    return table_html(table.astype(str).set_index("setting")) if len(table) else ""


def _results(runs: list[RunResult], others: list[RunResult], study: Study, names: tuple[str, str]) -> str:
    """Values of both, and their paired difference where both have the same breasts of the same patients."""
    pair = [results_table(side, study).query("side == 'both'").set_index(KEY) for side in (runs, others)]
    groups = [group_by_seed(side) for side in (runs, others)]
    keys = [key for key in pair[0].index if key in pair[1].index]
    found = [_difference(groups[0][key[:3]], groups[1][key[:3]], key[3], key[4], study) for key in keys]
    corrected = holm(np.array([difference.p for difference in found])) if found else []
    rows = []
    for (subset, mode, system, task, metric), difference, p in zip(keys, found, corrected, strict=True):
        values = [side.loc[(subset, mode, system, task, metric)] for side in pair]
        cells = [with_interval(v["value"], v["low"], v["high"]) for v in values]
        what = f"{TASK_TITLES[task]}, {METRICS[metric].title}"
        change = escape("" if np.isnan(difference.value) else f"{difference.value:+.3f}")
        limits = "" if np.isnan(difference.low) else f"{difference.low:+.3f} to {difference.high:+.3f}"
        last = [change, limits, "" if np.isnan(p) else f"{p:.3f}"]
        rows.append([SYSTEMS[system].title, MODE_TITLES[mode], SUBSET_TITLES[subset], what, *cells, *last])
    columns = ["System", "Trained on", "Subset", "Measure", *names, "Difference", "95 % interval", "p"]
    return table_html(pd.DataFrame(rows, columns=columns).map(escape).set_index("System"), escaped=True) if rows else ""


def _difference(runs: list[RunResult], others: list[RunResult], task: str, metric: str, study: Study) -> Interval:
    """The other study's metric minus this one's; empty if the two do not have the same breasts of the same patients."""
    tables = [labelled_breasts(side[0], task)[["exam", "side", "group", task]] for side in (runs, others)]
    sources = [run.spec.data.model_copy(update={"folder": ""}) for run in (runs[0], others[0])]
    if sources[0] != sources[1] or not tables[0].equals(tables[1]):  # drawn cohorts share names, but not patients
        return Interval()
    return paired_difference(sample(others, task), sample(runs, task), metric, **bootstrap_settings(study))


def _pictures(here: Path, there: Path, names: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """The two most telling figures that both studies have, embedded."""
    sides = [saved_figures(folder) for folder in (here, there)]
    common = {name: entry for name, entry in sides[0].items() if name in sides[1]}
    for name in list(choose_figures(common)[0])[:2]:
        shown = []
        for folder, side, study in zip((here, there), sides, names, strict=True):
            image = Image.open(io.BytesIO((folder / side[name]["figure"]).read_bytes()))
            data = f"data:image/webp;base64,{base64.b64encode(compress(image)).decode()}"
            shown.append(figure_html(Picture(data, *image.size, f"{study}: {describe(side[name])}"), study))
        yield tuple(shown)
