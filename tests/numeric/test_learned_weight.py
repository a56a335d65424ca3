"""Weights whose integers and scales are learned."""

import pytest
import torch

from onnxcalib.numeric.learned_weight import FARTHEST_START, LearnedWeight
from onnxcalib.spec import QuantSpec

SPEC = QuantSpec(2, signed=True, symmetric=True, axis=0, block=4, signed_scale=True)
INTEGERS = torch.tensor([[-2, 1, 0, 1, -1, 0], [1, 1, -2, 0, 0, -1]], dtype=torch.int8)
SCALE = torch.tensor([[0.5, -0.25], [2.0, 1.0]])
VALUES = torch.tensor([[-1.0, 0.5, 0, 0.5, 0.25, 0], [2, 2, -4, 0, 0, -1]])


def test_the_weight_is_integers_times_the_scales_of_their_blocks():
    learned = LearnedWeight(VALUES + 0.1, INTEGERS, SCALE, SPEC)
    assert torch.equal(learned(torch.empty(0)), VALUES)
    assert torch.equal(learned.integers, INTEGERS.float()) and torch.equal(learned.scale, SCALE)


def test_positions_start_on_the_side_of_the_float_weight():
    learned = LearnedWeight(VALUES + torch.tensor([[0.1], [9.0]]), INTEGERS, SCALE, SPEC)
    beside = learned.position.detach() - INTEGERS
    assert torch.allclose(beside[0], torch.tensor([0.2, 0.2, 0.2, 0.2, -0.4, -0.4]), atol=1e-6)
    assert torch.allclose(beside[1], torch.full((6,), FARTHEST_START), atol=1e-6)


def test_gradients_are_those_of_the_product_straight_through_to_positions():
    learned = LearnedWeight(VALUES, INTEGERS, SCALE, SPEC)
    slope = torch.arange(12.0).reshape(2, 6)
    (learned(torch.empty(0)) * slope).sum().backward()
    blocks = torch.tensor([0, 0, 0, 0, 1, 1])
    assert torch.allclose(learned.position.grad, slope * SCALE[:, blocks])
    by_scale = slope * INTEGERS
    wanted = torch.stack([by_scale[:, :4].sum(1), by_scale[:, 4:].sum(1)], 1) * SCALE
    assert torch.allclose(learned.log_scale.grad, wanted)


@pytest.mark.parametrize("zero", [0.0, -2.0, 1.0])
def test_integers_stay_within_their_ends_beside_zero_points(zero):
    spec = QuantSpec(2, signed=True, axis=0, block=4)
    learned = LearnedWeight(VALUES, INTEGERS, SCALE.abs(), spec, torch.full_like(SCALE, zero))
    with torch.no_grad():
        learned.position[0], learned.position[1] = 100.0, -100.0
    assert (learned.integers[0] == 1 - zero).all() and (learned.integers[1] == -2 - zero).all()


def test_a_kernel_with_one_scale_a_channel_keeps_its_shape():
    integers = torch.randint(-2, 2, (3, 2, 5, 5), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([[1.0], [2.0], [3.0]])
    learned = LearnedWeight(integers.float(), integers, scale, QuantSpec(2, signed=True, symmetric=True, axis=0))
    assert torch.equal(learned(torch.empty(0)), integers * scale[..., None, None])
