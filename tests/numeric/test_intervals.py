import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from onnxcalib.numeric.intervals import (
    Z,
    agreement_interval,
    drop_interval,
    mean_interval,
    median_ratio_interval,
    position_interval,
    sqnr_interval,
)


def sum_powers(signal, error):
    signal, error = np.asarray(signal, np.float64), np.asarray(error, np.float64)
    return np.array([x.sum() for x in (signal, error, signal**2, error**2, signal * error)])


def cover_agreement(n, p):
    """Exact coverage: the sum of the chances of all counts whose interval holds p."""
    held = [low <= p <= high for low, high in (agreement_interval(k, n) for k in range(n + 1))]
    return float(stats.binom.pmf(np.flatnonzero(held), n, p).sum())


def cover_drop(n, lost, gained):
    """Exact coverage, but for pairs of counts that are rarer than 1e-6."""
    cover = 0.0
    for i in range(n + 1):
        for j in range(n + 1 - i):
            chance = stats.multinomial.pmf([i, j, n - i - j], n, [lost, gained, 1 - lost - gained])
            if chance > 1e-6:
                low, high = drop_interval(i, j, n)
                cover += chance * (low <= lost - gained <= high)
            elif j > n * gained + 5:
                break
        if i > n * lost + 5 and stats.binom.sf(i, n, lost) < 1e-6:
            break
    return float(cover)


def test_agreement_is_that_of_wilson():
    z, n, p = stats.norm.ppf(0.975), 100, 0.97
    centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = [(centre + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
    assert agreement_interval(97, 100) == pytest.approx(expected, abs=1e-12)


def test_agreement_stays_within_0_and_1_and_never_collapses():
    low, high = agreement_interval(100, 100)
    assert high == 1 and 0.95 < low < 0.97
    low, high = agreement_interval(0, 10)
    assert low == 0 and 0.2 < high < 0.3
    assert agreement_interval(1, 1)[0] > 0.2


def test_agreement_and_disagreement_mirror_each_other():
    low, high = agreement_interval(7, 50)
    assert agreement_interval(43, 50) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("n", "p"), [(100, 0.9), (500, 0.98), (650, 0.93), (1000, 0.99)])
def test_agreement_covers_95_percent(n, p):
    assert cover_agreement(n, p) == pytest.approx(0.95, abs=0.02)


def test_drop_is_that_of_tango():
    """Airway hyper-responsiveness of 21 children, the example of Fagerland, Lydersen and Laake 2014."""
    assert drop_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_drop_is_that_of_propcis(monkeypatch):
    """R: scoreci.mp(25, 28, 618, conf.level = 0.9), which is of (28 - 25) / 618."""
    monkeypatch.setattr("onnxcalib.numeric.intervals.Z", stats.norm.ppf(0.95))
    assert drop_interval(28, 25, 618) == pytest.approx((-0.0148, 0.0247), abs=5e-5)


@pytest.mark.parametrize(("lost", "gained", "total"), [(40, 20, 160), (3, 0, 100), (0, 9, 30), (1, 1, 500)])
def test_the_score_test_is_just_significant_at_both_ends_of_a_drop(lost, gained, total):
    """With the restricted likelihood maximised by search, not by the closed form."""
    for delta in drop_interval(lost, gained, total):
        q = np.linspace(max(0, -delta), (1 - delta) / 2, 400_001)[1:-1]
        counts, shares = (lost, gained, total - lost - gained), (q + delta, q, 1 - 2 * q - delta)
        likelihood = sum(k * np.log(p) for k, p in zip(counts, shares, strict=True) if k)
        variance = total * (2 * q[likelihood.argmax()] + delta - delta**2)
        score = (lost - gained - total * delta) / math.sqrt(variance)
        assert abs(score) == pytest.approx(stats.norm.ppf(0.975), rel=1e-3)


@pytest.mark.parametrize(("lost", "gained", "total"), [(5, 2, 100), (0, 3, 650), (30, 31, 400), (100, 0, 100)])
def test_swapping_the_models_negates_and_flips_a_drop(lost, gained, total):
    low, high = drop_interval(lost, gained, total)
    assert drop_interval(gained, lost, total) == pytest.approx((-high, -low), abs=1e-12)
    assert -1 <= low <= (lost - gained) / total <= high <= 1


def test_no_difference_at_all_still_leaves_doubt_that_shrinks_with_samples():
    low, high = drop_interval(0, 0, 100)
    assert high == -low == pytest.approx(stats.norm.ppf(0.975) ** 2 / (100 + stats.norm.ppf(0.975) ** 2))
    assert drop_interval(0, 0, 10_000)[1] < high / 90
    assert drop_interval(1, 1, 100)[1] > high


@pytest.mark.parametrize(("n", "lost", "gained"), [(100, 0.05, 0.03), (250, 0.03, 0.01), (150, 0.1, 0.03)])
def test_drop_covers_95_percent(n, lost, gained):
    assert cover_drop(n, lost, gained) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_equal_differences_are_as_uncertain_as_right_and_wrong_answers_are_and_give_no_warning(n):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = mean_interval(np.full(n, 0.3))
        assert high == pytest.approx(0.3) and low == pytest.approx(0.3 * n / (n + Z**2))
        assert mean_interval(np.zeros(n), 2.0) == pytest.approx((-2 * Z**2 / (n + Z**2), 2 * Z**2 / (n + Z**2)))
        assert mean_interval(np.zeros(n)) == (0.0, 0.0)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_few_differences_have_no_warning_and_an_interval_no_narrower_than_student(draw, n):
    x = draw(n).astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = mean_interval(x)
    half = stats.t.ppf(0.975, n - 1) * x.std(ddof=1) / math.sqrt(n)
    assert low <= x.mean() - half + 1e-12 and high >= x.mean() + half - 1e-12


def test_many_differences_have_the_normal_interval(draw):
    x = 3 + 2 * draw(4000).astype(np.float64)
    half = 1.96 * x.std() / math.sqrt(x.size)
    assert mean_interval(x) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.1 * half)


def test_skewed_differences_have_the_interval_of_a_studentized_bootstrap(draw):
    x = np.exp(1.5 * draw(60).astype(np.float64))
    drawn = x[np.random.default_rng(1).integers(0, 60, (20_000, 60))]
    half = np.quantile(np.abs(drawn.mean(1) - x.mean()) / drawn.std(1), 0.95) * x.std()
    assert mean_interval(x) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.1 * half)
    assert half > 1.1 * stats.t.ppf(0.975, 59) * x.std() / math.sqrt(59)  # so that Student's would not do


def test_the_interval_of_a_mean_is_the_same_every_time_and_knows_no_sign_or_unit(draw):
    x = np.exp(draw(60).astype(np.float64))
    low, high = mean_interval(x)
    assert mean_interval(x) == (low, high)
    assert mean_interval(-5 * x) == pytest.approx((-5 * high, -5 * low))


def test_batches_of_resamples_give_a_valid_interval(draw, monkeypatch):
    x = draw(500).astype(np.float64)
    whole = mean_interval(x)
    monkeypatch.setattr("onnxcalib.numeric.intervals.RESAMPLED_AT_ONCE", 1000)
    assert mean_interval(x) == pytest.approx(whole, abs=0.1 * (whole[1] - whole[0]))


@pytest.mark.parametrize("size", [1.0, 100.0, 0.1])
def test_differences_of_one_size_are_counts(size):
    x = np.zeros(100)
    x[:3], x[50] = size, -size
    low, high = drop_interval(3, 1, 100)
    assert mean_interval(x) == pytest.approx((size * low, size * high))


def test_mean_covers_95_percent_of_skewed_differences():
    rng = np.random.default_rng(0)
    found = [mean_interval(rng.exponential(size=50)) for _ in range(400)]
    assert np.mean([low <= 1 <= high for low, high in found]) == pytest.approx(0.95, abs=0.03)


def test_sqnr_is_centred_on_the_ratio_of_sums(draw):
    signal, error = np.exp(draw(2, 200).astype(np.float64)) * [[100], [1]]
    low, high = sqnr_interval(sum_powers(signal, error), 200)
    assert (low + high) / 2 == pytest.approx(10 * np.log10(signal.sum() / error.sum()))
    assert 0 < high - low < 3


def test_sqnr_has_the_variance_of_the_jackknife(draw):
    n = 400
    signal, error = np.exp(0.5 * draw(2, n).astype(np.float64))
    error *= signal
    low, high = sqnr_interval(sum_powers(signal, error), n)
    without = 10 * np.log10((signal.sum() - signal) / (error.sum() - error))
    deviation = math.sqrt((n - 1) ** 2 / n * without.var(ddof=1))
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, n - 1) * deviation, rel=0.02)


def test_sqnr_of_a_constant_signal_has_the_relative_error_of_a_mean():
    error = np.array([1.0, 2.0, 3.0])
    half = stats.t.ppf(0.975, 2) * error.std(ddof=1) / math.sqrt(3) / error.mean() * 10 / math.log(10)
    low, high = sqnr_interval(sum_powers([2, 2, 2], error), 3)
    assert (low, high) == pytest.approx((-half, half))


def test_powers_that_vary_together_leave_no_doubt_about_sqnr(draw):
    signal = np.exp(draw(50).astype(np.float64))
    assert sqnr_interval(sum_powers(signal, signal / 1000), 50) == pytest.approx((30, 30), abs=1e-5)


def test_sqnr_narrows_with_the_root_of_the_samples(draw):
    powers = sum_powers(*np.exp(draw(2, 500).astype(np.float64)))
    (low, high), (low16, high16) = sqnr_interval(powers, 500), sqnr_interval(16 * powers, 8000)
    assert (high - low) / (high16 - low16) == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("scale", [1e-80, 1e150])
def test_sqnr_knows_no_unit(draw, scale):
    powers = sum_powers(*np.exp(draw(2, 20).astype(np.float64)))
    scaled = powers * [scale, scale, scale**2, scale**2, scale**2]
    assert sqnr_interval(scaled, 20) == pytest.approx(sqnr_interval(powers, 20))


def test_sqnr_without_error_is_infinite_and_unknown_without_spread_or_signal():
    assert sqnr_interval(sum_powers([1, 2], [0, 0]), 2) == (math.inf, math.inf)
    for powers, samples in (
        (sum_powers([1], [1]), 1),
        (sum_powers([0, 0], [1, 2]), 2),
        (sum_powers([1, 2], [1, math.inf]), 2),
        (sum_powers([1, 2], [1, math.nan]), 2),
    ):
        assert sqnr_interval(powers, samples) == (-math.inf, math.inf)


def test_sqnr_covers_95_percent_of_skewed_powers():
    rng = np.random.default_rng(0)
    powers = np.exp(np.array([[0.55], [0.7]]) * rng.standard_normal((1000, 2, 100)))
    found = np.array([sqnr_interval(sum_powers(*pair), 100) for pair in powers])
    true = 10 * np.log10(np.exp((0.55**2 - 0.7**2) / 2))
    assert np.mean((found[:, 0] <= true) & (true <= found[:, 1])) == pytest.approx(0.95, abs=0.02)


def test_the_median_of_few_ratios_lies_between_the_smallest_and_the_largest():
    assert median_ratio_interval(np.array([1.3, 1.1, 1.2, 1.6, 1.4])) == (1.1, 1.6)
    assert median_ratio_interval(np.array([1.5])) == (1.5, 1.5)


def test_the_median_lies_between_order_statistics_of_the_blocks_medians():
    """Of 6 blocks the smallest and the largest enclose it with 96.9%, the next with 78.1%: the ends lie between."""
    low, high = median_ratio_interval(np.repeat(np.arange(6.0), 5))
    assert 0.3 < low < 0.4 and high == pytest.approx(5 - low)


def test_slow_drift_widens_the_interval_of_a_median(draw):
    drift = np.linspace(1, 2, 300) + 0.01 * draw(300)
    low, high = median_ratio_interval(drift)
    assert low < 1.2 and high > 1.8
    low, high = median_ratio_interval(np.random.default_rng(0).permutation(drift))
    assert 1.3 < low and high < 1.7


def test_the_interval_of_a_median_holds_that_of_all_ratios():
    """Four of ten ratios are 1 in every block but the first, which is all 1: of all ratios half are 1."""
    ratios = np.array([1.0] * 10 + ([1.0] * 4 + [9.0] * 6) * 5)
    low, high = median_ratio_interval(ratios)
    assert low <= np.median(ratios) <= high


def test_the_interval_of_a_median_narrows_and_ignores_outliers(draw):
    x = np.exp(0.1 * draw(500).astype(np.float64))
    low, high = median_ratio_interval(x)
    few = median_ratio_interval(x[:50])
    assert low < np.median(x) < high and high - low < few[1] - few[0]
    x[x == x.max()] = 1e9
    assert median_ratio_interval(x) == (low, high)


@pytest.mark.parametrize("n", [6, 10, 25, 26, 100, 500])
def test_median_covers_95_percent_whatever_the_number_of_ratios(n):
    rng = np.random.default_rng(n)
    found = np.array([median_ratio_interval(x) for x in np.exp(rng.standard_t(2, (1500, n)).clip(-100, 100))])
    assert np.mean((found[:, 0] <= 1) & (1 <= found[:, 1])) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("n", [200, 500])
def test_median_covers_88_percent_or_more_where_successive_ratios_are_alike(n):
    """Noise x[i] = 0.9 x[i - 1] + e[i], as of a load that lasts for tens of runs."""
    noise = np.random.default_rng(n).standard_normal((n, 1500))
    noise[1:] *= math.sqrt(1 - 0.9**2)
    for before, now in pairwise(noise):
        now += 0.9 * before
    found = np.array([median_ratio_interval(x) for x in np.exp(0.1 * noise.T)])
    assert np.mean((found[:, 0] <= 1) & (1 <= found[:, 1])) >= 0.88


@pytest.mark.parametrize("n", [1, 5, 100])
def test_all_lost_or_all_gained_leaves_room_for_others(n):
    low, high = drop_interval(n, 0, n)
    assert (low, high) == (pytest.approx(n / (n + Z**2)), 1.0)
    assert drop_interval(0, n, n) == pytest.approx((-high, -low))


# Data that say nothing

UNKNOWN = (-math.inf, math.inf)


def test_no_samples_leave_every_value_possible():
    assert agreement_interval(0, 0) == (0, 1) and drop_interval(0, 0, 0) == pytest.approx((-1, 1))
    assert mean_interval(np.zeros(0)) == UNKNOWN and median_ratio_interval(np.zeros(0)) == UNKNOWN
    assert sqnr_interval(np.zeros(5), 0) == (math.inf, math.inf)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_leave_every_value_possible(value):
    assert mean_interval(np.array([0.5, value])) == UNKNOWN
    assert median_ratio_interval(np.array([0.5, value])) == UNKNOWN
    assert sqnr_interval(np.array([1, value, 1, 1, 1.0]), 2) == UNKNOWN


@pytest.mark.parametrize("count", [1, 2, 40])
def test_constants_leave_the_doubt_that_their_measure_has(count):
    assert median_ratio_interval(np.full(count, 1.5)) == pytest.approx((1.5, 1.5))
    assert mean_interval(np.zeros(count)) == (0, 0)
    low, high = mean_interval(np.full(count, 0.5))
    assert low < 0.5 <= high


def clusters(equal, count):
    e, n = (np.asarray(x, np.float64) for x in (equal, count))
    return np.array([x.sum() for x in (e, n, e**2, n**2, e * n)])


def test_one_position_a_sample_has_the_interval_of_samples():
    ones = np.ones(400)
    found = position_interval(clusters(np.repeat([1.0, 0.0], [360, 40]), ones), 400)
    assert found == pytest.approx(agreement_interval(360, 400), abs=1e-4)
    assert position_interval(clusters(ones, ones), 400) == pytest.approx(agreement_interval(400, 400))


def test_positions_that_fail_together_count_as_one():
    equal = np.repeat([20.0, 0.0], [90, 10])
    low, high = position_interval(clusters(equal, np.full(100, 20.0)), 100)
    assert (low, high) == pytest.approx(agreement_interval(90, 100), abs=1e-3)


def test_independent_positions_count_each():
    equal = np.random.default_rng(0).binomial(20, 0.9, 100)
    low, high = position_interval(clusters(equal, np.full(100, 20.0)), 100)
    wide = agreement_interval(int(equal.sum()), 2000)
    assert high - low == pytest.approx(wide[1] - wide[0], rel=0.2)


def test_without_positions_any_share_is_possible():
    assert position_interval(np.zeros(5), 0) == (0.0, 1.0)
