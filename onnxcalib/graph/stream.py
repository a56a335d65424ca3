"""A model as the bytes of its file, piece after piece: of the tensors outside of it, a piece is in memory at a time.

They are the bytes that protobuf writes for the model with its values inside. A message is its fields in the order of
their numbers, so that it is written as a part in front of a large field, that field, and a part behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, TensorProto

from .values import bare_copy, find_place, is_outside, read_pieces
from .weightless import copy_fields
from .wire import LENGTH, MORE

AnyMessage = TypeVar("AnyMessage", bound=Message)


def model_pieces(model: ModelProto) -> Iterator[bytes]:
    """The model's file. Raises ModelError where the file of a tensor is no longer what it was."""
    before, after = _split(model, "graph")
    ahead, behind = _split(model.graph, "initializer")
    size = len(ahead) + len(behind) + _initializer_bytes(model.graph)
    yield before + spell_key(ModelProto, "graph", size) + ahead
    for tensor in model.graph.initializer:
        yield spell_key(GraphProto, "initializer", tensor_bytes(tensor))
        yield from tensor_pieces(tensor)
    yield behind + after


def model_bytes(model: ModelProto) -> int:
    """Size of the model as a file, its tensor data included, in bytes; works above the 2 GB of one message too."""
    parts = (*_split(model, "graph"), *_split(model.graph, "initializer"))
    graph = sum(map(len, parts[2:])) + _initializer_bytes(model.graph)
    return sum(map(len, parts[:2])) + len(spell_key(ModelProto, "graph", graph)) + graph


def _initializer_bytes(graph: GraphProto) -> int:
    """Bytes of all initializers, with what stands in front of each."""
    return sum(len(spell_key(GraphProto, "initializer", n := tensor_bytes(t))) + n for t in graph.initializer)


def tensor_pieces(tensor: TensorProto) -> Iterator[bytes]:
    """The bytes of a tensor as a message that holds its values."""
    if not is_outside(tensor):
        yield tensor.SerializeToString(deterministic=True)
        return
    before, after = _split(bare_copy(tensor), "raw_data")
    yield before + spell_key(TensorProto, "raw_data", find_place(tensor).length)
    yield from read_pieces(tensor)
    yield after


def tensor_bytes(tensor: TensorProto) -> int:
    """Size of that message. To ask protobuf for it takes three times the memory of the data."""
    if not is_outside(tensor) and not tensor.HasField("raw_data"):
        return int(tensor.ByteSize())
    data = find_place(tensor).length if is_outside(tensor) else len(tensor.raw_data)
    bare = TensorProto()
    copy_fields(tensor, bare, but=("raw_data", *(("external_data", "data_location") if is_outside(tensor) else ())))
    return int(bare.ByteSize()) + len(spell_key(TensorProto, "raw_data", data)) + data


def _split(message: Message, name: str) -> tuple[bytes, bytes]:
    """The fields of a message in front of the one of this name, and those behind it."""
    number = message.DESCRIPTOR.fields_by_name[name].number
    return (
        _serialize(message, lambda other: other < number),
        _serialize(message, lambda other: other > number),
    )


def _serialize(message: Message, takes: Callable[[int], bool]) -> bytes:
    part = type(message)()
    copy_fields(message, part, but=[field.name for field in message.DESCRIPTOR.fields if not takes(field.number)])
    return bytes(part.SerializeToString(deterministic=True))


def spell_key(kind: type[Message], name: str, length: int) -> bytes:
    """What stands in front of a field of so many bytes: its number and type, and the length."""
    return spell_varint(kind.DESCRIPTOR.fields_by_name[name].number << 3 | LENGTH) + spell_varint(length)


def spell_varint(value: int) -> bytes:
    """A number of 7 bits in each byte, of which all but the last have a successor."""
    found = bytearray()
    while value >= MORE:
        found.append(value & MORE - 1 | MORE)
        value >>= 7
    return bytes([*found, value])
