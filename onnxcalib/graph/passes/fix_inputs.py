"""Inputs of fixed shapes, as devices need them that compile a model for one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnx import ModelProto, ValueInfoProto

from ...errors import ConfigError
from ...spec import InputSpec, spell_shape
from ..load import inputs_of, refuse_giants
from ..shapes import infer_shapes, recorded_shape

Shapes = Mapping[str, tuple[int, ...]]


def fix_inputs(model: ModelProto, shapes: Shapes) -> int:
    """Give inputs these dimensions by name, an empty name meaning all inputs; returns how many inputs changed.

    A dimension that another input has by the same symbol is fixed too. Recorded shapes of other tensors than inputs and
    outputs are dropped, as they may have been of any size. Raises ConfigError for shapes that the inputs cannot have,
    and ModelError for tensors that cannot be of such sizes.
    """
    if not shapes:
        return 0
    inputs = {value.name: value for value in model.graph.input}
    fixed = {spec.name: spec.shape for spec in fix_specs(inputs_of(model), shapes)}
    symbols = _bind_symbols(inputs, fixed)
    changed = 0
    for name, shape in fixed.items():
        before = inputs[name].SerializeToString()
        _write(inputs[name], shape, symbols)
        changed += inputs[name].SerializeToString() != before
    del model.graph.value_info[:]
    refuse_giants(model, "shape")
    return changed


def fix_specs(inputs: Sequence[InputSpec], shapes: Shapes) -> tuple[InputSpec, ...]:
    """The inputs with these shapes by name, an empty name meaning all that have none of their own."""
    names = [spec.name for spec in inputs]
    for name in shapes:
        if name and name not in names:
            raise ConfigError(
                f"shape: found input {name!r}; the model's are {', '.join(map(repr, names))}; name one of them"
            )
    wanted = ((spec, shapes.get(spec.name, shapes.get(""))) for spec in inputs)
    return tuple(spec if shape is None else _fix(spec, shape) for spec, shape in wanted)


def fix_outputs(model: ModelProto) -> int:
    """Give outputs the dimensions that follow from those of the inputs; returns how many outputs changed."""
    inferred, changed = infer_shapes(model), 0
    for value in model.graph.output:
        known, before = recorded_shape(value), value.SerializeToString()
        given = inferred.get(value.name)
        if given is not None and (known is None or len(known) == len(given)):
            _write(value, given, {})
        changed += value.SerializeToString() != before
    return changed


def _fix(spec: InputSpec, shape: tuple[int, ...]) -> InputSpec:
    where = f"shape: input {spec.name!r}: found {spell_shape(shape)}"
    if spec.shape is not None:
        if len(spec.shape) != len(shape):
            raise ConfigError(
                f"{where}; the model's is {spell_shape(spec.shape)}, of {len(spec.shape)} dimensions; give as many, by"
                " NAME=SHAPE where inputs differ"
            )
        if any(have not in (None, size) for have, size in zip(spec.shape, shape, strict=True)):
            raise ConfigError(
                f"{where}; the model's is {spell_shape(spec.shape)}, of which only what is 'any' can be chosen; give"
                " the others as they are"
            )
    return replace(spec, shape=shape)


def _bind_symbols(
    inputs: Mapping[str, ValueInfoProto], fixed: Mapping[str, Sequence[int | None] | None]
) -> dict[str, int]:
    """Symbol -> the size that it has in all inputs. Raises ConfigError where it would have two."""
    found: dict[str, tuple[int, str]] = {}
    for name, shape in fixed.items():
        for dimension, size in zip(inputs[name].type.tensor_type.shape.dim, shape or (), strict=False):
            symbol = dimension.dim_param
            if not symbol or size is None:
                continue
            other, owner = found.setdefault(symbol, (size, name))
            if other != size:
                raise ConfigError(
                    f"shape: input {name!r}: found {size} as its dimension {symbol!r}; input {owner!r} has {other} of"
                    " the same name; give both one size"
                )
    return {symbol: size for symbol, (size, _) in found.items()}


def _write(value: ValueInfoProto, shape: Sequence[int | None] | None, symbols: Mapping[str, int]) -> None:
    kind = value.type.tensor_type
    if shape is not None and recorded_shape(value) is None:
        kind.shape.SetInParent()
        for size in shape:
            side = kind.shape.dim.add()
            if size is not None:
                side.dim_value = size
        return
    for dimension, size in zip(kind.shape.dim, shape or (None,) * len(kind.shape.dim), strict=True):
        chosen = symbols.get(dimension.dim_param) if size is None else size
        if chosen is not None:
            dimension.dim_value = chosen
