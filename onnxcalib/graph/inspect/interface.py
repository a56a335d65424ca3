"""Whether two models can stand in for each other: the same inputs, the same outputs."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

from onnx import ModelProto, TensorProto

from ...errors import ModelError
from ...spec import InputSpec, spell_shape
from ..load import inputs_of
from ..shapes import recorded_shape


def check_interface(original: ModelProto, quantized: ModelProto) -> tuple[InputSpec, ...]:
    """The inputs of both, with the dimensions that either of them fixes.

    Raises ModelError that says which input or output differs, and how.
    """
    inputs, others = inputs_of(original), inputs_of(quantized)
    _match_names("inputs", [spec.name for spec in inputs], [spec.name for spec in others])
    _match_names("outputs", *([value.name for value in m.graph.output] for m in (original, quantized)))
    for one, other in zip(_outputs_of(original), _outputs_of(quantized), strict=True):
        _merge_shapes("output", one, other)
    pairs = [[(spec.name, spec.dtype, spec.shape) for spec in pair] for pair in zip(inputs, others, strict=True)]
    shapes = [_merge_shapes("input", one, other) for one, other in pairs]
    return tuple(replace(spec, shape=shape) for spec, shape in zip(inputs, shapes, strict=True))


def _match_names(kind: str, names: list[str], others: list[str]) -> None:
    if names != others:
        order = ", in another order" if sorted(names) == sorted(others) else ""
        raise ModelError(
            f"{kind}: the float model has {', '.join(names) or 'none'}, the quantized one {', '.join(others) or 'none'}"
            f"{order}; both must be the same for one to replace the other; quantize this float model again"
        )


def _outputs_of(model: ModelProto) -> list[tuple]:
    """(name, type, shape) of every output, None for what the file does not say."""
    found = []
    for value in model.graph.output:
        tensor = value.type.tensor_type
        known = value.type.HasField("tensor_type") and tensor.elem_type != TensorProto.UNDEFINED
        kind = TensorProto.DataType.Name(tensor.elem_type).lower() if known else None
        found.append((value.name, kind, recorded_shape(value) if known else None))
    return found


def _merge_shapes(kind: str, one: tuple, other: tuple) -> tuple[int | None, ...] | None:
    name, dtype, shape = one
    _, other_dtype, other_shape = other
    # By identity: NumPy's float64 equals None.
    if dtype is not None and other_dtype is not None and dtype != other_dtype:
        raise ModelError(
            f"{kind} {name}: the float model has {dtype}, the quantized one {other_dtype}; both must be the same for"
            " one to replace the other; quantize this float model again"
        )
    if shape is None or other_shape is None:
        return other_shape if shape is None else shape
    sides = list(zip_longest(shape, other_shape, fillvalue=0))
    if any(0 in pair or (None not in pair and pair[0] != pair[1]) for pair in sides):
        raise ModelError(
            f"{kind} {name}: the float model has shape {spell_shape(shape)}, the quantized one"
            f" {spell_shape(other_shape)}; both"
            " must be the same for one to replace the other; quantize this float model again"
        )
    return tuple(a if b is None else b for a, b in sides)
