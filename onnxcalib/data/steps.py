"""Sequences as samples: each step is one, in the shape that a run of the model takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from ..spec import InputSpec, spell_shape
from .arrays import Part
from .checked import CheckedSamples, share_batch
from .npz import PackedArray
from .room import Room


class _Form(NamedTuple):
    """Sequences in an array and the steps of each, None where all steps share the array; and the shape of a step."""

    counted: tuple[int, int] | None
    shape: tuple[int, ...]


class Steps:
    """An array of sequences as one of steps, (steps of all, ...), of which those asked for are read.

    source: the array. axis: that of its steps, None where all steps share the array.
    """

    def __init__(self, source: Any, axis: int | None, shape: tuple[int, ...]) -> None:
        self.source, self.shape, self.dtype = source, shape, np.dtype(source.dtype)
        self._axis = axis
        self._kept: tuple[int, np.ndarray] = (-1, np.empty(0))  # the sequence that was read last, of several

    def __getitem__(self, index: Any) -> np.ndarray:
        """The steps at a list or slice of rows, or all of them for ``...``."""
        index = slice(None) if index is Ellipsis else index
        rows = list(range(self.shape[0])[index] if isinstance(index, slice) else index)
        shape = (len(rows), *self.shape[1:])
        if self._axis is None:
            return np.broadcast_to(np.asarray(self.source[...]).reshape(shape[1:]), shape)
        if self._axis == 0:
            return np.asarray(self.source[rows]).reshape(shape)
        values = np.empty(shape, self.dtype)
        for place, row in enumerate(rows):
            number, step = divmod(row, self.source.shape[1])
            values[place] = self._read(number)[step].reshape(shape[1:])
        return values

    def _read(self, number: int) -> np.ndarray:
        if self._kept[0] != number:
            self._kept = number, np.asarray(self.source[[number]])[0]
        return self._kept[1]


def as_steps(part: Part, inputs: Sequence[InputSpec], axis: int, room: Room | None = None) -> Part:
    """The part with each step as a sample: of one sequence, or with ``axis`` 1 of several.

    An array has the input's shape behind the axis of its steps, or that without the first axis where that is open or 1.
    An array without an axis of steps is one step, or is shared by all. Of a state the first step alone is needed. room:
    where packed arrays are unpacked. Raises DataError.
    """
    batched = share_batch(inputs)
    forms: dict[str, _Form] = {}
    sequences, steps, first = 1, 1, ""
    for spec in inputs:
        if spec.name not in part.arrays:
            continue
        shape = tuple(part.arrays[spec.name].shape)
        form = forms[spec.name] = _find_form(f"{part.where}: input {spec.name!r}", shape, spec, axis, batched=batched)
        if not spec.state and form.counted not in (None, (1, 1)) and (sequences, steps) == (1, 1):
            (sequences, steps), first = form.counted or (1, 1), spec.name
    arrays = dict(part.arrays)
    for name, form in forms.items():
        if form.counted not in (None, (1, 1), (sequences, steps)):
            raise DataError(
                f"{part.where}: found {_spell(form.counted)} of input {name!r}, {_spell((sequences, steps))} of"
                f" {first or 'the others'!r}; give as many of each"
            )
        source = arrays[name]
        if isinstance(source, PackedArray):
            assert room is not None, "arrays in memory are not packed"
            source = source.unpack(None, room)
        own = axis if form.counted == (sequences, steps) else None
        arrays[name] = Steps(source, own, (sequences * steps, *form.shape))
    return replace(part, arrays=arrays, lengths=(steps,) * sequences)


def first_sequences(parts: Iterable[Part], limit: int | None) -> Iterator[Part]:
    """Parts with the first ``limit`` sequences; no part behind them is opened."""
    done, last = 0, ""
    for part in parts:
        begins = not part.sequence or part.sequence != last
        if begins and done == limit:
            return
        last = part.sequence
        lengths = part.lengths[: None if limit is None else limit - done] if begins else part.lengths
        yield replace(part, lengths=lengths)
        done += len(lengths) if begins else 0
        if done == limit and not part.sequence:  # otherwise the next part may go on with the sequence
            return


def list_lengths(checked: Sequence[CheckedSamples]) -> list[int]:
    """The steps of each sequence, of which neighbouring parts may hold some."""
    found: list[int] = []
    last = ""
    for part in (each.part for each in checked):
        if part.sequence and part.sequence == last:
            found[-1] += sum(part.lengths)
        else:
            found += part.lengths
        last = part.sequence
    return found


def _find_form(where: str, found: tuple[int, ...], spec: InputSpec, axis: int, *, batched: bool) -> _Form:
    """How an array of the shape ``found`` holds steps of an input. Raises DataError."""
    if spec.shape is None:
        raise DataError(
            f"{where}: the file has no shape of it, so that steps cannot be told from their values; give --shape"
            f" '{spec.name}=...'"
        )
    more, single = len(found) - len(spec.shape), bool(spec.shape) and spec.shape[0] in (None, 1)
    alike = single and (not spec.state or (batched and found[:1] != (1,)))  # whether steps may stand for samples
    counted = (found[0] if axis else 1, found[axis]) if len(found) > axis else None
    if more == axis + 1:
        shape = found[axis + 1 :]
    elif more == axis and alike:
        shape = (1, *found[axis + 1 :])
    elif more == 0 or (more == -1 and single):
        shape, counted = (1,) * -more + found, None
    else:
        raise DataError(
            f"{where}: found shape {spell_shape(found)}; a step has {spell_shape(spec.shape)}, and an array"
            f" {'axes of sequences and of steps' if axis else 'an axis of steps'} in front; reshape it"
            + ("" if axis or more < 2 else ", or give --sequence-axis 1 where axis 0 counts sequences")
        )
    if counted is not None and 0 in counted:
        raise DataError(f"{where}: found shape {spell_shape(found)}, which holds no step; give at least one")
    if batched and shape[0] != 1:
        raise DataError(
            f"{where}: found {shape[0]} samples in a step; each sequence has its own states; give sequences one by one,"
            " or on axis 0 with --sequence-axis 1"
        )
    return _Form(counted, shape[1:] if batched else shape)


def _spell(count: tuple[int, int] | None) -> str:
    sequences, steps = count or (1, 1)
    return f"{steps} steps" if sequences == 1 else f"{sequences} sequences of {steps} steps"
