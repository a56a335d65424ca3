"""The bound on sums of two products, against all that the activations can be."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxcalib.numeric.saturation import find_wide_pairs, pair_bound
from onnxcalib.spec import INT16_MAX


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
