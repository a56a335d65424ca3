"""Padding that a model of fixed length has to be fed: left out of what is measured, where a tensor shows its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..slabs import MASK


def find_real(feeds: Mapping[str, Any]) -> np.ndarray | None:
    """Whether each token of a run counts, bool (samples, tokens); None where all do, or no mask says."""
    mask = feeds.get(MASK)
    if mask is None or mask.ndim != 2:
        return None
    real = mask != 0
    return None if real.all() else real


def drop_padding(values: np.ndarray, real: np.ndarray | None) -> np.ndarray:
    """Of values (samples, tokens, ...) those of tokens that count, (some, ...); of other shapes all."""
    return values if real is None or values.shape[:2] != real.shape else values[real]
