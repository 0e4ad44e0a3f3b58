"""What a split by image instead of by patient does to a score: the same quick model, split both ways.

The model remembers images: the nearest neighbours of a thumbnail, among images of the same projection. It answers a
question about the patient from one image. A patient's two breasts look alike, so where one is trained on and the
other tested, the neighbour found is the patient, not the disease.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from mammo_utils.images.preprocess import resize
from mammo_utils.metrics import auc

THUMBNAIL, COMPONENTS, NEIGHBOURS, TESTED = 16, 80, 3, 0.25
SPLITS = {"by image": ShuffleSplit, "by patient": GroupShuffleSplit}
FEWEST = 20  # patients; a split of fewer says nothing


@threadpool_limits.wrap(1)  # matrices so small are slower, and not the same, on several threads
def leakage(
    images: Iterable[np.ndarray],
    projections: np.ndarray,
    patients: np.ndarray,
    labels: np.ndarray,
    repeats: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """AUC of the quick model for each way to split, label and repeat, a row each: split, label, repeat, auc.

    images: n pictures (H, W), chest wall at the same edge. projections: (n,) "CC" or "MLO". patients: (n,) group of
    the split. labels: (n,) 0 or 1, -1 unknown, the same for all images of a patient. The label "label" is that one,
    left out where it is not known of both kinds; "coin" is drawn for each patient and repeat, so that nothing can be
    learnt and an honest score is 0.5. No row where there are fewer than FEWEST patients.
    """
    names, number = np.unique(patients, return_inverse=True)
    rows: list[dict] = []
    if len(names) >= FEWEST:
        thumbnails = np.stack([resize(image, THUMBNAIL).ravel() for image in images]).astype(float)
    for repeat in range(repeats if len(names) >= FEWEST else 0):
        draw = np.random.default_rng([seed, repeat])
        asked = {"coin": draw.integers(0, 2, len(names))[number]}
        if {0, 1} <= set(labels):
            asked["label"] = labels
        for split, kind in SPLITS.items():
            parts = kind(1, test_size=TESTED, random_state=int(draw.integers(2**31)))
            groups = number if kind is GroupShuffleSplit else None
            (train, test), *_ = parts.split(thumbnails, groups=groups)
            halves = [(train[projections[train] == p], test[projections[test] == p]) for p in np.unique(projections)]
            halves = [half for half in halves if min(map(len, half)) > NEIGHBOURS]
            seen = [_components(thumbnails, *half) for half in halves]
            for label, truth in asked.items():
                scores = [_score(*x, truth[half[0]], truth[half[1]]) for x, half in zip(seen, halves, strict=True)]
                if scores := [score for score in scores if score == score]:  # of parts with both classes
                    rows.append({"split": split, "label": label, "repeat": repeat, "auc": float(np.mean(scores))})
    return pd.DataFrame(rows, columns=["split", "label", "repeat", "auc"])


def _components(thumbnails: np.ndarray, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    components = min(COMPONENTS, len(train) - 1, thumbnails.shape[1])
    model = PCA(components, whiten=True, svd_solver="covariance_eigh").fit(thumbnails[train])
    return model.transform(thumbnails[train]), model.transform(thumbnails[test])


def _score(train: np.ndarray, test: np.ndarray, truth: np.ndarray, asked: np.ndarray) -> float:
    """NaN where a part lacks a class."""
    train, truth = train[truth >= 0], truth[truth >= 0]
    if len(set(truth)) < 2:
        return float("nan")
    model = KNeighborsClassifier(min(NEIGHBOURS, len(train)), weights="distance").fit(train, truth)
    return auc(asked, model.predict_proba(test))
