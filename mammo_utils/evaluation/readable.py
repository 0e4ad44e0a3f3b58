"""Tables as readers see them: names in place of ids, a value with its interval in one cell, further rows folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd

from mammo_utils.evaluation.runs import run_title
from mammo_utils.metrics import METRICS
from mammo_utils.vocabulary import MODE_TITLES, SIDE_NAMES, SUBSET_TITLES, SYSTEMS, TASK_TITLES, VIEW_TITLES

HEADINGS = {
    "named": "system",
    "task_mode": "trained on",
    "n_seeds": "trainings",
    "n_by_class": "breasts by class",
    "patients_by_class": "patients by class",
    "n_exams": "exams",
    "n_breasts": "breasts",
    "n_patients": "patients",
    "sd_seeds": "SD over trainings",
    "p_holm": "p, Holm",
    "p_bh": "p, Benjamini-Hochberg",
    "ece": "ECE",
    "brier": "Brier score",
}
P_VALUES = ("p", "p_holm", "p_bh")
BARE = ("value", "difference", "coverage", "ensemble")  # measures whose interval may be in `low` and `high`


def name_system(system: str, task_mode: str, subset: str) -> str:
    """Name a system for readers, such as "Hybrid (Shared), both tasks, BI-RADS 1 vs 5".

    Args:
        system: Key of `SYSTEMS`.
        task_mode: Key of `MODE_TITLES`.
        subset: Key of `SUBSET_TITLES`.
    """
    return ", ".join((SYSTEMS[system].short, MODE_TITLES[task_mode], SUBSET_TITLES[subset]))


def name_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Add the column `training`, or `named` where the rows have no seed: the names of what the rows are about."""
    names = [name_system(row.system, row.task_mode, row.subset) for row in table.itertuples()]
    if "seed" not in table:
        return table.assign(named=names)
    return table.assign(training=[f"{name}, seed {seed}" for name, seed in zip(names, table["seed"], strict=True)])


def readable(table: pd.DataFrame, index: Sequence[str], measures: Mapping[str, str] | Sequence[str]) -> pd.DataFrame:
    """Write columns of a table as text for readers.

    A number has three significant digits, or three decimals up to 1, and its interval, if the table has one; a column
    of whole numbers has no decimals. Absent values are "".

    Args:
        table: Any table of the study.
        index: Columns that identify a row; their ids become names.
        measures: The other columns to show -> heading, or their names. Columns that the table lacks are left out.

    Returns:
        The text, with the columns of `index` as its index.
    """
    titles = dict(measures) if isinstance(measures, Mapping) else {name: _heading(name) for name in measures}
    written = pd.DataFrame({title: _write(table, name) for name, title in titles.items() if name in table})
    keys = [pd.Index(_write(table, name) if name in table else [], name=_heading(name), dtype=object) for name in index]
    return written.set_axis(keys[0] if len(keys) == 1 else pd.MultiIndex.from_arrays(keys)) if len(table) else written


def widen(table: pd.DataFrame, index: Sequence[str], column: str, measure: str) -> pd.DataFrame:
    """Write one measure with a column for each value of another column, in the order in which they occur.

    Args:
        table: Any table of the study.
        index: Columns that identify a row.
        column: Its values become the headings.
        measure: What the cells hold.
    """
    if table.empty:
        return pd.DataFrame()
    written = readable(table, [*index, column], [measure]).iloc[:, 0]
    rows, columns = written.index.droplevel(-1).unique(), written.index.get_level_values(-1).unique()
    return written.unstack().reindex(index=rows, columns=columns).fillna("").rename_axis(columns="")


def write_span(low: pd.Series, high: pd.Series) -> list[str]:
    """Write an interval without its value, such as "0.840 to 0.930"; "" where there is none."""
    return ["" if pd.isna(a) else f"{a:.3f} to {b:.3f}" for a, b in zip(low, high, strict=True)]


def write_range(values: pd.Series, form: str) -> str:
    """Write the smallest and the largest value, or the only one; `form` is the format of a number."""
    low, high = f"{values.min():{form}}", f"{values.max():{form}}"
    return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class Folded:
    """A table for a notebook with a longer one folded below it.

    Attributes:
        shown: The rows that the argument needs.
        every: The longer table.
        summary: What the longer one has, the text on which a reader clicks.
    """

    shown: pd.DataFrame
    every: pd.DataFrame
    summary: str

    def _repr_html_(self) -> str:
        folded = f"<details><summary>{escape(self.summary)}</summary>{self.every._repr_html_()}</details>"
        return (self.shown._repr_html_() if len(self.shown) else "") + (folded if len(self.every) else "")

    def __repr__(self) -> str:
        return repr(self.shown)


def _names(column: str) -> Mapping[str, str]:
    """Id -> name of what a column holds. Built on each call, because systems and metrics can be added."""
    return {
        "subset": SUBSET_TITLES,
        "task_mode": MODE_TITLES,
        "task": TASK_TITLES,
        "system": {name: entry.short for name, entry in SYSTEMS.items()},
        "metric": {name: metric.title for name, metric in METRICS.items()},
        "view": VIEW_TITLES,
        "side": SIDE_NAMES,
    }.get(column, {})


def _heading(name: str) -> str:
    if name in METRICS or name in HEADINGS:
        return METRICS[name].title if name in METRICS else HEADINGS[name]
    for view, title in VIEW_TITLES.items():
        name = name.replace(view, title)
    for side, word in SIDE_NAMES.items():
        name = name.replace(f"{side}_", f"{word} ") if name.startswith(f"{side}_") else name
    return name.replace("_", " ").replace("birads", "BI-RADS")


def _write(table: pd.DataFrame, name: str) -> list[str]:
    """The cells of a column as text."""
    column, names = table[name], _names(name)
    ends = [f"{name}_low", f"{name}_high"]
    ends = ["low", "high"] if name in BARE and ends[0] not in table else ends
    low, high = (table[end] if end in table else [np.nan] * len(table) for end in ends)
    numbers = pd.to_numeric(column, errors="coerce").dropna()
    whole = bool((numbers % 1 == 0).all()) and not pd.Series(low, dtype=float).notna().any()

    def number(value: float) -> str:
        size = abs(value)
        decimals = 0 if whole or size >= 100 else 1 if size >= 10 else 2 if size > 1 else 3
        return f"{value:,.{decimals}f}"

    def cell(value: object, low: float, high: float) -> str:
        if isinstance(value, str):
            return run_title(value) if name == "run" else names.get(value, value)
        if value is None or pd.isna(value):
            return ""
        if isinstance(value, bool | np.bool_):
            return "yes" if value else "no"
        if name in P_VALUES and value < 0.0005:
            return "< 0.001"
        return number(value) + ("" if pd.isna(low) else f" ({number(low)} to {number(high)})")

    return [cell(*values) for values in zip(column, low, high, strict=True)]
