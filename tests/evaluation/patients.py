"""Simulated patients with binormal scores and labels like CMMD's, of which the true AUC is known."""

import numpy as np
from scipy.stats import norm

from mammo_utils.evaluation.bootstrap import Sample

SHARED = 0.4  # correlation of a patient's two breasts
BETWEEN = 0.65  # correlation of two systems


def simulate(n_patients, aucs, rng, shared=SHARED, between=BETWEEN):
    """Labels and patients (n,), and one column of scores (n, systems) for each AUC.

    47 % of the patients have two breasts: 80 % of them one cancer, 14 % none, 6 % two. Of single breasts 55 % are
    malignant.
    """
    two = rng.random(n_patients) < 0.47
    one_cancer = rng.permuted(np.tile([0, 1], (n_patients, 1)), axis=1)
    kind = rng.choice(3, n_patients, p=[0.8, 0.14, 0.06])
    pairs = np.select([kind[:, None] == 0, kind[:, None] == 1], [one_cancer, 0], 1)
    single = np.stack([(rng.random(n_patients) < 0.55).astype(int), np.full(n_patients, -1)], axis=1)
    labels = np.where(two[:, None], pairs, single)

    def noise():  # (patients, 2)
        return np.sqrt(shared) * rng.normal(size=(n_patients, 1)) + np.sqrt(1 - shared) * rng.normal(
            size=(n_patients, 2)
        )

    common = noise()
    shifts = np.sqrt(2) * norm.ppf(np.atleast_1d(aucs))
    scores = [np.sqrt(between) * common + np.sqrt(1 - between) * noise() + shift * labels for shift in shifts]
    known = labels >= 0
    groups = np.repeat(np.arange(n_patients), 2).reshape(-1, 2)[known]
    return labels[known], groups, np.stack([score[known] for score in scores], axis=-1)


def as_sample(labels, groups, scores) -> Sample:
    """A sample of one training, or of several: scores (n,) or (n, S)."""
    malignant = norm.cdf(scores / 2 if scores.ndim == 2 else scores[:, None] / 2).T  # (S, n)
    return Sample(labels, np.stack([1 - malignant, malignant], axis=-1), groups)
