"""Coordinate descent against brute force, and scales refitted to integers."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcalib.numeric.descent import Descent
from onnxcalib.numeric.integer_search import Metric, excess_loss
from onnxcalib.numeric.pairs import keep_pairs, pair_sums
from onnxcalib.numeric.rounding import quantize
from onnxcalib.spec import QuantSpec
from tests.gram_matrices import draw_rows, draw_tiny

FOUR = QuantSpec(4, signed=True, symmetric=True, axis=0)
LIMITED = QuantSpec(8, signed=True, symmetric=True, axis=0, pair_limit=128)


def start(gram, optimum, integers, scale, spec):
    """A descent whose work is done in float64."""
    return Descent(Metric.of(gram), optimum, integers, scale, spec)


def descend(gram, optimum, integers, scale, spec):
    descent = start(gram, optimum, integers, scale, spec)
    while descent.sweep():
        pass
    return descent.integers()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3]))
def test_descent_ends_where_no_change_of_one_integer_helps(seed, bits):
    gram, optimum, spec = draw_tiny(seed, bits)
    scale = torch.full(optimum.shape[:2], 1.3, dtype=torch.float64)
    start = quantize(optimum, scale[..., None], 0, spec)
    found = descend(gram, optimum, start, scale, spec)
    loss = excess_loss(gram, optimum, found, scale)
    assert (loss <= excess_loss(gram, optimum, start, scale) + 1e-12).all()
    for j, value in itertools.product(range(optimum.shape[2]), range(spec.qmin, spec.qmax + 1)):
        other = found.clone()
        other[:, :, j] = value
        assert (excess_loss(gram, optimum, other, scale) >= loss - 1e-9).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3]))
def test_descent_finds_the_best_of_all_integers_where_inputs_are_not_correlated(seed, bits):
    gram, optimum, spec = draw_tiny(seed, bits)
    gram = torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
    scale = torch.full(optimum.shape[:2], 0.7, dtype=torch.float64)
    found = descend(gram, optimum, torch.zeros_like(optimum), scale, spec)
    grid = range(spec.qmin, spec.qmax + 1)
    all_of_them = torch.tensor(list(itertools.product(grid, repeat=optimum.shape[2])), dtype=torch.float64)
    for row in range(optimum.shape[1]):
        rows = optimum[:, row : row + 1].expand(-1, len(all_of_them), -1)
        losses = excess_loss(gram, rows, all_of_them[None], scale[:, :1].expand(-1, len(all_of_them)))
        mine = excess_loss(gram, optimum, found, scale)[0, row]
        torch.testing.assert_close(mine, losses.min(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 3, 1), (1, 1, 5), (2, 3, 4)])
def test_descent_does_not_change_the_integers_that_it_starts_from(shape):
    gram, weight = draw_rows(4, groups=shape[0], channels=shape[1], size=shape[2])
    start = torch.zeros_like(weight)
    found = descend(gram, weight, start, weight.abs().amax(2) / 7, FOUR)
    assert not start.any() and found.any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_with_a_scale_for_each_input_descent_ends_where_no_change_of_one_integer_helps(seed):
    gram, optimum, spec = draw_tiny(seed, 3)
    scale = torch.from_numpy(np.random.default_rng(seed).uniform(0.5, 2, size=optimum.shape))
    found = descend(gram, optimum, quantize(optimum, scale, 0, spec), scale, spec)
    loss = excess_loss(gram, optimum, found, scale)
    for j, value in itertools.product(range(optimum.shape[2]), range(spec.qmin, spec.qmax + 1)):
        other = found.clone()
        other[:, :, j] = value
        assert (excess_loss(gram, optimum, other, scale) >= loss - 1e-9).all()


def test_descent_under_a_limit_ends_where_no_allowed_change_helps():
    gram, weight = draw_rows(2, channels=6, size=7)
    scale = weight.abs().amax(2) / 90
    start = keep_pairs(quantize(weight, scale[..., None], 0, LIMITED), LIMITED.pair_limit)
    found = descend(gram, weight, start, scale, LIMITED)
    loss = excess_loss(gram, weight, found, scale)
    assert (loss <= excess_loss(gram, weight, start, scale) + 1e-9).all()
    for j, value in itertools.product(range(7), range(LIMITED.qmin, LIMITED.qmax + 1)):
        other = found.clone()
        other[:, :, j] = value
        allowed = pair_sums(other).amax(2) <= LIMITED.pair_limit
        assert (~allowed | (excess_loss(gram, weight, other, scale) >= loss - 1e-9)).all()


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_descent_keeps_pairs_within_their_limit(share):
    """At a share of 1 hardly any pair is beyond the limit before it is clamped, at 0.5 many are."""
    gram, weight = draw_rows(1, size=41, groups=2)
    scale = share * weight.abs().amax(2) / 64
    begin = keep_pairs(quantize(weight, scale[..., None], 0, LIMITED), LIMITED.pair_limit)
    integers = descend(gram, weight, begin, scale, LIMITED)
    assert int(pair_sums(integers).max()) <= LIMITED.pair_limit
    assert LIMITED.qmin <= int(integers.min()) and int(integers.max()) <= LIMITED.qmax
    assert torch.equal(integers, integers.round())


def test_equal_scales_for_all_inputs_descend_as_one_scale_does():
    gram, weight = draw_rows(6)
    scale = weight.abs().amax(2) / 6
    found = [
        start(gram, weight, quantize(weight, scale[..., None], 0, FOUR), each, FOUR)
        for each in (scale, scale[..., None].expand(weight.shape).contiguous())
    ]
    for descent in found:
        descent.sweep()
    assert torch.equal(*(descent.integers() for descent in found))
    torch.testing.assert_close(*(descent.loss() for descent in found))


@pytest.mark.parametrize("together", [False, True])
def test_a_refit_gives_integers_the_scale_of_least_loss(together):
    gram, weight = draw_rows(7, groups=2, channels=3, size=8)
    scale = weight.abs().amax(2) / 7
    scale = scale.amax().expand(scale.shape) if together else scale
    descent = start(gram, weight, quantize(weight, scale[..., None], 0, FOUR), scale, FOUR)
    descent.refit(together=together)
    torch.testing.assert_close(descent.loss(), excess_loss(gram, weight, descent.integers(), descent.unit))
    least = descent.loss().sum() if together else descent.loss()
    for factor in (0.999, 1.001):
        other = excess_loss(gram, weight, descent.integers(), factor * descent.unit)
        assert ((other.sum() if together else other) >= least).all()
    assert not together or len(descent.unit.unique()) == 1
    # The state behind a refit is that of a descent that begins there.
    again = start(gram, weight, descent.integers(), descent.unit, FOUR)
    torch.testing.assert_close(descent.gradient, again.gradient)


def test_a_row_of_zeros_keeps_its_scale():
    gram, weight = draw_rows(8, channels=2, size=5)
    scale = weight.abs().amax(2) / 7
    descent = start(gram, weight, torch.zeros_like(weight), scale, FOUR)
    descent.refit()
    assert torch.equal(descent.unit, scale)


def test_the_copy_of_least_loss_is_kept_of_each_row():
    gram, weight = draw_rows(9, channels=4, size=6)
    scales = torch.stack([weight.abs().amax(2) / levels for levels in (3, 7, 5)])
    rows, scale = weight.repeat(1, 3, 1), torch.cat(list(scales), 1)
    descent = start(gram, rows, quantize(rows, scale[..., None], 0, FOUR), scale, FOUR)
    losses = torch.stack(descent.loss().split(4, 1))
    descent.keep_best(losses)
    torch.testing.assert_close(descent.loss(), losses.amin(0))
    torch.testing.assert_close(descent.unit, scales.gather(0, losses.argmin(0)[None])[0])
    torch.testing.assert_close(excess_loss(gram, weight, descent.integers(), descent.unit), losses.amin(0))
