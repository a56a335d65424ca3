"""Samples that have been checked against the model's inputs, and the checks that need all inputs at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import DataError
from ..spec import InputSpec, spell_shape
from .arrays import Part, check_array, check_labels
from .npz import PackedArray
from .past import is_past, says_past
from .room import Room
from .states import start_of


@dataclass(frozen=True)
class CheckedSamples:
    """A part whose first ``rows`` samples fit the model.

    total: the number of its samples, those behind a limit included. shapes: those of one sample, by input, padding
    included. stacked: whether an input's array has samples on axis 0. trimmed: the inputs that are read without
    padding; spans: the first token of each sample and the one behind its last, (rows, 2), None where no input is
    trimmed.
    """

    part: Part
    rows: int
    total: int
    shapes: dict[str, tuple[int, ...]]
    stacked: dict[str, bool]
    spans: np.ndarray | None = None
    trimmed: frozenset[str] = frozenset()

    def take(self, name: str, rows: Sequence[int], dtype: np.dtype, *, whole: bool = False) -> np.ndarray:
        """(len(rows), *shape of a sample) without padding, for rows of one length; ``whole`` keeps the padding."""
        array = self.part.arrays[name]
        values = array[list(rows)] if self.stacked[name] else array[...][None]
        if self.spans is not None and name in self.trimmed and not whole:
            spans = self.spans[list(rows)]
            values = np.stack([value[first:end] for value, (first, end) in zip(values, spans, strict=True)])
        return np.asarray(values).astype(dtype, copy=False)

    def lengths(self) -> np.ndarray:
        """Tokens of each sample, (rows,); 0 where no input is trimmed, as all samples then have the same shapes."""
        return np.zeros(self.rows, np.int64) if self.spans is None else self.spans[:, 1] - self.spans[:, 0]

    @property
    def labelled(self) -> bool:
        return self.part.label is not None or self.part.labels is not None

    def read_labels(self) -> np.ndarray:
        """int64 or float64 (rows,). Raises DataError where they are not one number a sample."""
        if self.part.labels is None:
            return np.full(self.rows, self.part.label, np.int64)
        return check_labels(self.part.where, self.part.labels(), self.rows, total=self.total)


def check_part(part: Part, inputs: Sequence[InputSpec], limit: int | None = None) -> CheckedSamples:
    """Check types, ranks and shapes of a part, of which at most ``limit`` samples are used, without reading its values.

    A past that is left out is empty, a state is zeros. Raises DataError.
    """
    batched = share_batch(inputs)
    part = _spread_switch(part, inputs)
    shapes, stacked, counts = {}, {}, {}
    left_out = [spec for spec in inputs if spec.name not in part.arrays]
    for spec in inputs:
        if spec in left_out:
            continue
        array = part.arrays[spec.name]
        stacked[spec.name] = check_array(f"{part.where}: input {spec.name!r}", array, spec, batched=batched)
        shapes[spec.name] = tuple(array.shape[1:] if stacked[spec.name] else array.shape)
        counts[spec.name] = array.shape[0] if stacked[spec.name] else 1
    (first, total), *others = counts.items()
    for name, count in others:
        if count != total:
            raise DataError(
                f"{part.where}: found {total} samples of {first!r}, {count} of {name!r}; give as many of each"
            )
    for spec in left_out:
        start = start_of(spec, total, batched=batched)
        part = replace(part, arrays={**part.arrays, spec.name: start})
        stacked[spec.name] = batched or bool(spec.state)
        shapes[spec.name] = start.shape[1:] if stacked[spec.name] else start.shape
    return CheckedSamples(part, total if limit is None else min(total, limit), total, shapes, stacked)


def _spread_switch(part: Part, inputs: Sequence[InputSpec]) -> Part:
    """The part with as many values as samples of what says whether a past is read, where one is given for all.

    Raises DataError for a past that comes without it: it would not be read.
    """
    for spec in filter(says_past, inputs):
        given = [each.name for each in inputs if is_past(each) and each.name in part.arrays]
        if spec.name in part.arrays:
            array, rows = part.arrays[spec.name], max((a.shape[0] for a in part.arrays.values() if a.shape), default=1)
            if array.shape == (1,) and rows > 1 and share_batch(inputs):
                part = replace(part, arrays={**part.arrays, spec.name: np.repeat(np.asarray(array[...]), rows)})
        elif given and 0 not in part.arrays[given[0]].shape:
            raise DataError(
                f"{part.where}: found {given[0]!r} without {spec.name!r}, which says whether it is read; add that"
            )
    return part


def tell_one_sample(part: CheckedSamples, inputs: Sequence[InputSpec]) -> list[str]:
    """A line if the only sample may be several, along an open axis of an input that is not its first; else none."""
    if share_batch(inputs):
        return []
    found = [
        (axis, spec.name)
        for spec in inputs
        for axis, size in enumerate(spec.shape or ())
        if axis and size is None and not part.stacked[spec.name] and part.shapes[spec.name][axis] > 1
    ]
    if not found:
        return []
    axis, name = found[0]
    return [
        f"{part.part.where}: input {name!r}: the array of shape {spell_shape(part.shapes[name])} is taken as one"
        f" sample, as the model's inputs share no first axis; it may have any size on axis {axis}; if that axis"
        " counts samples, give a file for each, or stack them on a new axis 0"
    ]


def unpack_part(checked: CheckedSamples, room: Room) -> CheckedSamples:
    """The samples with their packed arrays in the temporary folder, of which only the samples that are used.

    Raises DataError and OutputError.
    """
    arrays = {
        name: array.unpack(checked.rows if checked.stacked[name] else None, room)
        if isinstance(array, PackedArray)
        else array
        for name, array in checked.part.arrays.items()
    }
    return replace(checked, part=replace(checked.part, arrays=arrays))


def share_batch(inputs: Sequence[InputSpec]) -> bool:
    """Whether all inputs have a leading axis of one and the same length, fixed or open.

    What says whether a past is read has one value for all samples of a run: it is counted with them, as runs take one.
    """
    ranked = [spec.shape for spec in inputs if spec.shape is not None and not says_past(spec)]
    return (
        not any(spec.alone for spec in inputs)
        and all(shape for shape in ranked)
        and len({shape[0] for shape in ranked if shape}) <= 1
    )
