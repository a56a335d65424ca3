"""The values of tensors: in the model itself, or, of large weights, outside of it in a file that is read when needed.

A tensor outside has ``data_location`` EXTERNAL, an absolute path, an offset and a length. No file that a user gives
can bring one, as there such paths are refused: ``load`` makes them of what it has checked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from ..errors import ModelError
from ..files.reading import open_file, spell_fault
from .weightless import copy_fields, copy_without_initializers, held_bytes, is_large

# Models whose weights have more bytes together leave the large ones outside. Of smaller ones a run's copies are small
# beside Python and its packages.
LEAST_LARGE_MODEL = 2**25
# Where a tensor's values may stand; in one of them alone, as readers differ in which they take.
VALUE_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
# A memory page of common processors: tensors begin at one, so that readers can map the file into memory.
PAGE_BYTES = 4096
# Of a tensor that is copied from file to file, so much is in memory at once, and of one that is looked through.
PIECE_BYTES, PART_VALUES = 2**24, 2**22
PACKED_BITS = {
    **dict.fromkeys(("UINT4", "INT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("UINT2", "INT2"), 2),
    **dict.fromkeys(("FLOAT6E2M3", "FLOAT6E3M2"), 6),
}
TYPES = {kind: helper.tensor_dtype_to_np_dtype(kind) for kind in helper.get_all_tensor_dtypes()}
# The entry of external data that holds a file's state: the one that onnxruntime takes and does not read.
_STATE = "checksum"
GIVE = "the files of a model must stay as they are while a run reads them; start again"


class Place(NamedTuple):
    """Where the values of a tensor lie: ``length`` bytes of a file from ``offset`` on, as raw_data holds them.

    state: that of a user's file when it was checked (``describe_state``); empty for a file of the run's own.
    """

    file: Path
    offset: int
    length: int
    state: str = ""


def describe_state(facts: os.stat_result) -> str:
    """What tells that a file has been written since: its size, and when it was written last."""
    return f"{facts.st_size}:{facts.st_mtime_ns}"


def count_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor's data in a file, by its type and dimensions."""
    bits = PACKED_BITS.get(TensorProto.DataType.Name(tensor.data_type), 8 * TYPES[tensor.data_type].itemsize)
    return -(-math.prod(map(int, tensor.dims)) * bits // 8)


def is_outside(tensor: TensorProto) -> bool:
    """Whether the values lie in a file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def has_outside(model: ModelProto) -> bool:
    """Whether some of the model's weights lie in files."""
    return any(map(is_outside, model.graph.initializer))


def read_entries(tensor: TensorProto) -> dict[str, str]:
    """What a tensor says of its external data: location, and perhaps offset, length and checksum."""
    return {entry.key: entry.value for entry in tensor.external_data}


def find_place(tensor: TensorProto) -> Place:
    """Where the values of a tensor outside lie."""
    entries = read_entries(tensor)
    return Place(Path(entries["location"]), int(entries["offset"]), int(entries["length"]), entries.get(_STATE, ""))


def refer(tensor: TensorProto, place: Place) -> None:
    """Let a tensor have its values in a file, and none of its own; the path must be absolute."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", place.file), ("offset", place.offset), ("length", place.length)):
        tensor.external_data.add(key=key, value=str(value))
    if place.state:
        tensor.external_data.add(key=_STATE, value=place.state)


def read_values(tensor: TensorProto) -> np.ndarray:
    """The values as a fresh array. Raises ModelError where the file of those outside is no longer what it was."""
    if not is_outside(tensor):
        return np.asarray(numpy_helper.to_array(tensor))
    place, kind = find_place(tensor), TYPES[tensor.data_type]
    data = np.empty(place.length, np.uint8)
    with _open(place) as file:
        if file.readinto(data) < place.length:  # type: ignore[attr-defined]
            raise _cut_off(tensor, place)
    if held_bytes(tensor) != place.length:  # several values share a byte
        packed = TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=data.tobytes())
        return np.asarray(numpy_helper.to_array(packed))
    return data.view(kind).reshape(tuple(tensor.dims))


def read_rows(tensor: TensorProto, size: int) -> Iterator[np.ndarray]:
    """The values of a matrix, or of more axes, by parts of about ``size`` bytes, each of an even number of rows.

    Raises ModelError as ``read_values``.
    """
    length, row = tensor.dims[0], held_bytes(tensor) // max(tensor.dims[0], 1)
    step = max(2, size // max(row, 1) // 2 * 2)
    if not is_outside(tensor) or find_place(tensor).length != held_bytes(tensor):
        whole = read_values(tensor)
        yield from (whole[start : start + step] for start in range(0, length, step))
        return
    place = find_place(tensor)
    for start in range(0, length, step):
        count = min(step, length - start)
        part = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[count, *tensor.dims[1:]])
        refer(part, place._replace(offset=place.offset + start * row, length=count * row))
        yield read_values(part)


def read_parts(tensor: TensorProto) -> Iterator[np.ndarray]:
    """The values in their order, a flat part after the other, each but the last of an even number of values.

    Raises ModelError as ``read_values``.
    """
    if not is_outside(tensor):
        yield read_values(tensor).reshape(-1)
        return
    place, left = find_place(tensor), math.prod(tensor.dims)
    start = place.offset
    while left:
        part = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[min(left, PART_VALUES)])
        size = count_bytes(part)
        refer(part, place._replace(offset=start, length=size))
        yield read_values(part)
        start, left = start + size, left - part.dims[0]


def find_ends(tensor: TensorProto) -> tuple[float, float]:
    """The least and the largest value, both NaN where any is, and both 0 of no values. Raises ModelError."""
    ends = np.array([(part.min(), part.max()) for part in read_parts(tensor) if part.size], np.float64)
    return (float(ends[:, 0].min()), float(ends[:, 1].max())) if ends.size else (0.0, 0.0)


def read_pieces(tensor: TensorProto, place: Place | None = None) -> Iterator[bytes]:
    """The bytes that raw_data holds, or would hold, piece after piece. Raises ModelError as ``read_values``.

    place: where they lie, if the tensor does not say so itself.
    """
    if place is None and not is_outside(tensor):
        yield tensor.raw_data or numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
        return
    place = place or find_place(tensor)
    with _open(place) as file:
        left = place.length
        while left:
            piece = file.read(min(left, PIECE_BYTES))
            if not piece:
                raise _cut_off(tensor, place)
            left -= len(piece)
            yield piece


def bring_in(tensor: TensorProto, place: Place | None = None) -> None:
    """Read the values of a tensor outside into it. place: where they lie, if the tensor does not say so itself."""
    data = b"".join(read_pieces(tensor, place))
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    tensor.raw_data = data


def bare_copy(tensor: TensorProto) -> TensorProto:
    """A copy without values and without their place, as which a tensor outside and one inside are the same."""
    bare = TensorProto()
    copy_fields(tensor, bare, but=(*VALUE_FIELDS, "external_data", "data_location"))
    return bare


def with_values(model: ModelProto) -> ModelProto:
    """The model itself where it holds all its values, or else a copy that does: for readers of whole models."""
    if not has_outside(model):
        return model
    copy = copy_without_initializers(model)
    for tensor in model.graph.initializer:
        own = copy.graph.initializer.add()
        own.CopyFrom(tensor)
        if is_outside(own):
            bring_in(own)
    return copy


def can_name(path: Path) -> bool:
    """Whether a tensor can say that its values lie there: protobuf's texts are UTF-8, names of files any bytes."""
    return os.fsencode(path) == str(path).encode(errors="replace")


def is_large_model(size: int) -> bool:
    """Whether a model with so many bytes of weights leaves the large ones outside."""
    return size >= LEAST_LARGE_MODEL


def may_go_outside(tensor: TensorProto) -> bool:
    """Whether a tensor's values may lie in a file: they are many, and no text."""
    return tensor.data_type != TensorProto.STRING and is_large(tensor)


def list_states(model: ModelProto) -> dict[Path, str]:
    """The users' files in which weights of the model lie, and the state of each when it was checked."""
    places = (find_place(tensor) for tensor in model.graph.initializer if is_outside(tensor))
    return {place.file: place.state for place in places if place.state}


def check_states(states: Mapping[Path, str]) -> None:
    """Raise ModelError for a file that has been written or removed since it was checked.

    For what others have read of it, as onnxruntime does, which maps it.
    """
    for path, state in states.items():
        try:
            facts = os.stat(path)
        except OSError as error:
            raise ModelError(f"{path}: {spell_fault(error)}; {GIVE}") from None
        _check_state(path, state, facts)


def _check_state(path: Path, state: str, facts: os.stat_result) -> None:
    if state and describe_state(facts) != state:
        raise ModelError(f"{path}: was written since this run began to read it; {GIVE}")


def _open(place: Place) -> BinaryIO:
    """The file at the beginning of the values. Raises ModelError where it has been written since it was checked."""
    file = open_file(place.file, ModelError, give=GIVE)
    try:
        _check_state(place.file, place.state, os.fstat(file.fileno()))
    except ModelError:
        file.close()
        raise
    file.seek(place.offset)
    return file


def _cut_off(tensor: TensorProto, place: Place) -> ModelError:
    found = f"the values of tensor {tensor.name}, bytes {place.offset} to {place.offset + place.length}"
    return ModelError(f"{place.file}: {found}, are no longer there; {GIVE}")
