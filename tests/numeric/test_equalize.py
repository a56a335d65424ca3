"""Factors by channel, chosen by the error that grids of one scale leave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxcalib.numeric.equalize import STEPS_TRIED, Equalized, Limits, choose_factors, measure_rounding

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


def round_to(values, step, levels):
    return np.clip(np.rint(values / step), -levels, levels) * step


@pytest.mark.parametrize("levels", [7, 15])
def test_what_grids_leave_of_a_channel_is_its_mean_squared_error_at_each_step(levels):
    values = np.random.default_rng(0).laplace(size=(3, 4096)).astype(np.float32)
    values[1], values[2] = np.linspace(0, 2, 4096), 0
    found = measure_rounding(values, levels)
    steps = STEPS_TRIED[:, None] * found.steps
    wanted = [
        [np.square(round_to(v, s, levels) - v).mean() for v, s in zip(values[:2], row, strict=False)] for row in steps
    ]
    np.testing.assert_allclose(found.errors[:2].T, wanted, rtol=1e-3)
    assert found.steps[1] == pytest.approx(2 / levels) and not found.errors[2].any()
    best = STEPS_TRIED[found.errors[:2].argmin(1)]
    assert best[0] < 0.9 < best[1] <= 1.1  # a grid leaves out rare values, and holds those that are not


def test_channels_of_few_levels_have_factors_with_which_one_grid_rounds_them_better():
    values = np.random.default_rng(0).exponential(size=(4, 2000)).astype(np.float32)
    values *= np.array([0.1, 1.0, 4.0, 0.5], np.float32)[:, None]
    rounding, gains = measure_rounding(values, 15), np.array([1.0, 1.0, 1.0, 0.0])
    first, second = (replace(each, by_row=True, left=0.01) for each in pair(np.sqrt(np.square(values).mean(1))))
    (found,) = choose_factors([first, replace(second, rounding=rounding, gains=gains)], [FREE])

    def lose(channels, factors):
        scaled = values[channels] * factors[channels, None]
        steps = np.geomspace(0.02, 1, 60) * scaled.max() / 15
        return min(np.square((round_to(scaled, s, 15) - scaled) / factors[channels, None]).sum() for s in steps)

    alone = sum(lose([channel], np.ones(4)) for channel in range(3))
    assert lose([0, 1, 2], found.by_channel) < 1.05 * alone < 0.7 * lose([0, 1, 2], np.ones(4))


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
