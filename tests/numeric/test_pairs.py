"""Integers of which pairs of products keep to a limit, against the bound of what saturates."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxcalib.numeric.pairs import clamp_beside, keep_pairs, order_pairs, pair_sums
from onnxcalib.numeric.saturation import pair_bound
from onnxcalib.spec import QuantSpec

ROWS = st.tuples(st.integers(1, 4), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.int8, shape, elements=st.integers(-128, 127))
)


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_sums_of_pairs_are_what_the_bound_is_of(rows):
    assert 255 * int(pair_sums(torch.from_numpy(rows.astype(float))).max()) == pair_bound(rows, 255)


@settings(max_examples=200, deadline=None)
@given(ROWS, st.integers(128, 200))
def test_pairs_that_are_kept_are_within_their_limit_and_moved_as_little_as_can_be(rows, limit):
    given_rows = torch.from_numpy(rows.astype(float))
    kept = keep_pairs(given_rows, limit)
    sums = pair_sums(given_rows)
    assert torch.equal(pair_sums(kept), sums.clamp_max(limit))
    moved = torch.nn.functional.pad(given_rows - kept, (0, rows.shape[1] % 2)).unflatten(1, (-1, 2)).abs()
    much = (sums - limit).clamp_min(0)
    assert torch.equal(moved.sum(2), much) and (moved[..., 0] - moved[..., 1]).abs().max() <= 1
    assert torch.equal(keep_pairs(given_rows, None), given_rows)


@settings(max_examples=300, deadline=None)
@given(st.integers(-400, 400), st.integers(-128, 127), st.integers(128, 255))
def test_an_integer_is_clamped_to_what_its_partner_leaves_it(integer, partner, limit):
    spec = QuantSpec(8, signed=True, symmetric=True, axis=0, pair_limit=limit)
    allowed = [q for q in range(-128, 128) if pair_bound(np.array([[q, partner]]), 1) <= limit]
    one, other = (torch.tensor([float(x)]) for x in (integer, partner))
    assert clamp_beside(one, other, spec).item() == min(allowed, key=lambda q: abs(q - integer))


def test_pairs_are_ordered_by_their_input_of_most_power_and_one_without_a_partner_is_last():
    power = torch.tensor([[1.0, 9.0, 2.0, 3.0, 99.0], [5.0, 0.0, 6.0, 7.0, 99.0]])
    order = torch.tensor([1, 3, 0, 2, 4])
    assert order_pairs(power, order).tolist() == [[1, 3, 0, 2, 4], [1, 3, 0, 2, 4]]
    assert order_pairs(power[:, :4], torch.tensor([0, 2, 1, 3])).tolist() == [[1, 3, 0, 2], [1, 3, 0, 2]]
    assert order_pairs(power[:, :4], torch.tensor([3, 2, 1, 0])).tolist() == [[1, 0, 3, 2], [3, 2, 1, 0]]
