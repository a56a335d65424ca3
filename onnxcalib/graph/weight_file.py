"""New large values, which a run of a large model writes to a file of its own: none of them stays in memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from ..errors import OutputError
from ..files.scratch import Scratch, room_in
from ..spec import QuantSpec
from .values import (
    PAGE_BYTES,
    Place,
    bare_copy,
    can_name,
    has_outside,
    is_large_model,
    is_outside,
    may_go_outside,
    read_parts,
    read_pieces,
    read_values,
    refer,
)
from .weightless import copy_without_initializers, held_bytes

# Types of which a byte holds several, and the bits of the integers that a run keeps.
PACKED = tuple(np.dtype(kind) for kind in (ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.uint2))
BITS = {int(TensorProto.INT8): 8, int(TensorProto.INT4): 4, int(TensorProto.INT2): 2}

_current: ContextVar[WeightFile | None] = ContextVar("weight_file", default=None)


class WeightFile:
    """A file in a temporary folder, which ends with the last reference to this object. Until ``open`` it takes nothing.

    Within ``taking``, what ``make_tensor`` and ``put_integers`` are given goes to it.
    """

    def __init__(self) -> None:
        self._folder: Scratch | None = None
        self._end, self._hole = 0, 0
        self._writing = threading.Lock()  # threads may share a run

    def open(self) -> None:
        """Take large values from now on. Raises OutputError where no folder can be made, or tensors cannot name it."""
        folder = self._folder or Scratch()
        if not can_name(folder.path):
            raise OutputError(
                f"{folder.path}: its name is no UTF-8; the weights of a large model need a temporary folder whose name"
                " is; set TMPDIR to another folder"
            )
        self._folder = folder

    def open_for(self, model: ModelProto) -> None:
        """Take the large values that are made of a model if it is a large one."""
        if has_outside(model):
            self.open()

    @property
    def folder(self) -> Path | None:
        """The temporary folder, where other files may lie beside the file; None where it takes nothing."""
        return None if self._folder is None else self._folder.path

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Be the file to which new large values go."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def write(self, pieces: Iterable[Any]) -> Place:
        """Write buffers one behind the other. Raises OutputError."""
        assert self._folder is not None, "the file is open"
        path = self._folder.path / "weights.data"
        with self._writing, room_in(path.parent), open(path, "r+b" if path.exists() else "w+b") as file:
            start = file.seek(-(-self._end // PAGE_BYTES) * PAGE_BYTES)
            for piece in pieces:
                file.write(piece)
            self._end = file.tell()
            return Place(path, start, self._end - start)

    def find_zeros(self, length: int) -> Place:
        """So many bytes of zeros, of which the disk holds none. Raises OutputError."""
        assert self._folder is not None, "the file is open"
        path = self._folder.path / "zeros.data"
        with self._writing:
            if length > self._hole:
                with room_in(path.parent), open(path, "ab") as file:
                    file.truncate(length)
                self._hole = length
        return Place(path, 0, length)


class FileIntegers:
    """Integers of a layer that lie in a file, of the layer's shape. The file stays as long as this object.

    A pickle or a deep copy is the array itself.
    """

    def __init__(self, tensor: TensorProto, file: WeightFile) -> None:
        self._tensor, self._file, self._made = tensor, file, dict[str, FileIntegers]()
        self._packed: dict[Hashable, TensorProto] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return np.asarray, (self.read(),)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array."""
        return tuple(self._tensor.dims)

    def read(self) -> np.ndarray:
        """The integers as a fresh array of int8."""
        return read_values(self._tensor).astype(np.int8, copy=False)

    def read_parts(self) -> Iterator[np.ndarray]:
        """The integers in their order, a flat array of int8 after the other."""
        for part in read_parts(self._tensor):
            yield part.astype(np.int8, copy=False)

    def turn(self) -> np.ndarray | FileIntegers:
        """The transposed integers, which are written once."""
        return self._once("turned", lambda: put_integers(self.read().T, BITS[self._tensor.data_type]))

    def pack(self, spec: QuantSpec) -> np.ndarray | FileIntegers:
        """The integers as a file has those of a weight on this grid; where they are not, they are written once."""
        kind = helper.np_dtype_to_tensor_dtype(weight_type(spec))
        if kind == self._tensor.data_type:
            return self
        return self._once("packed", lambda: _write_parts(store_parts(self.read_parts(), spec), self.shape, kind))

    def _once(self, name: str, make: Callable[[], np.ndarray | FileIntegers]) -> np.ndarray | FileIntegers:
        if name not in self._made:
            made = make()
            if not isinstance(made, FileIntegers):  # outside of the run, where it is not written
                return made
            self._made[name] = made
        return self._made[name]

    def store_packed(self, name: str, form: Hashable, pack: Callable[[np.ndarray], np.ndarray]) -> TensorProto:
        """The tensor of this name of what ``pack`` makes of the integers, which is written once for each ``form``."""
        packed = self._packed.get(form)
        if packed is None:
            packed = make_tensor(name, pack(self.read()))
            if is_outside(packed):
                self._packed[form] = packed
        tensor = TensorProto()
        tensor.CopyFrom(packed)
        tensor.name = name
        return tensor

    def store(self, name: str, shape: Sequence[int] | None = None) -> TensorProto:
        """The tensor of this name, in another shape if one is given."""
        tensor = TensorProto()
        tensor.CopyFrom(self._tensor)
        tensor.name, tensor.dims[:] = name, self.shape if shape is None else shape
        return tensor


def weight_type(spec: QuantSpec) -> np.dtype[Any]:
    """The type in which a file has a weight's integers: signed if symmetric, else unsigned."""
    module = np if spec.stored_bits == 8 else ml_dtypes
    kind: np.dtype[Any] = np.dtype(getattr(module, f"{'' if spec.symmetric else 'u'}int{spec.stored_bits}"))
    return kind


def store_integers(values: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """A weight's integers, or zero points, as a file has them. Unsigned ones are moved up, so that none is negative."""
    whole = values.astype(np.int16) - (0 if spec.symmetric else spec.qmin)
    return whole.astype(weight_type(spec))


def store_parts(parts: Iterable[np.ndarray], spec: QuantSpec) -> Iterator[np.ndarray]:
    """``store_integers`` of one part after the other."""
    return (store_integers(part, spec) for part in parts)


def make_tensor(name: str, values: np.ndarray | np.generic) -> TensorProto:
    """An initializer of the graph; a large one of a large model has its values in the run's file."""
    values = np.asarray(values)
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(values.dtype), dims=values.shape)
    file = _find_file(tensor)
    if file is None:
        return numpy_helper.from_array(values, name)
    refer(tensor, file.write([_pack(values)]))
    return tensor


def make_inside(name: str, values: np.ndarray) -> TensorProto:
    """A tensor that holds its values: of a body, or of an attribute."""
    return numpy_helper.from_array(values, name)


def move_out(tensor: TensorProto) -> None:
    """Move the values of a tensor from where they are into the run's file, if they are large ones of a large model."""
    file = _find_file(tensor)
    if file is not None:
        tensor.CopyFrom(_copy_to(file, tensor))


def copy_out(model: ModelProto) -> ModelProto:
    """A deep copy. In a run, the large weights of a large model go to the run's file, which is opened, not into it."""
    file = _current.get()
    if file is None or not is_large_model(sum(map(held_bytes, model.graph.initializer))):
        whole = ModelProto()
        whole.CopyFrom(model)
        return whole
    file.open()
    copy = copy_without_initializers(model)
    for tensor in model.graph.initializer:
        copy.graph.initializer.append(_copy_to(file, tensor) if may_go_outside(tensor) else tensor)
    return copy


def _copy_to(file: WeightFile, tensor: TensorProto) -> TensorProto:
    """A copy that has its values in the file."""
    copy = bare_copy(tensor)
    refer(copy, file.write(read_pieces(tensor)))
    return copy


def put_integers(integers: np.ndarray, bits: int) -> np.ndarray | FileIntegers:
    """A weight's integers of so many bits: themselves, or large ones of a large model in the run's file."""
    file = _find_file(_describe(integers.shape, bits))
    return integers if file is None else put_parts([integers], integers.shape, bits)


def put_parts(parts: Iterable[np.ndarray], shape: Sequence[int], bits: int) -> np.ndarray | FileIntegers:
    """As ``put_integers``, given as one part after the other; each but the last has a multiple of 4 values."""
    return _write_parts(parts, shape, _describe(shape, bits).data_type)


def _write_parts(parts: Iterable[np.ndarray], shape: Sequence[int], kind: int) -> np.ndarray | FileIntegers:
    tensor = TensorProto(data_type=kind, dims=shape)
    file = _find_file(tensor)
    if file is None:
        whole: np.ndarray = np.concatenate(list(parts))
        return whole.reshape(shape)
    stored = helper.tensor_dtype_to_np_dtype(kind)
    refer(tensor, file.write(_pack(part.astype(stored)) for part in parts))
    return FileIntegers(tensor, file)


def put_zeros(shape: Sequence[int], bits: int) -> np.ndarray | FileIntegers:
    """As ``put_integers`` for zeros, which take no memory."""
    tensor = _describe(shape, bits)
    file = _find_file(tensor)
    if file is None:
        return np.zeros(shape, np.int8)
    refer(tensor, file.find_zeros(-(-math.prod(shape) * BITS[tensor.data_type] // 8)))  # 3 bits are stored in 4
    return FileIntegers(tensor, file)


def _describe(shape: Sequence[int], bits: int) -> TensorProto:
    kind = helper.np_dtype_to_tensor_dtype(weight_type(QuantSpec(bits, signed=True, symmetric=True)))
    return TensorProto(data_type=kind, dims=shape)


def _find_file(tensor: TensorProto) -> WeightFile | None:
    """The file to which the values of a new tensor go; None where they stay in memory."""
    file = _current.get()
    return file if file is not None and file.folder is not None and may_go_outside(tensor) else None


def _pack(values: np.ndarray) -> Any:
    """A buffer of the bytes of raw_data."""
    if values.dtype in PACKED:
        return numpy_helper.from_array(values.reshape(-1)).raw_data
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
