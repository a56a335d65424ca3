"""Read an .onnx file without the values of its large initializers, which stay in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, TensorProto

from .stream import spell_key
from .values import TYPES, Place, count_bytes, describe_state, may_go_outside
from .wire import LENGTH, Field, list_fields

# What a tensor has beside its values; all of it is a few bytes.
_NUMBERS = {
    TensorProto.DESCRIPTOR.fields_by_name[name].number
    for name in ("dims", "data_type", "name", "doc_string", "metadata_props")
}


def parse_model(file: BinaryIO, size: int, path: Path, *, leave: bool) -> tuple[ModelProto, dict[int, Place]]:
    """The model of a file that has been checked to be a message, and where its large initializers, by number, lie.

    These have no values. leave: whether there are any. Raises DecodeError, and OSError.
    """
    file.seek(0)
    if not leave:
        return ModelProto.FromString(file.read(size)), {}
    reader, pieces = _Reader(file, path), []
    for field in list_fields(file, size):
        pieces += reader.read_graph(field) if _is(field, ModelProto, "graph") else [_copy(file, field)]
    model = ModelProto()
    model.ParseFromString(b"".join(pieces))
    return model, reader.places


class _Reader:
    """places: number of an initializer -> where its values lie."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.places: dict[int, Place] = {}
        self._file, self._path, self._count = file, path.absolute(), 0
        self._state = describe_state(os.fstat(file.fileno()))

    def read_graph(self, graph: Field) -> list[bytes]:
        """The bytes of the graph without these values."""
        pieces = []
        self._file.seek(graph.value)
        for field in list_fields(self._file, graph.end):
            data = None
            if _is(field, GraphProto, "initializer"):
                data = self._read_initializer(field)
                self._count += 1
            pieces += (
                [_copy(self._file, field)] if data is None else [spell_key(GraphProto, "initializer", len(data)), data]
            )
        return [spell_key(ModelProto, "graph", sum(map(len, pieces))), *pieces]

    def _read_initializer(self, initializer: Field) -> bytes | None:
        """The bytes of a large tensor without its values; None where it is to be read as it stands."""
        file = self._file
        file.seek(initializer.value)
        fields = list(list_fields(file, initializer.end))
        raw = [field for field in fields if _is(field, TensorProto, "raw_data")]
        others = [field for field in fields if field not in raw]
        if len(raw) != 1 or any(field.number not in _NUMBERS for field in others):
            return None
        data = b"".join(_copy(file, field) for field in others)
        tensor = TensorProto()
        tensor.ParseFromString(data)
        place = Place(self._path, raw[0].value, raw[0].end - raw[0].value, self._state)
        if tensor.data_type not in TYPES or not may_go_outside(tensor) or count_bytes(tensor) != place.length:
            return None
        self.places[self._count] = place
        return data


def _copy(file: BinaryIO, field: Field) -> bytes:
    file.seek(field.start)
    return file.read(field.end - field.start)


def _is(field: Field, kind: type[Message], name: str) -> bool:
    return field.wire == LENGTH and field.number == kind.DESCRIPTOR.fields_by_name[name].number
