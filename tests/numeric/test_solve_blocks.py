"""Blocks of inputs with scales, and zero points, of their own."""

from dataclasses import replace

import pytest
import torch

from onnxcalib.numeric.integer_search import Metric, excess_loss
from onnxcalib.numeric.scale_blocks import ScaleBlocks
from onnxcalib.numeric.solve_blocks import round_blocks, solve_blocks
from onnxcalib.spec import QuantSpec

TWO = QuantSpec(2, signed=True, symmetric=True, axis=0, block=8)
BLOCKS = ScaleBlocks((torch.arange(24) // 8)[None])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_negative_scale_puts_the_one_integer_more_where_the_large_weights_are():
    weights = draw(1, 1, 24).abs()
    weights[..., 0] = 4.0
    signed = replace(TWO, signed_scale=True)
    plain, negative = (round_blocks(weights, spec, BLOCKS) for spec in (TWO, signed))
    assert (plain[1].scale > 0).all() and negative[1].scale[0, 0, 0] < 0
    assert negative[0][0, 0, 0] == -2
    errors = [(q * grids.expand(BLOCKS)[0] - weights).square().sum() for q, grids in (plain, negative)]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize(
    "spec", [TWO, replace(TWO, signed_scale=True), QuantSpec(3, signed=True, axis=0, block=8)], ids=repr
)
def test_solved_blocks_are_on_their_grids_and_have_the_loss_that_is_told(spec):
    root, optimum = draw(1, 24, 40), draw(1, 6, 24, seed=1)
    metric = Metric.of(root @ root.mT / 40)
    found = solve_blocks(metric, optimum, spec, BLOCKS, 4)
    scale, zero = found.grids.expand(BLOCKS)
    stored = found.integers + (0 if zero is None else zero)
    assert stored.min() >= spec.qmin and stored.max() <= spec.qmax and torch.equal(stored, stored.round())
    loss = excess_loss(metric.gram, optimum, found.integers, scale) * metric.power
    torch.testing.assert_close(found.loss, loss, rtol=1e-6, atol=0)
    rounded, grids = round_blocks(optimum, spec, BLOCKS)
    plain = excess_loss(metric.gram, optimum, rounded, grids.expand(BLOCKS)[0]) * metric.power
    assert found.loss.sum() < 0.75 * plain.sum()
