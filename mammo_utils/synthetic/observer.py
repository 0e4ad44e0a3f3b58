"""The AUC of a reader of synthetic exams who sees the direction of every strand that is drawn at all.

No reader of the images can do better on average: how a breast looks depends on its labels in nothing else. Faint
strands, which noise and tissue hide from any real reader, are counted as seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import binom

from mammo_utils.synthetic.cases import PROJECTIONS, SUSPICION
from mammo_utils.synthetic.findings import STRANDS
from mammo_utils.vocabulary import SIDES, TASK_TITLES

N = STRANDS * len(PROJECTIONS)  # strands of a breast in its two views


def ideal_table(exams: pd.DataFrame, categories: Sequence[int], difficulty: float) -> pd.DataFrame:
    """Tabulate the AUC of the reader for both tasks, from the strands of the breast alone and from those of both.

    Args:
        exams: The exams of a subset, in the table of a synthetic cohort with `visible` both and without `null`. It
            keeps the categories outside of the subset, because they decide how a breast looks.
        categories: BI-RADS categories of the subset; the AUC is the mean of each against the rest.
        difficulty: As in `cases.Settings`.
    """
    suspicion, hidden = suspicions(exams), hidden_share(difficulty)
    birads = exams[[f"{side}_birads" for side in SIDES]].to_numpy()
    others = np.where(np.isin(birads, categories), 0, -1)
    labels = {
        "diagnosis": [exams[[f"{side}_diagnosis" for side in SIDES]].to_numpy()],
        "birads": [np.where(birads == category, 1, others) for category in categories],
    }
    rows = {TASK_TITLES[k]: np.mean([ideal_auc(suspicion, y, hidden) for y in v], axis=0) for k, v in labels.items()}
    return pd.DataFrame.from_dict(rows, "index", columns=["from the breast itself", "from both breasts"])


def hidden_share(difficulty: float) -> float:
    """The share of breasts whose structure has contrast 0, see `cases.appearances`."""
    return max(0.0, 1 - 1 / (2 * difficulty)) if difficulty else 0.0


def suspicions(exams: pd.DataFrame) -> np.ndarray:
    """The probability that a strand is radial, (exams, 2), NaN without a labelled breast; as `cases` draws it.

    Args:
        exams: The exam table of a cohort, with the class and BI-RADS category of each side.
    """
    found = np.full((len(exams), 2), np.nan)
    for column, side in enumerate(SIDES):
        level = exams[f"{side}_birads"].map(SUSPICION).fillna(SUSPICION[3]).to_numpy()
        for name, factor in (("normal", 0.0), ("benign", 0.8), ("malignant", 1.0)):
            rows = (exams[f"{side}_class"] == name).to_numpy()
            found[rows, column] = factor * level[rows]
    return found


def ideal_auc(suspicion: np.ndarray, labels: np.ndarray, hidden: float) -> tuple[float, float]:
    """Compute the AUC of the reader over breasts, exactly, for a label that is 0 or 1.

    The reader counts the radial strands and ranks breasts by the share of label 1 among those that look alike.

    Args:
        suspicion: What `suspicions` returns.
        labels: (exams, 2) 0 or 1, -1 for none.
        hidden: Share of the breasts whose strands the reader does not see.

    Returns:
        The AUC from the strands of the breast alone, and from those of both breasts.
    """
    looks = np.zeros((*suspicion.shape, N + 3))  # probability of 0 to N radial strands, of none seen, of no breast
    there = ~np.isnan(suspicion)
    looks[there, : N + 1] = (1 - hidden) * binom.pmf(np.arange(N + 1), N, suspicion[there][:, None])
    looks[there, N + 1], looks[~there, N + 2] = hidden, 1
    own, other = looks.reshape(-1, N + 3), looks[:, ::-1].reshape(-1, N + 3)
    both = np.stack([own[labels.ravel() == k].T @ other[labels.ravel() == k] for k in (0, 1)])
    return _auc(both.sum(2)), _auc(both.reshape(2, -1))


def _auc(weights: np.ndarray) -> float:
    """The AUC of the best ranking of looks; (2, looks), how many breasts of each label are expected to look so."""
    weights = weights[:, weights.sum(0) > 0]
    score = weights[1] / weights.sum(0)
    wins = (score[:, None] > score) + 0.5 * (score[:, None] == score)
    return float(weights[1] @ wins @ weights[0] / weights.sum(1).prod())
