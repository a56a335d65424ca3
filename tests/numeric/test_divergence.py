"""Divergence of outputs from their reference."""

import numpy as np
import pytest
from scipy.special import softmax

from onnxcalib.numeric.distill import TEMPERATURE
from onnxcalib.numeric.divergence import Divergence


def measure(*pairs):
    found = Divergence()
    for reference, other in pairs:
        found.add(reference, other)
    return found.value


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(6, 5)).astype(np.float32) * 3
    return wanted, wanted + rng.normal(size=(6, 5)).astype(np.float32)


def test_class_scores_diverge_by_kl_at_the_temperature(scores):
    p, q = (softmax(x.astype(np.float64) / TEMPERATURE, axis=1) for x in scores)
    assert measure(scores) == pytest.approx((p * np.log(p / q)).sum() / 6, rel=1e-9)


def test_batches_are_those_of_one(scores):
    wanted, given = scores
    assert measure((wanted[:2], given[:2]), (wanted[2:], given[2:])) == pytest.approx(measure(scores), rel=1e-12)


def test_probabilities_diverge_as_the_scores_behind_them(scores):
    assert measure(tuple(softmax(x, axis=1) for x in scores)) == pytest.approx(measure(scores), rel=1e-4)


def test_other_outputs_diverge_by_relative_squared_error():
    wanted, given = np.ones((2, 3, 4), np.float32), np.full((2, 3, 4), 1.5, np.float32)
    assert measure((wanted, given)) == pytest.approx(0.25)


def test_equal_outputs_do_not_diverge_and_what_is_not_finite_does_without_end(scores):
    assert measure((scores[0], scores[0])) == 0 and measure((np.zeros((2, 1)), np.zeros((2, 1)))) == 0
    assert measure((np.ones((2, 1)), np.full((2, 1), np.nan))) == np.inf
    assert measure((np.zeros((2, 1)), np.ones((2, 1)))) == np.inf


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1, (0, 1)])
def test_a_value_that_is_not_finite_on_either_side_is_an_infinite_loss_of_unknown_error(shape, value, side):
    pair = np.ones((2, *shape)) * np.arange(3).reshape(-1, *[1] * (len(shape) - 2))
    pair[side, 0, 0] = value
    divergence = Divergence()
    with np.errstate(invalid="ignore"):
        divergence.add(*pair)
    assert (divergence.value, divergence.error) == (np.inf, np.inf)


def test_the_standard_error_is_that_of_the_mean_over_samples():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(200, 3, 4, 4))
    found, spread = [], []
    for _ in range(200):
        divergence = Divergence()
        for _ in range(4):
            picked = reference[rng.choice(200, 10)]
            noise = rng.normal(size=picked.shape) * rng.uniform(0, 1, (10, 1, 1, 1))
            divergence.add(picked, picked + noise)
        found.append(divergence.error)
        spread.append(divergence.value)
        assert divergence.samples == 40
    assert np.mean(found) == pytest.approx(np.std(spread), rel=0.15)


def test_fewer_than_two_samples_have_no_standard_error():
    divergence = Divergence()
    assert divergence.error == np.inf and divergence.samples == 0
    divergence.add(np.ones((1, 3)), np.zeros((1, 3)))
    assert divergence.error == np.inf
