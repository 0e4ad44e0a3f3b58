"""The three BI-RADS subsets of §4.2."""

from __future__ import annotations

import pandas as pd

from mammo_utils.data.exams import SIDES

SUBSETS = {"1v5": (1, 5), "1v3v5": (1, 3, 5), "1to5": (1, 2, 3, 4, 5)}


def exams_of_subset(exams: pd.DataFrame, subset: str, rule: str = "exams") -> pd.DataFrame:
    """The rows of the exam table that a subset keeps; BI-RADS outside of it becomes -1.

    rule "exams" keeps an exam with at least one breast in the subset, its diagnosis labels with it; "mask"
    keeps every exam. Raises ValueError for a subset or a rule that does not exist.
    """
    if subset not in SUBSETS or rule not in ("exams", "mask"):
        raise ValueError(f"There is no subset {subset!r} with the rule {rule!r}: {', '.join(SUBSETS)}; exams, mask.")
    exams = exams.copy()
    columns = [f"{side}_birads" for side in SIDES]
    inside = exams[columns].isin(SUBSETS[subset])
    exams[columns] = exams[columns].where(inside, -1).astype("int8")
    return exams[inside.any(axis=1)] if rule == "exams" else exams
