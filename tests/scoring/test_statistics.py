"""Statistics beside scipy, numpy and statsmodels, at limits, and the formulas by hand."""

import math
import random
from itertools import combinations
from statistics import mean, stdev, variance

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.scoring.statistics import (
    BOOTSTRAP_SEED,
    MeanError,
    bootstrap_interval,
    correlation,
    effective_samples,
    holm,
    majority,
    mcnemar_p,
    pass_at_k,
    pass_hat_k,
    t_interval,
    t_quantile,
    two_sided_p,
    unpaired_p,
    variance_of,
    wilson_interval,
)
from benchmarks.eval_coverage import SETTINGS, coverage
from tests.evals.scored_runs import published
from tests.scoring.mean_errors import mean_error

stats = pytest.importorskip("scipy.stats")

GSM8K = {
    name: [float(digit) for digit in text] for name, text in published("gsm8k_verdicts").items()
}


def scores(seed: int, size: int) -> list[float]:
    draw = random.Random(seed)
    return [draw.choice((0.0, 0.25, 0.5, 1.0)) for _ in range(size)]


@pytest.mark.parametrize("df", [1, 2, 3, 4.5, 11, 29, 30, 163, 1_318, 99_999, 1_000_000])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95, 0.99, 0.9999])
def test_t_quantiles_are_those_of_scipy(level: float, df: float) -> None:
    assert t_quantile(level, df) == pytest.approx(stats.t.ppf((1 + level) / 2, df), rel=1e-9)


@pytest.mark.parametrize("df", [1, 2.5, 10, 29, 1_318, 1_000_000])
@pytest.mark.parametrize("t", [0.0, 1e-6, 0.3, 1.7, -2.0, 3.0, 8.0, 35.0])
def test_p_values_are_those_of_scipy(t: float, df: float) -> None:
    expected = 2 * stats.t.sf(abs(t), df)
    assert two_sided_p(t, df) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_a_level_that_cannot_be_is_refused() -> None:
    for level, df in ((0, 3), (1, 3), (0.95, 0)):
        with pytest.raises(ValueError, match="t quantile"):
            t_quantile(level, df)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar_p(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_flips() -> None:
    expected = stats.binomtest(500_700, 1_000_000).pvalue
    assert mcnemar_p(500_700, 499_300) == pytest.approx(expected, rel=1e-9)


def test_an_error_without_clusters_is_that_of_the_mean() -> None:
    values = scores(1, 57)
    found = mean_error(values)
    assert found.mean == pytest.approx(mean(values), rel=1e-12)
    assert found.se == pytest.approx(stats.sem(values), rel=1e-12)
    expected = stats.t.interval(0.95, 56, loc=mean(values), scale=stats.sem(values))
    assert t_interval(found, 0.95) == pytest.approx(expected, rel=1e-9)


def test_a_clustered_error_is_that_of_statsmodels() -> None:
    api = pytest.importorskip("statsmodels.api")
    values = scores(2, 96)
    groups = [at // 8 for at in range(96)]
    found = mean_error(values, groups)
    fit = api.OLS(values, np.ones(96)).fit(
        cov_type="cluster", cov_kwds={"groups": np.array(groups), "use_correction": False}
    )
    # statsmodels leaves out G / (G - 1), or has a factor for the parameters in it as well.
    assert found.se == pytest.approx(float(fit.bse[0]) * math.sqrt(12 / 11), rel=1e-9)
    assert (found.clusters, found.df) == (12, 11)


@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 999))
def test_a_clustered_error_is_its_formula(clusters: int, size: int, seed: int) -> None:
    values = scores(seed, clusters * size)
    groups = np.repeat(np.arange(clusters), size)
    residuals = np.array(values) - np.mean(values)
    sums = np.bincount(groups, residuals)
    expected = math.sqrt(clusters / (clusters - 1) * np.sum(sums**2)) / len(values)
    found = mean_error(values, groups.tolist())
    assert found.se == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if size == 1:
        assert found.se == pytest.approx(mean_error(values).se or 0, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("right", "n"), [(0, 12), (3, 12), (12, 12), (700, 1_000)])
def test_wilson_is_that_of_scipy_where_answers_are_independent(right: int, n: int) -> None:
    """With a quantile of the normal distribution, and n answers, it is the usual interval."""
    share = right / n
    se = math.sqrt(share * (1 - share) / n)
    found = wilson_interval(MeanError(share, se, n, n), n, 0.95)
    assert found is not None
    level = 1 - 2 * stats.norm.sf(t_quantile(0.95, n - 1))  # at which the normal quantile is ours
    expected = stats.binomtest(right, n).proportion_ci(level, "wilson")
    assert found == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


def test_an_interval_at_100_percent_has_a_width() -> None:
    found = mean_error([1.0] * 30)
    low, high = wilson_interval(found, 240, 0.95) or (1, 1)
    assert 0.85 < low < 0.9
    assert high == 1
    assert effective_samples(found, 240) == 30  # and not 240: samples are not independent


def test_effective_samples_are_never_more_than_there_are() -> None:
    alike = mean_error([0.5] * 10)
    assert effective_samples(alike, 40) == 40
    spread = mean_error([0.0, 1.0] * 5)
    assert effective_samples(spread, 40) == pytest.approx(0.25 / (spread.se or 1) ** 2)


def test_one_question_has_no_error() -> None:
    for found in (mean_error([0.3]), mean_error([0.2, 0.6], ["a", "a"])):
        assert found.se is None
        assert t_interval(found, 0.95) is wilson_interval(found, 4, 0.95) is None
        assert variance_of(found, 0.1, 0.5) is None


def test_pass_rates_are_the_shares_of_all_choices_of_k() -> None:
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                chosen = list(combinations([at < c for at in range(n)], k))
                assert pass_at_k(n, c, k) == pytest.approx(mean(map(any, chosen)))
                assert pass_hat_k(n, c, k) == pytest.approx(mean(map(all, chosen)))


def test_pass_rates_of_what_cannot_be() -> None:
    for n, c, k in ((3, 1, 4), (3, 4, 1), (3, 1, 0)):
        with pytest.raises(ValueError, match="samples"):
            pass_at_k(n, c, k)


def test_tau_bench_has_its_published_pass_rates() -> None:
    tasks = [(len(text), text.count("1")) for text in published("tau_bench_rewards").values()]
    assert len(tasks) == 50
    found = [round(mean(pass_hat_k(n, c, k) for n, c in tasks), 3) for k in (1, 2, 3, 4)]
    assert found == [0.420, 0.273, 0.220, 0.200]


def test_two_methods_of_gsm8k_have_their_published_errors() -> None:
    base, other = GSM8K["6b_verification"], GSM8K["175b_finetuning"]
    difference = mean_error([b - a for a, b in zip(base, other, strict=True)])
    assert difference.se == pytest.approx(0.0144, abs=5e-5)
    paired = stats.ttest_rel(other, base)
    p = two_sided_p(difference.mean / (difference.se or 1), difference.df)
    assert p == pytest.approx(paired.pvalue, rel=1e-9)
    assert p == pytest.approx(0.0027, abs=5e-5)
    apart = unpaired_p(mean_error(base), mean_error(other))
    assert apart is not None
    welch = stats.ttest_ind(other, base, equal_var=False)
    assert apart[0] == pytest.approx(0.0188, abs=5e-5)
    assert apart[1] == pytest.approx(welch.pvalue, rel=1e-9)
    assert apart[1] == pytest.approx(0.021, abs=5e-4)


def test_a_majority_shares_ties_and_counts_who_gives_no_answer() -> None:
    assert majority([("7", 1), ("7", 1), ("8", 0)]) == 1
    assert majority([("7", 1), ("8", 0)]) == 0.5
    assert majority([("7", 1), ("8", 0), ("9", 0)]) == pytest.approx(1 / 3)
    assert majority([(None, 0), (None, 0), ("7", 1)]) == 0
    assert majority([(None, 0), ("7", 1)]) == 0.5
    assert majority([]) == 0
    assert majority([("7", 1), ("7", 0.5)]) == 0.75  # one answer, two scores


def test_variance_within_and_between_questions() -> None:
    draw = random.Random(4)
    samples = [[draw.choice((0.0, 0.0, 1.0)) for _ in range(5)] for _ in range(40)]
    means = [mean(some) for some in samples]
    within = mean(variance(some) for some in samples)
    found = variance_of(mean_error(means), within, 1 / 5)
    assert found is not None
    assert found.within == within
    assert found.between == pytest.approx(max(0, stdev(means) ** 2 - within / 5), abs=1e-12)
    assert found.se_of_many == pytest.approx(math.sqrt(found.between / 40))
    # Where all of it is chance, samples without end leave nothing.
    none = variance_of(mean_error([0.5] * 8), 0.25, 1 / 4)
    assert none is not None
    assert none.between == none.se_of_many == 0


def test_holm_is_its_definition() -> None:
    assert holm([]) == []
    assert holm([0.04]) == [0.04]
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_correlations_are_those_of_numpy() -> None:
    some, other = scores(5, 50), scores(6, 50)
    assert correlation(some, other) == pytest.approx(np.corrcoef(some, other)[0, 1], rel=1e-9)
    assert correlation([1, 1], [0, 1]) is None


def test_a_bootstrap_is_near_the_t_interval_and_always_the_same() -> None:
    values = scores(7, 120)
    found = bootstrap_interval(values, [1] * 120, 0.95, draws=2_000)
    again = bootstrap_interval(values, [1] * 120, 0.95, draws=2_000, seed=BOOTSTRAP_SEED)
    assert found == again
    expected = t_interval(mean_error(values), 0.95)
    assert found == pytest.approx(expected, abs=0.02)


def test_a_bootstrap_draws_whole_clusters() -> None:
    values = [float(at // 10 % 2) for at in range(200)]  # clusters of ten that agree
    groups = [at // 10 for at in range(200)]
    counts = [10] * 19 + [5, 5]  # one of them in two
    totals = [sum(values[at * 10 : at * 10 + 10]) for at in range(19)]
    totals += [sum(values[190:195]), sum(values[195:])]
    low, high = bootstrap_interval(totals, counts, 0.95, draws=2_000)
    expected = t_interval(mean_error(values, groups), 0.95)
    assert (low, high) == pytest.approx(expected, abs=0.06)
    with pytest.raises(ValueError, match="clusters"):
        bootstrap_interval([], [], 0.95)


# The coverage that is promised at 2,000 trials, less what chance takes from fewer.
_LEAST = [0.92, 0.92, 0.87, 0.92, 0.92, 0.92]


@pytest.mark.parametrize("at", range(len(SETTINGS)))
def test_intervals_hold_the_truth_and_differences_are_seldom_imagined(at: int) -> None:
    found = coverage(SETTINGS[at], trials=150, seed=3)
    assert found.default >= _LEAST[at] - 0.05
    assert found.false_alarms <= 0.065 + 0.05


def test_samples_pooled_as_independent_hold_the_truth_far_too_seldom() -> None:
    found = coverage(SETTINGS[3], trials=200, seed=3)
    assert found.pooled < 0.8
    assert found.default > 0.9


@pytest.mark.long
@pytest.mark.parametrize("at", range(len(SETTINGS)))
def test_the_promised_coverage(at: int) -> None:
    found = coverage(SETTINGS[at], trials=2_000, seed=1)
    assert found.default >= _LEAST[at]
    assert found.false_alarms <= 0.065
    if at in (1, 3):
        assert found.false_alarms >= 0.035
