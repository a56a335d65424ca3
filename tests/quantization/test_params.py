"""Parameters of a layer: scales that its bias, and its spec, allow."""

from dataclasses import replace

import numpy as np
import pytest

from onnxcalib.numeric.ranges import make_grid
from onnxcalib.quantization.params import dequantize_weight, give_scale, guard_scale, make_params
from onnxcalib.spec import LayerScheme, QuantSpec

CHANNELS = QuantSpec(8, signed=True, symmetric=True, axis=0)
ONE, POWERS = replace(CHANNELS, axis=None), replace(CHANNELS, power_of_two=True)
GRID = make_grid(-1.0, 1.0, QuantSpec(8))
LEAST = 5 / (2.0**29 * float(GRID.scale))


def test_a_scale_is_raised_no_further_than_its_bias_needs():
    scale = np.float32([1e-3, 1e-20, 0.0])
    found = guard_scale(scale, np.float64([5.0, 5.0, 0.0]), GRID, CHANNELS)
    assert found[0] == scale[0] and found[1] == pytest.approx(LEAST) and found[2] > 0
    np.testing.assert_array_equal(guard_scale(scale[:2], None, GRID, CHANNELS), scale[:2])


def test_a_power_of_two_is_raised_to_the_next_one_that_the_bias_allows():
    found = guard_scale(np.float32([0.25, 1e-20, 2.0**-40]), np.float64([5.0, 5.0, 5.0]), GRID, POWERS)
    assert found[0] == 0.25 and np.all(np.log2(found) % 1 == 0)
    assert np.all((LEAST <= found[1:]) & (found[1:] < 2 * LEAST))


@pytest.mark.parametrize("power_of_two", [False, True])
def test_one_scale_is_a_scalar_that_all_biases_allow(power_of_two):
    spec = replace(ONE, power_of_two=power_of_two)
    layer = LayerScheme("layer", "Conv", "x", "w", "b", "y", spec, QuantSpec(8))
    scale, integers = 2.0**-40, np.full((2, 3, 1, 1), 100.0)
    found = make_params(layer, integers, (np.full(2, scale), None), np.float64([0.0, 5.0]), GRID)
    assert found.grid.scale.shape == found.grid.zero_point.shape == ()
    assert found.grid.scale == pytest.approx(LEAST, rel=1 if power_of_two else 1e-6) and found.grid.scale >= LEAST
    assert np.all(found.integers == np.rint(100 * scale / found.grid.scale))
    assert make_params(layer, integers, (np.full(2, 0.25), None), None, GRID).grid.scale == 0.25


def test_another_bias_leaves_the_weight_of_one_scale_what_it_was():
    layer = LayerScheme("layer", "Conv", "x", "w", "b", "y", ONE, QuantSpec(8))
    params = make_params(layer, np.full((2, 3, 1, 1), 100.0), (np.full(2, LEAST), None), np.float64([0.0, 5.0]), GRID)
    found = give_scale(params, params.grid.scale, np.float64([20.0, 5.0]), GRID)
    assert found.grid.scale == pytest.approx(4 * LEAST) and np.all(found.integers == 25)


def test_a_channel_whose_scale_its_bias_raises_loses_its_half_steps():
    spec = QuantSpec(2, signed=True, symmetric=True, axis=0, signed_scale=True, half_steps=True)
    layer = LayerScheme("layer", "Conv", "x", "w", "b", "y", spec, QuantSpec(8))
    integers, zero = np.array([[-2, 1], [-2, 1], [-2, 1]]), np.float32([-0.5, -0.5, 0])
    found = make_params(layer, integers, (np.float32([-0.1, 1e-20, -0.1]), zero), np.float64([5, 5, 5]), GRID)
    np.testing.assert_array_equal(found.grid.zero_point, np.float32([-0.5, 0, 0]))
    np.testing.assert_array_equal(found.integers, [[-2, 1], [0, 0], [-2, 1]])
    np.testing.assert_allclose(found.grid.scale, [-0.1, LEAST, -0.1], rtol=1e-6)
    np.testing.assert_allclose(dequantize_weight(found), [[0.15, -0.15], [0, 0], [0.2, -0.1]], atol=1e-6)
