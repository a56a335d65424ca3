"""Whether 8-bit products can overflow the 16-bit sums of processors without VNNI, and integers that cannot.

vpmaddubsw multiplies unsigned by signed bytes and adds the products of two neighbouring inputs in int16, saturating
beyond INT16_MAX; VNNI adds in int32 at once. As an activation may be 0 where its neighbour is the highest integer h, a
pair is safe when its integers of either sign sum to INT16_MAX / h at most: the pair_limit of a QuantSpec.
"""

from __future__ import annotations

import numpy as np
import torch

from ..spec import INT16_MAX, QuantSpec


def pair_bound(rows: np.ndarray, highest: int) -> int:
    """The largest magnitude that a sum of two neighbouring products can have: ``highest * |w_2i + w_2i+1|``.

    A weight whose sign the other has not counts as 0. rows: integers of the weight, (channels, inputs), in the order in
    which the kernel adds; highest: largest integer of the activation.
    """
    return int(highest * _sum_pairs(rows).max(initial=0))


def find_wide_pairs(rows: np.ndarray, highest: int) -> np.ndarray:
    """The pairs whose sum of products can leave int16, (n, 2): row and number of the pair in it, row by row."""
    return np.argwhere(highest * _sum_pairs(rows) > INT16_MAX)


def _sum_pairs(rows: np.ndarray) -> np.ndarray:
    return pair_sums(torch.from_numpy(rows.astype(np.int32))).numpy()


def pair_sums(rows: torch.Tensor) -> torch.Tensor:
    """Of each pair of neighbours (..., 2i), (..., 2i + 1) the larger of its sums of one sign, (..., pairs)."""
    pairs = _pair(rows)
    return torch.maximum(pairs.clamp_min(0).sum(-1), pairs.clamp_max(0).sum(-1).neg())


def _pair(rows: torch.Tensor) -> torch.Tensor:
    """(..., K) as (..., pairs, 2), with a zero beside the last of an odd number."""
    return torch.nn.functional.pad(rows, (0, rows.shape[-1] % 2)).unflatten(-1, (-1, 2))


def order_pairs(power: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Inputs (groups, K), pair behind pair, the pair with the input of most power first; one without a partner last.

    power (groups, K): of each input; order (K,): the inputs in the order in which the kernel adds.
    """
    inputs, single = len(order), len(order) % 2
    pairs = order[: inputs - single].reshape(-1, 2)
    first = power[:, pairs].amax(2).argsort(dim=1, descending=True, stable=True)
    last = order[inputs - single :].expand(len(power), single)
    return torch.cat([pairs[first].flatten(1), last], 1)


def clamp_beside(integers: torch.Tensor, partner: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """Bring integers into the part of the grid that those of their partners leave them; in place."""
    high = spec.pair_limit - partner.clamp_min(spec.pair_limit - spec.qmax)
    low = -spec.pair_limit - partner.clamp_max(-spec.pair_limit - spec.qmin)
    return integers.clamp_(low, high)


def keep_pairs(integers: torch.Tensor, limit: int | None) -> torch.Tensor:
    """The integers (..., K), whose pairs are neighbours, nearest to these with sums of one sign of ``limit`` at most.

    Both of a pair that is beyond it come down by half of what is too much.
    """
    if limit is None:
        return integers
    pairs = _pair(integers)
    much = (pair_sums(integers) - limit).clamp_min(0)
    beyond = torch.where(pairs.sum(-1) > 0, much, -much)
    half = (beyond / 2).trunc()
    larger = (pairs[..., 0].abs() >= pairs[..., 1].abs())[..., None]
    taken = torch.stack([beyond - half, half], -1)
    kept = pairs - torch.where(larger, taken, taken.flip(-1))
    return kept.flatten(-2)[..., : integers.shape[-1]]
