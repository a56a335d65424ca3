"""Whether 8-bit products can overflow the 16-bit sums of processors without VNNI, and integers that cannot.

x86's vpmaddubsw multiplies unsigned by signed bytes, and adds the products of two neighbouring inputs in int16, where
they saturate at INT16_MAX. VNNI adds in int32. The two activations of a pair may be any integers from 0 to the highest,
h, so that the sum is largest where only weights of one sign count. A pair of weights is safe if its positive integers,
and its negative ones, sum to INT16_MAX / h at most: the pair_limit of a QuantSpec.
"""

from __future__ import annotations

import numpy as np
import torch

from ..spec import INT16_MAX, QuantSpec


def pair_bound(rows: np.ndarray, highest: int) -> int:
    """The largest magnitude of a sum of two neighbouring products: ``highest`` times the largest of ``pair_sums``.

    rows (channels, inputs): the weight's integers, in the order in which the kernel sums; highest: the activation's
    largest integer.
    """
    return int(highest * _sum_pairs(rows).max(initial=0))


def find_wide_pairs(rows: np.ndarray, highest: int) -> np.ndarray:
    """The pairs whose sum of products can leave int16: rows (row, index of the pair in it) of an array (n, 2).

    Arguments as in ``pair_bound``.
    """
    return np.argwhere(highest * _sum_pairs(rows) > INT16_MAX)


def _sum_pairs(rows: np.ndarray) -> np.ndarray:
    sums: np.ndarray = pair_sums(torch.from_numpy(rows.astype(np.int32))).numpy()
    return sums


def pair_sums(rows: torch.Tensor) -> torch.Tensor:
    """For each pair, elements 2i and 2i + 1 of the last axis, the sum of its positive or, if larger, negative elements.

    rows (..., K) -> magnitudes (..., pairs); the last of an odd number is a pair with zero.
    """
    first, second = _pair(rows).unbind(-1)  # sums over an axis of two take several times as long
    return torch.maximum(first.clamp_min(0) + second.clamp_min(0), -(first.clamp_max(0) + second.clamp_max(0)))


def _pair(rows: torch.Tensor) -> torch.Tensor:
    """(..., K) as (..., pairs, 2), with a zero beside the last of an odd number."""
    pairs: torch.Tensor = torch.nn.functional.pad(rows, (0, rows.shape[-1] % 2)).unflatten(-1, (-1, 2))
    return pairs


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

    Both integers of a pair beyond the limit lose half of the excess; the larger one loses the odd unit.
    """
    if limit is None:
        return integers
    excess = (pair_sums(integers) - limit).clamp_min(0)
    if not bool(excess.any()):
        return integers
    first, second = _pair(integers).unbind(-1)
    beyond = torch.where(first + second > 0, excess, -excess)
    half = (beyond / 2).trunc()
    most = beyond - half
    larger = first.abs() >= second.abs()
    kept = [first - torch.where(larger, most, half), second - torch.where(larger, half, most)]
    return torch.stack(kept, -1).flatten(-2)[..., : integers.shape[-1]]
