"""Copies of a model without its weights, for what needs the graph alone and may meet models above 2 GB."""

from __future__ import annotations

from google.protobuf.message import Message
from onnx import ModelProto


def copy_without_initializers(model: ModelProto) -> ModelProto:
    """A deep copy of all but the graph's initializers, which are never copied on the way."""
    bare = ModelProto()
    _copy_fields(model, bare, but="graph")
    _copy_fields(model.graph, bare.graph, but="initializer")
    return bare


def _copy_fields(source: Message, target: Message, *, but: str) -> None:
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        elif hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        else:
            setattr(target, field.name, value)
