"""How much a split by image instead of by patient inflates a score: the same quick model, split both ways.

The model answers a question about the patient from one image, by the nearest neighbours of its thumbnail among
training images of the same projection. The two breasts of a patient look alike; if one is in training and the other
in the test part, the model recognises the patient, not the disease.
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

THUMBNAIL, COMPONENTS, NEIGHBOURS, TEST_SHARE = 16, 80, 3, 0.25
SPLITS = {"by image": ShuffleSplit, "by patient": GroupShuffleSplit}
FEWEST = 20  # patients; a split of fewer is not informative


@threadpool_limits.wrap(1)  # matrices this small are slower on several threads, and not bit-identical
def leakage(
    images: Iterable[np.ndarray],
    projections: np.ndarray,
    patients: np.ndarray,
    labels: np.ndarray,
    repeats: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Score the quick model with both splits, for the true label and for a coin.

    Args:
        images: n images (H, W) with the chest wall at the same edge.
        projections: (n,) "CC" or "MLO".
        patients: (n,) patient, or group of the split.
        labels: (n,) 0 or 1, -1 if unknown; the same for all images of a patient.
        repeats: Number of random splits.
        seed: Seed of the splits and coins.

    Returns:
        One row per split, label and repeat: split, label, repeat, auc. The label "coin" is drawn per patient and
        repeat, so that an honest score is 0.5; "label" is left out unless both classes occur. Empty with fewer than
        `FEWEST` patients.
    """
    names, number = np.unique(patients, return_inverse=True)
    rows: list[dict] = []
    repeats = repeats if len(names) >= FEWEST else 0
    if repeats:
        thumbnails = np.stack([resize(image, THUMBNAIL).ravel() for image in images]).astype(float)
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        targets = {"coin": rng.integers(0, 2, len(names))[number]}
        if {0, 1} <= set(labels):
            targets["label"] = labels
        for split, splitter in SPLITS.items():
            parts = splitter(1, test_size=TEST_SHARE, random_state=int(rng.integers(2**31)))
            groups = number if splitter is GroupShuffleSplit else None
            train, test = next(parts.split(thumbnails, groups=groups))
            pairs = [(train[projections[train] == p], test[projections[test] == p]) for p in np.unique(projections)]
            pairs = [pair for pair in pairs if min(map(len, pair)) > NEIGHBOURS]
            features = [_reduce(thumbnails[train], thumbnails[test]) for train, test in pairs]
            for label, y in targets.items():
                scores = [_score(*x, y[a], y[b]) for x, (a, b) in zip(features, pairs, strict=True)]
                if scores := [score for score in scores if not np.isnan(score)]:
                    rows.append({"split": split, "label": label, "repeat": repeat, "auc": float(np.mean(scores))})
    return pd.DataFrame(rows, columns=["split", "label", "repeat", "auc"])


def _reduce(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    model = PCA(min(COMPONENTS, len(train) - 1, train.shape[1]), whiten=True, svd_solver="covariance_eigh").fit(train)
    return model.transform(train), model.transform(test)


def _score(train: np.ndarray, test: np.ndarray, train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """AUC on the test images, NaN if a part lacks a class."""
    train, train_labels = train[train_labels >= 0], train_labels[train_labels >= 0]
    if len(set(train_labels)) < 2:
        return float("nan")
    model = KNeighborsClassifier(min(NEIGHBOURS, len(train)), weights="distance").fit(train, train_labels)
    return auc(test_labels, model.predict_proba(test))
