"""Least cuts, against all cuts of small problems."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxcalib.numeric.cut import MOST_COST, NEVER, cut


def cost_of(sides, first, second, borders):
    own = sum(here if side else there for side, here, there in zip(sides, first, second, strict=True))
    return own + sum(cost for (a, b), cost in borders.items() if sides[a] and not sides[b])


@pytest.mark.parametrize("seed", range(10))
def test_no_cut_costs_less(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 20, (2, 7)).tolist()
    pairs = [(a, b) for a, b in itertools.permutations(range(7), 2) if rng.random() < 0.4]
    borders = {pair: int(rng.integers(0, 10)) for pair in pairs}
    found = cost_of(cut(first, second, borders), first, second, borders)
    every = itertools.product((False, True), repeat=7)
    assert found == min(cost_of(sides, first, second, borders) for sides in every)


def test_of_equal_cuts_the_one_with_fewer_items_on_the_first_side_is_taken():
    assert cut([5, 3], [5, 4], {}).tolist() == [False, True]


def test_an_item_is_never_where_it_must_not_be():
    assert cut([NEVER, 0.0], [MOST_COST * 2.0, 4.0], {}).tolist() == [False, True]
    assert cut([0.0, 9.0], [5.0, 0.0], {(0, 1): NEVER}).tolist() == [False, False]


def test_large_costs_keep_their_proportions():
    assert cut([MOST_COST * 4.0, MOST_COST * 2.0], [MOST_COST * 3.0, MOST_COST * 3.0], {}).tolist() == [False, True]
