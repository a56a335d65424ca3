"""The axes along which the classes of outputs lie, as the settings give them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..config import nearest
from ..data.padding import TOKEN_IDS
from ..errors import ConfigError
from ..runtime.session import is_float
from ..values import read_axis
from .output_parts import Parts, list_parts

ADVICE = "give the axis along which its classes lie"


LOGITS = "logits"  # the output in which exporters of transformers give scores


def find_class_axes(
    settings: Sequence[str], outputs: Mapping[str, Any], parts: Parts, *, batched: bool, inputs: Iterable[str] = ()
) -> dict[str, int]:
    """Output, or part of one, to which ``class_axis`` of the settings gives an axis -> that axis, counted from 0.

    outputs: the float model's on one batch. batched: whether axis 0 of an output counts samples. inputs: the model's;
    where they are tokens, the last axis of logits (samples, tokens, classes) is one of classes. An axis without a name
    is that of all outputs of three or more axes that have it, but for those that are joined of parts along it. Raises
    ConfigError for a name that no output has, and for an axis that cannot be one of classes.
    """
    given = dict(map(read_axis, settings))
    values = dict(list_values(outputs, parts))
    found: dict[str, int] = {}
    scores: Any = outputs.get(LOGITS)
    if TOKEN_IDS in inputs and np.ndim(scores) == 3 and not _find_fault(LOGITS, scores, 2, parts, batched=batched):
        found[LOGITS] = 2
    if "" in given:
        axis = given.pop("")
        of_all = {name: value for name, value in outputs.items() if is_float(value) and value.ndim > 2}
        faults = {name: _find_fault(name, of_all[name], axis, parts, batched=batched) for name in of_all}
        along = {name: axis % of_all[name].ndim for name, fault in faults.items() if fault is None}
        if not along and len(faults) == 1:
            ((name, fault),) = faults.items()
            raise ConfigError(f"class_axis: {name}: found {axis}; {fault}")
        if not along:
            shapes = ", ".join(f"{name} {value.shape}" if is_float(value) else name for name, value in outputs.items())
            raise ConfigError(
                f"class_axis: found {axis} and the outputs {shapes}; one of floats with three axes or more, and several"
                f" classes along this one, is needed; {ADVICE}"
            )
        found |= along
    for name, axis in given.items():
        if name not in values:
            raise ConfigError(
                f"class_axis: no output has the name {name!r};{nearest(name, list(values)) or _name_all(values)}"
            )
        if fault := _find_fault(name, values[name], axis, parts, batched=batched):
            raise ConfigError(f"class_axis: {name}: found {axis}; {fault}")
        found[name] = axis % values[name].ndim
    return found


def list_values(outputs: Mapping[str, Any], parts: Parts | None) -> Iterator[tuple[str, Any]]:
    """The outputs, and the parts of those that have any, by the names that tables give them."""
    for name, value in outputs.items():
        yield name, value
        for part in list_parts(parts, name, np.shape(value)) if isinstance(value, np.ndarray) else ():
            yield f"{name}{part.label}", value[part.place]


def _find_fault(name: str, value: Any, axis: int, parts: Parts, *, batched: bool) -> str | None:
    """Why classes cannot lie along an axis of an output; None where they can."""
    first = int(batched)
    if not is_float(value) or value.ndim < first + 1:
        return f"an output of floats with {first + 1} axes or more has classes; leave it out"
    if not first <= (axis if axis >= 0 else axis + value.ndim) < value.ndim:
        return f"its shape is {value.shape}, and {_spell_axes(first, value.ndim)} may be that of classes; {ADVICE}"
    if value.shape[axis] == 1:
        return f"its shape is {value.shape}, of one class along this axis; {ADVICE}"
    along = [part for part in list_parts(parts, name, value.shape) if part.axis == axis % value.ndim]
    if along:
        return f"along it the output joins parts with classes of their own; name one: {name}{along[-1].label}={axis}"
    return None


def _spell_axes(first: int, end: int) -> str:
    many = end - first > 1
    return f"axis {first} to {end - 1}, or {first - end} to -1," if many else f"axis {first}, or -1,"


def _name_all(values: Mapping[str, Any]) -> str:
    return f" there are {', '.join(values)}"
