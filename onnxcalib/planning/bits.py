"""Choices of one candidate for every set."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..spec import BitSet, Candidate

Bits = tuple[Candidate, ...]  # the candidate of every set


def find_smallest(sets: Sequence[BitSet]) -> Bits:
    """Every set at the candidate of fewest bytes among those of finite loss."""
    return tuple(min(_finite(each), key=lambda c: each.costs[c].bytes) for each in sets)


def find_largest(sets: Sequence[BitSet]) -> Bits:
    """Every set at the candidate of most bytes among those of finite loss."""
    return tuple(max(_finite(each), key=lambda c: each.costs[c].bytes) for each in sets)


def find_widest(sets: Sequence[BitSet]) -> Bits:
    """Every set at the most bits that it may have."""
    return tuple(max(each.losses) for each in sets)


def find_uniform(sets: Sequence[BitSet], candidate: Candidate) -> Bits:
    """Every set at this candidate, or at the most bits where it may not have the candidate."""
    return tuple(candidate if candidate in each.losses else max(each.losses) for each in sets)


def predict(sets: Sequence[BitSet], bits: Bits) -> float:
    """The sum of the sets' losses."""
    return sum(each.losses[c] for each, c in zip(sets, bits, strict=True))


def _finite(each: BitSet) -> list[Candidate]:
    return [c for c, loss in each.losses.items() if math.isfinite(loss)]
