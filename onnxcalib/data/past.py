"""The past of a decoder: inputs of the keys and values that it made of the tokens before."""

from __future__ import annotations

import re

import numpy as np

from ..spec import InputSpec

NAMED = re.compile("past|cache", re.IGNORECASE)  # past_key_values.0.key of Optimum, past_0, key_cache of others


def is_past(spec: InputSpec) -> bool:
    """Whether an input holds a past of any length: floats of a past's name, whose shape leaves one axis open.

    That axis counts tokens. The first axis counts samples, and may be open too.
    """
    if not NAMED.search(spec.name) or np.dtype(spec.dtype).kind != "f" or spec.shape is None:
        return False
    return len(spec.shape) > 2 and spec.shape[1:].count(None) == 1


def empty_past(spec: InputSpec, rows: int) -> np.ndarray:
    """A past of no tokens for so many samples, (rows, ..., 0, ...)."""
    assert spec.shape is not None
    return np.zeros([rows, *(side or 0 for side in spec.shape[1:])], spec.dtype)
