import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcalib.errors import ModelError
from onnxcalib.graph import save as save_module
from onnxcalib.graph import values
from onnxcalib.graph.load import load_model
from onnxcalib.graph.save import fingerprint, save_model
from onnxcalib.graph.stream import model_bytes, model_pieces
from onnxcalib.graph.values import find_place, is_outside, read_values, with_values

SIDE = 150  # of a matrix that is larger than what describes shapes


@pytest.fixture
def model(build, draw):
    built = build(
        f"g (float[N, {SIDE}] x) => (float[N, {SIDE}] y) {{ h = MatMul (x, w)  y = Add (h, b) }}",
        w=draw(SIDE, SIDE),
        b=draw(SIDE),
    )
    built.graph.doc_string, built.graph.initializer[0].doc_string = "a graph", "a weight"
    built.metadata_props.add(key="a", value="b")
    return built


@pytest.fixture(params=["inside of the model's file", "in external data"])
def outside(request, model, tmp_path, monkeypatch):
    """The model, as it is loaded where it counts as a large one."""
    monkeypatch.setattr(values, "LEAST_LARGE_MODEL", 1)
    save_model(model, tmp_path / "m.onnx", most_bytes=None if request.param.startswith("inside") else 1)
    loaded = load_model(tmp_path / "m.onnx")
    assert [is_outside(tensor) for tensor in loaded.graph.initializer] == [True, False]
    return loaded


def test_the_pieces_of_a_model_are_the_bytes_of_protobuf(model):
    assert b"".join(model_pieces(model)) == model.SerializeToString()
    assert model_bytes(model) == model.ByteSize()


def test_the_fingerprint_of_weights_in_files_is_computed_once_while_model_and_files_stay(outside, monkeypatch):
    hashed, compute = list[onnx.ModelProto](), save_module._hash
    monkeypatch.setattr(save_module, "_hash", lambda model: hashed.append(model) or compute(model))
    assert fingerprint(outside) == fingerprint(outside) and len(hashed) <= 1
    other = onnx.ModelProto.FromString(outside.SerializeToString())
    other.graph.doc_string = "another graph"
    assert fingerprint(other) != fingerprint(outside) and len(hashed) <= 2


def test_typed_and_packed_tensors_are_streamed_as_they_are(model):
    model.graph.initializer.append(helper.make_tensor("t", TensorProto.FLOAT, [3], np.arange(3.0)))
    model.graph.initializer.append(helper.make_tensor("p", TensorProto.INT4, [3], [1, 2, 3]))
    assert b"".join(model_pieces(model)) == model.SerializeToString()
    assert model_bytes(model) == model.ByteSize()


def test_a_large_model_has_its_values_where_they_were(outside, model):
    np.testing.assert_array_equal(read_values(outside.graph.initializer[0]), read_values(model.graph.initializer[0]))
    assert len(outside.SerializeToString()) < 2000


def test_a_model_with_weights_outside_is_the_same_model(outside, model):
    assert fingerprint(outside) == fingerprint(model)
    assert model_bytes(outside) == model.ByteSize()
    assert with_values(outside) == model
    assert with_values(model) is model


@pytest.mark.parametrize("most", [None, 1])
def test_a_model_with_weights_outside_is_saved_as_the_same_files(outside, model, tmp_path, most):
    files = []
    for each, folder in ((outside, tmp_path / "outside"), (model, tmp_path / "whole")):
        folder.mkdir()
        save_model(each, folder / "n.onnx", most_bytes=most)
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1]


@pytest.mark.parametrize("kind", ["int4", "bfloat16", "float16", "bool"])
def test_values_of_all_types_are_read_from_files(build, tmp_path, monkeypatch, kind):
    held = np.arange(70_001) % 7 < 3 if kind == "bool" else (np.arange(70_001) % 7 - 3)
    held = held.astype(helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(kind.upper())))
    model = build("g (float[2] x) => (float[2] y) { y = Relu (x) }", opset=21, ir=10)
    model.graph.initializer.append(numpy_helper.from_array(held, "w"))
    onnx.save(model, tmp_path / "m.onnx")
    monkeypatch.setattr(values, "LEAST_LARGE_MODEL", 1)
    (tensor,) = load_model(tmp_path / "m.onnx").graph.initializer
    assert is_outside(tensor)
    found = read_values(tensor)
    assert found.dtype == held.dtype
    np.testing.assert_array_equal(found.astype(np.float32), held.astype(np.float32))


def test_a_file_that_is_written_after_it_was_loaded_is_refused(outside, tmp_path):
    place = find_place(outside.graph.initializer[0])
    place.file.write_bytes(place.file.read_bytes()[: place.offset + 100])
    for read in (lambda: read_values(outside.graph.initializer[0]), lambda: save_model(outside, tmp_path / "n.onnx")):
        with pytest.raises(ModelError, match=r"was written since this run began to read it; the files of"):
            read()
    assert not (tmp_path / "n.onnx").exists()


@pytest.mark.parametrize("other", ["float_data", "segment", "external_data"])
def test_a_tensor_of_another_form_is_read_and_refused_as_ever(model, tmp_path, monkeypatch, other):
    weight = model.graph.initializer[0]
    if other == "float_data":
        weight.float_data.append(1)
    elif other == "segment":
        weight.segment.begin = 1
    else:
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=str(tmp_path / "m.onnx"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    messages = []
    for least in (2**28, 1):
        monkeypatch.setattr(values, "LEAST_LARGE_MODEL", least)
        with pytest.raises(ModelError) as error:
            load_model(tmp_path / "m.onnx")
        messages.append(str(error.value))
    assert messages[0] == messages[1]
