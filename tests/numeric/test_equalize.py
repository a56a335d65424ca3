"""Factors by channel, chosen by the error that grids of one scale leave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxcalib.numeric.equalize import Equalized, Limits, choose_factors, find_reaches

FREE = Limits(np.full(4, np.inf), np.zeros(4, bool))


def describe(weight, powers, reaches, weights=None, **junctions):
    rows = np.abs(weight)[None]
    given = np.ones(len(weight)) if weights is None else weights
    return Equalized(rows, rows**2, 1, powers, reaches, given, **junctions)


def pair(scales):
    """Two layers, of which the first gives channels of these scales, as batch normalization leaves them."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(4, 8)) * scales[:, None]
    second = rng.normal(size=(6, 4))
    weights = (second**2).sum(0)
    return [
        describe(first, np.ones(8), np.full(8, 3.0), weights, after=0),
        describe(second, scales**2, 3 * scales, before=0),
    ]


def test_channels_of_unlike_scale_are_brought_nearer_to_each_other():
    scales = np.array([0.01, 1.0, 30.0, 0.2])
    (found,) = choose_factors(pair(scales), [FREE])
    evened = found.by_channel * scales
    assert evened.max() / evened.min() < scales.max() / scales.min() / 10
    assert (np.diff(found.by_channel[np.argsort(scales)]) < 0).all()


def test_channels_that_are_alike_keep_about_one_factor():
    (found,) = choose_factors(pair(np.ones(4)), [FREE])
    assert found.by_channel.max() < 3 * found.by_channel.min()


def test_factors_keep_to_the_most_and_tied_channels_have_the_common_one():
    limits = Limits(np.array([2.0, 1.0, 1.0, np.inf]), np.array([False, True, True, False]))
    (found,) = choose_factors(pair(np.array([0.01, 1.0, 30.0, 0.2])), [limits], power_of_two=True)
    assert found.by_channel[0] <= 2.0 * found.common * (1 + 1e-9)
    np.testing.assert_allclose(found.by_channel[1:3], found.common)


def test_factors_keep_to_the_least_even_where_less_would_serve():
    least = np.array([0.5, 0.5, 40.0, 0.5])
    (found,) = choose_factors(pair(np.array([0.01, 1.0, 30.0, 0.2])), [replace(FREE, least=least)])
    assert (found.by_channel >= least * (1 - 1e-9)).all()
    np.testing.assert_allclose(found.by_channel[2], 40)


@pytest.mark.parametrize("levels", [7, 15])
def test_a_grid_reaches_as_far_as_leaves_the_least_squared_error(levels):
    values = np.random.default_rng(0).laplace(size=(3, 4096)).astype(np.float32)
    values[1], values[2] = np.linspace(0, 2, 4096), 0
    reaches = find_reaches(values, levels)

    def lose(end):
        step = end / levels
        return np.square(np.clip(np.rint(values[0] / step), -levels, levels) * step - values[0]).sum()

    assert lose(reaches[0]) <= 1.02 * min(map(lose, np.geomspace(0.25, 1, 9) * np.abs(values[0]).max()))
    assert reaches[0] < 0.9 * np.abs(values[0]).max() and 1.8 < reaches[1] <= 2 and reaches[2] == 0


def test_a_common_factor_brings_a_range_to_a_power_of_two():
    layers = [
        replace(layer, powers=np.zeros_like(layer.powers)) for layer in pair(np.full(4, 1.5))
    ]  # inputs count alone
    (found,) = choose_factors(layers, [Limits(np.ones(4), np.ones(4, bool))], power_of_two=True)
    octaves = np.log2(layers[1].reaches.max() * found.common / 127)
    assert 0 <= np.ceil(octaves) - octaves < 1 / 16


def test_without_junctions_there_are_no_factors():
    assert choose_factors([], []) == []


@pytest.mark.parametrize("power_of_two", [False, True])
def test_a_dead_channel_gets_a_finite_factor(power_of_two):
    scales = np.array([0.0, 1.0, 1.0, 1.0])
    (found,) = choose_factors(pair(scales), [FREE], power_of_two=power_of_two)
    assert np.isfinite(found.by_channel).all()
    assert (found.by_channel > 0).all()
