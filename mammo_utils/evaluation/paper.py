"""The paper's Tables 2-4 as data, and the study's results in the same layout.

`paper_tables.csv` holds the printed values unchanged. A cell that is unreadable in our copy of the paper is empty
and stays empty; a doubtful one has a note. The paper's values are on TOMPEI-CMMD, at the best validation epoch of
272 patients, and have no interval.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pandas as pd

from mammo_utils.metrics import METRICS
from mammo_utils.vocabulary import SYSTEMS, TASK_MODES, TASKS

FILE = Path(__file__).with_name("paper_tables.csv")
KEY = ["subset", "system", "task_mode", "task", "metric"]
TABLE_TITLES = {
    "1v5": "Table 2: binary tasks (BI-RADS 1 vs. 5)",
    "1v3v5": "Table 3: ternary BI-RADS task (1 vs. 3 vs. 5)",
    "1to5": "Table 4: all BI-RADS classes (1 to 5)",
}


def paper_values() -> pd.DataFrame:
    """Read all 144 cells; `value` is NaN where unreadable, `note` is "" where there is none."""
    table = pd.read_csv(FILE, dtype={"note": str})
    return table.assign(note=table["note"].fillna(""))


def paper_layout(subset: str, results: pd.DataFrame) -> pd.DataFrame:
    """Arrange results as the paper's table of a subset, with the paper's value beside each of them.

    Args:
        subset: A key of `SUBSETS`.
        results: The table made by `evaluation.tables.results_table`.

    Returns:
        One row per system; columns are task mode, task, metric, and "paper" or "this study". Cells are text such as
        "0.912 (0.850 to 0.960)", with a * if a run is stale; a cell is "" if it was not run or is not in the paper.
    """
    printed = paper_values().set_index(KEY)["value"]
    measured = results[(results["side"] == "both") & (results["subset"] == subset)].set_index(KEY)
    columns: dict[tuple[str, ...], list[str]] = {}
    for mode, task, metric in product(TASK_MODES, TASKS, METRICS):  # the order of the paper's columns
        if mode not in ("multi", task):
            continue
        mode_title = "Multi-task" if mode == "multi" else "Single-task"
        header = (mode_title, "diagnosis" if task == "diagnosis" else "BI-RADS", METRICS[metric].title)
        keys = [(subset, system, mode, task, metric) for system in SYSTEMS]
        values = [printed.get(key) for key in keys]
        columns[*header, "paper"] = ["" if pd.isna(value) else f"{value:.4f}" for value in values]
        columns[*header, "this study"] = [_format(measured.loc[k]) if k in measured.index else "" for k in keys]
    index = pd.Index([entry.title for entry in SYSTEMS.values()], name=TABLE_TITLES[subset])
    return pd.DataFrame(columns, index=index).rename_axis(columns=["", "task", "metric", "from"])


def _format(row: pd.Series) -> str:
    if pd.isna(row["value"]):
        return f"– ({row['reason']})"
    spread = f" ({row['low']:.3f} to {row['high']:.3f})" if pd.notna(row["low"]) else " (no interval)"
    return f"{row['value']:.3f}{spread}{'*' if row['stale'] else ''}"
