"""Padding of token sequences, which is left out of all that is measured, solved and learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from onnx import ModelProto

from ..data.padding import MASK, TOKENS, count_tokens
from ..graph.passes.normalise import inline_functions, spell_domain
from ..graph.shapes import infer_shapes
from ..graph.tokens import TokenAxes, find_tokens
from ..graph.weightless import copy_without_weights
from ..numeric.rounding import Values
from ..runtime.session import is_float


def find_real(feeds: Mapping[str, Any]) -> np.ndarray | None:
    """Mask of the tokens of a batch that are no padding, bool (samples, tokens); None without padding."""
    mask = feeds.get(MASK)
    if mask is None or mask.ndim != 2:
        return None
    real = count_tokens(mask)
    return None if real.all() else real


class PaddingMask:
    """Which elements of a model's tensors are padding: the graph tells which of their axes count tokens.

    Every method takes ``real``, the mask of a batch as ``find_real`` gives it.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model

    @cached_property
    def axes(self) -> dict[str, TokenAxes]:
        """Tensor -> axes that count tokens and samples."""
        model = copy_without_weights(self.model)
        for rewrite in (spell_domain, inline_functions):  # the model may be as the user gave it
            rewrite(model)
        shape = infer_shapes(model).get(MASK, ())
        return find_tokens(model, TOKENS, shape if len(shape) == 2 else (None, None))

    def mask_of(self, tensor: str, shape: Sequence[int], real: Values | None, *, last: bool = True) -> Values | None:
        """Mask of the tensor's elements that are no padding, bool of rank len(shape) that broadcasts to ``shape``.

        None where no element is known to be padding. last: whether the tensor's last axis may count tokens; if not, it
        is not masked.
        """
        if real is None or tensor not in self.axes:
            return None
        axes, samples = self.axes[tensor]
        found: Values | None = None
        for axis in axes if last else (axis for axis in axes if axis < len(shape) - 1):
            own = _align_mask(real, tuple(shape), axis, samples)
            if own is None:
                return None
            found = own if found is None else found & own
        return found

    def select_real(self, tensor: str, values: np.ndarray, real: np.ndarray | None) -> np.ndarray:
        """The values that are no padding, (selected, ...) with the axes behind the tokens; all without padding."""
        return select(values, self.mask_of(tensor, values.shape, real))

    def fill_padding(self, tensor: str, values: Values, real: Values | None, fill: float = 0) -> Values:
        """A copy of the values with ``fill`` at padding; the values themselves where they have none or are no array."""
        given: Any = values
        of_torch = hasattr(given, "masked_fill")  # asked so, as validation works without torch
        if not (of_torch or isinstance(values, np.ndarray)):
            return values
        real_values = self.mask_of(tensor, values.shape, real)
        if real_values is None:
            return values
        if of_torch:
            filled: Values = given.masked_fill(~real_values, fill)
            return filled
        return np.where(real_values, values, np.asarray(fill, values.dtype))

    def mask_outputs(self, outputs: Mapping[str, Any], real: np.ndarray | None) -> Mapping[str, Any]:
        """A model's outputs by name, their padding filled: it adds nothing to a comparison and is never the top class.

        Outputs that are no arrays are returned as they are.
        """
        if real is None:
            return outputs
        return {t: self.fill_padding(t, v, real, -np.inf if is_float(v) else 0) for t, v in outputs.items()}


def _align_mask(real: Values, shape: tuple[int, ...], axis: int, samples: int | None) -> Values | None:
    """The mask with its samples and tokens on these axes of ``shape`` and length 1 on all others.

    samples: None where axis 0 counts samples and tokens together. Returns None where the lengths do not fit.
    """
    ones = [1] * len(shape)
    if samples is None:
        return real.reshape(-1, *ones[1:]) if shape and shape[0] == math.prod(real.shape) else None
    if max(axis, samples) >= len(shape) or (shape[samples], shape[axis]) != tuple(real.shape):
        return None
    ones[samples], ones[axis] = real.shape
    return (real if samples < axis else real.T).reshape(ones)


def select(values: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Values (selected, ...) where the mask, of as many axes, is true; all of them without a mask.

    Trailing axes along which the mask has length 1 are selected whole.
    """
    if mask is None:
        return values
    while mask.ndim > 1 and mask.shape[-1] == 1:
        mask = mask[..., 0]
    selected: np.ndarray = values[np.broadcast_to(mask, values.shape[: mask.ndim])]
    return selected
