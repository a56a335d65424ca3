"""Inputs that samples may leave out, as a model's own outputs fill them: a decoder's past, and states of sequences."""

from __future__ import annotations

import numpy as np

from ..spec import InputSpec
from .past import empty_past, is_past, of_past, says_past


def may_lack(spec: InputSpec) -> bool:
    """Whether samples need not give an input; what says whether a past is read, they give with a past."""
    return bool(spec.state) or of_past(spec)


def start_of(spec: InputSpec, rows: int, *, batched: bool) -> np.ndarray:
    """What an input is that ``rows`` samples have left out: a past of no tokens and not read, or a state of zeros.

    (rows, ...), without the first axis of the input where it counts samples. Open axes of a state have one value.
    """
    if is_past(spec):
        return empty_past(spec, rows)
    if says_past(spec):
        return np.zeros(rows, np.bool_)
    assert spec.shape is not None
    zeros = np.zeros([side or 1 for side in spec.shape[1 if batched else 0 :]], spec.dtype)
    return np.broadcast_to(zeros, (rows, *zeros.shape))
