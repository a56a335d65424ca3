"""Records come back from JSON and bytes as they were, or not at all."""

import io
import json
from collections.abc import Mapping

import numpy as np
import pytest
from onnx import TensorProto

from onnxcalib.graph import values
from onnxcalib.graph.layer_params import LayerParams
from onnxcalib.graph.weight_file import FileIntegers, WeightFile, put_integers
from onnxcalib.numeric.histogram import Histogram
from onnxcalib.planning.latency import Latencies
from onnxcalib.planning.sensitivity import Measured
from onnxcalib.quantization.calibrate import Statistics
from onnxcalib.runtime import records
from onnxcalib.runtime.record_file import read_record, spell_record
from onnxcalib.runtime.records import describe_array, flatten, read_array, restore, spell_array
from onnxcalib.spec import BitSet, Candidate, Cost, QParams, QuantSpec

FOUR = Candidate(4, 8)
GRID = QParams(np.float32(0.5), np.int32(0), QuantSpec(4, True, True, axis=0))
SET = BitSet(("a", "b"), 7, {FOUR: float("inf")}, {FOUR: Cost(3, 4, 0.1)})


def make_histogram():
    histogram = Histogram()
    histogram.add(np.float32([0.1, 3]))
    return histogram


def send(value, kind):
    """The value from the JSON and the bytes of its arrays."""
    arrays, found = [], []
    tree = flatten(value, kind, arrays)
    for array in arrays:
        described = json.loads(json.dumps(describe_array(array)))
        found.append(read_array(described, io.BytesIO(bytes(spell_array(array))))[0])
    return restore(json.loads(json.dumps(tree)), kind, found)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Statistics({"x": make_histogram(), "y": Histogram()}, 8), Statistics),
        (Latencies((SET,), 0.25, None), Latencies),
        (Latencies((), 0.0, 2.0), Latencies),
        (Measured((SET,), {"a": {FOUR: LayerParams(np.eye(2, dtype=np.int8), QParams(
            np.ones(2, np.float32), np.zeros(2, np.int32), GRID.spec), None)}}, {"solve": 0.1}), Measured),
        (float("nan"), float),
        (5, float),
        ({}, Mapping[str, int]),
    ],
)  # fmt: skip
def test_what_planning_keeps_comes_back_as_it_was(value, kind):
    assert repr(send(value, kind)) == repr(value)


@pytest.mark.parametrize(
    "array",
    [
        np.float32(3).reshape(()),
        np.zeros((0, 4)),
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)),
        np.arange(12, dtype=np.float16).reshape(3, 4)[:, ::2],
        np.array([True, False]),
        np.float64([np.nan, -0.0, np.inf]),
    ],
)
def test_arrays_keep_their_type_shape_order_and_bits(array):
    found = send(array, np.ndarray)
    assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert found.flags.c_contiguous or not array.flags.c_contiguous
    assert found.flags.f_contiguous or not array.flags.f_contiguous


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (object(), object, "object is not kept as <class 'object'>"),
        (np.float32(1), float, "float32 is not kept as <class 'float'>"),
        (True, int, "bool is not kept as <class 'int'>"),
        (np.array([None]), np.ndarray, "an array of object is not kept"),
        (np.array(["a"]), np.ndarray, "an array of <U1 is not kept"),
        (np.longdouble([1]), np.ndarray, "an array of float128 is not kept"),
        ([1], tuple[int, ...], "list is not kept as tuple"),
    ],
)
def test_other_types_are_a_fault_of_the_program(value, kind, text):
    with pytest.raises(TypeError, match=text):
        flatten(value, kind, [])


@pytest.mark.parametrize(
    ("tree", "kind"),
    [
        (1, str),
        ("1", float),
        (True, float),
        (0, bool),
        (None, int),
        ([], int),
        ({}, Statistics),
        ([[], 1, 2, 3], Statistics),
        ([[["x", [1.0]]], 1], Statistics),
        ([1, 2, 3, 4], Candidate),
        ([["a"]], dict[str, int]),
        ([["a", 1, 2]], dict[str, int]),
        (["ab"], dict[str, int]),
        (-1, np.ndarray),
        (False, np.ndarray),
        (1.5, Latencies | None),
    ],
)
def test_what_does_not_fit_the_type_is_refused(tree, kind):
    with pytest.raises(ValueError):
        restore(tree, kind, [np.zeros(1)])


@pytest.mark.parametrize(
    "described",
    [
        None, [], ["<f8", [1]], ["<f8", [1], "K"], ["<f8", 1, "C"], ["<f8", [-1], "C"], ["<f8", [1.0], "C"],
        ["|O", [1], "C"], ["<U9", [1], "C"], [["<f8"], [1], "C"], ["<f8", [2], "C"], ["<f8", [10**20], "C"],
        ["<f8", [True], "C"],
    ],
)  # fmt: skip
def test_an_array_that_is_none_is_refused(described):
    with pytest.raises(ValueError):
        read_array(described, io.BytesIO(bytes(8)))


def test_integers_in_a_file_go_through_records_part_by_part(tmp_path, monkeypatch):
    monkeypatch.setattr(values, "PART_VALUES", 1000)
    monkeypatch.setattr(records, "PART_VALUES", 1000)
    integers = (np.arange(300 * 302) % 15 - 7).astype(np.int8).reshape(300, 302)
    grid = QParams(np.ones(300, np.float32), np.zeros(300, np.int32), QuantSpec(4, signed=True, symmetric=True, axis=0))
    file = WeightFile()
    file.open()
    with file.taking():
        params = LayerParams(put_integers(integers, 4), grid, None)
        (tmp_path / "r").write_bytes(b"".join(map(bytes, spell_record("s", "n", params, LayerParams))))
        assert max(map(len, spell_record("s", "n", params, LayerParams))) < 2000
        found = read_record(tmp_path / "r", "s", "n", LayerParams)
        assert isinstance(found.integers, FileIntegers)
        np.testing.assert_array_equal(found.read(), integers)
        assert found.integers.pack(grid.spec).store("w").data_type == TensorProto.INT4
        np.testing.assert_array_equal(found.integers.pack(grid.spec).read(), integers)
        data = bytearray((tmp_path / "r").read_bytes())
        data[-5000] ^= 1
        (tmp_path / "r").write_bytes(bytes(data))
        assert read_record(tmp_path / "r", "s", "n", LayerParams) is None
