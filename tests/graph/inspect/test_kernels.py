"""Which integer kernels an optimized graph has: what they multiply, in its bodies too, and which nodes they are of."""

import numpy as np
import pytest
from onnx import numpy_helper

from onnxcalib.graph.inspect.kernels import find_kernels, find_source
from onnxcalib.graph.layout import kernel_rows

SQUARE = np.arange(16, dtype=np.int8).reshape(4, 4)
FILTERS = np.arange(36, dtype=np.int8).reshape(2, 2, 3, 3)
STACK = np.arange(24, dtype=np.int8).reshape(2, 4, 3)
Q_CONV = "QLinearConv {} (x, s, z, w, s, o, s, z)"
NHWC_CONV = "com.microsoft.QLinearConv <channels_last = 1> (x, s, z, w, s, o, s, z)"
Q_MATMUL = "QLinearMatMul (x, s, z, w, s, o, s, z)"
Q_GEMM = "com.microsoft.QGemm {} (x, s, z, w, s, o, b, s, z)"
INTEGERS = "MatMulInteger (x, w, z, o)"
CONSTANTS = {"s": np.float32(0.5), "z": np.uint8(3), "o": np.int8(0), "w": SQUARE}


def only(model):
    (kernel,) = find_kernels(model.graph)
    return kernel


def operate(build, node, weight, kind="uint8"):
    """The rows of one operator on integers; o is the zero point of its weight."""
    text = f"g ({kind} x) => ({kind} y) {{ [op] y = {node.replace('{}', '')} }}"
    constants = {"s": np.float32(0.5), "z": np.array(3, kind), "o": weight.dtype.type(0), "b": np.zeros(4, np.int32)}
    kernel = only(build(text, w=weight, **constants))
    assert (kernel.name, kernel.highest) == ("op", 255)
    return kernel.rows


@pytest.mark.parametrize(
    ("node", "weight", "axis"),
    [
        (Q_CONV, FILTERS, None),
        (Q_CONV.format("<group = 2>"), FILTERS, None),
        (NHWC_CONV, FILTERS, None),
        (Q_MATMUL, SQUARE, 1),
        (Q_MATMUL, STACK, 2),
        (Q_GEMM, SQUARE, 1),
        (Q_GEMM.format("<transB = 1>"), SQUARE, 0),
        (INTEGERS, SQUARE, 1),
        ("MatMulInteger (x, w)", SQUARE, 1),
        ("com.microsoft.MatMulIntegerToFloat (x, w, s, s, z, o)", SQUARE, 1),
        ("com.microsoft.DynamicQuantizeMatMul (x, w, s)", SQUARE, 1),
        ("com.microsoft.QAttention <num_heads = 1> (x, w, b, s, s, , z, o)", SQUARE, 1),
    ],
)
def test_the_rows_of_an_operator_on_integers_are_those_of_its_weight(build, node, weight, axis):
    np.testing.assert_array_equal(operate(build, node, weight), kernel_rows(weight, axis))


@pytest.mark.parametrize(
    ("node", "weight"),
    [
        (Q_CONV, FILTERS), (Q_MATMUL, SQUARE), (Q_GEMM, SQUARE), (INTEGERS, SQUARE),
        ("com.microsoft.MatMulIntegerToFloat (x, w, s, s, z, o)", SQUARE),
        ("com.microsoft.QAttention <num_heads = 1> (x, w, b, s, s, , z, o)", SQUARE),
    ],
)  # fmt: skip
def test_operators_on_unsigned_weights_or_signed_activations_are_exact(build, node, weight):
    assert operate(build, node, weight.astype(np.uint8)) is None
    assert operate(build, node, weight, "int8") is None


def test_convolutions_of_single_channels_and_those_without_scales_are_exact(build):
    assert operate(build, Q_CONV.format("<group = 2>"), FILTERS[:, :1]) is None
    assert operate(build, "ConvInteger (x, w, z, o)", FILTERS) is None


@pytest.mark.parametrize(("kind", "rows"), [(np.int8, [[-128, -128]]), (np.uint8, None)])
def test_a_weight_that_is_computed_may_hold_any_integers_of_its_type(build, kind, rows):
    text = f"g (uint8[4, 4] x, {kind.__name__}[4, 4] v) => (uint8 y) {{ w = Neg (v) [op] y = {Q_MATMUL} }}"
    constants = {name: CONSTANTS[name] for name in "sz"}
    kernel = only(build(text, o=kind(0), **constants))
    assert kernel.rows is None if rows is None else kernel.rows.tolist() == rows


def test_an_lstm_has_a_kernel_for_what_it_reads_and_one_for_its_state(build):
    text = """g (float x) => (float y) {
        [op] y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 3> (x, w, r, , , , , , s, o, s, o) }"""
    read, state = np.arange(48, dtype=np.int8).reshape(1, 4, 12), np.arange(36, dtype=np.int8).reshape(1, 3, 12)
    kernels = find_kernels(build(text, w=read, r=state, s=np.ones(1, np.float32), o=np.zeros(1, np.int8)).graph)
    assert [kernel.name for kernel in kernels] == ["op", "op"]
    for kernel, weight in zip(kernels, (read, state), strict=True):
        np.testing.assert_array_equal(kernel.rows, weight[0].T)


def test_float_operators_and_those_of_other_domains_are_none(build):
    text = "g (float[4, 4] x) => (float y) { d = DequantizeLinear (w, s, o) a = MatMul (x, d) y = own.QGemm (a, d) }"
    assert find_kernels(build(text, **CONSTANTS).graph) == ()


@pytest.mark.parametrize(
    ("nodes", "zero_point", "highest"),
    [
        ("c = Clip (q, low, high)", 3, 15),
        ("c = Clip (q, , high)", 3, 15),
        ("c = Clip (q, low)", 3, 255),
        ("c = Identity (q)", 3, 255),
        ("k = Clip (q, low, high) c = Transpose <perm = [1, 0]> (k)", 3, 15),
        ("k = Clip (q, low, high) c = com.microsoft.NhwcMaxPool <kernel_shape = [1, 1]> (k)", 3, 15),
        ("k = Clip (q, low, high) r = Reshape (k, shape) c = Clip (r, low, high2)", 3, 15),
        ("k = Clip (q, low, high) c = Add (k, k)", 3, 255),
        ("c = Clip (q, low, high)", 100, 100),
    ],
)
def test_a_clip_of_integers_bounds_what_weights_are_multiplied_by(build, nodes, zero_point, highest):
    limits = {"low": np.uint8(0), "high": np.uint8(15), "high2": np.uint8(30), "shape": np.int64([4, 4])}
    text = f"g (uint8[4, 4] q) => (uint8 y) {{ {nodes} [op] y = {Q_MATMUL.replace('(x', '(c')} }}"
    assert only(build(text, **{**CONSTANTS, "z": np.uint8(zero_point)}, **limits)).highest == highest


BRANCHES = """g (bool t, uint8[4, 4] x) => (uint8 y) {{ [choose] y = If (t) <
    then_branch = a () => (uint8 u) {{ [op] u = {} }}, else_branch = b () => (uint8 v) {{ v = {} }} > }}"""


def test_kernels_in_bodies_are_found_with_the_constants_around_them(build):
    model = build(BRANCHES.format(Q_MATMUL, "Identity (x)"), **CONSTANTS)
    kernel = only(model)
    assert (kernel.name, kernel.highest) == ("op", 255)
    np.testing.assert_array_equal(kernel.rows, SQUARE.T)


def test_a_body_may_hold_its_own_constants_and_nodes_without_names(build):
    model = build(BRANCHES.format("Identity (x)", Q_MATMUL.replace("w", "inner")), **CONSTANTS)
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "else_branch":
            attribute.g.initializer.append(numpy_helper.from_array(2 * SQUARE, "inner"))
    kernel = only(model)
    assert kernel.name == "v"
    np.testing.assert_array_equal(kernel.rows, 2 * SQUARE.T)


@pytest.mark.parametrize(
    ("kernel", "found"),
    [
        ("conv", "conv"),
        ("conv_token_12", "conv"),
        ("fc/MatMulAddFusion", "fc"),
        ("fc/MatMulAddFusion_token_3", "fc"),
        ("odd_token_1", "odd_token_1"),
        ("odd_token_1_token_2", "odd_token_1"),
        ("fc/other", None),
        ("choose/conv", None),
        ("", None),
    ],
)
def test_a_kernel_is_traced_to_its_node_by_what_is_left_of_the_name(kernel, found):
    assert find_source(kernel, {"conv", "fc", "odd_token_1"}) == found
