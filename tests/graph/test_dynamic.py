"""Layers that quantize their input as they run: what is written, and what onnxruntime makes of it."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, checker

from onnxcalib.graph.inspect.quantized_layers import find_quantized_layers
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.graph.units import find_units

# Two layers that read one tensor, a Gemm of a transposed weight, and a MatMul without a bias.
NET = """g (float[N, 16] x) => (float[N, 5] y) {
    [one] a = MatMul (x, w1)  [add] b = Add (a, b1)  [relu] r = Relu (b)
    [two] c = Gemm <transB = 1> (r, w2, b2)  [three] d = MatMul (r, w3)  [sum] s = Add (c, d)
    [tanh] t = Tanh (s)  [head] y = Gemm (t, w4, b4)
}"""
SHAPES = {"w1": (16, 24), "b1": (24,), "w2": (8, 24), "b2": (8,), "w3": (24, 8), "w4": (8, 5), "b4": (5,)}
# A convolution, whose output has a grid, in front of a layer that has none.
MIXED = """g (float[N, 3, 8, 8] x) => (float[N, 8, 6, 4] y) {
    [conv] c = Conv <kernel_shape = [3, 3]> (x, w1)  [relu] r = Relu (c)  [layer] y = MatMul (r, w2)
}"""


@pytest.fixture
def net(build, draw):
    return build(NET, opset=21, ir=10, **{name: draw(*shape) / np.float32(4) for name, shape in SHAPES.items()})


def round_rows(x):
    """What a dynamic layer makes of the rows of an array, as floats."""
    peaks = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-30))
    return np.rint(x / peaks * np.float32(127)) / np.float32(127) * peaks


def compute(model, x):
    """The model's output with weights as they are stored, and with inputs rounded in each layer."""
    layers = {layer.name: layer for layer in find_quantized_layers(model)}
    weight = {name: layer.integers * layer.scale for name, layer in layers.items()}
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    r = np.maximum(round_rows(x) @ weight["one"] + values["b1"], 0).astype(np.float32)
    s = round_rows(r) @ weight["two"] + values["two_bias"] + round_rows(r) @ weight["three"]
    return round_rows(np.tanh(s).astype(np.float32)) @ weight["head"] + values["head_bias"]


@pytest.mark.parametrize("encoding", ["runtime", "standard"])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_file_computes_on_the_range_of_each_row(net, rough, draw, run, bits, encoding):
    quantized = rough(net, draw(32, 16), dynamic=True, weight_bits=bits, first_last_bits=bits, encoding=encoding)
    checker.check_model(quantized, full_check=True)
    stored = {layer.name: layer.weight.data_type for layer in find_quantized_layers(quantized)}
    assert set(stored.values()) == {TensorProto.INT8 if bits == 8 else TensorProto.INT4}
    for x in (draw(7, 16), 100 * draw(7, 16), np.zeros((2, 16), np.float32)):
        np.testing.assert_allclose(run(quantized, x)[0], compute(quantized, x), rtol=1e-3, atol=1e-4 * np.abs(x).max())


def test_names_survive_and_one_tensor_is_quantized_once(net, rough, draw):
    quantized = rough(net, draw(32, 16), dynamic=True)
    found = Counter(node.op_type for node in quantized.graph.node)
    assert [found[op] for op in ("Abs", "ReduceMax", "Max", "Div", "QuantizeLinear")] == [3] * 5
    assert (found["MatMul"], found["Mul"], found["DequantizeLinear"], found["Gemm"]) == (4, 4, 3 + 4, 0)
    found = {layer.name: (layer.source, layer.output) for layer in find_quantized_layers(quantized)}
    assert found == {"one": ("x", "a"), "two": ("r", "two_product"), "three": ("r", "d"), "head": ("t", "head_product")}
    made = {name for node in quantized.graph.node for name in node.output}
    assert made >= {"a", "b", "r", "c", "d", "s", "t", "y"}


@pytest.mark.parametrize("bits", [8, 4])
def test_onnxruntime_makes_one_kernel_of_each_layer(net, rough, draw, tmp_path, bits):
    quantized = rough(net, draw(32, 16), dynamic=True, weight_bits=bits, first_last_bits=bits)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(tmp_path / "o.onnx")
    onnxruntime.InferenceSession(quantized.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "o.onnx").graph
    found = Counter(node.op_type for node in graph.node)
    assert found["MatMulIntegerToFloat"] == 4 and found["QuantizeLinear"] == 3 and not found["DequantizeLinear"]


@pytest.mark.parametrize("opset", [17, 18])
def test_a_sample_has_the_same_output_beside_any_other_and_rows_of_zeros_give_the_bias(draw, build, rough, run, opset):
    weights = {name: draw(*shape) / np.float32(4) for name, shape in SHAPES.items()}
    quantized = rough(build(NET, opset=opset, **weights), draw(32, 16), dynamic=True)
    checker.check_model(quantized, full_check=True)
    x = draw(4, 16)
    x[1] *= 1000
    x[2] = 0
    alone = np.concatenate([run(quantized, row[None])[0] for row in x])
    np.testing.assert_allclose(run(quantized, x)[0], alone, rtol=1e-5, atol=1e-6)
    assert np.isfinite(alone).all()


def test_no_tensor_has_a_grid_and_no_sum_can_saturate(net):
    scheme = make_scheme(net, dynamic=True)
    assert scheme.activations == {} and all(layer.dynamic and not layer.on_grid for layer in scheme.layers)
    assert {layer.weight_spec.pair_limit for layer in scheme.layers} == {32767 // 255}
    assert {layer.weight_spec.pair_limit for layer in make_scheme(net, dynamic=True, pair_limits=False).layers} == {
        None
    }


def test_convolutions_keep_grids_and_products_of_activations_are_float(attention, build, draw, rough, run):
    scheme = make_scheme(attention, dynamic=True)
    assert scheme.activations == {}
    mixed = build(MIXED, opset=21, ir=10, w1=draw(8, 3, 3, 3) / np.float32(5), w2=draw(6, 4) / np.float32(3))
    x = draw(4, 3, 8, 8)
    quantized = rough(mixed, x, dynamic=True)
    (layer,) = [layer for layer in make_scheme(mixed, dynamic=True).layers if layer.dynamic]
    entry = next(node for node in quantized.graph.node if node.op_type == "Abs")
    assert (layer.name, list(entry.input)) == ("layer", ["r_dequantized"])
    wanted, given = run(mixed, x)[0], run(quantized, x)[0]
    assert np.square(wanted).sum() > 10**3.5 * np.square(wanted - given).sum()


def test_a_dynamic_layer_pays_its_share_of_quantizing_what_it_reads(net):
    shapes = {"x": (64, 16), "a": (64, 24), "r": (64, 24), "c": (64, 8), "d": (64, 8), "t": (64, 8), "y": (64, 5)}
    with_grids, without = (find_units(net, make_scheme(net, dynamic=each), shapes) for each in (False, True))
    before, after = ({u.node: u for u in found.units} for found in (with_grids, without))
    assert all(not unit.inputs and not unit.outputs for unit in without.units)
    more = {name: after[name].time.on_integers - before[name].time.on_integers for name in after}
    assert more["two"] == more["three"] == pytest.approx((10_000 + 0.75 * 64 * 24) / 2 + 2000 + 0.3 * 64 * 8)
    assert more["one"] == pytest.approx(10_000 + 0.75 * 64 * 16 + 2000 + 0.3 * 64 * 24)
