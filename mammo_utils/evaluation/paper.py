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
from mammo_utils.vocabulary import MODE_TITLES, SYSTEMS, TASK_TITLES, TASKS

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


def paper_layout(subset: str, results: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Arrange a metric as the paper's table of a subset does, with the paper's value beside each of this study's.

    Args:
        subset: A key of `SUBSETS`.
        results: The table made by `evaluation.tables.results_table`.
        metric: A key of `METRICS`.

    Returns:
        Two rows per system, trained on both tasks or on each task alone; two columns per task, from the paper and from
        this study, whose common name is the caption. Cells are text such as "0.912 (0.850 to 0.960)", with a * if a run
        is stale; a cell is "" if it was not run or is not in the paper.
    """
    printed = paper_values().set_index(KEY)["value"]
    measured = results[(results["side"] == "both") & (results["subset"] == subset)].set_index(KEY)
    rows = {}
    for system, alone in product(SYSTEMS, (False, True)):
        cells = rows[SYSTEMS[system].title, "each task alone" if alone else MODE_TITLES["multi"]] = {}
        for task in TASKS:
            key = (subset, system, task if alone else "multi", task, metric)
            value = printed.get(key)
            cells[f"{TASK_TITLES[task]}, paper"] = "" if pd.isna(value) else f"{value:.4f}"
            cells[f"{TASK_TITLES[task]}, this study"] = _format(measured.loc[key]) if key in measured.index else ""
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["system", "trained on"])
    return table.rename_axis(columns=f"{TABLE_TITLES[subset]}, {METRICS[metric].title}")


def _format(row: pd.Series) -> str:
    if pd.isna(row["value"]):
        return f"– ({row['reason']})"
    spread = f" ({row['low']:.3f} to {row['high']:.3f})" if pd.notna(row["low"]) else " (no interval)"
    return f"{row['value']:.3f}{spread}{'*' if row['stale'] else ''}"
