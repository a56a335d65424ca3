"""Integers of which pairs of products cannot saturate: see ``saturation`` for why, and for what a pair is."""

from __future__ import annotations

import torch

from ..spec import QuantSpec


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
