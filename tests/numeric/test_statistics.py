"""The affine map between two versions of a tensor."""

import numpy as np
import pytest

from onnxcalib.numeric.statistics import PRIOR_VALUES, ChannelTally

RNG = np.random.default_rng(0)


def tally(y, z, axis=1):
    found = ChannelTally()
    for start in range(0, len(y), 4):
        found.add(y[start : start + 4], z[start : start + 4], axis)
    return found


def test_an_affine_change_is_undone():
    y = RNG.normal(2.0, 1.0, size=(8, 3, 30, 30))
    gain, shift = np.array([0.5, 1.0, 1.6]), np.array([1.0, 0.0, -2.0])
    z = y * gain[:, None, None] + shift[:, None, None]
    fit = tally(y, z).fit()
    mapped = fit.target[:, None, None] + fit.gain[:, None, None] * (z - fit.centre[:, None, None])
    assert np.abs(mapped - y).max() < 0.05
    assert fit.gain == pytest.approx(1 / gain, rel=0.01)


def test_the_gain_lies_between_the_one_that_keeps_deviations_and_that_of_least_squares():
    y = RNG.normal(size=(2000, 1))
    z = y + RNG.normal(size=(2000, 1))
    r = np.corrcoef(y[:, 0], z[:, 0])[0, 1]
    ratio = y.std() / z.std()
    gain = tally(y, z, -1).fit().gain[0]
    assert r * ratio < gain < ratio and gain == pytest.approx(np.sqrt(r) * ratio, rel=0.02)


def test_channels_of_no_variance_keep_their_scale_and_move_their_mean():
    y, z = np.ones((4, 2, 50, 50)), np.zeros((4, 2, 50, 50))
    y[:, 1] = RNG.normal(size=(4, 50, 50))
    z[:, 1] = -y[:, 1]  # what opposes the float values is no better scaled
    fit = tally(y, z).fit()
    assert fit.gain == pytest.approx([1, 1]) and fit.target[0] == pytest.approx(1, abs=0.01)


def test_few_values_change_little():
    y = RNG.normal(size=(4, 1)) * 2 + 1
    fit = tally(y, y / 2, -1).fit()
    weight = 4 / (4 + PRIOR_VALUES)
    assert fit.gain[0] == pytest.approx(1 + weight)
    assert fit.target[0] == pytest.approx(fit.centre[0] * (1 + weight))


def test_without_a_bias_the_map_goes_through_zero():
    y = RNG.normal(3.0, 1.0, size=(4000, 2))
    fit = tally(y, y * [2.0, 0.5], -1).fit(centred=False)
    assert fit.gain == pytest.approx([0.5, 2.0], rel=0.01)
    assert not fit.centre.any() and not fit.target.any()
