"""Whether 8-bit products can overflow the 16-bit sums of processors without VNNI, and integers that cannot.

x86's vpmaddubsw multiplies unsigned by signed bytes, and adds the products of two neighbouring inputs in int16, where
they saturate at INT16_MAX. VNNI adds in int32. The two activations of a pair may be any integers from 0 to the highest,
h, so that the sum is largest where only weights of one sign count. A pair of weights is safe if its positive integers,
and its negative ones, sum to INT16_MAX / h at most: the pair_limit of a QuantSpec.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ..spec import INT16_MAX, QuantSpec

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
    """``pair_sums`` of a few rows after the other, each with the number of its first row."""
    at_once = max(1, PIECE // max(rows.shape[1], 1))
    for first in range(0, len(rows), at_once):
        yield first, pair_sums(torch.from_numpy(rows[first : first + at_once].astype(np.int32))).numpy()


def pair_sums(rows: torch.Tensor) -> torch.Tensor:
    """For each pair, elements 2i and 2i + 1 of the last axis, the sum of its positive or, if larger, negative elements.

    It is that of both where they have one sign, and otherwise that of the larger one. rows (..., K) -> magnitudes
    (..., pairs); the last of an odd number is a pair with zero.
    """
    first, second = _halves(torch.nn.functional.pad(rows, (0, rows.shape[-1] % 2)))
    return torch.maximum((first + second).abs_(), torch.maximum(first.abs(), second.abs()))


def _halves(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of the first and of the second elements of all pairs (..., pairs); an odd last one is left out."""
    size = rows.shape[-1] // 2 * 2
    return rows[..., 0:size:2], rows[..., 1:size:2]


def order_pairs(power: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Inputs (G, K) pair by pair, by descending power of the stronger input; an input without a partner comes last.

    power (G, K): of each input in G groups; order (K,): the inputs in the order in which the kernel sums.
    """
    inputs, single = len(order), len(order) % 2
    pairs = order[: inputs - single].reshape(-1, 2)
    first = power[:, pairs].amax(2).argsort(dim=1, descending=True, stable=True)
    last = order[inputs - single :].expand(len(power), single)
    return torch.cat([pairs[first].flatten(1), last], 1)


def clamp_beside(integers: torch.Tensor, partner: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """Clamp integers, in place, to the part of the grid that their partners' integers leave them.

    ``spec`` has a pair_limit; ``partner`` has the shape of ``integers``.
    """
    assert spec.pair_limit is not None
    high = spec.pair_limit - partner.clamp_min(spec.pair_limit - spec.qmax)
    low = -spec.pair_limit - partner.clamp_max(-spec.pair_limit - spec.qmin)
    return integers.clamp_(low, high)


def keep_pairs(integers: torch.Tensor, limit: int | None) -> torch.Tensor:
    """The integers (..., K) with every pair's sum of one sign brought down to ``limit``; as they are for None.

    No single integer may be beyond it. Of a pair that is, both lose half of the excess; the larger one loses the odd
    unit.
    """
    if limit is None:
        return integers
    first, second = _halves(integers)
    sums = first + second
    beyond = sums - sums.clamp(-limit, limit)
    wide = beyond.nonzero(as_tuple=True)  # few of the pairs
    if not len(wide[0]):
        return integers
    kept = integers.clone()
    first, second = _halves(kept)
    one, other, beyond = first[wide], second[wide], beyond[wide]
    half = (beyond / 2).trunc()
    most = beyond - half
    larger = one.abs() >= other.abs()
    first[wide] = one - torch.where(larger, most, half)
    second[wide] = other - torch.where(larger, half, most)
    return kept
