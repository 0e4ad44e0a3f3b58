"""The paper's Tables 2-4 as data, and ours in their shape.

``paper_tables.csv`` holds the printed values unchanged: table, subset, system, task_mode, task, metric, value,
note. A cell that is unreadable in our copy of the paper is empty and stays empty; a doubtful one has a note.
The paper's values are on TOMPEI-CMMD, the best validation epoch of 272 patients, without an interval.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

FILE = Path(__file__).with_name("paper_tables.csv")
SYSTEM_NAMES = {  # as the paper's Tables 2-4 print them
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "vssm_shared": "VSSM (Shared)",
    "vssm_view_specific": "VSSM (View-specific)",
    "hybrid_shared": "Hybrid ResNet-VSSM (Shared)",
    "hybrid_view_specific": "Hybrid ResNet-VSSM (View-specific)",
}
KEY = ["subset", "system", "task_mode", "task", "metric"]
TITLES = {
    "1v5": "Table 2: binary tasks (BI-RADS 1 vs. 5)",
    "1v3v5": "Table 3: ternary BI-RADS task (1 vs. 3 vs. 5)",
    "1to5": "Table 4: all BI-RADS classes (1 to 5)",
}
COLUMNS = [  # in the order of the paper's tables: multi-task, then single-task
    ("multi", "diagnosis", "auc"),
    ("multi", "diagnosis", "f1_macro"),
    ("multi", "birads", "auc"),
    ("multi", "birads", "f1_macro"),
    ("diagnosis", "diagnosis", "auc"),
    ("diagnosis", "diagnosis", "f1_macro"),
    ("birads", "birads", "auc"),
    ("birads", "birads", "f1_macro"),
]
METRIC_NAMES = {"auc": "AUC", "f1_macro": "F1-Macro"}


def paper_values() -> pd.DataFrame:
    """All 144 cells, value NaN where unreadable, note "" where there is none."""
    table = pd.read_csv(FILE, dtype={"note": str})
    return table.assign(note=table["note"].fillna(""))


def paper_layout(subset: str, results: pd.DataFrame) -> pd.DataFrame:
    """The paper's table of a subset with our values beside its own, ready to be shown.

    results: as :func:`mammo_utils.evaluation.tables.results_table` makes it. Rows are systems; columns are task
    mode, task, metric, and "paper" or "ours". Ours reads "value (low to high)", with a * where a run no longer
    matches the study; a cell that was not run, or is unreadable in the paper, is empty.
    """
    printed = paper_values().set_index(KEY)["value"]
    ours = results[(results["side"] == "both") & (results["subset"] == subset)] if len(results) else results
    ours = ours.set_index(KEY) if len(ours) else None
    cells = {}
    for mode, task, metric in COLUMNS:
        group = "Multi-task" if mode == "multi" else "Single-task"
        name = "diagnosis" if task == "diagnosis" else f"BI-RADS {subset}"
        for system in SYSTEM_NAMES:
            key = (subset, system, mode, task, metric)
            value = printed.get(key)
            column = (group, name, METRIC_NAMES[metric])
            cells[(*column, "paper"), system] = "" if pd.isna(value) else f"{value:.4f}"
            cells[(*column, "ours"), system] = _cell(ours.loc[key]) if ours is not None and key in ours.index else ""
    columns = list(dict.fromkeys(column for column, _ in cells))
    table = pd.DataFrame(
        [[cells[column, system] for column in columns] for system in SYSTEM_NAMES],
        index=list(SYSTEM_NAMES.values()),
        columns=pd.MultiIndex.from_tuples(columns, names=["", "task", "metric", "from"]),
    )
    return table.rename_axis(index=TITLES[subset])


def _cell(row: pd.Series) -> str:
    if pd.isna(row["value"]):
        return f"– ({row['reason']})"
    spread = f" ({row['low']:.3f} to {row['high']:.3f})" if pd.notna(row["low"]) else " (no interval)"
    return f"{row['value']:.3f}{spread}{'*' if row['stale'] else ''}"
