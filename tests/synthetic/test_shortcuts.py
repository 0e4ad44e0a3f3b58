"""Simple features of the pictures: local shape predicts the diagnosis, means and thumbnails hardly do."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mammo_utils.synthetic.cases import exams_of
from mammo_utils.synthetic.release import Settings, draw_exam
from mammo_utils.vocabulary import SIDES

LABELS = {"Normal": 0, "Benign": 0, "Malignant": 1}


def measure_breasts(n, null):
    """Measure each usable breast of `n` exams: exam, diagnosis, BI-RADS and simple features."""
    settings = Settings(rows=144, columns=120, seed=11, contrast=1.0, noise=1.0, null=null)
    rows = {name: [] for name in ("exam", "y", "birads", "mean", "thumbnail", "views", "peak")}
    for exam in exams_of(n, 11):
        drawn = draw_exam(exam, settings)
        present = [any(b.side == side for b in exam.breasts) for side in SIDES]
        for breast in exam.breasts:
            if breast.classification not in LABELS:
                continue
            images = [drawn[breast.side, view][0].astype(float) for view in ("CC", "MLO")]
            images = [image if breast.side == "L" else image[:, ::-1] for image in images]
            rows["exam"].append(exam.number)
            rows["y"].append(LABELS[breast.classification])
            rows["birads"].append(breast.birads)
            rows["mean"].append([image.mean() for image in images])
            rows["thumbnail"].append(np.ravel([i.reshape(8, 18, 8, 15).mean((1, 3)) for i in images]))
            rows["views"].append(np.repeat(present, 2))
            shape = [ndimage.gaussian_filter(i, 2) - ndimage.gaussian_filter(i, 6) for i in images]
            rows["peak"].append(np.mean([s.max() for s in shape]))
    return {name: np.array(values, float) for name, values in rows.items()}


def cross_validate(rows, name, keep):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    x, y = rows[name][keep], rows["y"][keep]
    p = cross_val_predict(model, x, y, groups=rows["exam"][keep], cv=GroupKFold(5), method="predict_proba")
    return roc_auc_score(y, p[:, 1])


@pytest.fixture(scope="module")
def drawn():
    return measure_breasts(420, null=False)


@pytest.mark.parametrize("subset", ["1v5", "all"])
@pytest.mark.parametrize("name", ["mean", "thumbnail", "views"])
def test_shortcuts_predict_little(drawn, name, subset):
    keep = np.isin(drawn["birads"], (1, 5)) if subset == "1v5" else np.ones(len(drawn["y"]), bool)
    assert cross_validate(drawn, name, keep) <= 0.65


def test_local_shape_predicts_well(drawn):
    keep = np.isin(drawn["birads"], (1, 5))
    assert roc_auc_score(drawn["y"][keep], drawn["peak"][keep]) > 0.85
    threes = np.isin(drawn["birads"], (1, 3))
    weak = roc_auc_score(drawn["y"][threes], drawn["peak"][threes])
    assert weak < roc_auc_score(drawn["y"][keep], drawn["peak"][keep]), "conspicuity rises with BI-RADS"


def test_nothing_predicts_in_the_null_setting():
    rows = measure_breasts(300, null=True)
    every = np.ones(len(rows["y"]), bool)
    assert abs(roc_auc_score(rows["y"], rows["peak"]) - 0.5) < 0.09  # standard deviation with 440 breasts: 0.028
    assert cross_validate(rows, "thumbnail", every) < 0.6
