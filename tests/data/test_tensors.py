"""ONNX test data: tensors whose shape and values agree, and those that are refused."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxcalib.config import DataConfig
from onnxcalib.data import open_calibration
from onnxcalib.errors import DataError
from onnxcalib.spec import InputSpec

VECTOR = [InputSpec("x", np.dtype(np.float32), (None, 4))]
BYTES = [InputSpec("x", np.dtype(np.uint8), (None, 4))]
PAIR = [InputSpec("left", np.dtype(np.float32), (None, 4)), InputSpec("right", np.dtype(np.float32), (None, 4))]
VALUES = np.arange(4, dtype=np.float32).reshape(1, 4)


def write(folder, *tensors):
    for number, tensor in enumerate(tensors):
        onnx.save_tensor(tensor, folder / f"input_{number}.pb")
    return folder


def make(**changes):
    tensor = onnx.numpy_helper.from_array(VALUES, "x")
    for name, value in changes.items():
        if name == "dims":
            tensor.dims[:] = value
        else:
            setattr(tensor, name, value)
    return tensor


def refuse(text, source, inputs=VECTOR, config=None):
    with pytest.raises(DataError, match=re.escape(text)) as refusal:
        open_calibration(source, inputs, config)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (make(dims=[2, 4]), "its shape (2, 4) of float32 takes 32 bytes; it has 16"),
        (make(dims=[2**40, 4]), "its shape (1099511627776, 4) of float32 takes 17,592,186,044,416 bytes; it has 16"),
        (make(dims=[-1, 4]), "its shape is (-1, 4)"),
        (make(data_type=0), "its type 0 is none of ONNX"),
        (make(data_type=99), "its type 99 is none of ONNX"),
        (make(data_location=TensorProto.EXTERNAL), "its values are in another file"),
        (onnx.helper.make_tensor("x", TensorProto.FLOAT, [1, 4], [1.0] * 4), None),
        (TensorProto(data_type=TensorProto.FLOAT, dims=[1, 4], float_data=[1.0] * 3), "not an ONNX tensor ("),
        (TensorProto(data_type=TensorProto.FLOAT, dims=[2**40], float_data=[1.0] * 3), "not an ONNX tensor ("),
        (TensorProto(), "its type 0 is none of ONNX"),
    ],
)
def test_a_tensor_whose_shape_and_values_disagree_is_refused(tmp_path, tensor, text):
    write(tmp_path, tensor)
    if text is None:
        assert len(open_calibration(tmp_path, VECTOR)) == 1
    else:
        refuse(f"{tmp_path / 'input_0.pb'}: not an ONNX tensor (", tmp_path)
        refuse(text, tmp_path)


def test_values_that_wrap_around_in_their_type_are_refused(tmp_path):
    tensor = TensorProto(data_type=TensorProto.UINT8, dims=[1, 4], int32_data=[1, 2, 3, 255])
    assert open_calibration(write(tmp_path, tensor), BYTES).read([0])["x"].tolist() == [[1, 2, 3, 255]]
    tensor.int32_data[3] = 300
    refuse("input_0.pb: not an ONNX tensor (it has values beyond uint8)", write(tmp_path, tensor), BYTES)


def test_names_that_contradict_the_order_are_refused(tmp_path):
    one, other = (onnx.numpy_helper.from_array(VALUES, name) for name in ("right", ""))
    text = "input_0.pb: holds 'right', but 'left' by its number; the other tensors have no such names; name all of"
    refuse(text, write(tmp_path, one, other), PAIR)


def test_a_file_that_is_too_large_for_a_tensor_is_not_read(tmp_path):
    with open(tmp_path / "input_0.pb", "wb") as file:
        file.truncate(2**40)
    refuse("input_0.pb: holds 1,099,511,627,776 bytes or more; at most 268,435,456 are read", tmp_path)


def test_tensors_count_among_what_may_be_unpacked(tmp_path):
    write(tmp_path, onnx.numpy_helper.from_array(np.ones((100, 4), np.float32), "x"))
    refuse("takes 1,600 bytes unpacked; 1,000 are left of the 1,000", tmp_path, config=DataConfig(max_unpacked="1KB"))


@pytest.mark.parametrize("name", ["input_1.pb", "input_-1.pb", "input_x.pb", "input_\u0660.pb", "input_99999999999.pb"])
def test_tensors_that_are_not_numbered_from_zero_are_refused(tmp_path, name):
    onnx.save_tensor(make(), tmp_path / name)
    refuse(f"{tmp_path / name}: found where input_0.pb is needed; a set numbers its files from 0", tmp_path)


def test_a_tensor_with_two_sets_of_values_is_refused(tmp_path):
    tensor = make()
    tensor.float_data.extend([1, 2, 3, 4])
    refuse("its values are in raw_data and float_data", write(tmp_path, tensor))
