"""Operators with 8 bits on one side and 16 on another: grids are changed around them, and values stay."""

import numpy as np
import onnx
import pytest

from onnxcalib.graph.passes.even_bits import even_bits
from onnxcalib.runtime.session import Session

SCALES = {8: 0.03, 16: 0.0001}
HEAD = """<ir_version: 10, opset_import: ["": 21]> g (float[1, 4, 8] x) => (float[1, 4, 8] y)
<float s = {%s}, float s_again = {%s}, %s z = {%d}, %s z_again = {%d}, float t = {%s}, float t_again = {%s},
%s u = {%d}, %s u_again = {%d}, float r = {0.004}, int8 n = {0}>"""


def make(body, before, after, **weights):
    """A model in which ``read(x)`` is x on a grid of ``before`` bits, and ``give(p)`` p on one of ``after`` bits."""
    body = body.replace("read(x)", "DequantizeLinear (a, s_again, z_again)").replace(
        "give(p)", "QuantizeLinear (p, t, u)"
    )
    a, b = (f"uint{bits}" for bits in (before, after))
    zeros = [3 if bits == 8 else 300 for bits in (before, after)]
    held = (SCALES[before],) * 2 + (a, zeros[0]) * 2 + (SCALES[after],) * 2 + (b, zeros[1]) * 2
    nodes = f"[q] a = QuantizeLinear (x, s, z) [d] i = {body} [e] y = DequantizeLinear (b, t_again, u_again)"
    model = onnx.parser.parse_model(f"{HEAD % held} {{ {nodes} }}")
    for name, value in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


PRODUCT = "read(x) [w] v = DequantizeLinear (w, r, n) [m] p = MatMul (i, v) [o] b = give(p)"
GELU = "read(x) [m] p = Gelu (i) [o] b = give(p)"


def compute(model):
    """The output for normal inputs, by exact sums."""
    shape = [dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    return Session(model, optimize=False, threads=1).run({"x": x})["y"]


def types_around(model):
    """The types of the integers in front of the node m and behind it."""
    made = {t: node for node in model.graph.node for t in node.output}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    (node,) = [node for node in model.graph.node if node.name == "m"]
    behind = [each for each in model.graph.node if each.op_type == "QuantizeLinear" and each.input[0] == node.output[0]]
    kinds = [types[each.input[2]] for each in (made[node.input[0]], *behind)]
    return [onnx.TensorProto.DataType.Name(kind) for kind in kinds]


@pytest.fixture
def weight():
    return {"w": np.random.default_rng(1).integers(-127, 127, (8, 8)).astype(np.int8)}


@pytest.mark.parametrize("bits", [(8, 16), (16, 8)])
def test_a_layer_of_unlike_bits_has_16_on_both_sides_and_the_same_values(bits, weight):
    model = make(PRODUCT, *bits, **weight)
    wanted = compute(model)
    assert even_bits(model, ["MatMul"]) == 1
    onnx.checker.check_model(model, full_check=True)
    assert types_around(model) == ["UINT16", "UINT16"]
    off = np.abs(compute(model) - wanted) / SCALES[bits[1]]
    # What is rounded twice may be a step off where it lies half way between two steps.
    assert off.max() < 1.01 and (off > 0.5).mean() < 0.05 and np.ptp(wanted) > 100 * SCALES[16]
    if bits == (8, 16):
        assert not off.any()


def test_the_file_has_a_step_more_around_the_layer_and_nothing_twice(weight):
    model = make(PRODUCT, 8, 16, **weight)
    even_bits(model, ["MatMul"])
    assert sorted(node.op_type[0] for node in model.graph.node) == sorted("QDDQDMQD")
    names = [node.name for node in model.graph.node]
    assert len(names) == len(set(names)) and even_bits(model, ["MatMul"]) == 0


@pytest.mark.parametrize("bits", [(8, 8), (16, 16)])
def test_like_bits_stay(bits, weight):
    model = make(PRODUCT, *bits, **weight)
    before = model.SerializeToString()
    assert even_bits(model, ["MatMul"]) == 0 and model.SerializeToString() == before


def test_operators_that_are_not_named_stay():
    model = make(GELU, 16, 8)
    assert even_bits(model, ["MatMul"]) == 0 and even_bits(model, ["Gelu"]) == 1
    assert types_around(model) == ["UINT16", "UINT16"]


def test_nodes_that_read_one_tensor_share_its_wider_grid(weight, run):
    body = "read(x) [w] v = DequantizeLinear (w, r, n) [k] k = MatMul (i, v) [l] l = QuantizeLinear (k, t, u) [j] j ="
    body += " DequantizeLinear (l, t, u) [m] p = MatMul (i, v) [a] c = Add (p, j) [o] b = QuantizeLinear (c, t, u)"
    model = make(body, 8, 16, **weight)
    model.graph.node[-3].input[:] = ["p2", "j"]
    extra = [
        onnx.helper.make_node("QuantizeLinear", ["p", "t", "u"], ["p1"], "o1"),
        onnx.helper.make_node("DequantizeLinear", ["p1", "t", "u"], ["p2"], "o2"),
    ]
    nodes = [*model.graph.node[:-3], *extra, *model.graph.node[-3:]]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    wanted, count = compute(model), len(model.graph.node)
    assert even_bits(model, ["MatMul"]) == 2 and len(model.graph.node) == count + 2
    assert np.array_equal(compute(model), wanted)


def make_gemm(bias):
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[4, 8] x) => (float[4, 8] y)
    <float s = {0.03}, uint8 z = {3}, float t = {0.0001}, uint16 u = {300}, float[8] r = {%s}, float[8] br = {%s},
    int8[8] n = {0,0,0,0,0,0,0,0}, int32[8] bz = {0,0,0,0,0,0,0,0}> {
    [q] a = QuantizeLinear (x, s, z) [d] i = DequantizeLinear (a, s, z) [w] v = DequantizeLinear <axis = 1> (w, r, n)
    [c] c = DequantizeLinear <axis = 0> (bias, br, bz) [m] p = Gemm (i, v, c) [o] b = QuantizeLinear (p, t, u)
    [e] y = DequantizeLinear (b, t, u) }"""
    scales = 0.004 * np.arange(1, 9, dtype=np.float32)
    lists = (", ".join(map(str, each.tolist())) for each in (scales, scales * np.float32(0.03)))
    model = onnx.parser.parse_model(text % tuple(lists))
    w = np.random.default_rng(1).integers(-127, 127, (8, 8)).astype(np.int8)
    for name, value in {"w": w, "bias": np.asarray(bias, np.int32)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def test_the_bias_has_the_steps_of_the_new_input_and_keeps_its_value():
    model = make_gemm(range(-400, 400, 100))
    wanted = compute(model)
    assert even_bits(model, ["Gemm"]) == 1 and np.array_equal(compute(model), wanted)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = {node.output[0]: node for node in model.graph.node}
    (gemm,) = [node for node in model.graph.node if node.name == "m"]
    scales = [stored[nodes[name].input[1]] for name in gemm.input]
    assert np.allclose(scales[2], scales[0] * scales[1], rtol=1e-6)
    assert stored[nodes[gemm.input[2]].input[0]].tolist() == [256 * each for each in range(-400, 400, 100)]


def test_a_layer_whose_bias_would_overflow_stays():
    model = make_gemm([2**24, *[0] * 7])
    before = model.SerializeToString()
    assert even_bits(model, ["Gemm"]) == 0 and model.SerializeToString() == before
