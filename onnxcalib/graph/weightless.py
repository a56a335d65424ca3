"""Copies of a model without its weights, for code that needs the graph alone and may meet models above 2 GB."""

from __future__ import annotations

import math
from collections.abc import Collection

from google.protobuf.message import Message
from onnx import ModelProto, TensorProto, helper

# Larger initializers cannot be shapes, axes or scales, so that what reads a graph needs their types alone.
MOST_VALUE_BYTES = 1 << 16


def copy_without_initializers(model: ModelProto) -> ModelProto:
    """A deep copy of all but the graph's initializers, which are never copied on the way."""
    bare = ModelProto()
    copy_fields(model, bare, but=("graph",))
    copy_fields(model.graph, bare.graph, but=("initializer",))
    return bare


def copy_without_weights(model: ModelProto) -> ModelProto:
    """A deep copy with a graph input in place of every initializer above MOST_VALUE_BYTES.

    For onnx's own passes, which take a model as one message.
    """
    light = copy_without_initializers(model)
    inputs = {value.name for value in light.graph.input}
    for tensor in model.graph.initializer:
        if not is_large(tensor):
            light.graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in inputs:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def replace_around_weights(model: ModelProto, light: ModelProto) -> None:
    """Make the model what its ``copy_without_weights`` has become, but with its weights instead of the copy's inputs.

    The large initializers are not copied. Mutates both.
    """
    graph = model.graph
    large = {tensor.name for tensor in graph.initializer if is_large(tensor)}
    stand_ins = large - {value.name for value in graph.input}
    for position in reversed(range(len(light.graph.input))):
        if light.graph.input[position].name in stand_ins:
            del light.graph.input[position]
    for position in reversed(range(len(graph.initializer))):
        if graph.initializer[position].name not in large:
            del graph.initializer[position]
    for owner, kept in ((model, "graph"), (graph, "initializer")):
        for field in owner.DESCRIPTOR.fields:
            if field.name != kept:
                owner.ClearField(field.name)
    model.MergeFrom(light)


def held_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor's values as an array, by its type, as to ask protobuf for the size copies the tensor twice."""
    return math.prod(int(size) for size in tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def is_large(tensor: TensorProto) -> bool:
    """Whether an initializer is larger than what describes shapes, axes or scales."""
    return tensor.data_type != TensorProto.UNDEFINED and held_bytes(tensor) > MOST_VALUE_BYTES


def copy_fields(source: Message, target: Message, *, but: Collection[str]) -> None:
    """Copy what is set in a message, but for some fields, to an empty one of the same kind."""
    for field, value in source.ListFields():
        if field.name in but:
            continue
        if isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        elif hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        else:
            setattr(target, field.name, value)
