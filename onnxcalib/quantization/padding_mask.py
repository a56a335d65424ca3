"""Padding that a model of fixed length has to be fed: left out of all that is measured, solved and learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import nn

from ..data.padding import MASK, TOKENS, count_tokens
from ..graph.passes.normalise import inline_functions, spell_domain
from ..graph.shapes import infer_shapes
from ..graph.tokens import TokenAxes, find_tokens
from ..graph.weightless import copy_without_weights
from ..runtime.session import is_float


def find_real(feeds: Mapping[str, Any]) -> np.ndarray | None:
    """Whether each token of a run counts, bool (samples, tokens); None where all do, or no mask says."""
    mask = feeds.get(MASK)
    if mask is None or mask.ndim != 2:
        return None
    real = count_tokens(mask)
    return None if real.all() else real


class PaddingMask:
    """Where a model's tensors hold padding: on the axes that count tokens, by its graph."""

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

    def places(self, tensor: str, shape: Sequence[int], real, *, last: bool = True):
        """Which places of ``tensor`` count, bool of rank len(shape) that broadcasts to it; None where all do.

        real: an array or a torch tensor, as the result is. last: its last axis may count tokens.
        """
        if real is None or tensor not in self.axes:
            return None
        axes, samples = self.axes[tensor]
        found = None
        for axis in axes if last else (axis for axis in axes if axis < len(shape) - 1):
            own = _place(real, tuple(shape), axis, samples)
            if own is None:
                return None
            found = own if found is None else found & own
        return found

    def drop(self, tensor: str, values: np.ndarray, real: np.ndarray | None) -> np.ndarray:
        """Of the values those that count, with the axes behind the tokens', (some, ...); all where none is padding."""
        return select(values, self.places(tensor, values.shape, real))

    def blank(self, tensor: str, values, real, fill: float = 0):
        """The values, an array or a torch tensor, with ``fill`` for padding."""
        if real is None or not isinstance(values, (np.ndarray, torch.Tensor)):
            return values
        kept = self.places(tensor, values.shape, real)
        if kept is None:
            return values
        if isinstance(values, torch.Tensor):
            return values.masked_fill(~kept, fill)
        return np.where(kept, values, np.asarray(fill, values.dtype))

    def hide(self, outputs: Mapping[str, Any], real: np.ndarray | None) -> Mapping[str, Any]:
        """A model's outputs, by name, in which padding adds nothing to a comparison and is no top class."""
        if real is None:
            return outputs
        return {t: self.blank(t, v, real, -np.inf if is_float(v) else 0) for t, v in outputs.items()}


def _place(real, shape: tuple[int, ...], axis: int, samples: int | None):
    """The mask along these axes of ``shape``, one long along all others; None where it is of other lengths."""
    ones = [1] * len(shape)
    if samples is None:  # axis 0 counts both
        return real.reshape(-1, *ones[1:]) if shape and shape[0] == math.prod(real.shape) else None
    if max(axis, samples) >= len(shape) or (shape[samples], shape[axis]) != tuple(real.shape):
        return None
    ones[samples], ones[axis] = real.shape
    return (real if samples < axis else real.T).reshape(ones)


def select(values: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
    """Values (some, ...) where ``kept``, of as many axes, is true; whole along the last axes, where it is 1 long."""
    if kept is None:
        return values
    while kept.ndim > 1 and kept.shape[-1] == 1:
        kept = kept[..., 0]
    return values[np.broadcast_to(kept, values.shape[: kept.ndim])]


class Unpadded(nn.Module):
    """A block whose outputs are zero at padding; it takes which tokens count, bool (samples, tokens), as last input."""

    def __init__(self, module: nn.Module, outputs: Sequence[str], padding: PaddingMask) -> None:
        super().__init__()
        self.module, self.outputs, self.padding = module, outputs, padding

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        *inputs, real = inputs
        given = self.module(*inputs)
        return [self.padding.blank(name, value, real) for name, value in zip(self.outputs, given, strict=True)]
