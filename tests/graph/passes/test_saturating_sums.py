"""Saturating sums against NumPy on every machine, and against onnxruntime's own kernels where these saturate."""

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from onnxcalib.graph.inspect.kernels import Kernel, find_kernels, find_source
from onnxcalib.graph.layout import kernel_rows
from onnxcalib.graph.passes import saturating_sums as module
from onnxcalib.graph.passes.normalise import tidy
from onnxcalib.graph.passes.saturating_sums import saturate
from onnxcalib.numeric.saturation import find_wide_pairs
from onnxcalib.runtime.optimized import optimize
from onnxcalib.runtime.session import Session, saturates

STEP = np.float32(3000)


def add_pairs(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Sums of products of (..., K) and (channels, K), two neighbours at a time and clipped, (..., channels)."""
    products = values[..., None, :].astype(np.int64) * rows.astype(np.int64)
    if products.shape[-1] % 2:
        products = np.concatenate([products, np.zeros_like(products[..., :1])], -1)
    return np.clip(products[..., 0::2] + products[..., 1::2], -(2**15), 2**15 - 1).sum(-1)


def list_patches(values, window, strides, dilations):
    """(N, C, *sizes) as (N, *places, *window, C): channels last, as the kernels read them."""
    reach = [dilation * (size - 1) + 1 for size, dilation in zip(window, dilations, strict=True)]
    axes = tuple(range(2, values.ndim))
    found = np.lib.stride_tricks.sliding_window_view(values, reach, axes)
    steps = tuple(slice(None, None, stride) for stride in strides)
    holes = tuple(slice(None, None, dilation) for dilation in dilations)
    found = found[(slice(None), slice(None), *steps, *holes)]
    return np.moveaxis(found, 1, -1)


def convolve(values, weight, zero_point, pads=None, strides=None, dilations=None, group=1):
    """The sums of an integer Conv of unsigned values, less those of its zero point; (N, channels, *places)."""
    rank = weight.ndim - 2
    pads = pads or [0] * 2 * rank
    padded = np.pad(values, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)], constant_values=zero_point)
    parts = []
    for inputs, weights in zip(np.split(padded, group, 1), np.split(weight, group), strict=True):
        patches = list_patches(inputs, weight.shape[2:], strides or [1] * rank, dilations or [1] * rank)
        rows = np.moveaxis(weights, 1, -1).reshape(len(weights), -1)
        flat = patches.reshape(*patches.shape[: 1 + rank], -1)
        parts.append(add_pairs(flat, rows) - zero_point * rows.astype(np.int64).sum(1))
    return np.moveaxis(np.concatenate(parts, -1), -1, 1)


def multiply(values, weight, zero_point):
    """The sums of an integer matrix product of unsigned values (..., K) and (K, columns), as ``convolve``."""
    return add_pairs(values, weight.T) - zero_point * weight.astype(np.int64).sum(0)


# name: attributes, shape of the weight, shape of the input, and the reference's own form of the attributes.
CONVS = {
    "1x1": ("", (6, 8, 1, 1), (2, 8, 4, 4), {}),
    "3x3 with pads": ("pads = [1, 1, 1, 1]", (6, 4, 3, 3), (2, 4, 5, 5), {"pads": [1, 1, 1, 1]}),
    "uneven pads": ("pads = [0, 2, 1, 0]", (4, 4, 2, 3), (1, 4, 5, 5), {"pads": [0, 2, 1, 0]}),
    "pads named": ('auto_pad = "SAME_UPPER"', (4, 4, 2, 2), (1, 4, 5, 5), {"pads": [0, 0, 1, 1]}),
    "odd channels": ("pads = [1, 1, 1, 1]", (6, 3, 3, 3), (2, 3, 5, 5), {"pads": [1, 1, 1, 1]}),
    "one channel": ("", (6, 1, 3, 3), (2, 1, 5, 5), {}),
    "strides": ("strides = [2, 1]", (4, 4, 2, 2), (1, 4, 6, 6), {"strides": [2, 1]}),
    "dilations": ("dilations = [2, 1]", (4, 4, 2, 2), (1, 4, 6, 6), {"dilations": [2, 1]}),
    "groups": ("group = 2", (8, 4, 2, 2), (1, 8, 4, 4), {"group": 2}),
    "groups of odd channels": ("group = 2", (8, 3, 2, 2), (1, 6, 4, 4), {"group": 2}),
    "depthwise with a multiplier": ("group = 4", (8, 1, 3, 3), (1, 4, 5, 5), {"group": 4}),
    "1 dimension": ("pads = [1, 1]", (4, 4, 3), (2, 4, 9), {"pads": [1, 1]}),
    "3 dimensions": ("", (4, 2, 2, 2, 2), (1, 2, 3, 3, 3), {}),
}
# name: node, shape of the weight, shape of the input.
DENSE = {
    "MatMul": ("MatMul (e, d)", (15, 8), (4, 15)),
    "MatMul of one row": ("MatMul (e, d)", (16, 8), (1, 16)),
    "MatMul in 3 dimensions": ("MatMul (e, d)", (16, 8), (2, 3, 16)),
    "MatMul in 4 dimensions": ("MatMul (e, d)", (16, 8), (2, 2, 3, 16)),
    "Gemm": ("Gemm (e, d)", (16, 8), (4, 16)),
    "Gemm of a transposed weight": ("Gemm <transB = 1> (e, d)", (8, 15), (4, 15)),
    "Gemm with a factor": ("Gemm <alpha = 0.5> (e, d)", (16, 8), (4, 16)),
}


@pytest.fixture
def integers():
    """Integers of a type over all of its range, most of them near its ends."""
    rng = np.random.default_rng(3)

    def make(shape, kind=np.int8):
        info = np.iinfo(kind)
        return np.rint(info.min + (info.max - info.min) * rng.beta(0.4, 0.4, shape)).astype(kind)

    return make


def layer_model(build, node, weight, sizes, *, axis=0, zero_point=7, kind=np.uint8, zero_points=0, scale=None, **more):
    """A layer between Q/DQ pairs of steps 1 in front and STEP behind, whose channels have scales from 0.5 to 2."""
    dims = ",".join(map(str, sizes))
    text = f"""g (float[{dims}] x) => (float out) {{
        q = QuantizeLinear (x, one, z)  e = DequantizeLinear (q, one, z)
        d = DequantizeLinear <axis = {axis}> (w, t, o)  [layer] y = {node}
        p = QuantizeLinear (y, u, m)  out = DequantizeLinear (p, u, m) }}"""
    scale = np.linspace(0.5, 2, weight.shape[axis]).astype(np.float32) if scale is None else scale
    constants = {"one": np.float32(1), "z": kind(zero_point), "u": STEP, "m": np.uint8(128)}
    return build(text, w=weight, t=scale, o=np.broadcast_to(np.int8(zero_points), scale.shape), **constants, **more)


def saturate_all(model: ModelProto):
    """The model with saturating sums, of all of the kernels that can saturate as onnxruntime runs it."""
    tidied = tidy(model)
    names = {node.name for node in tidied.graph.node}
    kernels = [each for each in find_kernels(optimize(model)[1]) if each.rows is not None]
    found = {find_source(each.name, names): (each, find_wide_pairs(each.rows, each.highest)) for each in kernels}
    return saturate(tidied, {name: each for name, each in found.items() if len(each[1])})


def saturate_layer(model: ModelProto, weight, name="layer"):
    """The model with saturating sums of a node that multiplies by the rows of this matrix."""
    kernel = Kernel(name, lambda: kernel_rows(weight, weight.ndim - 1), 255)
    return saturate(tidy(model), {name: (kernel, find_wide_pairs(kernel.rows, 255))})


def run_saturated(model: ModelProto, x, tensor="y"):
    """A tensor of the model with saturating sums, whose output must be near that of onnxruntime's kernels.

    The latter where this processor saturates; everywhere onnxruntime must have a kernel for it.
    """
    found = saturate_all(model)
    assert (found.exact, len(found.products)) == ((), 1)
    emulated = Session(found.model, also=[tensor], optimize=False).run({"x": x})
    output = model.graph.output[0].name
    if saturates():
        deployed = Session(model, deployed=True).run({"x": x})[output]
        step = STEP if deployed.dtype.kind == "f" else 1
        assert np.abs(deployed.astype(np.float64) - emulated[output]).max() <= 1.01 * step
    return emulated[tensor]


def check(given, sums, scale):
    """Whether floats are these sums times the scales."""
    np.testing.assert_allclose(given, sums * scale, rtol=2e-6, atol=0.02)


@pytest.mark.parametrize("zero_point", [0, 7, 255])
@pytest.mark.parametrize("name", CONVS)
def test_a_conv_adds_pairs_as_the_kernel_does(build, integers, name, zero_point):
    attributes, shape, sizes, reference = CONVS[name]
    node = f"Conv <{attributes}> (e, d)" if attributes else "Conv (e, d)"
    weight, values = integers(shape), integers(sizes, np.uint8)
    model = layer_model(build, node, weight, sizes, zero_point=zero_point)
    given = run_saturated(model, values.astype(np.float32) - zero_point)
    sums = convolve(values, weight, zero_point, **reference)
    scale = np.linspace(0.5, 2, shape[0]).reshape(-1, *[1] * (len(shape) - 2))
    check(given, sums, scale)
    exact = Session(model, also=["y"], optimize=False).run({"x": values.astype(np.float32) - zero_point})["y"]
    assert np.abs(exact - given).max() > STEP


@pytest.mark.parametrize("name", DENSE)
def test_a_matrix_adds_pairs_as_the_kernel_does(build, integers, name):
    node, shape, sizes = DENSE[name]
    weight, values = integers(shape), integers(sizes, np.uint8)
    transposed = "transB" in node
    model = layer_model(build, node, weight, sizes, axis=0 if transposed else 1)
    given = run_saturated(model, values.astype(np.float32) - 7)
    sums = multiply(values, weight.T if transposed else weight, 7)
    check(given, sums, np.linspace(0.5, 2, sums.shape[-1]) * (0.5 if "alpha" in node else 1))


def test_a_gemm_may_read_its_input_transposed(build, integers):
    weight, values = integers((16, 8)), integers((16, 4), np.uint8)
    model = layer_model(build, "Gemm <transA = 1> (e, d)", weight, (16, 4), axis=1)
    check(run_saturated(model, values.astype(np.float32) - 7), multiply(values.T, weight, 7), np.linspace(0.5, 2, 8))


@pytest.mark.parametrize("part", [1, 5, 10**6])
@pytest.mark.parametrize("name", ["3x3 with pads", "groups", "MatMul"])
def test_a_layer_is_the_same_in_any_parts(build, integers, monkeypatch, name, part):
    shape, sizes = (CONVS | DENSE)[name][1:3]
    weight, x = integers(shape), integers(sizes, np.uint8).astype(np.float32)
    weight[..., :2, :] = 1 if name == "MatMul" else weight[..., :2, :]
    node = "MatMul (e, d)" if name == "MatMul" else f"Conv <{CONVS[name][0]}> (e, d)"
    model = layer_model(build, node, weight, sizes, axis=int(name == "MatMul"))
    whole = run_saturated(model, x)
    monkeypatch.setattr(module, "PART", part)
    assert len(saturate_all(model).model.graph.node) >= (20 if part < 10 else 10)
    np.testing.assert_allclose(run_saturated(model, x), whole, rtol=1e-6, atol=0.02)


def test_rows_without_a_pair_at_risk_are_in_some_part(build, integers, monkeypatch):
    weight, values = integers((16, 6)), integers((4, 16), np.uint8)
    weight[:, [0, 3, 5]] //= 2
    monkeypatch.setattr(module, "PART", 2)
    model = layer_model(build, "MatMul (e, d)", weight, (4, 16), axis=1)
    check(run_saturated(model, values.astype(np.float32) - 7), multiply(values, weight, 7), np.linspace(0.5, 2, 6))


def test_signed_activations_are_moved_up_to_unsigned_ones(build, integers):
    values = integers((4, 16), np.int8)
    for node, shape, sizes in (
        ("MatMul (e, d)", (16, 8), (4, 16)),
        ("Conv <pads = [1, 1]> (e, d)", (8, 4, 3), (4, 4, 4)),
    ):
        weight, x = integers(shape), values.reshape(sizes).astype(np.float32) + 5
        model = layer_model(build, node, weight, sizes, axis=int("Mat" in node), kind=np.int8, zero_point=-5)
        raised = (values.astype(np.int16) + 128).astype(np.uint8).reshape(sizes)
        sums = multiply(raised, weight, 123) if "Mat" in node else convolve(raised, weight, 123, pads=[1, 1])
        scale = np.linspace(0.5, 2, 8)
        check(run_saturated(model, x), sums, scale if "Mat" in node else scale[:, None])


@pytest.mark.parametrize("zero_points", [3, -100])
def test_the_integers_of_a_weight_are_multiplied_as_they_are_stored(build, integers, zero_points):
    weight, values = integers((8, 4, 1, 1)), integers((2, 4, 3, 3), np.uint8)
    scale, o = np.float32(0.5), zero_points
    model = layer_model(build, "Conv (e, d)", weight, (2, 4, 3, 3), scale=scale, zero_points=o)
    sums = convolve(values, weight, 7) - o * (values.astype(np.int64) - 7).sum(1, keepdims=True)
    check(run_saturated(model, values.astype(np.float32) - 7), sums, 0.5)


def test_integers_that_are_clipped_are_read_as_they_are_clipped(build, integers):
    weight, values = integers((16, 8)), integers((4, 16), np.uint8)
    model = layer_model(build, "MatMul (e, d)", weight, (4, 16), axis=1, high=np.uint8(200), low=np.uint8(3))
    clip = helper.make_node("Clip", ["q", "low", "high"], ["c"])
    model.graph.node.insert(1, clip)
    model.graph.node[2].input[0] = "c"
    sums = multiply(np.clip(values, 3, 200), weight, 7)
    check(run_saturated(model, values.astype(np.float32) - 7), sums, np.linspace(0.5, 2, 8))


def test_integers_that_are_moved_behind_their_dequantizer_are_multiplied_too(build, integers):
    """onnxruntime moves the DequantizeLinear behind a MaxPool or a Reshape, where the layer then has a kernel."""
    weight, values = integers((8, 4, 1, 1)), integers((2, 4, 4, 4), np.uint8)
    model = layer_model(build, "Conv (r, d)", weight, (2, 4, 4, 4), shape=np.int64([0, 4, 2, 2]))
    pool = helper.make_node("MaxPool", ["e"], ["k"], kernel_shape=[2, 2], strides=[2, 2])
    model.graph.node.insert(2, pool)
    model.graph.node.insert(3, helper.make_node("Reshape", ["k", "shape"], ["r"]))
    pooled = values.reshape(2, 4, 2, 2, 2, 2).max((3, 5))
    scale = np.linspace(0.5, 2, 8)[:, None, None]
    check(run_saturated(model, values.astype(np.float32) - 7), convolve(pooled, weight, 7), scale)


@pytest.mark.parametrize("opset", [10, 13, 21])
def test_models_of_any_opset_are_rewritten(build, integers, opset):
    weight, values = integers((16, 8)), integers((4, 16), np.uint8)
    axis = "" if opset < 13 else "<axis = 1>"
    text = f"""g (float[4, 16] x) => (float out) {{ q = QuantizeLinear (x, one, z)  e = DequantizeLinear (q, one, z)
        d = DequantizeLinear {axis} (w, t, o)  [layer] y = MatMul (e, d)
        p = QuantizeLinear (y, u, m)  out = DequantizeLinear (p, u, m) }}"""
    constants = {"one": np.float32(1), "z": np.uint8(7), "u": STEP, "m": np.uint8(128), "o": np.int8(0)}
    model = build(text, opset=opset, ir=10, w=weight, t=np.float32(0.5), **constants)
    check(run_saturated(model, values.astype(np.float32) - 7), multiply(values, weight, 7), 0.5)


# Operators on integers

GRID = {"s": np.float32(0.5), "z": np.uint8(7), "u": STEP, "m": np.uint8(128)}
ROWS = np.linspace(0.5, 2, 8).astype(np.float32)


def quantized(sums, scale):
    return np.clip(np.rint(sums * np.float64(scale) / STEP) + 128, 0, 255)


@pytest.mark.parametrize("scales", [np.float32(1.5), ROWS])
@pytest.mark.parametrize("bias", [False, True])
def test_a_qlinear_conv_is_rewritten(build, integers, scales, bias):
    weight, values, more = integers((8, 4, 3, 3)), integers((2, 4, 5, 5), np.uint8), np.arange(8, dtype=np.int32) * 9000
    text = f"""g (uint8[2, 4, 5, 5] x) => (uint8 y) {{
        [op] y = QLinearConv <pads = [1, 1, 1, 1]> (x, s, z, w, t, o, u, m{", b" if bias else ""}) }}"""
    zeros = np.zeros(scales.shape, np.int8)
    model = build(text, w=weight, t=scales, o=zeros, **GRID, **({"b": more} if bias else {}))
    sums = convolve(values, weight, 7, pads=[1, 1, 1, 1]) + (more[:, None, None] if bias else 0)
    wanted = quantized(sums, 0.5 * (scales[:, None, None] if scales.ndim else scales))
    assert np.abs(run_saturated(model, values).astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("scales", [np.float32(1.5), ROWS])
def test_a_qlinear_matmul_is_rewritten(build, integers, scales):
    weight, values = integers((16, 8)), integers((2, 4, 16), np.uint8)
    text = "g (uint8[2, 4, 16] x) => (uint8 y) { [op] y = QLinearMatMul (x, s, z, w, t, o, u, m) }"
    model = build(text, w=weight, t=scales, o=np.zeros(scales.shape, np.int8), **GRID)
    wanted = quantized(multiply(values, weight, 7), 0.5 * scales)
    assert np.abs(run_saturated(model, values).astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("grid", ["", ", u, m"])
@pytest.mark.parametrize("attributes", ["<alpha = 0.5>", "<transB = 1>", "<transA = 1>"])
def test_a_qgemm_is_rewritten(build, integers, attributes, grid):
    weight, values = integers((8, 16) if "transB" in attributes else (16, 8)), integers((4, 16), np.uint8)
    given, kind = (values.T.copy() if "transA" in attributes else values), "uint8" if grid else "float"
    text = f"""g (uint8[{given.shape[0]}, {given.shape[1]}] x) => ({kind} y) {{
        [op] y = com.microsoft.QGemm {attributes} (x, s, z, w, t, o, b{grid}) }}"""
    bias, scale = np.arange(8, dtype=np.int32) * 9000, 0.5 * ROWS * (0.5 if "alpha" in attributes else 1)
    model = build(text, w=weight, t=ROWS, o=np.zeros(8, np.int8), b=bias, **GRID)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    sums = multiply(values, weight.T if "transB" in attributes else weight, 7) + bias
    if grid:
        assert np.abs(run_saturated(model, given).astype(int) - quantized(sums, scale)).max() <= 1
    else:
        check(run_saturated(model, given), sums, scale)


@pytest.mark.parametrize("inputs", ["x, w", "x, w, z", "x, w, z, o"])
def test_a_matmul_of_integers_is_rewritten_to_integers(build, integers, inputs):
    weight, values = integers((16, 8)), integers((2, 4, 16), np.uint8)
    text = f"g (uint8[2, 4, 16] x) => (int32 y) {{ [op] y = MatMulInteger ({inputs}) }}"
    model = build(text, w=weight, z=np.uint8(7), o=np.int8(-9))
    zero = 7 if "z" in inputs else 0
    moved = 9 * (values.astype(np.int64) - zero).sum(-1, keepdims=True) if "o" in inputs else 0
    np.testing.assert_array_equal(run_saturated(model, values), multiply(values, weight, zero) + moved)


@pytest.mark.parametrize(
    "node",
    [
        "com.microsoft.QAttention <num_heads = 1> (x, w, b, s, s, , z, o)",
        "com.microsoft.MatMulIntegerToFloat (x, w, s, s, z, o)",
    ],
)
def test_operators_without_another_form_are_named_and_left_as_they_are(build, integers, node):
    text = f"g (uint8[1, 2, 8] x) => (float y) {{ [op] y = {node} }}"
    weight = integers((8, 12))
    model = build(text, w=weight, b=np.zeros(12, np.float32), o=np.int8(0), **GRID)
    found = saturate_layer(model, weight, "op")
    assert (found.exact, found.products) == (("op",), ())
    assert found.model == tidy(model)


def test_stacked_matrices_and_scales_within_a_row_are_named(build, integers):
    for weight, sizes, axis in ((integers((2, 16, 8)), (2, 4, 16), 2), (integers((8, 8)), (4, 8), 0)):
        model = layer_model(build, "MatMul (e, d)", weight, sizes, axis=axis)
        assert saturate_layer(model, weight).exact == ("layer",)


@pytest.mark.parametrize("node", ["MatMul (e, d)", "MatMul (e, turned)"])
def test_a_node_that_holds_other_integers_than_its_kernel_is_named(build, integers, node):
    """So do layers whose weight onnxruntime makes anew, as one that is transposed."""
    weight = integers((8, 8))
    model = layer_model(build, node, weight, (4, 8), scale=np.float32(0.5))
    model.graph.node.insert(3, helper.make_node("Transpose", ["d"], ["turned"]))
    found = saturate_layer(model, weight.T)
    assert (found.exact, found.products) == (("layer",), ())


@pytest.mark.parametrize("node", ["QLinearMatMul (x, s, z, w, s, o, u, m)", "MatMulInteger (x, w, z, o)"])
def test_operators_whose_weight_is_computed_are_named(build, integers, node):
    text = f"g (uint8[4, 8] x, int8[8, 8] v) => (y) {{ w = Neg (v) [op] y = {node} }}"
    assert saturate_layer(build(text, o=np.int8(0), **GRID), integers((8, 8)), "op").exact == ("op",)


def test_float16_layers_stay_so(build, integers):
    weight = integers((16, 8))
    text = """g (float16[4, 16] x) => (float16 y) { q = QuantizeLinear (x, one, z)  e = DequantizeLinear (q, one, z)
        d = DequantizeLinear (w, one, o)  [layer] y = MatMul (e, d) }"""
    model = build(text, opset=21, ir=10, w=weight, one=np.float16(0.01), z=np.uint8(7), o=np.int8(0))
    values = integers((4, 16), np.uint8)
    session = Session(saturate_layer(model, weight).model, optimize=False)
    given = session.run({"x": (values * 0.01 - 0.07).astype(np.float16)})["y"]
    assert given.dtype == np.float16
    np.testing.assert_allclose(given, multiply(values, weight, 7) * 1e-4, rtol=0.02, atol=0.05)


def test_the_model_given_and_what_cannot_saturate_stay_as_they_are(build, integers):
    model = layer_model(build, "MatMul (e, d)", integers((16, 8)) // 2, (4, 16), axis=1)
    before = model.SerializeToString()
    assert saturate_all(model).model == tidy(model)
    assert model.SerializeToString() == before


def test_names_of_outputs_are_kept(build, integers):
    model = layer_model(build, "MatMul (e, d)", integers((16, 8)), (4, 16), axis=1)
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    found = saturate_all(model).model
    assert [value.name for value in found.graph.output] == ["out", "y"]


def test_a_node_may_be_called_like_its_output(build, integers):
    model = layer_model(build, "MatMul (e, d)", integers((16, 8)), (4, 16), axis=1)
    next(node for node in model.graph.node if node.op_type == "MatMul").name = "y"
    run_saturated(model, integers((4, 16), np.uint8).astype(np.float32))
