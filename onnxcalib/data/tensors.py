"""ONNX test data: folders of ``input_0.pb``, ``input_1.pb``..., tensors named by input or else in the inputs' order."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, first_line
from ..files.reading import read_file
from ..spec import InputSpec, spell_shape
from .arrays import NUMBERS, Part
from .listing import list_names, quote, shorten
from .npy import Layout
from .room import Room

MOST_BYTES = 2**28  # of a file: it is read as a whole, and its values are copied once
REMEDY = "write it with onnx.save_tensor"
NUMBERED = re.compile(r"input_([0-9]{1,9})\.pb")
# Where values may stand; in one of them alone, as readers differ in which they take.
VALUE_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def open_test_set(folder: Path, inputs: Sequence[InputSpec], room: Room) -> Part:
    """The samples of a folder, kept in the temporary folder. Raises DataError and OutputError."""
    files = sorted(folder.glob("input_*.pb"), key=lambda path: (len(path.name), path.name))
    names = [spec.name for spec in inputs]
    if len(files) != len(inputs):
        raise DataError(
            f"{folder}: found {len(files)} input_*.pb; the model has inputs {list_names(names)}; give one file for each"
        )
    for number, file in enumerate(files):
        named = NUMBERED.fullmatch(file.name)
        if named is None or int(named[1]) != number:
            raise DataError(
                f"{file}: found where input_{number}.pb is needed; a set numbers its files from 0, by the model's"
                " inputs; rename it"
            )
    arrays, found = {}, []
    for number, file in enumerate(files):
        name, values = _load_tensor(file)
        found.append(name)
        layout = Layout(values.shape, values.dtype)
        arrays[number] = room.store(str(file), layout, [values.tobytes()])
    if sorted(found) == sorted(names):
        return Part(str(folder), {name: arrays[number] for number, name in enumerate(found)})
    for number, name in enumerate(found):
        if name in names and name != names[number]:
            raise DataError(
                f"{files[number]}: holds {quote(name)}, but {quote(names[number])} by its number; the other tensors"
                " have no such names; name all of them by the model's inputs, or none"
            )
    return Part(str(folder), {name: arrays[number] for number, name in enumerate(names)})


def _load_tensor(file: Path) -> tuple[str, np.ndarray]:
    import onnx

    data = read_file(file, DataError, give="give ONNX tensors of this size at most, or .npy", most=MOST_BYTES)
    try:
        tensor = onnx.load_tensor_from_string(data)
        _check_sizes(tensor)
        array = onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # protobuf and onnx raise whatever damaged bytes lead them to
        text = shorten(first_line(error))
        raise DataError(f"{file}: not an ONNX tensor ({text}); {REMEDY}") from None
    if array.dtype.kind not in NUMBERS:
        raise DataError(f"{file}: found {array.dtype}; samples are integers, floats or booleans; convert it")
    return tensor.name, array


def _check_sizes(tensor: Any) -> None:
    """Raise ValueError for a tensor whose values are elsewhere, or not as many as its shape says."""
    from onnx import TensorProto, helper

    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise ValueError("its values are in another file")
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        raise ValueError(f"its type {tensor.data_type} is none of ONNX")
    if any(side < 0 for side in tensor.dims):
        raise ValueError(f"its shape is {spell_shape(tuple(tensor.dims))}")
    filled = [field for field in VALUE_FIELDS if len(getattr(tensor, field))]
    if len(filled) > 1:
        raise ValueError(f"its values are in {' and '.join(filled)}")
    if tensor.data_type == TensorProto.STRING:
        return
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    wanted = math.prod(tensor.dims) * dtype.itemsize
    if dtype.kind in NUMBERS and tensor.HasField("raw_data") and len(tensor.raw_data) != wanted:
        raise ValueError(
            f"its shape {spell_shape(tuple(tensor.dims))} of {dtype} takes {wanted:,} bytes; it has"
            f" {len(tensor.raw_data):,}"
        )
    if dtype.kind in "iu" and dtype.itemsize < 4 and tensor.int32_data:
        limits = np.iinfo(dtype)
        if min(tensor.int32_data) < limits.min or max(tensor.int32_data) > limits.max:
            raise ValueError(f"it has values beyond {dtype}")
