import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcalib import QuantizeConfig, quantize
from onnxcalib.errors import ModelError
from onnxcalib.graph import tensors
from onnxcalib.graph.load import load_model
from onnxcalib.graph.tensors import check_tensor, make_dense
from onnxcalib.graph.values import TYPES, count_bytes

NET = "g (float[N, 8] x) => (float[N, 4] y) { [one] h = MatMul (x, w) [r] t = Relu (h) [two] y = MatMul (t, v) }"
KINDS = sorted(set(TYPES) - {TensorProto.STRING})


def make_sparse(array, name, *, flat=True):
    """The tensor's values that are not 0, with indices into all elements or into each axis."""
    places = np.argwhere(array)
    indices = np.ravel_multi_index(tuple(places.T), array.shape) if flat else places
    values = numpy_helper.from_array(array[tuple(places.T)], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(indices.astype(np.int64), "places"), array.shape)


@pytest.mark.parametrize("kind", KINDS, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("size", [0, 1, 5])
def test_tensors_that_onnx_makes_are_accepted(kind, size):
    values = np.zeros(size, TYPES[kind])
    raw, typed = numpy_helper.from_array(values), helper.make_tensor("t", kind, [size], values)
    for tensor in (raw, typed):
        check_tensor(tensor, "t")
        assert numpy_helper.to_array(tensor).shape == (size,)
    assert count_bytes(raw) == len(raw.raw_data)


def test_text_is_accepted():
    check_tensor(helper.make_tensor("t", TensorProto.STRING, [2], ["a", "ä"]), "t")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (TensorProto(data_type=99, dims=[1]), "t: element type 99 found; one of onnx's, 1 to [0-9]+, is needed"),
        (TensorProto(data_type=0, dims=[1]), "t: element type 0 found"),
        (TensorProto(data_type=1, dims=[-1]), r"t: dimensions \[-1\] found; 64 of 0 or more"),
        (TensorProto(data_type=1, dims=[2**21, 2**21]), r"t: dimensions .* found; .* and 1,099,511,627,776 elements"),
        (TensorProto(data_type=1, dims=[0, 2**62, 2**62]), "t: dimensions .* found"),
        (TensorProto(data_type=1, dims=[1] * 65), r"t: dimensions \[1, .*, 1\] and 57 more found"),
        (TensorProto(data_type=1, dims=[2**30]), r"t: 4,294,967,296 bytes found; [0-9,]+ are allowed in one tensor"),
        (TensorProto(data_type=1, dims=[2], raw_data=b"1234"), r"t: 4 bytes of raw_data found; .* need 8"),
        (TensorProto(data_type=1, dims=[2], float_data=[1]), r"t: 1 values of float_data .* float .*\[2\] need 2"),
        (TensorProto(data_type=1, dims=[1], int32_data=[1]), "t: 0 values of float_data found; .* need 1"),
        (TensorProto(data_type=1, dims=[1], string_data=[b"1"]), "t: 0 values of float_data found"),
        (TensorProto(data_type=1, dims=[]), "t: 0 values of float_data found"),
        (TensorProto(data_type=8, dims=[1], raw_data=b"a"), "t: 1 bytes of raw_data found; type string .* need 1"),
        (TensorProto(data_type=8, dims=[1], string_data=[b"\xff"]), "t: text that is not UTF-8 found"),
        (TensorProto(data_type=22, dims=[3], int32_data=[1, 2, 3]), "t: 3 values of int32_data .* int4 .* need 2"),
        (TensorProto(data_type=14, dims=[2], float_data=[1, 2]), "t: 2 values of float_data found; .* need 4"),
        (TensorProto(data_type=1, dims=[1], raw_data=b"1234", float_data=[1]), "t: values in raw_data and float_data"),
        (TensorProto(data_type=1, dims=[0], segment=TensorProto.Segment()), "t: its data are a segment"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_hold_what_they_declare_are_refused(tensor, message):
    with pytest.raises(ModelError, match=message):
        check_tensor(tensor, "t")


def test_tensors_are_named_wherever_they_are(build, draw):
    model = build("g (float[4] x) => (float[4] y) { [c] k = Constant <value = float[1] {1.0}> () y = Add (x, k) }")
    model.graph.initializer.append(TensorProto(name="lost", data_type=1, dims=[3]))
    with pytest.raises(ModelError, match="model: tensor lost: 0 values"):
        load_model(model)
    del model.graph.initializer[:]
    model.graph.node[0].attribute[0].t.dims[0] = 2
    with pytest.raises(ModelError, match="model: node c: attribute value: 1 values"):
        load_model(model)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("role", ["initializer", "constant"])
def test_a_model_with_a_sparse_weight_is_quantized_as_its_dense_twin(build, weigh, draw, flat, role):
    weight = weigh(8, 16)
    weight[np.abs(weight) < 0.3] = 0
    dense = build(NET, w=weight, v=weigh(16, 4))
    sparse = build(NET, v=weigh(16, 4))
    if role == "initializer":
        sparse.graph.sparse_initializer.append(make_sparse(weight, "w", flat=flat))
    else:
        node = helper.make_node("Constant", [], ["w"], "k", sparse_value=make_sparse(weight, "", flat=flat))
        sparse.graph.node.insert(0, node)
    dense.graph.initializer[1].CopyFrom(sparse.graph.initializer[0])
    samples, config = draw(20, 8), QuantizeConfig(pipeline="light")
    given, wanted = (quantize(model, samples, config) for model in (sparse, dense))
    stored = [{t.name: numpy_helper.to_array(t).tolist() for t in r.model.graph.initializer} for r in (given, wanted)]
    assert stored[0] == stored[1]
    assert sparse.graph.sparse_initializer or role == "constant"  # the given model is left as it was


@pytest.mark.parametrize("flat", [True, False])
def test_a_sparse_tensor_without_values_is_all_zero(build, flat):
    model = build("g (float[2, 3] x) => (float[2, 3] y) { y = Add (x, w) }")
    model.graph.sparse_initializer.append(make_sparse(np.zeros((2, 3), np.float32), "w", flat=flat))
    make_dense(model)
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), np.zeros((2, 3)))


def test_sparse_constants_inside_bodies_become_dense(build):
    text = """g (float[2] x, bool c) => (float[2] y) { y = If (c) <
        then_branch = a () => (float[2] p) { p = Add (x, s) }, else_branch = b () => (float[2] q) { q = Neg (x) }> }"""
    model = build(text)
    body = model.graph.node[0].attribute[0].g
    body.sparse_initializer.append(make_sparse(np.array([0, 3], np.float32), "s"))
    loaded = load_model(model).graph.node[0].attribute[0].g
    assert numpy_helper.to_array(loaded.initializer[0]).tolist() == [0, 3]
    assert not loaded.sparse_initializer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.dims.__setitem__(0, 2**22), r"tensor w: sparse tensors of 12 bytes found, which have 671,088,640"),
        (lambda s: s.dims.__setitem__(0, 2**41), r"tensor w: dimensions .* found"),
        (lambda s: s.dims.__setitem__(0, 1), "tensor w: sparse indices found that are given twice or lie outside"),
        (lambda s: s.indices.CopyFrom(numpy_helper.from_array(np.array([1, 1, 2]))), "tensor w: sparse indices found"),
        (lambda s: s.indices.CopyFrom(numpy_helper.from_array(np.array([-1, 1, 2]))), "tensor w: sparse indices found"),
        (lambda s: s.indices.CopyFrom(numpy_helper.from_array(np.array([0, 1]))), r"of shape \[2\] found;"),
        (lambda s: s.indices.CopyFrom(numpy_helper.from_array(np.zeros(3, np.int32))), "one int64 index or 2 for each"),
        (lambda s: s.indices.ClearField("raw_data"), "tensor w: indices: 0 values of int64_data found"),
        (lambda s: s.values.ClearField("data_type"), "tensor w: element type 0 found"),
    ],
)  # fmt: skip
def test_sparse_tensors_that_cannot_be_are_refused(build, weigh, change, message):
    array = np.zeros((10, 40), np.float32)
    array[0, :2], array[9, 39] = (1, 2), 3
    model = build("g (float[N, 10] x) => (float[N, 40] y) { y = MatMul (x, w) }")
    sparse = make_sparse(array, "w")
    change(sparse)
    model.graph.sparse_initializer.append(sparse)
    with pytest.raises(ModelError, match=message):
        load_model(model)


def test_sparse_tensors_that_are_too_large_together_are_refused(build, monkeypatch):
    monkeypatch.setattr(tensors, "FREE_BYTES", 2000)
    monkeypatch.setattr(tensors, "MOST_SPARSITY", 0)
    model = build("g (float[N, 10] x) => (float[N, 40] y) { y = MatMul (x, w) }")
    model.graph.sparse_initializer.append(make_sparse(np.eye(10, 40, dtype=np.float32), "w"))
    load_model(model)
    model.graph.sparse_initializer.append(make_sparse(np.eye(10, 20, dtype=np.float32), "v"))
    with pytest.raises(ModelError, match="tensor w: sparse tensors of 80 bytes found, which have 2,400 with their"):
        load_model(model)


def test_a_dense_model_is_left_as_it_is(build, weigh):
    model = build(NET, w=weigh(8, 16), v=weigh(16, 4))
    before = model.SerializeToString(deterministic=True)
    make_dense(model)
    assert model.SerializeToString(deterministic=True) == before
