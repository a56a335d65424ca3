"""A made-up sample of a model's inputs, for what depends on shapes and times and not on values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..contents import PortRecord
from ..data.padding import MASK, TOKENS
from ..data.past import says_past
from ..data.states import may_lack
from ..spec import InputSpec

# Sizes of dimensions that a file leaves open: a side of an image, tokens of a text, and of a sentence, values of a
# recording, and of others.
SIDE, LENGTH, SENTENCE, WINDOW, OTHER = 224, 128, 24, 16_000, 16


class Example(NamedTuple):
    """feeds: one sample. assumed: open dimension -> its size, by its name or as ``input[axis]``."""

    feeds: dict[str, np.ndarray]
    assumed: dict[str, int]


def make_example(inputs: Sequence[InputSpec], ports: Iterable[PortRecord], *, pooled: bool = False) -> Example:
    """One sample, as the first of a batch.

    ports: what the file says of the inputs, the names of dimensions with it. pooled: texts are sentences.
    """
    length = SENTENCE if pooled else LENGTH
    names = {port.name: port.shape for port in ports}
    assumed: dict[str, int] = {}
    feeds = {}
    for spec in inputs:
        shape = spec.shape or ()
        given = names.get(spec.name) or shape
        sizes = [_choose_size(spec, axis, given, assumed, length) for axis in range(len(shape))]
        feeds[spec.name] = _fill(spec, sizes)
    return Example(feeds, assumed)


def _choose_size(
    spec: InputSpec, axis: int, named: Sequence[int | str | None], assumed: dict[str, int], length: int
) -> int:
    shape = spec.shape or ()
    size = shape[axis]
    if size is not None:
        return size
    name = named[axis]
    key = name if isinstance(name, str) else f"{spec.name}[{axis}]"
    if key not in assumed:
        assumed[key] = 1 if axis == 0 else _guess(spec, shape, length)
    return assumed[key]


def _guess(spec: InputSpec, shape: Sequence[int | None], length: int) -> int:
    if may_lack(spec):
        return 0
    if spec.name in TOKENS or (np.dtype(spec.dtype).kind in "iu" and len(shape) == 2):
        return length
    if len(shape) == 4:
        return SIDE
    return WINDOW if len(shape) == 2 and np.dtype(spec.dtype).kind == "f" else OTHER


def _fill(spec: InputSpec, sizes: Sequence[int]) -> np.ndarray:
    """Values that any operator takes: small floats, the first row of every table, nothing masked, no past."""
    kind = np.dtype(spec.dtype)
    if kind.kind == "f" or kind.kind == "V":  # V: bfloat16 and its like
        return np.random.default_rng(0).standard_normal(sizes).astype(kind)
    if spec.name == MASK:
        return np.ones(sizes, kind)
    if says_past(spec) or kind.kind != "b":
        return np.zeros(sizes, kind)
    return np.ones(sizes, kind)
