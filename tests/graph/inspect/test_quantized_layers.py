"""What is read off the weighted layers of quantized graphs: integers, grids and bits."""

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from onnxcalib.graph.inspect.quantized_layers import find_quantized_layers

NET = """g (float[N, 3, 8, 8] image) => (float[N, 5] scores) {
    [stem] c1 = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)  [relu1] r1 = Relu (c1)
    [inner] c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2)  [relu2] r2 = Relu (c2)
    [deep] c3 = Conv <pads = [1, 1, 1, 1], group = 4> (r2, w3)  [add] s = Add (c3, r1)  [tail] c4 = Conv (s, w4)
    [leaky] k = LeakyRelu (c4)  [last] c5 = Conv (k, w4)
    [mean] m = GlobalAveragePool (c5)  [flat] f = Flatten (m)  [head] scores = Gemm <transB = 1> (f, w5, b5)
}"""
SHAPES = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 2, 3, 3), "w4": (8, 8, 1, 1), "w5": (5, 8)}
FOUR = {"weight_bits": 4, "activation_bits": 4}


@pytest.fixture
def net(build, weigh):
    weights = {name: weigh(*shape) for name, shape in SHAPES.items()}
    return build(NET, opset=21, ir=10, b1=weigh(8), b5=weigh(5), **weights)


@pytest.fixture
def quantized(net, rough, draw):
    return lambda **settings: rough(net, draw(4, 3, 8, 8), **settings)


def by_name(model):
    return {layer.name: layer for layer in find_quantized_layers(model)}


def values_of(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_layers_are_found_with_the_tensors_of_the_float_model(quantized):
    layers = by_name(quantized())
    assert list(layers) == ["stem", "inner", "deep", "tail", "last", "head"]
    assert {name: (k.op, k.source, k.output) for name, k in layers.items()} == {
        "stem": ("Conv", "image", "c1"), "inner": ("Conv", "r1", "c2"), "deep": ("Conv", "r2", "c3"),
        "tail": ("Conv", "s", "c4"), "last": ("Conv", "k", "c5"), "head": ("Gemm", "f", "scores"),
    }  # fmt: skip
    assert layers["tail"].entries == ("s_QuantizeLinear",) and all(k.axis == 0 for k in layers.values())


def test_eight_bits(quantized):
    model = quantized()
    values = values_of(model)
    for name, layer in by_name(model).items():
        assert (layer.weight_bits, layer.activation_bits) == (8, 8), name
        step, low, high = layer.grid
        zero_point = values[f"{layer.source}_zero_point"]
        assert step == values[f"{layer.source}_scale"]
        assert (low, high) == pytest.approx((-int(zero_point) * step, (255 - int(zero_point)) * step))
    np.testing.assert_array_equal(by_name(model)["inner"].integers, values["w2_quantized"])


@pytest.mark.parametrize("encoding", ["runtime", "standard"])
def test_four_bits_in_both_encodings(quantized, encoding):
    model = quantized(encoding=encoding, **FOUR)
    layers, values = by_name(model), values_of(model)
    bits = {name: (k.weight_bits, k.activation_bits) for name, k in layers.items()}
    assert bits == {"stem": (8, 8), "head": (8, 8)} | dict.fromkeys(("inner", "deep", "tail", "last"), (4, 4))
    assert {name: k.source for name, k in layers.items()} == {
        "stem": "image", "inner": "r1", "deep": "r2", "tail": "s", "last": "k", "head": "f",
    }  # fmt: skip
    for name, prefix in {"inner": "r1_requantized", "deep": "r2", "tail": "s", "last": "k"}.items():
        layer, shift = layers[name], 0
        step, low, high = layer.grid
        zero_point = int(values[f"{prefix}_zero_point"])
        if encoding == "runtime" and name == "inner":
            assert zero_point == 240
            shift = 240
        assert step == values[f"{prefix}_scale"], name
        assert low == pytest.approx((shift - zero_point) * step) and high - low == pytest.approx(15 * step), name
    np.testing.assert_array_equal(layers["inner"].integers, values["w2_quantized"].astype(int))
    assert layers["inner"].integers.min() < 0 and np.abs(layers["inner"].integers).max() <= 8


def test_a_layer_enters_its_grid_at_the_first_of_two(quantized):
    requantized = by_name(quantized(**FOUR))["inner"]
    assert (requantized.source, requantized.entries) == ("r1", ("r1_QuantizeLinear",))


def test_a_real_leaky_relu_and_a_clip_of_floats_are_not_passed_over(build, rough, draw):
    text = """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
        [a] c = Conv (x, w) [leaky] l = LeakyRelu <alpha = 0.1> (c) [b] d = Conv (l, w)
        [clip] e = Clip (d, low, high) [last] y = Conv (e, w) }"""
    model = build(text, opset=21, ir=10, w=draw(4, 4, 1, 1), low=np.float32(-1), high=np.float32(1))
    assert {name: k.source for name, k in by_name(rough(model, draw(2, 4, 6, 6))).items()} == {
        "a": "x", "b": "l", "last": "e",
    }  # fmt: skip


def by_hand(build, nodes, *, opset=21, **constants):
    text = f"g (float[N, 4] x) => (float[N, 4] y) {{ {nodes} }}"
    given = {"s": np.float32(0.5), "v": np.arange(16, dtype=np.int8).reshape(4, 4) - 8} | constants
    return build(text, opset=opset, ir=10, **given)


def only(model):
    (layer,) = find_quantized_layers(model)
    return layer


WEIGHT = "d = DequantizeLinear (v, s)"
ON_GRID = f"q = QuantizeLinear (x, s, z) e = DequantizeLinear (q, s, z) {WEIGHT} [fc] y = MatMul (e, d)"


@pytest.mark.parametrize(
    ("zero", "bits", "ends"),
    [
        (np.uint8(10), 8, (-5.0, 122.5)),
        (np.int8(-8), 8, (-60.0, 67.5)),
        (np.array(3).astype(ml_dtypes.uint4), 4, (-1.5, 6.0)),
        (np.array(-3).astype(ml_dtypes.int4), 4, (-2.5, 5.0)),
        (np.uint16(1000), 16, (-500.0, 32267.5)),
        (np.int16(0), 16, (-16384.0, 16383.5)),
    ],
)
def test_the_zero_point_has_the_type_of_the_grid(build, zero, bits, ends):
    layer = only(by_hand(build, ON_GRID, z=zero))
    assert (layer.activation_bits, layer.grid) == (bits, (0.5, *ends))


def test_a_grid_without_a_zero_point_begins_at_zero(build):
    nodes = ON_GRID.replace(", z", "")
    assert only(by_hand(build, nodes)).grid == (0.5, 0.0, 127.5)
    signed = nodes.replace("QuantizeLinear (x, s)", f"QuantizeLinear <output_dtype = {TensorProto.INT8}> (x, s)")
    assert only(by_hand(build, signed)).grid == (0.5, -64.0, 63.5)


@pytest.mark.parametrize(
    ("clip", "zero", "bits", "ends"),
    [
        ("(q, low, high)", np.uint8(2), 4, (-1.0, 6.5)),
        ("(q, , high)", np.uint8(2), 4, (-1.0, 6.5)),
        ("(q, low)", np.uint8(2), 8, (-1.0, 126.5)),
        ("(q)", np.uint8(2), 8, (-1.0, 126.5)),
        ("(q, low, high)", np.int8(0), 4, (-4.0, 3.5)),
    ],
)
def test_a_clip_of_integers_ends_the_grid(build, clip, zero, bits, ends):
    signed = zero.dtype == np.int8
    limits = {"low": np.int8(-8), "high": np.int8(7)} if signed else {"low": np.uint8(0), "high": np.uint8(15)}
    nodes = f"q = QuantizeLinear (x, s, z) c = Clip {clip} e = DequantizeLinear (c, s, z) {WEIGHT} y = MatMul (e, d)"
    if clip == "(q)":  # nothing says that it is one of integers
        nodes = nodes.replace("Clip (q)", "Identity (q)")
    limits = {name: value for name, value in limits.items() if name in clip}
    layer = only(by_hand(build, nodes, z=zero, **limits))
    assert (layer.activation_bits, layer.grid, layer.source) == (bits, (0.5, *ends), "x")


@pytest.mark.parametrize("alpha", ["<alpha = 1.0>", "<alpha = 0.5>", ""])
def test_the_top_of_uint8_is_four_bits_behind_the_mark_alone(build, alpha):
    nodes = f"l = LeakyRelu {alpha} (x) q = QuantizeLinear (l, s, z) e = DequantizeLinear (q, s, z)"
    layer = only(by_hand(build, f"{nodes} {WEIGHT} y = MatMul (e, d)", z=np.uint8(240)))
    marked = alpha == "<alpha = 1.0>"
    assert layer.activation_bits == (4 if marked else 8)
    assert layer.grid == (0.5, 0.0 if marked else -120.0, 7.5)
    assert only(by_hand(build, ON_GRID, z=np.uint8(240))).activation_bits == 8


def test_a_weight_alone_leaves_the_input_in_float(build):
    layer = only(by_hand(build, f"{WEIGHT} [fc] y = MatMul (x, d)"))
    assert (layer.source, layer.entries, layer.activation_bits, layer.grid) == ("x", ("fc",), 32, None)
    assert (layer.axis, layer.weight_bits, layer.scale.shape) == (1, 8, ())
    behind = by_hand(
        build, f"q = QuantizeLinear (x, s, z) e = DequantizeLinear (q, s, z) t = Tanh (e) {WEIGHT} y = MatMul (t, d)",
        z=np.uint8(3),
    )  # fmt: skip
    assert (only(behind).source, only(behind).activation_bits) == ("t", 32)


def test_a_scale_that_is_computed_leaves_the_grid_open(build):
    nodes = ON_GRID.replace("q = QuantizeLinear (x, s, z)", "k = Abs (s) q = QuantizeLinear (x, k, z)")
    layer = only(by_hand(build, nodes, z=np.uint8(3)))
    assert (layer.activation_bits, layer.grid) == (8, None)


@pytest.mark.parametrize(
    "nodes",
    [
        "y = MatMul (x, w)",
        "q = QuantizeLinear (x, s, z) e = DequantizeLinear (q, s, z) y = MatMul (x, e)",
        "k = Abs (s) d = DequantizeLinear (v, k) y = MatMul (x, d)",
        "d = DequantizeLinear (v, s) y = Add (x, d)",
    ],
)
def test_what_has_no_dequantized_constant_is_no_layer(build, nodes):
    assert find_quantized_layers(by_hand(build, nodes, z=np.uint8(3), w=np.eye(4, dtype=np.float32))) == ()


def test_a_layer_without_a_name_is_called_like_its_output(build):
    assert only(by_hand(build, f"{WEIGHT} y = MatMul (x, d)")).name == "y"


CHANNELS = np.float32([0.1, 0.2, 0.3, 0.4])
BLOCKS = np.stack([CHANNELS, 2 * CHANNELS])


@pytest.mark.parametrize(
    ("dtype", "scale", "zero", "attributes"),
    [
        (np.int8, np.float32(0.5), None, ""),
        (np.int8, np.float32([0.5]), np.int8([3]), ""),
        (np.uint8, np.float32(0.5), np.uint8(9), ""),
        (np.int8, CHANNELS, None, ""),
        (np.int8, CHANNELS, np.int8([0, 1, 2, 3]), "axis = 0"),
        (np.uint8, CHANNELS, np.uint8([4, 5, 6, 7]), "axis = -1"),
        (ml_dtypes.int4, BLOCKS, None, "axis = 0, block_size = 2"),
        (np.int8, BLOCKS.T, None, "axis = 1, block_size = 3"),
        (
            ml_dtypes.uint4,
            BLOCKS,
            np.arange(8).reshape(2, 4),
            "axis=0, block_size=3",
        ),
    ],
)
def test_integers_and_scale_give_the_values_of_the_weight(build, run, dtype, scale, zero, attributes):
    weight = (np.arange(16).reshape(4, 4) % 16 - (0 if dtype in (np.uint8, ml_dtypes.uint4) else 8)).astype(dtype)
    zeros = {} if zero is None else {"zero": np.asarray(zero).astype(dtype)}
    node = f"d = DequantizeLinear <{attributes}> (v, scale{', zero' if zeros else ''})".replace("<>", "")
    constants = {"v": weight, "scale": scale} | zeros
    layer = only(by_hand(build, f"{node} y = MatMul (x, d)", **constants))
    plain = by_hand(build, f"{node} y = Add (x, d)", **constants)
    (wanted,) = run(plain, np.zeros((4, 4), np.float32))
    np.testing.assert_allclose(layer.integers * layer.scale, wanted, rtol=1e-6)
    assert layer.integers.dtype == np.int32 and np.broadcast_shapes(layer.scale.shape, (4, 4)) == (4, 4)
    assert layer.weight_bits == (4 if dtype in (ml_dtypes.int4, ml_dtypes.uint4) else 8)
    np.testing.assert_array_equal(layer.stored, weight)


@pytest.mark.parametrize(
    "weight",
    [
        "q = QuantizeLinear <axis = 1> (f, c, o) d = DequantizeLinear <axis = 1> (q, c, o)",
        "i = Identity (v) d = DequantizeLinear <axis = 1> (i, c, o)",
        "i = Reshape (v, shape) d = DequantizeLinear <axis = 1> (i, c, o)",
        "d = DequantizeLinear <axis = 1> (v, c, k)",
    ],
)
def test_integers_that_no_initializer_holds_are_not_read(build, weight):
    constants = {"f": np.eye(4, dtype=np.float32), "c": CHANNELS, "o": np.zeros(4, np.int8), "shape": np.int64([4, 4])}
    nodes = f"k = Identity (o) {weight} y = MatMul (x, d)"
    assert find_quantized_layers(by_hand(build, nodes, **constants)) == ()


@pytest.mark.parametrize(("node", "axis"), [("Gemm (e, d)", 1), ("Gemm <transB = 1> (e, d)", 0), ("MatMul (e, d)", 1)])
def test_the_channels_of_a_dense_layer_are_its_columns(build, node, axis):
    assert only(by_hand(build, ON_GRID.replace("MatMul (e, d)", node), z=np.uint8(3))).axis == axis


def test_the_channels_of_stacked_matrices_are_the_columns_of_each(build):
    weight = np.arange(24, dtype=np.int8).reshape(2, 4, 3)
    assert only(by_hand(build, ON_GRID, z=np.uint8(3), v=weight)).axis == 2


def test_the_channels_of_a_transposed_convolution_are_behind_its_inputs(build, rough, draw):
    text = "g (float[N, 4, 3, 3] x) => (float[N, 6, 4, 4] y) { [t] y = ConvTranspose (x, w) }"
    layer = only(rough(build(text, opset=21, ir=10, w=draw(4, 6, 2, 2)), draw(2, 4, 3, 3)))
    assert (layer.op, layer.axis) == ("ConvTranspose", 1)


def test_the_integers_are_known_as_they_are_stored_too(build):
    weight = np.arange(16, dtype=np.int8).reshape(4, 4)
    nodes = ON_GRID.replace("(v, s)", "(v, s, o)")
    layer = only(by_hand(build, nodes, z=np.uint8(3), v=weight, o=np.int8(-100)))
    np.testing.assert_array_equal(layer.stored, weight)
    np.testing.assert_array_equal(layer.integers, weight.astype(int) + 100)


@pytest.mark.parametrize("domain", ["", "com.microsoft."])
def test_layers_are_found_behind_both_domains_of_quantize_linear(build, domain):
    nodes = ON_GRID.replace("= Quant", f"= {domain}Quant").replace("= Dequant", f"= {domain}Dequant")
    model = by_hand(build, nodes, z=np.uint8(10))
    model.graph.node[0].name = "entry"
    layer = only(model)
    assert (layer.source, layer.entries, layer.grid, layer.activation_bits) == ("x", ("entry",), (0.5, -5.0, 122.5), 8)


@pytest.mark.parametrize(("inputs", "found"), [("", 1), (", , order", 0), (", , , bias", 1)])
def test_packed_blocks_in_an_order_of_their_own_are_not_read(build, draw, inputs, found):
    body = f"y = MatMulNBits <K = 32, N = 4, bits = 4, block_size = 16> (x, packed, scales{inputs})"
    constants = {"packed": np.zeros((4, 2, 8), np.uint8), "scales": draw(8), "bias": draw(4)}
    order = np.arange(32, dtype=np.int32) % 2
    model = build(f"g (float[N, 32] x) => (float[N, 4] y) {{ {body} }}", order=order, **constants)
    model.graph.node[0].domain = "com.microsoft"
    assert len(find_quantized_layers(model)) == found
