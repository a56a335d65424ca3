"""Fill values: large negative constants that a model writes where scores are masked, in place of minus infinity."""

from __future__ import annotations

import numpy as np

# A fill value has at least so many times the magnitude of all other values.
GAP = 1e3


def find_fill(reference: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """Where both tensors hold the fill value of the reference; None where it has none, or nothing else.

    That is the lowest finite value, which both hold in the same places, and which dwarfs all others: next to -1e9 no
    difference of scores would show.
    """
    if reference.shape != other.shape or not reference.size:
        return None
    lowest = float(reference.min(initial=np.inf, where=np.isfinite(reference)))
    found = reference == lowest
    rest = float(np.abs(reference).max(initial=0.0, where=~found & np.isfinite(reference)))
    if not np.isfinite(lowest) or found.all() or lowest > -GAP * max(rest, 1.0):
        return None
    return found if np.array_equal(found, other == lowest) else None
