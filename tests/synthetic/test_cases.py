from collections import Counter

import numpy as np
import pytest

from mammo_utils.synthetic.cases import (
    BIRADS,
    DENSITY,
    ONE_BREAST,
    TWO_BREASTS,
    iterate_breasts,
    sample_exams,
    sample_null_findings,
)

# data contract, sections 1 and 2
CLASSES = {"Malignant": 1167, "Normal": 1054, "Benign": 215, "Invisible": 140, "Exclusion": 25}
CATEGORIES = {1: 1055, 2: 79, 3: 252, 4: 399, 5: 665, None: 151}


@pytest.fixture(scope="module")
def exams():
    return sample_exams(1775, 0)


def agree(counts, expected, total):
    """Every count lies within four deviations of a sample of the expected shares."""
    assert set(counts) <= set(expected)
    for name, count in expected.items():
        share = count / sum(expected.values())
        spread = 4 * np.sqrt(total * share * (1 - share))
        assert abs(counts[name] - total * share) < spread + 1, (name, counts[name], total * share)


def test_the_tables_have_the_margins_of_the_real_release():
    classes = Counter()
    for table in (ONE_BREAST, TWO_BREASTS):
        for patients, breasts in table:
            for name, _ in breasts:
                classes[name] += patients
    assert classes == CLASSES
    assert {name: sum(row) for name, row in BIRADS.items()} == CLASSES
    assert [sum(row[i] for row in BIRADS.values()) for i in range(6)] == list(CATEGORIES.values())
    assert sum(n for n, _ in ONE_BREAST) == 949 and sum(n for n, _ in TWO_BREASTS) == 826
    labelled = Counter()
    for table in (ONE_BREAST, TWO_BREASTS):
        for patients, breasts in table:
            for _, cmmd in breasts:
                labelled[cmmd] += patients
    assert labelled == {"Malignant": 1316, "Benign": 556, "": 729}


def test_a_drawn_release_has_the_real_frequencies(exams):
    breasts = [breast for _, breast in iterate_breasts(exams)]
    agree(Counter(breast.classification for breast in breasts), CLASSES, len(breasts))
    agree(Counter(breast.birads for breast in breasts), CATEGORIES, len(breasts))
    agree(Counter(exam.density for exam in exams), DENSITY, len(exams))
    agree(Counter(len(exam.breasts) for exam in exams), {2: 826, 1: 949}, len(exams))
    joint = Counter((b.classification, b.birads) for b in breasts)
    agree(
        joint,
        {(name, k): row[i] for name, row in BIRADS.items() for i, k in enumerate(CATEGORIES) if row[i]},
        len(breasts),
    )
    assert joint["Malignant", 3] and joint["Benign", 4], "labels disagree with BI-RADS, as in the release"


def test_every_breast_with_something_to_see_has_a_finding_and_no_other(exams):
    for _, breast in iterate_breasts(exams):
        assert bool(breast.findings) == (breast.classification in ("Benign", "Malignant"))
    lesions = [len(breast.findings) for _, breast in iterate_breasts(exams) if breast.findings]
    assert 1.15 < np.mean(lesions) < 1.4, "the real release has 1.28 an annotated breast"


def test_ids_are_not_the_real_ones_and_do_not_depend_on_how_many_exams_there_are(exams):
    assert len({exam.id for exam in exams}) == 1775
    assert all(exam.id[:3] in ("S1-", "S2-") for exam in exams)
    assert sample_exams(50, 0) == exams[:50]
    assert sample_exams(50, 1) != exams[:50]


def test_null_findings_do_not_follow_the_labels(exams):
    with_finding = {True: [], False: []}
    for exam in exams:
        for breast, findings in zip(exam.breasts, sample_null_findings(exam, 0), strict=True):
            with_finding[breast.classification == "Malignant"].append(bool(findings))
    shares = [np.mean(values) for values in with_finding.values()]
    assert abs(shares[0] - shares[1]) < 0.08, shares
    assert 0.4 < np.mean(shares) < 0.65, "findings are as frequent as ever"
