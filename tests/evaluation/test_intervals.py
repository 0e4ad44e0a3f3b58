"""Intervals and tests by formula: equal to known values, and right as often as they promise."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control, norm, t, ttest_ind

from mammo_utils.evaluation.bootstrap import CONSTANT, Sample, interval, paired_difference
from mammo_utils.evaluation.intervals import (
    cluster_variance,
    holm,
    score_interval,
    total_quantile,
    wilson_interval,
)
from mammo_utils.metrics import auc, auc_influence
from tests.evaluation.patients import as_sample, simulate
from tests.test_metrics import answers

CELLS = [(area, n) for area in (0.8, 0.95, 0.99) for n in (40, 80, 200)]


def delong(labels, *scores):
    """AUCs and their covariance (DeLong et al. 1988), from the matrix of all pairs."""
    positive = labels == 1
    pairs = [(s[positive][:, None] > s[~positive]) + 0.5 * (s[positive][:, None] == s[~positive]) for s in scores]
    rows, columns = (np.atleast_2d(np.cov([p.mean(axis) for p in pairs])) for axis in (1, 0))
    return [p.mean() for p in pairs], rows / positive.sum() + columns / (~positive).sum()


def test_with_one_breast_a_patient_the_variance_is_delongs():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 120)
    scores = np.round(labels[:, None] + rng.normal(size=(120, 2)), 1)  # rounded: ties occur
    (one, two), covariance = delong(labels, *scores.T)
    systems = [as_sample(labels, np.arange(120), column) for column in scores.T]
    found = interval(systems[0], "auc", resamples=0)
    assert found.value == pytest.approx(one, abs=1e-12) and found.method == "logit"
    m = labels.sum()  # DeLong divides by m - 1 and n - 1, we multiply by N / (N - 1) instead
    assert found.se**2 == pytest.approx(covariance[0, 0], rel=1 / min(m, 120 - m))
    exact = [((p - p.mean()) ** 2).mean() / size for p, size in _placements(labels, scores[:, 0])]
    assert found.se**2 == pytest.approx(sum(exact) * 120 / 119, rel=1e-12)
    pair = paired_difference(*systems, "auc", resamples=0)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert pair.value == pytest.approx(one - two, abs=1e-12) and pair.se**2 == pytest.approx(variance, rel=0.03)
    assert pair.p == pytest.approx(2 * norm.sf(abs(pair.value) / pair.se))


def _placements(labels, scores):
    wins = (scores[labels == 1][:, None] > scores[labels == 0]) + 0.5 * (
        scores[labels == 1][:, None] == scores[labels == 0]
    )
    return (wins.mean(1), len(wins)), (wins.mean(0), wins.shape[1])


@pytest.mark.parametrize("k", [2, 3, 5])
def test_duplicated_breasts_leave_the_interval_as_it_is(k):
    labels, p = answers(90, k)
    once = interval(Sample(labels, p[None], np.arange(90)), "auc", resamples=0)
    twice = Sample(np.repeat(labels, 2), np.repeat(p, 2, axis=0)[None], np.repeat(np.arange(90), 2))
    clustered = interval(twice, "auc", resamples=0)
    naive = interval(Sample(twice.labels, twice.probabilities, np.arange(180)), "auc", resamples=0)
    assert clustered.se == pytest.approx(once.se, rel=0.01) and clustered.value == pytest.approx(once.value)
    assert clustered.se / naive.se == pytest.approx(np.sqrt(2), rel=0.02)


def test_the_influence_predicts_the_change_when_a_breast_is_left_out():
    labels, p = answers(200, 3)
    influence = auc_influence(labels, p)
    assert influence.sum() == pytest.approx(0, abs=1e-12)
    changes = [auc(labels, p) - auc(np.delete(labels, i), np.delete(p, i, axis=0)) for i in range(200)]
    assert np.corrcoef(influence, changes)[0, 1] > 0.999 and np.std(changes) == pytest.approx(influence.std(), rel=0.05)


@pytest.mark.parametrize(("patients", "low"), [(10, 0.80), (20, 0.90), (40, 0.95), (100, 0.98)])
def test_an_auc_of_1_has_the_score_interval(patients, low):
    assert score_interval(1.0, patients, patients) == (pytest.approx(low, abs=0.006), 1.0)
    high = score_interval(0.0, patients, patients)[1]
    assert high == pytest.approx(1 - score_interval(1.0, patients, patients)[0], abs=1e-6), "it is symmetric"
    labels = np.repeat([0, 1], patients)
    found = interval(as_sample(labels, np.arange(2 * patients), labels * 1.0), "auc", resamples=0)
    assert (found.value, found.method) == (1, "score") and found.low == pytest.approx(low, abs=0.006)
    constant = interval(as_sample(labels, np.arange(2 * patients), labels * 0.0), "auc", resamples=0)
    assert constant.value == 0.5 and np.isnan(constant.low) and constant.reason == CONSTANT


@pytest.mark.parametrize("k", [2, 3])
def test_a_constant_score_has_no_interval_of_its_auc_but_one_of_its_f1(k):
    labels, groups = np.tile(np.arange(k), 30), np.arange(30 * k)
    shares = np.tile(np.linspace(0.1, 0.9, k), (30 * k, 1))
    found = Sample(labels, np.stack([shares, shares[:, ::-1]]), groups)
    area = interval(found, "auc", resamples=50)
    assert area.value == 0.5 and np.isnan([area.low, area.high, area.low_all]).all()
    assert interval(found, "f1_macro", resamples=50).low > 0, "which changes with the patients' labels"
    shares[0] = shares[0, ::-1].copy()
    varied = Sample(labels, shares[None], groups)
    assert interval(varied, "auc", resamples=0).low > 0, "one other score is enough"


def coverage(area, n, trials, seed=0):
    rng, hits = np.random.default_rng(seed), 0
    for _ in range(trials):
        labels, groups, scores = simulate(n, [area], rng)
        found = interval(as_sample(labels, groups, scores[:, 0]), "auc", resamples=0)
        assert found.low < found.high, "no interval of zero width"
        hits += found.low <= area <= found.high
    return hits / trials


@pytest.mark.parametrize(("area", "n"), [(0.95, 40), (0.99, 40)])
def test_the_interval_covers_the_true_auc(area, n):
    """The percentile bootstrap covers 89 % and 80 % here."""
    assert coverage(area, n, 200) >= 0.92


@pytest.mark.slow
@pytest.mark.parametrize(("area", "n"), CELLS)
def test_coverage_of_a_thousand_draws(area, n):
    found = coverage(area, n, 1000, seed=1)
    print(f"AUC {area}, {n} patients: {100 * found:.1f} %")
    assert found >= (0.915 if (area, n) == (0.99, 200) else 0.93)


def false_findings(n, trials, area=0.95, systems=6):
    rng, found = np.random.default_rng(2), np.zeros(2)
    for _ in range(trials):
        labels, groups, scores = simulate(n, [area] * systems, rng)
        reference, *others = (as_sample(labels, groups, column) for column in scores.T)
        p = np.array([paired_difference(other, reference, "auc", resamples=0).p for other in others])
        found += [(p < 0.05).any(), (holm(p) < 0.05).any()]
    return found / trials


def test_of_five_equal_systems_none_is_told_apart():
    _, corrected = false_findings(40, 60)
    assert corrected <= 0.06 + 2 * np.sqrt(0.06 * 0.94 / 60)


@pytest.mark.slow
@pytest.mark.parametrize("n", [40, 78])
def test_the_error_of_a_family_of_comparisons(n):
    uncorrected, corrected = false_findings(n, 500)
    print(f"{n} patients: {100 * uncorrected:.1f} % without correction, {100 * corrected:.1f} % with Holm's")
    assert corrected <= 0.06 and uncorrected > corrected


def test_a_difference_between_perfect_systems_has_a_width():
    labels = np.repeat([0, 1], 20)
    one, two = (
        as_sample(labels, np.arange(40), labels * s + np.linspace(0, 0.1, 40)[::d]) for s, d in ((1, 1), (3, -1))
    )
    found = paired_difference(one, two, "auc", resamples=0)
    assert found.value == 0 and found.low < -0.05 and found.high > 0.05 and found.p == 1


def test_trainings_are_a_part_of_their_own():
    """With S trainings the total variance is that of the patients plus s² / S."""
    rng = np.random.default_rng(0)
    labels, groups, scores = simulate(80, [0.8, 0.85, 0.9], rng)
    three = as_sample(labels, groups, scores)
    found = interval(three, "auc", resamples=0)
    single = [interval(as_sample(labels, groups, column), "auc", resamples=0) for column in scores.T]
    assert found.value == pytest.approx(np.mean([one.value for one in single]))
    assert found.se_seeds == pytest.approx(np.std([one.value for one in single], ddof=1) / np.sqrt(3))
    assert found.se < max(one.se for one in single)
    assert found.low_all < found.low < found.high < found.high_all
    assert np.isnan([single[0].low_all, single[0].se_seeds]).all(), "one training has no spread"


def test_an_interval_over_trainings_covers_as_promised():
    """Three trainings whose AUCs differ as much as those of samples of patients do; z would cover 90 %."""
    rng, hits, trials = np.random.default_rng(0), 0, 300
    for _ in range(trials):
        true = norm.cdf(norm.ppf(0.85) + rng.normal(scale=0.2, size=3))
        labels, groups, scores = simulate(60, true, rng)
        found = interval(as_sample(labels, groups, scores), "auc", resamples=0)
        hits += found.low_all <= 0.848 <= found.high_all
    assert 0.92 <= hits / trials <= 0.985


def test_degrees_of_freedom_are_welchs():
    """Without patients' variance, a difference of two means of trainings is Welch's t test."""
    one, two = np.array([0.9, 0.93, 0.95]), np.array([0.84, 0.85, 0.89, 0.9])
    df = ttest_ind(one, two, equal_var=False).df
    parts = [(values.var(ddof=1) / len(values), len(values)) for values in (one, two)]
    assert total_quantile(0, parts) == pytest.approx(t.ppf(0.975, df))
    assert total_quantile(1.0, []) == pytest.approx(1.96, abs=0.001)


def test_a_swap_of_systems_within_patients_gives_the_same_p():
    """The permutation test of the same hypothesis: each patient's answers of both systems change places, or not."""
    rng = np.random.default_rng(3)
    labels, groups, scores = simulate(78, [0.93, 0.87], rng)
    ranks = scores.argsort(0).argsort(0).astype(float)
    observed = np.diff([delong(labels, column)[0][0] for column in ranks.T])[0]
    swapped = []
    for _ in range(1000):
        swap = rng.integers(0, 2, groups.max() + 1)[groups].astype(bool)
        mixed = np.where(swap[:, None], ranks[:, ::-1], ranks)
        swapped.append(np.diff([delong(labels, column)[0][0] for column in mixed.T])[0])
    permutation = np.mean(np.abs(swapped) >= abs(observed))
    p = paired_difference(*(as_sample(labels, groups, c) for c in scores.T), "auc", resamples=0).p
    assert p == pytest.approx(permutation, abs=0.03)


def test_wilsons_interval_uses_the_effective_number_of_breasts():
    hits = np.repeat([True] * 8 + [False] * 2, 2)  # both breasts of a patient agree: as 10 patients, not 20 breasts
    share, low, high = wilson_interval(hits, np.repeat(np.arange(10), 2))
    assert share == 0.8 and (low, high) == pytest.approx((0.490, 0.943), abs=0.0005)
    alone = wilson_interval(hits, np.arange(20))
    assert alone == pytest.approx((0.8, 0.584, 0.919), abs=0.0005)
    assert wilson_interval(np.ones(10, bool), np.arange(10))[1:] == pytest.approx((0.722, 1), abs=0.001)
    assert np.isnan(wilson_interval(np.zeros(0, bool), np.zeros(0))).all()


def test_holm_and_its_neighbour():
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.005])
    assert holm(p) == pytest.approx([0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True)
    assert (holm(p[[0, 1, 3, 4]]) >= false_discovery_control(p[[0, 1, 3, 4]])).all()
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1] and len(holm(np.array([]))) == 0


def test_the_variance_of_a_mean_over_patients():
    values, groups = np.array([1.0, 3, 5, 7]), np.array(["a", "a", "b", "b"])
    assert cluster_variance((values - 4) / 4, groups) == pytest.approx(2 * (1 + 1))
