"""Choices of one candidate for every set."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..config import FULL_BITS
from ..spec import BitSet, Candidate

Bits = tuple[Candidate, ...]  # the candidate of every set


def find_smallest(sets: Sequence[BitSet]) -> Bits:
    """Every set at the candidate of fewest bytes among those of finite loss."""
    return tuple(min(_finite(each), key=lambda c: (each.costs[c].bytes, each.wide_elements(c))) for each in sets)


def find_largest(sets: Sequence[BitSet]) -> Bits:
    """Every set at the candidate of most bytes among those of finite loss."""
    return tuple(max(_finite(each), key=lambda c: each.costs[c].bytes) for each in sets)


def find_widest(sets: Sequence[BitSet]) -> Bits:
    """Every set at the most bits that it may have, but activations at 8 where they may."""
    return find_uniform(sets, Candidate(FULL_BITS, FULL_BITS))


def find_uniform(sets: Sequence[BitSet], candidate: Candidate) -> Bits:
    """Every set at this candidate, or else at the most bits that it may have with activations of no more."""
    return tuple(candidate if candidate in each.losses else _find_nearest(each, candidate) for each in sets)


def _find_nearest(each: BitSet, candidate: Candidate) -> Candidate:
    most = max(FULL_BITS, candidate.activation_bits)
    return max([c for c in each.losses if c.activation_bits <= most] or each.losses)


def predict(sets: Sequence[BitSet], bits: Bits) -> float:
    """The sum of the sets' losses."""
    return sum(each.losses[c] for each, c in zip(sets, bits, strict=True))


def share_wide(sets: Sequence[BitSet], bits: Bits) -> float:
    """Elements of activations in % that have 16 bits."""
    wide = sum(each.wide_elements(c) for each, c in zip(sets, bits, strict=True))
    return 100 * wide / max(1, sum(each.elements for each in sets))


def _finite(each: BitSet) -> list[Candidate]:
    return [c for c, loss in each.losses.items() if math.isfinite(loss)]
