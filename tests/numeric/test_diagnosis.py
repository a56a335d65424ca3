"""What values show about their grid: each symptom on values that have it alone."""

import numpy as np
import pytest

from onnxcalib.numeric.diagnosis import channel_gains, diagnose, rounding_sqnr

INF = float("inf")


@pytest.fixture
def even():
    """Values spread evenly from -1 to 1 in each of 8 channels, (samples, channels, places)."""
    values = np.linspace(-1, 1, 5000, dtype=np.float32)
    return np.stack([np.random.default_rng(i).permutation(values) for i in range(8)], axis=1).reshape(50, 100, 8)


def look(values, scale=0.01, low=-1.28, high=1.27, axis=2):
    return diagnose(values, scale, low, high, axis)


def test_values_that_fill_their_grid_show_nothing(even):
    found = look(even, 2 / 255, -1, 1)
    assert found.spread == pytest.approx(1.002, abs=2e-3)
    assert (found.clipped, found.unlike, found.dead) == (0, 1, 0)


def test_spread_is_the_grid_over_the_bulk(even):
    even[0, 0, 0] = 80
    assert look(even, 0.5, -20, 80).spread == pytest.approx(100 / 1.996, rel=1e-3)


def test_a_bulk_of_one_value_is_infinitely_narrow():
    values = np.zeros((10, 4, 1000), np.float32)
    values[0, 0, 0] = 5
    assert look(values, axis=1).spread == INF


@pytest.mark.parametrize(("low", "high", "share"), [(-0.5, 1.0, 0.25), (-1.0, 0.5, 0.25), (-0.5, 0.5, 0.5), (-2, 2, 0)])
def test_clipped_is_the_share_of_values_outside(even, low, high, share):
    assert look(even, 0.001, low, high).clipped == pytest.approx(share, abs=2e-3)


def test_values_within_half_a_step_of_the_end_are_not_clipped():
    values = np.float32([[-0.14, -0.16, 0.0, 1.04, 1.06, 0.5]])
    assert look(values, 0.1, -0.1, 1.0, axis=0).clipped == pytest.approx(2 / 6)


def test_unlike_is_the_widest_channel_over_the_middle_one(even):
    even[..., 3] *= 40
    assert look(even, 0.5, -64, 63.5).unlike == pytest.approx(40)
    even[..., 4:] = 0  # of 4 channels that are not dead the middle one is as before
    assert look(even, 0.5, -64, 63.5).unlike == pytest.approx(40)
    even[..., 3] *= -1
    assert look(even, 0.5, -64, 63.5).unlike == pytest.approx(40)


def test_dead_is_the_share_of_channels_that_are_zero_throughout(even):
    even[..., :3] = 0
    even[0, 0, 0] = -1e-6
    assert look(even).dead == 2 / 8


def test_a_tensor_of_zeros_is_dead_and_no_channel_unlike():
    found = look(np.zeros((2, 3, 4), np.float32), axis=1)
    assert (found.dead, found.unlike, found.clipped, found.sqnr_db) == (1, 1, 0, INF)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_channels_are_counted_on_their_axis(even, axis):
    values = np.moveaxis(even * np.float32([1, 1, 1, 1, 1, 1, 1, 9]), 2, axis)
    values = np.ascontiguousarray(values)
    assert look(values, 0.1, -12.8, 12.7, axis).unlike == pytest.approx(9)


def test_the_sqnr_is_that_of_an_even_error_over_a_step(even):
    scale, power = 2 / 255, np.square(even).mean()
    assert look(even, scale, -1, 1).sqnr_db == pytest.approx(10 * np.log10(power / (scale**2 / 12)), abs=0.05)


def test_the_sqnr_counts_what_is_clipped():
    values = np.float32([[1.0, 2.0, 4.0]])
    assert look(values, 1.0, 0.0, 3.0, axis=0).sqnr_db == pytest.approx(10 * np.log10(21 / 1))
    assert look(values, 1.0, 0.0, 4.0, axis=0).sqnr_db == INF


def simulate(integers, scale):
    """SQNR of weights drawn evenly within half a step of each integer."""
    weights = scale * (integers + np.random.default_rng(0).uniform(-0.5, 0.5, (400, *integers.shape)))
    return 10 * np.log10(np.square(scale * integers).sum() * 400 / np.square(weights - scale * integers).sum())


@pytest.mark.parametrize(
    ("shape", "scale", "axis"),
    [
        ((4, 3, 3, 3), (4,), 0),
        ((6, 4, 2, 2), (4,), 1),
        ((5, 4), (4,), -1),
        ((5, 4), (), 0),
        ((5, 4), (1,), 0),
        ((5, 4), (5, 1), 1),
        ((6, 4), (6, 4), 0),
    ],
)
def test_rounding_leaves_what_a_simulation_leaves(shape, scale, axis):
    rng = np.random.default_rng(3)
    integers, steps = rng.integers(-8, 8, shape), rng.uniform(0.01, 1, scale).astype(np.float32)
    along = [-1 if i == axis % len(shape) else 1 for i in range(len(shape))]
    spread = steps.reshape(along) if len(scale) == 1 else steps
    assert rounding_sqnr(integers, steps, axis) == pytest.approx(simulate(integers, spread), abs=0.1)


def test_bytes_and_nibbles_of_a_weight_differ_by_their_bits():
    ends = np.linspace(-1, 1, 4001)
    eight, four = (rounding_sqnr(np.rint(ends * top)[None], np.float32([1 / top]), 0) for top in (127, 7))
    assert eight - four == pytest.approx(20 * np.log10(127 / 7), abs=0.5)


def test_a_weight_of_zeros_is_noise_alone():
    assert rounding_sqnr(np.zeros((2, 2), np.int32), np.ones(2, np.float32), 0) < -1000


def test_gains_are_those_of_each_channel_whatever_its_offset(draw):
    x = draw(50, 3, 4)
    gains, correlations = channel_gains(x, x * np.float32([-1, 0.5, 2])[:, None] + 7, 1)
    np.testing.assert_allclose(gains, [-1, 0.5, 2], rtol=1e-5)
    np.testing.assert_allclose(correlations, [-1, 1, 1], rtol=1e-5)
    gains, correlations = channel_gains(x, np.ones_like(x), 1)
    assert gains.tolist() == correlations.tolist() == [0, 0, 0]
