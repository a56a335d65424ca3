"""The bound on sums of two products, against all that the activations can be, and integers that keep to it."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxcalib.numeric.saturation import clamp_beside, find_wide_pairs, keep_pairs, order_pairs, pair_bound, pair_sums
from onnxcalib.spec import INT16_MAX, QuantSpec


def search(rows, highest):
    """The largest magnitude of the sum of a pair, over both ends of both activations."""
    found = 0
    for row in rows.tolist():
        for one, other in itertools.zip_longest(row[::2], row[1::2], fillvalue=0):
            sums = (a * one + b * other for a in (0, highest) for b in (0, highest))
            found = max(found, *map(abs, sums))
    return found


ROWS = st.tuples(st.integers(1, 4), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.int8, shape, elements=st.integers(-128, 127))
)


@settings(max_examples=300, deadline=None)
@given(ROWS, st.integers(0, 255))
def test_the_bound_is_reached_and_never_passed(rows, highest):
    assert pair_bound(rows, highest) == search(rows, highest)


@settings(max_examples=300, deadline=None)
@given(ROWS, st.integers(0, 255))
def test_the_pairs_that_can_saturate_are_those_whose_own_bound_is_beyond_int16(rows, highest):
    pairs = {
        (row, first // 2)
        for row in range(len(rows))
        for first in range(0, rows.shape[1], 2)
        if pair_bound(rows[row : row + 1, first : first + 2], highest) > INT16_MAX
    }
    found = find_wide_pairs(rows, highest)
    assert found.shape == (len(pairs), 2) and set(map(tuple, found.tolist())) == pairs
    assert sorted(found.tolist()) == found.tolist()


@settings(max_examples=50, deadline=None)
@given(arrays(np.int8, (3, 6), elements=st.integers(-8, 7)))
def test_weights_of_four_bits_never_saturate(rows):
    assert pair_bound(rows, 255) <= 255 * 16 < INT16_MAX


@pytest.mark.parametrize(
    ("row", "highest", "bound"),
    [
        ([127, 127], 255, 64770),
        ([-128, -128], 255, 65280),
        ([127, -128], 255, 32640),  # both cannot be felt at once with the same sign
        ([64, 64, 64], 255, 32640),
        ([65, 64], 255, 32895),
        ([0, 127, 127, 0], 255, 32385),
        ([127, 127], 127, 32258),
        ([127, 127], 15, 3810),
        ([5, 7], 0, 0),
    ],
)
def test_bounds_of_single_pairs(row, highest, bound):
    assert pair_bound(np.array([row], np.int8), highest) == bound


def test_the_worst_row_counts_and_rows_do_not_mix():
    assert pair_bound(np.array([[100, 1], [100, 2], [1, 100]], np.int8), 255) == 255 * 102
    assert pair_bound(np.array([[1, 2, 100], [100, 1, 2]], np.int8), 255) == 255 * 101


def test_nothing_sums_to_nothing():
    assert pair_bound(np.zeros((3, 0), np.int32), 255) == pair_bound(np.zeros((2, 3), np.int32), 255) == 0


def test_the_bound_is_that_of_a_processor_that_saturates():
    assert INT16_MAX == np.iinfo(np.int16).max


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
