"""``inspect``: every count against one made by hand, what runs on integers, and files that are no models."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import QuantFormat

import onnxcalib
from onnxcalib import Contents, ModelError, inspect
from onnxcalib.contents import GridRecord, TypeRecord
from onnxcalib.inspection import outlook, run
from onnxcalib.pages.content import spell_shape

NET = """g (float[N, 4, 6, 6] x) => (float[N, 5] y) <int64[2] unread = {1, 2}> { [c] c = Conv (x, w1, b1)
    [r] r = Relu (c)  [p] p = GlobalAveragePool (r)  [f] f = Flatten (p)  [h] y = Gemm <transB = 1> (f, w3, b3) }"""
BRANCHES = """g (float[N, 8] x, bool c) => (float[N, 8] y) { [i] y = If (c) <
    then_branch = t () => (float[N, 8] a) { [m] a = MatMul (x, w) },
    else_branch = e () => (float[N, 8] b) { half = Constant <value = float {0.5}> ()  [n] b = Mul (x, half) }> }"""


@pytest.fixture
def net(build, draw):
    return build(NET, w1=draw(4, 4, 3, 3), b1=draw(4), w3=draw(5, 4), b3=draw(5))


@pytest.fixture
def read(tmp_path):
    def save_and_inspect(model, **options) -> Contents:
        onnx.save(model, tmp_path / "model.onnx", **options)
        return inspect(tmp_path / "model.onnx")

    return save_and_inspect


def test_a_float_model_is_counted_and_quantize_does_what_was_told(net, read, draw, tmp_path):
    found = read(net)
    assert (found.nodes, found.parameters, found.opsets, found.ir_version) == (5, 144 + 4 + 20 + 5, {"": 17}, 8)
    assert {(each.op, each.count) for each in found.operators} >= {("Conv", 1), ("Gemm", 1)}
    assert found.types == (TypeRecord("float", 4, 173, 692), TypeRecord("int64", 1, 2, 16))
    assert [spell_shape(each.shape) for each in (*found.inputs, *found.outputs)] == ["Nx4x6x6", "Nx5"]
    assert found.bytes == (tmp_path / "model.onnx").stat().st_size and not found.external_bytes
    assert not found.is_quantized and found.refused is None
    ahead = found.outlook
    report = onnxcalib.quantize(tmp_path / "model.onnx", draw(16, 4, 6, 6)).report
    assert list(ahead.layers) == [layer.name for layer in report.layers] and ahead.in_float == report.in_float
    assert ahead.blocks == len(report.blocks) and ahead.assumed == {"N": 1}
    assert ahead.products == 144 * 16 + 20  # Conv without pads: 4 x 4 positions
    assert "array" in ahead.samples[0] and ahead.sample_seconds > 0
    assert [each.samples for each in ahead.estimates] == [64, 256, 1024] * 2
    seconds = [each.seconds for each in ahead.estimates]
    assert seconds[:3] == sorted(seconds[:3]) and seconds[3] > seconds[0] > 0
    assert json.loads(found.to_json())["outlook"]["blocks"] == ahead.blocks


def test_what_runs_on_integers_is_told_by_onnxruntime_itself(net, read, by_tool, draw):
    found = read(by_tool(net, QuantFormat.QDQ, data=draw(2, 4, 6, 6)))
    assert [(each.name, each.runs, each.reason) for each in found.quantized] == [
        ("c", "integers", ""),
        ("h", "integers", ""),
    ]
    assert found.kernels["QLinearConv"] == found.kernels["QGemm"] == 1 and found.outlook is None
    assert found.parameters == 173 and found.quantized[0].weight == GridRecord("int8", 8, True, "tensor")
    assert {each.tensor for each in found.unfused} == {"x", "y"}


GRIDS = {"s": np.float32(0.1), "z": np.uint8(0), "t": np.float32(0.01), "n": np.int8(0)}
CONV = """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
    q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  w = DequantizeLinear (wq, t, n)
    b = DequantizeLinear (bq, t)  [c] c = Conv (d, w, b)  e = QuantizeLinear (c, s, z)
    y = DequantizeLinear (e, s, z) }"""
INT8_BIAS = {"bq": np.ones(4, np.int8)}


@pytest.mark.parametrize(
    ("text", "changed", "said"),
    [
        (CONV.replace("(e, s, z)", "(q, s, z)").replace("[N, 4, 6, 6] y", "[N, 4, 6, 6] y, float[N, 4, 6, 6] c"), {},
         "no QuantizeLinear alone reads what it gives"),
        (CONV, INT8_BIAS, "its bias is int8, and onnxruntime's integer kernels add int32"),
        (CONV, {"z": np.uint16(0)}, "its input is uint16, and onnxruntime's integer kernels read 8-bit integers"),
        (CONV.replace("d = Deq", "d = Identity (x)  u = Deq"), {}, "it reads floats; its weight alone is quantized"),
        (CONV.replace("w = Deq", "w = Identity (v)  u = Deq"), {"v": np.ones((4, 4, 1, 1), np.float32)},
         "its weight is float; its input alone is quantized"),
    ],
)  # fmt: skip
def test_a_layer_in_float_has_the_reason(read, build, text, changed, said):
    weights = {"wq": np.ones((4, 4, 1, 1), np.int8), "bq": np.ones(4, np.int32), **GRIDS, **changed}
    found = next(each for each in read(build(text, opset=21, ir=10, **weights)).quantized if each.name == "c")
    assert (found.runs, found.reason) == ("float", said)


def test_bodies_external_data_and_constants_in_nodes_are_counted_apart(build, draw, read, tmp_path):
    model = build(BRANCHES, w=draw(8, 8))
    found = read(model, save_as_external_data=True, location="w.bin", size_threshold=0)
    counts = {each.op: (each.count, each.inside) for each in found.operators}
    assert counts == {"If": (1, 0), "Constant": (1, 1), "MatMul": (1, 1), "Mul": (1, 1)}
    (kind,) = found.types
    assert (kind.tensors, kind.bytes, kind.external, kind.in_nodes, kind.inside) == (2, 260, 256, 4, 4)
    assert found.external_bytes == (tmp_path / "w.bin").stat().st_size and found.parameters == 65
    assert found.outlook is not None and found.outlook.left_out[0].what.startswith("layers in i/")


def test_a_file_that_onnxruntime_does_not_load_is_told_all_the_same(net, read):
    net.graph.node.append(helper.make_node("QuantizeLike", ["y"], ["z"], name="q", domain="com.maker"))
    net.opset_import.append(helper.make_opsetid("com.maker", 1))
    found = read(net)
    assert "QuantizeLike" in (found.no_outlook or "") and found.nodes == 6
    index = [node.name for node in net.graph.node].index("h")
    net.graph.node[index].input[0] = "z"
    net.graph.node[-1].input[0] = "f"
    net.graph.node.insert(index, net.graph.node.pop())
    found = read(net)
    assert "cannot load" in found.not_opened and found.quantized[0].runs is None
    assert found.quantized[0].input == GridRecord("com.maker.QuantizeLike", None, None, "run")


def test_what_quantize_refuses_is_told_with_its_reason(net, read):
    net.ir_version = 99
    found = read(net)
    assert "IR version 99 found" in found.refused and found.outlook is None and found.parameters == 173


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty; an ONNX file is needed"),
        (b"a page of text, and no model\n" * 9, "is not an ONNX model, or is cut off"),
        (None, "is a directory; an ONNX file is needed"),
    ],
)
def test_what_is_no_model_is_a_clear_error(tmp_path, data, said):
    path = tmp_path / "model.onnx"
    path.mkdir() if data is None else path.write_bytes(data)
    with pytest.raises(ModelError) as error:
        inspect(path)
    assert said in str(error.value) and str(path) in str(error.value)


def test_a_file_that_is_cut_off_and_data_that_are_missing_are_told(net, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(net, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="is cut off"):
        inspect(path)
    path.write_bytes(whole)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match="which is missing; external data lie beside the model"):
        inspect(path)
    with pytest.raises(ModelError, match=r"absent\.onnx"):
        inspect(tmp_path / "absent.onnx")


def test_shapes_are_spelled_with_what_is_open():
    assert [spell_shape(each) for each in ((1, "n", None), (), None, ("batch", 3))] == [
        *("1xnx?", "scalar", "?", "batch x 3")
    ]


def test_texts_and_images_are_offered_where_the_inputs_take_them(build, draw, read):
    text = "g (int64[N, S] input_ids) => (float[N, S, 4] y) { y = Gather (w, input_ids) }"
    model = build(text.replace("y = ", "h = ").replace("}", "y = MatMul (h, v) }"), w=draw(32, 32), v=draw(32, 4))
    ahead = read(model).outlook
    assert ahead.samples[0].startswith("texts (txt, csv") and ahead.assumed == {"N": 1, "S": 128}
    model = build("g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { y = Conv (x, w) }", w=draw(4, 3, 3, 3))
    ahead = read(model).outlook
    assert ahead.samples[0].startswith("a folder of images") and "--crop 8x8" in ahead.samples[0]


def test_a_tensor_whose_data_are_not_what_it_declares_is_refused(net, read):
    net.graph.initializer[1].raw_data = bytes(12)
    with pytest.raises(ModelError, match="bytes of raw_data found"):
        read(net)


def test_products_of_recurrent_layers_are_those_of_all_steps(read, build, draw):
    model = build(
        """g (float[5, 1, 8] x) => (float[5, 1, 1, 16] y) {
            [l] y, last = LSTM <hidden_size = 16> (x, w, r) }""",
        w=draw(1, 64, 8), r=draw(1, 64, 16),
    )  # fmt: skip
    ahead = read(model).outlook
    assert ahead.layers == {"l": "LSTM"} and ahead.products == 5 * (64 * 8 + 64 * 16)


def test_a_sample_is_timed_when_no_session_is_opened_beside_it(read, build, draw, monkeypatch):
    model = build(
        """g (float[N, 32] x) => (float[N, 4] y) {
            [b] b = com.microsoft.MatMulNBits <K = 32, N = 32, bits = 4, block_size = 32> (x, q, s)
            [h] y = MatMul (b, w) }""",
        q=np.zeros((32, 1, 16), np.uint8), s=draw(32), w=draw(32, 4),
    )  # fmt: skip
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    order = []

    def note(name, call):
        def noted(*given):
            order.append(f"{name} begins")
            found = call(*given)
            order.append(name)
            return found

        return noted

    monkeypatch.setattr(outlook, "Session", note("load", outlook.Session))
    monkeypatch.setattr(outlook, "time_sample", note("time", outlook.time_sample))
    monkeypatch.setattr(run, "open_in_onnxruntime", note("open", run.open_in_onnxruntime))
    found = read(model)
    assert order == ["open begins", "open", "load begins", "load", "time begins", "time"]
    assert found.outlook.sample_seconds > 0 and [each.op for each in found.quantized] == ["MatMulNBits"]
