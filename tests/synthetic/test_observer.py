"""The perfect reader's AUC agrees with closed forms, and looks are those that the generator draws."""

import numpy as np
import pandas as pd
import pytest

from mammo_utils.synthetic.cases import Settings, appearances, exams_of
from mammo_utils.synthetic.observer import hidden_share, ideal_auc, ideal_table, suspicions

NAMES = {"Normal": "normal", "Benign": "benign", "Malignant": "malignant"}


def exam_table(exams):
    """The exam table of drawn exams, as the cohort's; breasts of other classes are left out."""
    rows = []
    for exam in exams:
        row = {"L_class": "", "R_class": "", "L_birads": -1, "R_birads": -1, "L_diagnosis": -1, "R_diagnosis": -1}
        for breast in exam.breasts:
            if name := NAMES.get(breast.classification, ""):
                row |= {f"{breast.side}_class": name, f"{breast.side}_birads": breast.birads}
                row |= {f"{breast.side}_diagnosis": int(name == "malignant")}
        rows.append(row)
    return pd.DataFrame(rows)


def test_the_suspicion_is_the_share_of_radial_strands_that_is_drawn():
    exams = exams_of(300, 0)
    found = suspicions(exam_table(exams))
    seen = 0
    for exam, of in zip(exams, found, strict=True):
        drawn = appearances(exam, Settings())
        for breast in exam.breasts:
            if breast.classification in NAMES:
                assert of["LR".index(breast.side)] == pytest.approx(drawn[breast.side, "MLO"][0])
                seen += 1
    assert seen == (~np.isnan(found)).sum() > 350


@pytest.mark.parametrize("difficulty", [0.0, 0.4, 0.7, 1.0])
def test_the_share_of_breasts_without_contrast(difficulty):
    looks = [appearances(exam, Settings(difficulty=difficulty)) for exam in exams_of(1500, 1)]
    hidden = [factor == 0 for look in looks for (_, view), (_, factor) in look.items() if view == "CC"]
    assert np.mean(hidden) == pytest.approx(hidden_share(difficulty), abs=0.03)


def test_two_distinct_looks_have_the_auc_of_a_guess_for_hidden_breasts():
    nan, h = float("nan"), 0.3
    alone = np.array([[0.0, nan], [1.0, nan], [nan, 0.0], [nan, 1.0]])
    labels = np.where(np.isnan(alone), -1, alone).astype(int)
    assert ideal_auc(alone, labels, h) == pytest.approx((1 - h**2 / 2, 1 - h**2 / 2)), "there is no other breast"
    pairs = np.array([[0.0, 1.0], [1.0, 0.0]])  # one cancer in each exam: the other breast gives the answer
    assert ideal_auc(pairs, pairs.astype(int), h) == pytest.approx((1 - h**2 / 2, 1 - h**4 / 2))
    assert ideal_auc(pairs, pairs.astype(int), 1.0) == pytest.approx((0.5, 0.5))


def test_the_table_of_a_release():
    exams = exam_table(exams_of(1000, 2))
    table = ideal_table(exams, (1, 5), 0.7)
    assert list(table.index) == ["Diagnosis", "BI-RADS"]
    alone, both = table.loc["BI-RADS"]
    assert alone == pytest.approx(1 - hidden_share(0.7) ** 2 / 2, abs=1e-3) and alone < both < 1
    assert (ideal_table(exams, (1, 2, 3, 4, 5), 0.7).loc["BI-RADS"] < table.loc["BI-RADS"]).all()
