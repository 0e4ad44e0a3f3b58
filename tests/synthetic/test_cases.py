from collections import Counter

import numpy as np
import pytest

from mammo_utils.synthetic.cases import (
    BIRADS,
    DENSITY,
    ONE_BREAST,
    TWO_BREASTS,
    VISIBLE,
    Settings,
    appearances,
    exams_of,
    iterate_breasts,
    replace_findings,
)

# counted in the real release
CLASSES = {"Malignant": 1167, "Normal": 1054, "Benign": 215, "Invisible": 140, "Exclusion": 25}
CATEGORIES = {1: 1055, 2: 79, 3: 252, 4: 399, 5: 665, None: 151}


@pytest.fixture(scope="module")
def exams():
    return exams_of(1775, 0)


def assert_shares_agree(counts, expected, total):
    """Check that every count lies within four standard deviations of a sample with the expected shares."""
    assert set(counts) <= set(expected)
    for name, count in expected.items():
        share = count / sum(expected.values())
        spread = 4 * np.sqrt(total * share * (1 - share))
        assert abs(counts[name] - total * share) < spread + 1, (name, counts[name], total * share)


def test_the_tables_have_the_margins_of_the_real_release():
    classes = Counter()
    for table in (ONE_BREAST, TWO_BREASTS):
        for breasts, patients in table.items():
            for name, _ in breasts:
                classes[name] += patients
    assert classes == CLASSES
    assert {name: sum(row) for name, row in BIRADS.items()} == CLASSES
    assert [sum(row[i] for row in BIRADS.values()) for i in range(6)] == list(CATEGORIES.values())
    assert sum(ONE_BREAST.values()) == 949 and sum(TWO_BREASTS.values()) == 826
    labelled = Counter()
    for table in (ONE_BREAST, TWO_BREASTS):
        for breasts, patients in table.items():
            for _, cmmd in breasts:
                labelled[cmmd] += patients
    assert labelled == {"Malignant": 1316, "Benign": 556, "": 729}


def test_a_drawn_release_has_the_real_frequencies(exams):
    breasts = [breast for _, breast in iterate_breasts(exams)]
    assert_shares_agree(Counter(breast.classification for breast in breasts), CLASSES, len(breasts))
    assert_shares_agree(Counter(breast.birads for breast in breasts), CATEGORIES, len(breasts))
    assert_shares_agree(Counter(exam.density for exam in exams), DENSITY, len(exams))
    assert_shares_agree(Counter(len(exam.breasts) for exam in exams), {2: 826, 1: 949}, len(exams))
    joint = Counter((b.classification, b.birads) for b in breasts)
    assert_shares_agree(
        joint,
        {(name, k): row[i] for name, row in BIRADS.items() for i, k in enumerate(CATEGORIES) if row[i]},
        len(breasts),
    )
    assert joint["Malignant", 3] and joint["Benign", 4], "labels disagree with BI-RADS, as in the release"


def test_every_breast_has_a_structure_whose_parts_do_not_depend_on_its_label(exams):
    """Two shares of 1,100 breasts differ by 0.02 (standard error); the radii by 0.04 mm."""
    groups = {True: [], False: []}
    for _, breast in iterate_breasts(exams):
        assert len(breast.structures) in (1, 2)
        groups[breast.classification == "Malignant"].append(breast.structures)
    for name in ("mass", "calc", "dist", "FAD"):
        # the names of benign masses differ, their pictures do not
        kinds = {"mass", "FA", "lipoma"} if name == "mass" else {name}
        shares = [np.mean([any(s.kind in kinds for s in each) for each in group]) for group in groups.values()]
        assert abs(shares[0] - shares[1]) < 0.08, (name, shares)
    radii = [np.mean([s.radius for each in group for s in each]) for group in groups.values()]
    assert abs(radii[0] - radii[1]) < 0.16, radii


def test_the_options_have_known_truths(exams):
    for exam in exams[:300]:
        suspicion = {b.side: max(s.suspicion for s in b.structures) for b in exam.breasts}
        looks = {v: appearances(exam, Settings(visible=v)) for v in VISIBLE}
        both, one, comparing = ({key: share for key, (share, _) in looks[v].items()} for v in VISIBLE)
        for side, s in suspicion.items():
            assert both[side, "CC"] == both[side, "MLO"] == pytest.approx(s)
            assert sorted([one[side, "CC"], one[side, "MLO"]]) == pytest.approx([0, s])
            assert 0 <= comparing[side, "CC"] == comparing[side, "MLO"] <= 1
        if len(suspicion) == 2:
            gap = comparing["L", "CC"] - comparing["R", "CC"]
            assert gap == pytest.approx((suspicion["L"] - suspicion["R"]) / 3)


def test_difficulty_makes_structures_faint_whatever_their_label(exams):
    """At 1 half of them are invisible and the others uniform; the standard error of a mean of 1,000 is 0.01."""
    for difficulty, mean, unseen in ((0.0, 1.0, 0.0), (0.4, 0.6, 0.0), (1.0, 0.25, 0.5)):
        factors = {True: [], False: []}
        for exam in exams:
            looks = appearances(exam, Settings(difficulty=difficulty))
            for breast in exam.breasts:
                factors[breast.classification == "Malignant"].append(looks[breast.side, "CC"][1])
        for group in factors.values():
            assert np.mean(group) == pytest.approx(mean, abs=0.04)
            assert np.mean(np.array(group) == 0) == pytest.approx(unseen, abs=0.06)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_cancers_in_both_breasts_is_a_setting(share):
    pairs = [exam.breasts for exam in exams_of(600, 0, share) if len(exam.breasts) == 2]
    found = np.mean([all(b.classification == "Malignant" for b in breasts) for breasts in pairs])
    assert found == pytest.approx(share, abs=0 if share in (0, 1) else 0.11)


def test_benign_and_malignant_breasts_have_a_finding_and_no_other_has(exams):
    for _, breast in iterate_breasts(exams):
        assert bool(breast.findings) == (breast.classification in ("Benign", "Malignant"))
    lesions = [len(breast.findings) for _, breast in iterate_breasts(exams) if breast.findings]
    assert 1.15 < np.mean(lesions) < 1.4, "the real release has 1.28 per annotated breast"


def test_ids_are_not_the_real_ones_and_do_not_depend_on_how_many_exams_there_are(exams):
    assert len({exam.id for exam in exams}) == 1775
    assert all(exam.id[:3] in ("S1-", "S2-") for exam in exams)
    assert exams_of(50, 0) == exams[:50]
    assert exams_of(50, 1) != exams[:50]


def test_null_findings_do_not_follow_the_labels(exams):
    with_finding = {True: [], False: []}
    for exam in exams:
        for breast in replace_findings(exam, Settings()).breasts:
            with_finding[breast.classification == "Malignant"].append(bool(breast.findings))
    shares = [np.mean(values) for values in with_finding.values()]
    assert abs(shares[0] - shares[1]) < 0.08, shares
    assert 0.4 < np.mean(shares) < 0.65, "findings are as frequent as with signal"
