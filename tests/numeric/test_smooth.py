"""Factors that move range from activations into weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxcalib.numeric.rounding import fake_quantize_rows
from onnxcalib.numeric.smooth import (
    LEAST_SHARE,
    Steps,
    fit_factors,
    reaching_factors,
    round_in_blocks,
    round_weight,
    smoothing_factors,
    solve_weight,
)
from onnxcalib.spec import QuantSpec

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


def test_a_reach_cuts_channels_alone_that_stick_out():
    found = reaching_factors(np.array([1.0, 40.0, 2.0, 0.0, 1.5]), 4.0)
    assert found.dtype == np.float32 and np.allclose(found, [1, 6 / 40, 1, 1, 1])
    assert (reaching_factors(np.zeros(3), 2.0) == 1).all()


EIGHT = QuantSpec(8, signed=True, symmetric=True, axis=0)


def draw_rows(count, seed):
    """Rows of which single ones are a thousand times as large, with channels that stick out, and one that is unused."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(count, 24)) * generator.lognormal(sigma=1, size=(count, 1))
    values *= np.where(np.arange(24) % 8 == 0, 25, 1)
    values[:2] *= 1000
    values[:, 5] = 0
    return values.astype(np.float32)


def lose(values, weights, factors):
    """By row, what both roundings change of the outputs of all layers, relative to these, on the mean."""
    lost = 0.0
    for weight in weights:
        integers, scale = round_weight((weight / factors[:, None]).T, EIGHT)
        rounded = fake_quantize_rows(torch.from_numpy(values * factors)).numpy() @ (integers * scale[:, None]).T
        wanted = values @ weight
        lost += (np.square(rounded - wanted).sum(1) / np.square(wanted).sum(1)).mean()
    return lost


def test_fitted_factors_lose_less_than_those_of_any_exponent():
    generator = np.random.default_rng(4)
    weights = [generator.normal(size=(24, outputs)).astype(np.float32) for outputs in (16, 40)]
    weights[0][3] *= 12
    seen, others = draw_rows(200, 0), draw_rows(400, 1)
    peaks, largest = np.abs(seen).max(0), [np.abs(weight).max(1) for weight in weights]
    starts = [smoothing_factors(peaks, largest, exponent) for exponent in np.linspace(0, 1, 21)]
    fitted = fit_factors(seen, weights, starts[10])
    assert fitted.dtype == np.float32 and np.prod(fitted, dtype=np.float64) == pytest.approx(1, rel=1e-4)
    assert lose(others, weights, fitted) < 0.9 * min(lose(others, weights, start) for start in starts)


def lose_in_blocks(values, weight, factors, block):
    rows = (values * factors).reshape(-1, block)
    rounded = fake_quantize_rows(torch.from_numpy(rows)).numpy().reshape(values.shape)
    spec = QuantSpec(8, signed=True, symmetric=True, axis=0, block=block)
    lost = np.square(rounded @ round_in_blocks((weight / factors[:, None]).T, spec).T - values @ weight)
    return (lost.sum(1) / np.square(values @ weight).sum(1)).mean()


def test_factors_are_fitted_to_blocks_of_rows_too():
    """Two channels that reach far cost what shares their blocks; it is with these that they are evened."""
    weight = np.random.default_rng(4).normal(size=(24, 30)).astype(np.float32)
    seen, others, even = draw_rows(200, 0), draw_rows(400, 1), np.ones(24, np.float32)
    rows, blocks = (fit_factors(seen, [weight], even, Steps(size, size)) for size in (None, 8))
    assert lose_in_blocks(others, weight, blocks, 8) < 0.8 * lose_in_blocks(others, weight, even, 8)
    assert lose_in_blocks(others, weight, blocks, 8) < lose_in_blocks(others, weight, rows, 8)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [None, 4])
def test_weights_in_blocks_miss_half_a_step_of_their_own_at_most(symmetric, block):
    weight = (np.random.default_rng(2).normal(size=(5, 12)) + 2).astype(np.float32) * np.repeat([1, 50, 0.02], 4)
    weight[0] = 0
    spec = QuantSpec(8, signed=True, symmetric=symmetric, axis=0, block=block)
    rounded = round_in_blocks(weight, spec).reshape(5, -1, block or 12)
    parts = weight.reshape(rounded.shape)
    ends = np.maximum(parts.max(2), 0), np.minimum(parts.min(2), 0)
    steps = np.maximum(ends[0], -ends[1]) / 127 if symmetric else (ends[0] - ends[1]) / 255
    missed = np.abs(rounded - parts).max(2)
    assert (missed <= (0.5 if symmetric else 1.0) * steps + 1e-6 * np.abs(parts).max()).all() and missed.any()


def test_factors_of_zeros_stay_finite():
    start = np.ones(4, np.float32)
    for values, weight in ((np.zeros((4, 4)), np.ones((4, 2))), (np.ones((4, 4)), np.zeros((4, 2)))):
        for steps in (Steps(), Steps(2, None), Steps(2, 4)):
            assert np.isfinite(fit_factors(values, [weight], start, steps)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_solving_leaves_less_than_rounding_where_inputs_are_alike(bits):
    generator, spec = np.random.default_rng(0), QuantSpec(bits, signed=True, symmetric=True, axis=0)
    inputs = generator.normal(size=(400, 4)) @ generator.normal(size=(4, 24)) + 0.1 * generator.normal(size=(400, 24))
    weight, gram = generator.normal(size=(6, 24)).astype(np.float32), inputs.T @ inputs / len(inputs)
    errors = []
    for integers, scale in (round_weight(weight, spec), solve_weight(weight, gram, spec)):
        assert integers.shape == weight.shape and np.array_equal(integers, np.rint(integers))
        assert spec.qmin <= integers.min() and integers.max() <= spec.qmax
        difference = integers * scale[:, None] - weight
        errors.append(np.einsum("ci,ij,cj->", difference, gram, difference))
    assert errors[1] < 0.7 * errors[0]


def test_weights_and_inputs_of_zero_are_solved():
    spec = QuantSpec(4, signed=True, symmetric=True, axis=0)
    for weight, gram in ((np.zeros((2, 3)), np.eye(3)), (np.ones((2, 3)), np.zeros((3, 3)))):
        integers, scale = solve_weight(weight, gram, spec)
        assert np.allclose(integers * scale[:, None], weight)
