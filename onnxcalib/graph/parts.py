"""Outputs that a Concat joins: which tensors they are made of, and which ranges of one axis are judged apart.

A detector joins boxes (hundreds) and scores (0 to 1) in one output; measured together, the boxes drown the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .index import Index, is_op
from .layers import count_channels
from .ops import LAYERS

# The operators that make a tensor, back to the nearest layer, and the number of that layer's channels; 0 without one.
Kind = tuple[tuple[str, ...], int]

# Operators behind a Concat that leave every value as it is and keep each once, or drop it.
CARRIERS = (
    "Concat", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split",
)  # fmt: skip
# An output of more parts is a tensor of features, as DenseNet joins them, and is judged as a whole.
MOST_PARTS = 16


@dataclass(frozen=True)
class Part:
    """The range ``start`` to ``stop`` of one axis of an output, where that axis has ``size`` elements.

    tensors: what is joined there; several where each level of a pyramid has its own.
    """

    axis: int
    start: int
    stop: int
    size: int
    tensors: tuple[str, ...]

    @property
    def label(self) -> str:
        """The part as numpy indexes it: ``[:, 4:84]``."""
        return f"[{', '.join([':'] * self.axis + [f'{self.start}:{self.stop}'])}]"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an output of this shape has the part."""
        return len(shape) > self.axis and shape[self.axis] == self.size

    @property
    def place(self) -> tuple[slice, ...]:
        """The index that takes the part out of an output."""
        return (*(slice(None),) * self.axis, slice(self.start, self.stop))


@dataclass(frozen=True)
class Joined:
    """The tensors that Concats join to one output, their kinds, and the sizes that nodes compute for the carriers."""

    tensors: tuple[str, ...]
    kinds: tuple[Kind, ...]
    operands: tuple[str, ...]


def find_joined(index: Index, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Joined]:
    """Output -> what is joined to it, for outputs with a Concat behind which operators only move values.

    shapes: those of the weights.
    """
    found = {}
    for output in index.outputs:
        tensors, operands = _walk_back(index, output)
        if len(tensors) > 1:
            kinds = tuple(_find_kind(index, tensor, shapes) for tensor in tensors)
            found[output] = Joined(tensors, kinds, operands)
    return found


def _walk_back(index: Index, output: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The joined tensors in the order of their Concats, and the other inputs of the carriers that nodes compute."""
    tensors: dict[str, None] = {}
    operands: dict[str, None] = {}
    waiting = [output]
    while waiting:
        tensor = waiting.pop()
        node = index.producer.get(tensor)
        if node is None or not is_op(node, *CARRIERS):
            tensors[tensor] = None
        elif node.op_type == "Concat":
            waiting += reversed(node.input)
        else:
            waiting.append(node.input[0])
            made = [t for t in node.input[1:] if t in index.producer and not is_op(index.producer[t], "Constant")]
            operands.update(dict.fromkeys(made))
    return tuple(tensors), tuple(operands)


def _find_kind(index: Index, tensor: str, shapes: Mapping[str, tuple[int, ...]]) -> Kind:
    ops: list[str] = []
    node = index.producer.get(tensor)
    while node is not None:
        ops.append(node.op_type)
        if is_op(node, *LAYERS) and node.input[1] in shapes:
            return tuple(ops), count_channels(node, shapes[node.input[1]])
        node = next((index.producer[t] for t in node.input if t in index.producer), None)
    return tuple(ops), 0


def separate(labels: np.ndarray, joined: Joined) -> tuple[Part, ...]:
    """The parts of an output whose elements come from the tensors with these numbers; none where it stays whole.

    Parts lie along one axis, and their ranges are the same everywhere on the other axes. Where another axis joins the
    levels of a pyramid, each part has the tensors of all levels. Axis 0 counts samples and is never parted.
    """
    axes = [axis for axis in range(labels.ndim) if _find_breaks(labels, axis).size]
    kinds = [axis for axis in axes if not _joins_levels(labels, axis, joined)]
    if len(kinds) != 1 or 0 in axes:
        return ()
    (axis,) = kinds
    starts = [0, *_find_breaks(labels, axis).tolist()]
    rows = np.moveaxis(labels, axis, 0)[starts].reshape(len(starts), -1)
    if len(starts) > MOST_PARTS or not (rows[1:] != rows[:-1]).all():
        return ()
    size = labels.shape[axis]
    return tuple(
        Part(axis, start, stop, size, tuple(joined.tensors[number] for number in dict.fromkeys(row.tolist())))
        for start, stop, row in zip(starts, [*starts[1:], size], rows, strict=True)
    )


def _find_breaks(labels: np.ndarray, axis: int) -> np.ndarray:
    """Positions on the axis at which the number changes, wherever on the other axes."""
    rows = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
    return np.flatnonzero((rows[1:] != rows[:-1]).any(axis=1)) + 1


def _joins_levels(labels: np.ndarray, axis: int, joined: Joined) -> bool:
    """Whether tensors of one kind follow each other on the axis, at positions of a map and not at its channels.

    That is so where the longest of them has a length of which its layer's number of channels is no multiple.
    """
    return all(_is_pyramid(runs, joined) for runs in _list_runs(labels, axis) if len(runs) > 1)


def _list_runs(labels: np.ndarray, axis: int) -> Iterator[list[tuple[int, int]]]:
    """For each different line along the axis its runs of one number, as (number, length)."""
    starts = [0, *_find_breaks(labels, axis).tolist()]
    lengths = np.diff([*starts, labels.shape[axis]])
    lines = np.unique(np.moveaxis(labels, axis, 0)[starts].reshape(len(starts), -1), axis=1).T
    for line in lines:
        runs: list[tuple[int, int]] = []
        for number, length in zip(line.tolist(), lengths.tolist(), strict=True):
            if runs and runs[-1][0] == number:
                length += runs.pop()[1]
            runs.append((number, length))
        yield runs


def _is_pyramid(runs: list[tuple[int, int]], joined: Joined) -> bool:
    number, longest = max(runs, key=lambda run: run[1])
    channels = joined.kinds[number][1]
    alike = len({joined.kinds[each][0] for each, _ in runs}) == 1
    return alike and channels > 0 and channels % longest != 0
