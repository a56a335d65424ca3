import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcalib.errors import ModelError
from onnxcalib.graph import load
from onnxcalib.graph.float_weights import list_float_weights
from onnxcalib.graph.load import (
    inputs_of,
    is_quantized,
    load_model,
    refuse_unsuitable,
    stored_bytes,
    stored_files,
)

LINEAR = "g (float[N, 4] x) => (float[N, 3] y) { [fc] y = MatMul (x, w) }"


@pytest.fixture
def linear(build, draw):
    return build(LINEAR, w=draw(40, 30)[:4, :3])


def test_a_file_is_read_whole_with_its_external_data(tmp_path, build, draw):
    weight = draw(40, 30)
    model = build("g (float[N, 40] x) => (float[N, 30] y) { y = MatMul (x, w) }", w=weight)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    loaded = load_model(tmp_path / "m.onnx")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded.graph.initializer[0]), weight)
    assert not loaded.graph.initializer[0].external_data
    assert loaded.graph.initializer[0].data_location == TensorProto.DEFAULT


@pytest.mark.parametrize(
    ("op", "constants"),
    [
        ("ConstantOfShape (a)", {"a": np.array([2**20, 2**20])}),
        ("Range (a, b, c)", {"a": np.int64(0), "b": np.int64(2**40), "c": np.int64(1)}),
        ("Expand (a, b)", {"a": np.ones(1, np.float32), "b": np.array([2**40])}),
        ("Tile (a, b)", {"a": np.ones(2**10, np.float32), "b": np.array([2**20])}),
        ("Resize (a, , b)", {"a": np.ones((1, 1, 2, 2), np.float32), "b": np.float32([1, 1, 1e5, 1e5])}),
    ],
)  # fmt: skip
def test_tensors_that_would_fill_the_memory_are_refused_with_the_node_that_makes_them(build, op, constants):
    model = build(
        f"g (float[2] x) => (float[2] y) {{ [huge] h = {op}  s = Size (h)  t = Cast <to = 1> (s)  y = Add (x, t) }}"
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    with pytest.raises(ModelError, match=r"model: node huge: its output h has dimensions .*, which are [0-9,]+ bytes;"):
        load_model(model)


def test_tensors_that_depend_on_inputs_may_be_as_large_as_the_memory(build, monkeypatch):
    model = build("g (float[1, 2] x) => (float y) { [huge] h = Expand (x, size)  y = ReduceSum <keepdims = 0> (h) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2**30, 2]), "size"))
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 2**12, "SC_PHYS_PAGES": 2**24}[name])
    load_model(model)
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 2**12, "SC_PHYS_PAGES": 2**20}[name])
    with pytest.raises(ModelError, match=r"node huge: its output h has dimensions .* 4,294,967,296 are allowed in one"):
        load_model(model)


def test_a_model_in_memory_is_copied_and_left_alone(linear):
    loaded = load_model(linear)
    loaded.graph.node[0].name = "changed"
    assert linear.graph.node[0].name == "fc"


def test_a_missing_file_is_refused_with_its_name(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere\.onnx: no such file"):
        load_model(tmp_path / "nowhere.onnx")


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(ModelError, match="is a directory; an ONNX file is needed"):
        load_model(tmp_path)


def test_a_file_that_the_system_cannot_read_is_refused_with_the_reason(tmp_path, linear):
    onnx.save(linear, tmp_path / "m.onnx")
    path = tmp_path / "m.onnx" / "inside.onnx"
    with pytest.raises(ModelError, match=r"inside\.onnx: cannot be read \(Not a directory\)"):
        load_model(path)


@pytest.mark.parametrize("content", [b"hello, this is text\n", b'{"a": 1}', b"\x00\x01\x02" * 50])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.onnx: is not an ONNX model, or is cut off"):
        load_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("size", [3 * 2**30, 2**31])
def test_a_file_that_is_larger_than_a_message_is_refused_by_its_size(tmp_path, linear, size):
    onnx.save(linear, tmp_path / "m.onnx")
    os.truncate(tmp_path / "m.onnx", size)
    with pytest.raises(ModelError, match=f"holds {size:,} bytes; protobuf allows 2,147,483,647 in an ONNX file"):
        load_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("read", [load_model, stored_files])
def test_what_is_no_regular_file_is_refused(tmp_path, read):
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"m\.onnx: is a pipe; an ONNX file is needed"):
        read(tmp_path / "m.onnx")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ModelError, match=r"loop: cannot be read \(.*\); an ONNX file is needed"):
        read(tmp_path / "loop")


def test_a_file_is_parsed_once_for_the_names_of_its_data_and_again_where_it_changed(tmp_path, linear, monkeypatch):
    path, parse = tmp_path / "m.onnx", []
    given = load.parse_file
    monkeypatch.setattr(load, "parse_file", lambda path: (parse.append(path), given(path))[1])
    onnx.save(linear, path)
    assert stored_files(path) == stored_files(path) == (path,)
    assert len(parse) == 1
    onnx.save(linear, path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert stored_files(path) == (path, tmp_path / "m.data")
    assert len(parse) == 2


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"m\.onnx: is empty"):
        load_model(tmp_path / "m.onnx")


def test_a_file_that_was_cut_off_is_refused(tmp_path, linear):
    (tmp_path / "m.onnx").write_bytes(linear.SerializeToString()[:-20])
    with pytest.raises(ModelError, match="cut off"):
        load_model(tmp_path / "m.onnx")


def test_a_message_without_a_graph_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())
    with pytest.raises(ModelError, match="holds no ONNX graph"):
        load_model(tmp_path / "m.onnx")


def test_missing_external_data_are_refused_with_the_name_of_file_and_tensor(tmp_path, linear):
    onnx.save(linear, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    os.remove(tmp_path / "m.data")
    with pytest.raises(ModelError, match=r"the data of tensor w are in .*m\.data, which is missing"):
        load_model(tmp_path / "m.onnx")


def test_external_data_that_are_too_short_are_refused(tmp_path, linear):
    onnx.save(linear, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").write_bytes(b"1234")
    with pytest.raises(ModelError, match=r"data of tensor w cannot be read from .*m\.data \(bytes 0 to 48 of 4\)"):
        load_model(tmp_path / "m.onnx")


def test_a_model_in_memory_whose_data_are_in_a_file_is_refused(tmp_path, linear):
    onnx.save(linear, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    with pytest.raises(ModelError, match=r"tensor w: its data are in the file m\.data"):
        load_model(onnx.load(tmp_path / "m.onnx", load_external_data=False))


def test_an_old_intermediate_representation_is_refused(linear):
    linear.ir_version = 2
    with pytest.raises(ModelError, match=r"IR version 2 found; 3 to \d+ are allowed"):
        load_model(linear)


@pytest.mark.parametrize("opset", [6, 999])
def test_an_opset_out_of_range_is_refused(linear, opset):
    linear.opset_import[0].version = opset
    with pytest.raises(ModelError, match=f"opset {opset} of the standard operators found; 7 to"):
        load_model(linear)


def test_a_model_without_an_opset_is_refused(linear):
    del linear.opset_import[:]
    with pytest.raises(ModelError, match="no opset of the standard operators found"):
        load_model(linear)


def test_two_opsets_of_the_standard_operators_are_refused(linear):
    linear.opset_import.append(helper.make_opsetid("ai.onnx", 17))
    load_model(linear)
    linear.opset_import.append(helper.make_opsetid("ai.onnx", 13))
    with pytest.raises(ModelError, match=r"opsets \[13, 17\] of the standard operators found; one is needed"):
        load_model(linear)


@pytest.mark.parametrize("opset", [-1, 2**31])
def test_an_impossible_opset_of_another_domain_is_refused(linear, opset):
    linear.opset_import.append(helper.make_opsetid("custom", opset))
    with pytest.raises(ModelError, match=f"opset {opset} of domain 'custom' found; 0 to 2147483647 are allowed"):
        load_model(linear)


def test_a_graph_without_outputs_is_refused(linear):
    del linear.graph.output[:]
    with pytest.raises(ModelError, match="the graph has no outputs"):
        load_model(linear)


def test_a_tensor_that_nothing_makes_is_refused_with_its_reader(linear):
    linear.graph.node[0].input[1] = "lost"
    with pytest.raises(ModelError, match="node fc reads tensor lost, which nothing makes"):
        load_model(linear)


def test_inputs_are_told_without_initializers_and_with_unknown_dimensions_as_none(build, draw):
    model = build(
        "g (float[N, 4] x, int64[2, 4] k, float[4, 3] w) => (float[N, 3] y) { y = MatMul (x, w) }", w=draw(4, 3)
    )
    model.graph.input.append(helper.make_tensor_value_info("free", TensorProto.DOUBLE, None))
    model.graph.input.append(helper.make_tensor_value_info("odd", TensorProto.FLOAT, [-1, 0, 5]))
    found = {spec.name: (spec.dtype, spec.shape) for spec in inputs_of(model)}
    assert found == {
        "x": (np.dtype(np.float32), (None, 4)),
        "k": (np.dtype(np.int64), (2, 4)),
        "free": (np.dtype(np.float64), None),
        "odd": (np.dtype(np.float32), (None, None, 5)),
    }


def test_an_input_that_is_no_tensor_is_refused(linear):
    linear.graph.input.append(helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None))
    with pytest.raises(ModelError, match="input list: its type is sequence_type; only tensors"):
        inputs_of(linear)


def test_a_float_layer_with_a_constant_weight_is_accepted(linear):
    assert refuse_unsuitable(linear) is None


@pytest.mark.parametrize(
    "op", ["QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "QLinearMatMul", "MatMulIntegerToFloat"]
)
def test_a_quantized_model_is_refused_with_the_operator_that_tells(linear, op):
    linear.graph.node.append(helper.make_node(op, ["y"], ["z"], name="late"))
    with pytest.raises(ModelError, match=f"node late: found {op}, so the model is quantized already"):
        refuse_unsuitable(linear)


def test_an_operator_that_the_opset_does_not_have_is_refused(linear):
    linear.graph.node.append(helper.make_node("LayerNormalization", ["y", "y"], ["z"], name="late"))
    refuse_unsuitable(linear)
    linear.opset_import[0].version = 16
    with pytest.raises(ModelError, match="node late: found LayerNormalization, which opset 16 does not have"):
        refuse_unsuitable(linear)


def test_a_model_without_layers_is_refused(build):
    with pytest.raises(ModelError, match="no quantizable layer found; a Conv, ConvTranspose, Gemm or MatMul with"):
        refuse_unsuitable(build("g (float[2] x) => (float[2] y) { y = Relu (x) }"))


def test_a_layer_whose_weight_is_an_input_does_not_count(build):
    with pytest.raises(ModelError, match="no quantizable layer found;"):
        refuse_unsuitable(build("g (float[2, 2] x, float[2, 2] w) => (float[2, 2] y) { y = MatMul (x, w) }"))


@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_weights_of_another_float_type_are_refused_with_their_type(build, dtype):
    model = build(
        f"g ({dtype}[N, 2] x) => ({dtype}[N, 2] y) {{ y = MatMul (x, w) }}",
        w=np.eye(2, dtype=np.float16 if dtype == "float16" else np.float64),
    )
    with pytest.raises(ModelError, match=f"all weights are {dtype}; .* export the model in float32"):
        refuse_unsuitable(model)


def test_layers_inside_branches_alone_are_layers(build, draw):
    refuse_unsuitable(
        build(
            """
            g (float[N, 4] x, bool flag) => (float[N, 3] y)
            {
              y = If (flag) <
                then_branch = yes () => (float[N, 3] p) { p = MatMul (x, w) },
                else_branch = no () => (float[N, 3] q) { q = MatMul (x, v) }
              >
            }
            """,
            w=draw(4, 3),
            v=draw(4, 3),
        )
    )


def test_layers_whose_weights_are_packed_may_stand_beside_a_float_layer(build, draw):
    body = "a = MatMulNBits <K = 32, N = 4, bits = 4, block_size = 32> (x, packed, scales)"
    packed, scales = np.zeros((4, 1, 16), np.uint8), draw(4)
    whole = build(f"g (float[N, 32] x) => (float[N, 4] a) {{ {body} }}", packed=packed, scales=scales)
    half = build(
        f"g (float[N, 32] x) => (float[N, 3] y) {{ {body} y = MatMul (a, w) }}",
        packed=packed,
        scales=scales,
        w=draw(4, 3),
    )
    for model in (whole, half):
        model.graph.node[0].domain, model.graph.node[-1].name = "com.microsoft", "last"
    refuse_unsuitable(half)
    (found,) = list_float_weights(half, ["last"])
    assert found.reason == "its weight is quantized already, and stays as it is"
    with pytest.raises(ModelError, match=r"no quantizable layer found, as .* MatMulNBits .* is quantized already"):
        refuse_unsuitable(whole)


def test_a_file_takes_its_bytes_and_those_of_each_file_beside_it_once(tmp_path, build, draw):
    body = "{ a = MatMul (x, w)  b = MatMul (a, v)  y = Add (b, c) }"
    weights = {"w": draw(40, 30), "v": draw(30, 20), "c": draw(20)}
    text = f"g (float[N, 40] x) => (float[N, 20] y) {body}"
    onnx.save(build(text, **weights), tmp_path / "whole.onnx")
    whole = (tmp_path / "whole.onnx").stat().st_size
    assert stored_bytes(tmp_path / "whole.onnx") == stored_bytes(str(tmp_path / "whole.onnx")) == whole
    for together in (True, False):
        folder = tmp_path / str(together)
        folder.mkdir()
        options = {"save_as_external_data": True, "all_tensors_to_one_file": together, "size_threshold": 0}
        onnx.save(build(text, **weights), folder / "m.onnx", **options)
        files = list(folder.iterdir())
        assert len(files) == (2 if together else 4)
        assert stored_bytes(folder / "m.onnx") == sum(file.stat().st_size for file in files)
        (folder / "other.data").write_bytes(b"not read by the model")
        assert stored_bytes(folder / "m.onnx") == sum(file.stat().st_size for file in files)


def test_external_data_inside_of_bodies_count(tmp_path, build, draw):
    text = """g (float[N, 4] x, bool flag) => (float[N, 4] y) { y = If (flag) <
        then_branch = yes () => (float[N, 4] p) { p = MatMul (x, w) },
        else_branch = no () => (float[N, 4] q) { q = Relu (x) }> }"""
    model = build(text)
    body = model.graph.node[0].attribute[0].g
    body.initializer.append(onnx.numpy_helper.from_array(draw(4, 4), "w"))
    onnx.save(model, tmp_path / "m.onnx")
    tensor = body.initializer[0]
    (tmp_path / "m.data").write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, "m.data", length=64)
    tensor.ClearField("raw_data")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert stored_bytes(tmp_path / "m.onnx") == (tmp_path / "m.onnx").stat().st_size + 64


def test_a_model_in_memory_takes_what_its_file_would(tmp_path, linear):
    (tmp_path / "m.onnx").write_bytes(linear.SerializeToString())
    framing = 8 * len(linear.graph.initializer)  # the keys and lengths of the tensors are not counted
    assert 0 <= stored_bytes(tmp_path / "m.onnx") - stored_bytes(linear) <= framing


def test_a_missing_file_has_no_size(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere\.onnx: no such file"):
        stored_bytes(tmp_path / "nowhere.onnx")


@pytest.mark.parametrize(
    ("op", "quantized"),
    [("QuantizeLinear", True), ("DequantizeLinear", True), ("QLinearAdd", True), ("QGemm", True), ("MatMulNBits", True),
     ("DynamicQuantizeMatMul", True), ("Conv", False), ("Gemm", False)],
)  # fmt: skip
@pytest.mark.parametrize("inside", [False, True])
def test_a_model_is_quantized_by_its_operators_even_inside_of_bodies(linear, op, quantized, inside):
    assert not is_quantized(linear)
    node = helper.make_node(op, ["y"], ["z"])
    if inside:
        node = helper.make_node("If", ["c"], ["z"], then_branch=helper.make_graph([node], "yes", [], []))
    linear.graph.node.append(node)
    assert is_quantized(linear) == quantized
