"""The past of a decoder: inputs of the keys and values of the tokens before, and whether they are read."""

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


def says_past(spec: InputSpec) -> bool:
    """Whether an input says if a past is read: one truth value of a past's name, as ``use_cache_branch`` of Optimum."""
    return bool(NAMED.search(spec.name)) and np.dtype(spec.dtype) == np.bool_ and spec.shape == (1,)


def of_past(spec: InputSpec) -> bool:
    """Whether an input belongs to a past, which is empty where samples do not give it."""
    return is_past(spec) or says_past(spec)


def empty_past(spec: InputSpec, rows: int) -> np.ndarray:
    """A past of no tokens for so many samples, (rows, ..., 0, ...)."""
    assert spec.shape is not None
    return np.zeros([rows, *(side or 0 for side in spec.shape[1:])], spec.dtype)
