"""Factors that move range from activations into weights."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib.numeric.smooth import LEAST_SHARE, smoothing_factors

PEAKS = np.array([1.0, 20.0, 0.5, 3.0])
ROWS = np.array([0.2, 0.1, 0.4, 0.3])


@pytest.mark.parametrize("exponent", [0.5, 0.8])
def test_factors_are_those_of_smoothquant(exponent):
    """Its equation 4 divides the activation by ``max|x|^a / max|w|^(1 - a)``."""
    wanted = 1 / (PEAKS**exponent / ROWS ** (1 - exponent))
    found = smoothing_factors(PEAKS, [ROWS], exponent)
    assert np.allclose(found / found[0], wanted / wanted[0], rtol=1e-6) and found.dtype == np.float32
    assert np.prod(found, dtype=np.float64) == pytest.approx(1, rel=1e-5)


def test_exponent_one_makes_all_channels_reach_as_far():
    assert np.ptp(PEAKS * smoothing_factors(PEAKS, [ROWS], 1.0)) < 1e-5


def test_of_several_layers_the_largest_weight_counts():
    both = smoothing_factors(PEAKS, [ROWS, ROWS[::-1]], 0.5)
    assert np.array_equal(both, smoothing_factors(PEAKS, [np.maximum(ROWS, ROWS[::-1])], 0.5))


def test_unused_channels_get_no_endless_factor():
    found = smoothing_factors(np.array([0.0, 1.0]), [np.array([0.0, 1.0])], 1.0)
    assert found[0] / found[1] == pytest.approx(1 / LEAST_SHARE, rel=1e-4)
    assert np.array_equal(smoothing_factors(np.zeros(2), [np.zeros(2)], 0.5), np.ones(2))
