"""What a split by image instead of by patient does to a score: the same quick model, split both ways.

The model remembers images: the nearest neighbours of a thumbnail, among images of the same projection. It answers a
question about the patient from one image. A patient's two breasts look alike, so where one is trained on and the
other tested, the neighbour found is the patient, not the disease.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from mammo_utils.images.pixels import resize
from mammo_utils.metrics import auc

THUMBNAIL, COMPONENTS, NEIGHBOURS, TESTED = 16, 80, 3, 0.25
SPLITS = {"by image": ShuffleSplit, "by patient": GroupShuffleSplit}


@threadpool_limits.wrap(1)  # matrices so small are slower, and not the same, on several threads
def leakage(
    images: np.ndarray, projections: np.ndarray, patients: np.ndarray, labels: np.ndarray, repeats: int = 20, seed=0
) -> pd.DataFrame:
    """AUC of the quick model for each way to split, label and repeat, a row each: split, label, repeat, auc.

    images: (n, H, W), n images with the chest wall at the same edge. projections: (n,) "CC" or "MLO". patients: (n,)
    group of the split. labels: (n,) 0 or 1, the same for all images of a patient. The label "label" is that one;
    "coin" is drawn for each patient and repeat, so that nothing can be learnt and an honest score is 0.5.
    """
    thumbnails = np.stack([resize(image, THUMBNAIL).ravel() for image in images]).astype(float)
    names, number = np.unique(patients, return_inverse=True)
    rows = []
    for repeat in range(repeats):
        draw = np.random.default_rng([seed, repeat])
        coin = draw.integers(0, 2, len(names))[number]
        for split, kind in SPLITS.items():
            parts = kind(1, test_size=TESTED, random_state=int(draw.integers(2**31)))
            groups = number if kind is GroupShuffleSplit else None
            (train, test), *_ = parts.split(thumbnails, groups=groups)
            halves = [(train[projections[train] == p], test[projections[test] == p]) for p in np.unique(projections)]
            seen = [_components(thumbnails, *half) for half in halves]
            for label, truth in (("label", labels), ("coin", coin)):
                scores = [_score(*x, truth[half[0]], truth[half[1]]) for x, half in zip(seen, halves, strict=True)]
                rows.append({"split": split, "label": label, "repeat": repeat, "auc": float(np.mean(scores))})
    return pd.DataFrame(rows)


def _components(thumbnails: np.ndarray, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    components = min(COMPONENTS, len(train) - 1, thumbnails.shape[1])
    model = PCA(components, whiten=True, svd_solver="covariance_eigh").fit(thumbnails[train])
    return model.transform(thumbnails[train]), model.transform(thumbnails[test])


def _score(train: np.ndarray, test: np.ndarray, truth: np.ndarray, asked: np.ndarray) -> float:
    model = KNeighborsClassifier(min(NEIGHBOURS, len(train)), weights="distance").fit(train, truth)
    answers = np.zeros((len(test), 2))
    answers[:, model.classes_] = model.predict_proba(test)
    return auc(asked, answers)
