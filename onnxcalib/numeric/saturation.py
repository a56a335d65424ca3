"""Whether 8-bit products can overflow the 16-bit sums of processors without VNNI.

x86's vpmaddubsw multiplies unsigned by signed bytes, and adds the products of two neighbouring inputs in int16, where
they saturate at INT16_MAX. VNNI adds in int32. The two activations of a pair may be any integers from 0 to the highest,
h, so that the sum is largest where only weights of one sign count. A pair of weights is safe if its positive integers,
and its negative ones, sum to INT16_MAX / h at most: the pair_limit of a QuantSpec.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..spec import INT16_MAX

# Integers of a weight of which sums are in memory at once.
PIECE = 2**20


def pair_bound(rows: np.ndarray, highest: int) -> int:
    """The largest magnitude of a sum of two neighbouring products: ``highest`` times the largest of ``pair_sums``.

    rows (channels, inputs): the weight's integers, in the order in which the kernel sums; highest: the activation's
    largest integer.
    """
    return max((int(highest * sums.max(initial=0)) for _, sums in _sum_pairs(rows)), default=0)


def find_wide_pairs(rows: np.ndarray, highest: int) -> np.ndarray:
    """The pairs whose sum of products can leave int16: rows (row, index of the pair in it) of an array (n, 2).

    Arguments as in ``pair_bound``.
    """
    found = [np.argwhere(highest * sums > INT16_MAX) + np.array([first, 0]) for first, sums in _sum_pairs(rows)]
    return np.concatenate([np.zeros((0, 2), np.intp), *found])


def _sum_pairs(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The ``pairs.pair_sums`` of a few rows after the other, int32, each with the number of its first row."""
    at_once = max(1, PIECE // max(rows.shape[1], 1))
    for start in range(0, len(rows), at_once):
        piece = np.pad(rows[start : start + at_once].astype(np.int32), ((0, 0), (0, rows.shape[1] % 2)))
        first, second = piece[:, 0::2], piece[:, 1::2]
        yield start, np.maximum(np.abs(first + second), np.maximum(np.abs(first), np.abs(second)))
