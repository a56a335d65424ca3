"""Whether two models can stand in for each other: the same inputs, the same outputs."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, TensorProto

from ...errors import ModelError
from ...spec import InputSpec, spell_shape
from ..load import inputs_of
from ..shapes import Shape, recorded_shape


class _Described(NamedTuple):
    """An input or an output; type and shape are None where the file does not say them."""

    name: str
    type: np.dtype | str | None
    shape: Shape | None


def check_interface(original: ModelProto, quantized: ModelProto) -> tuple[InputSpec, ...]:
    """The inputs of both models, with the dimensions that one of them fixes.

    Raises ModelError where an input or output differs, which says how.
    """
    inputs, others = inputs_of(original), inputs_of(quantized)
    _match_names("inputs", [spec.name for spec in inputs], [spec.name for spec in others])
    _match_names("outputs", *([value.name for value in m.graph.output] for m in (original, quantized)))
    for one, other in zip(_outputs_of(original), _outputs_of(quantized), strict=True):
        _merge_shapes("output", one, other)
    described = ([_Described(spec.name, spec.dtype, spec.shape) for spec in specs] for specs in (inputs, others))
    shapes = [_merge_shapes("input", one, other) for one, other in zip(*described, strict=True)]
    return tuple(replace(spec, shape=shape) for spec, shape in zip(inputs, shapes, strict=True))


def _match_names(kind: str, names: list[str], others: list[str]) -> None:
    if names != others:
        order = ", in another order" if sorted(names) == sorted(others) else ""
        raise ModelError(
            f"{kind}: the float model has {', '.join(names) or 'none'}, the quantized one {', '.join(others) or 'none'}"
            f"{order}; both must be the same for one to replace the other; quantize this float model again"
        )


def _outputs_of(model: ModelProto) -> list[_Described]:
    found = []
    for value in model.graph.output:
        tensor = value.type.tensor_type
        known = value.type.HasField("tensor_type") and tensor.elem_type != TensorProto.UNDEFINED
        kind = TensorProto.DataType.Name(tensor.elem_type).lower() if known else None
        found.append(_Described(value.name, kind, recorded_shape(value) if known else None))
    return found


def _merge_shapes(kind: str, one: _Described, other: _Described) -> Shape | None:
    """The shape of both, with the dimensions that one of them fixes; raises ModelError where they differ."""
    # Compared with None by identity, as NumPy's float64 equals None.
    if one.type is not None and other.type is not None and one.type != other.type:
        raise ModelError(
            f"{kind} {one.name}: the float model has {one.type}, the quantized one {other.type}; both must be the same"
            " for one to replace the other; quantize this float model again"
        )
    if one.shape is None or other.shape is None:
        return other.shape if one.shape is None else one.shape
    sides = list(zip_longest(one.shape, other.shape, fillvalue=0))
    if any(0 in (a, b) or (a is not None and b is not None and a != b) for a, b in sides):
        raise ModelError(
            f"{kind} {one.name}: the float model has shape {spell_shape(one.shape)}, the quantized one"
            f" {spell_shape(other.shape)}; both must be the same for one to replace the other; quantize this float"
            " model again"
        )
    return tuple(a if b is None else b for a, b in sides)
