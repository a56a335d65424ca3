import numpy as np
import pytest

from onnxcalib.numeric.intervals import sqnr_interval
from onnxcalib.numeric.unseen import FEWEST, estimate_sqnr


def draw_powers(draw, count, smaller=1.0, power=0.0, spread=0.4, tail=0.04, amplitude=0.3):
    """Powers of signal and error; a few samples have ten times the error, as where activations are clipped."""
    signal = np.exp(amplitude * draw.normal(size=count))
    tails = np.where(draw.random(count) < tail, 10, 1)
    return np.stack([signal, 0.01 / smaller * signal**power * np.exp(spread * draw.normal(size=count)) * tails])


def to_db(powers):
    return 10 * np.log10(powers[0].sum() / powers[1].sum())


def measure_interval(powers):
    a, e = powers
    return sqnr_interval(np.array([x.sum() for x in (a, e, a**2, e**2, a * e)]), len(a))


@pytest.mark.parametrize(
    "kind",
    [{}, {"tail": 0.0, "spread": 1.0}, {"tail": 0.0, "amplitude": 1.5, "power": 1.0}],
    ids=["tail", "wide", "loud"],
)
def test_errors_of_samples_seen_bring_the_estimate_nearer_and_its_interval_holds_the_truth(kind):
    draw = np.random.default_rng(0)
    truth = to_db(draw_powers(draw, 400_000, **kind))
    plain, estimates, held_by = [], [], []
    for _ in range(150):
        held, seen = draw_powers(draw, 64, **kind), draw_powers(draw, 192, smaller=2.0, **kind)
        value, (low, high) = estimate_sqnr(held, seen)
        plain.append(to_db(held) - truth)
        estimates.append(value - truth)
        held_by.append(low <= truth <= high)
    assert np.sqrt(np.mean(np.square(estimates))) < 0.92 * np.sqrt(np.mean(np.square(plain)))
    assert abs(np.mean(estimates)) < 0.15 and np.mean(held_by) > 0.87


def test_how_much_smaller_the_errors_seen_are_does_not_matter():
    draw = np.random.default_rng(1)
    held, seen = draw_powers(draw, 64), draw_powers(draw, 192)
    smaller = seen * np.array([[1.0], [1e-6]])
    assert estimate_sqnr(held, smaller)[0] == pytest.approx(estimate_sqnr(held, seen)[0])


def test_the_estimate_stays_within_the_interval_of_those_held_out():
    draw = np.random.default_rng(2)
    held, seen = draw_powers(draw, 64, tail=0.0), draw_powers(draw, 192, tail=0.0)
    seen[1, 0] *= 1e6
    value, (low, high) = estimate_sqnr(held, seen)
    assert value == measure_interval(held)[0] and low <= value <= high


def test_equal_powers_leave_no_doubt():
    value, (low, high) = estimate_sqnr(np.full((2, 20), 2.0), np.array([[2.0], [1.0]]) * np.ones(40))
    assert value == pytest.approx(0.0) and high - low < 1e-6


@pytest.mark.parametrize("fault", [0.0, np.inf, np.nan])
def test_there_is_no_estimate_with_a_power_of_no_logarithm(fault):
    powers = draw_powers(np.random.default_rng(3), 32)
    for row in (0, 1):
        odd = powers.copy()
        odd[row, 5] = fault
        assert estimate_sqnr(powers, odd) is None and estimate_sqnr(odd, powers) is None


def test_there_is_no_estimate_of_few_samples():
    powers = draw_powers(np.random.default_rng(4), 32)
    assert (
        estimate_sqnr(powers, powers[:, : FEWEST - 1]) is None
        and estimate_sqnr(powers[:, : FEWEST - 1], powers) is None
    )
