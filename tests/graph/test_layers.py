"""What is read off the weighted layers of quantized graphs: integers, grids, bits, and the order of a kernel's sums."""

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from onnxcalib.graph.layers import find_kernels, find_quantized_layers, kernel_rows

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
    assert layers["deep"].groups == 4 and layers["inner"].groups == 1
    assert layers["tail"].entry == "s_QuantizeLinear" and all(k.axis == 0 and k.signed for k in layers.values())


def test_eight_bits(quantized):
    model = quantized()
    values = values_of(model)
    for name, layer in by_name(model).items():
        assert (layer.weight_bits, layer.activation_bits, layer.highest) == (8, 8, 255), name
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
    for name, stem in {"inner": "r1_narrowed", "deep": "r2", "tail": "s", "last": "k"}.items():
        layer, shift = layers[name], 0
        step, low, high = layer.grid
        zero_point = int(values[f"{stem}_zero_point"])
        if encoding == "runtime" and name == "inner":
            assert zero_point == 240
            shift = 240
        assert layer.highest == 15 + shift, name
        assert step == values[f"{stem}_scale"], name
        assert low == pytest.approx((shift - zero_point) * step) and high - low == pytest.approx(15 * step), name
    np.testing.assert_array_equal(layers["inner"].integers, values["w2_quantized"].astype(int))
    assert layers["inner"].integers.min() < 0 and np.abs(layers["inner"].integers).max() <= 8


def test_a_layer_enters_its_grid_at_the_first_of_two(quantized):
    narrowed = by_name(quantized(**FOUR))["inner"]
    assert (narrowed.source, narrowed.entry) == ("r1", "r1_QuantizeLinear")


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
    ("zero", "bits", "highest", "ends"),
    [
        (np.uint8(10), 8, 255, (-5.0, 122.5)),
        (np.int8(-8), 8, 255, (-60.0, 67.5)),
        (np.array(3).astype(ml_dtypes.uint4), 4, 15, (-1.5, 6.0)),
        (np.array(-3).astype(ml_dtypes.int4), 4, 15, (-2.5, 5.0)),
        (np.uint16(1000), 16, 65535, (-500.0, 32267.5)),
        (np.int16(0), 16, 65535, (-16384.0, 16383.5)),
    ],
)
def test_the_zero_point_has_the_type_of_the_grid(build, zero, bits, highest, ends):
    """The largest integer is that of the grid moved to start at 0, which onnxruntime does with signed ones."""
    layer = only(by_hand(build, ON_GRID, z=zero))
    assert (layer.activation_bits, layer.highest, layer.grid) == (bits, highest, (0.5, *ends))


def test_a_grid_without_a_zero_point_begins_at_zero(build):
    nodes = ON_GRID.replace(", z", "")
    assert only(by_hand(build, nodes)).grid == (0.5, 0.0, 127.5)
    signed = nodes.replace("QuantizeLinear (x, s)", f"QuantizeLinear <output_dtype = {TensorProto.INT8}> (x, s)")
    assert only(by_hand(build, signed)).grid == (0.5, -64.0, 63.5)


@pytest.mark.parametrize(
    ("clip", "zero", "bits", "highest", "ends"),
    [
        ("(q, low, high)", np.uint8(2), 4, 15, (-1.0, 6.5)),
        ("(q, , high)", np.uint8(2), 4, 15, (-1.0, 6.5)),
        ("(q, low)", np.uint8(2), 8, 255, (-1.0, 126.5)),
        ("(q)", np.uint8(2), 8, 255, (-1.0, 126.5)),
        ("(q, low, high)", np.int8(0), 4, 15, (-4.0, 3.5)),
    ],
)
def test_a_clip_of_integers_ends_the_grid(build, clip, zero, bits, highest, ends):
    signed = zero.dtype == np.int8
    limits = {"low": np.int8(-8), "high": np.int8(7)} if signed else {"low": np.uint8(0), "high": np.uint8(15)}
    nodes = f"q = QuantizeLinear (x, s, z) c = Clip {clip} e = DequantizeLinear (c, s, z) {WEIGHT} y = MatMul (e, d)"
    if clip == "(q)":  # nothing says that it is one of integers
        nodes = nodes.replace("Clip (q)", "Identity (q)")
    limits = {name: value for name, value in limits.items() if name in clip}
    layer = only(by_hand(build, nodes, z=zero, **limits))
    assert (layer.activation_bits, layer.highest, layer.grid, layer.source) == (bits, highest, (0.5, *ends), "x")


@pytest.mark.parametrize("alpha", ["<alpha = 1.0>", "<alpha = 0.5>", ""])
def test_the_top_of_uint8_is_four_bits_behind_the_mark_alone(build, alpha):
    nodes = f"l = LeakyRelu {alpha} (x) q = QuantizeLinear (l, s, z) e = DequantizeLinear (q, s, z)"
    layer = only(by_hand(build, f"{nodes} {WEIGHT} y = MatMul (e, d)", z=np.uint8(240)))
    marked = alpha == "<alpha = 1.0>"
    assert (layer.activation_bits, layer.highest) == (4 if marked else 8, 255)
    assert layer.grid == (0.5, 0.0 if marked else -120.0, 7.5)
    assert only(by_hand(build, ON_GRID, z=np.uint8(240))).activation_bits == 8


def test_a_weight_alone_leaves_the_input_in_float(build):
    layer = only(by_hand(build, f"{WEIGHT} [fc] y = MatMul (x, d)"))
    assert (layer.source, layer.entry, layer.activation_bits, layer.highest, layer.grid) == ("x", "fc", 32, 0, None)
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
    assert layer.signed == (dtype in (np.int8, ml_dtypes.int4))


def conv(build, draw, shape, groups):
    """A layer of small random integers whose inputs are bytes."""
    weight = np.random.default_rng(1).integers(-128, 128, shape).astype(np.int8)
    dims = ["N", str(shape[1] * groups), *"5" * (len(shape) - 2)]
    nodes = ON_GRID.partition("[fc]")[0] + f"[c] y = Conv <group = {groups}> (e, d)"
    text = f"g (float[{', '.join(dims)}] x) => (float y) {{ {nodes} }}"
    return only(build(text, opset=21, ir=10, s=np.float32(1), z=np.uint8(0), v=weight))


@pytest.mark.parametrize(
    ("shape", "groups"), [((4, 3, 2, 3), 1), ((4, 2, 3), 1), ((4, 2, 2, 2), 2), ((2, 3, 2, 2, 2), 1)]
)
def test_rows_of_a_convolution_have_neighbouring_channels_side_by_side(build, draw, shape, groups):
    layer = conv(build, draw, shape, groups)
    rows = kernel_rows(layer)
    assert rows.shape == (shape[0], int(np.prod(shape[1:])))
    places = list(np.ndindex(*shape[2:]))
    for channel, row in enumerate(rows):
        wanted = [layer.integers[(channel, source, *place)] for place in places for source in range(shape[1])]
        assert row.tolist() == wanted


def test_rows_multiply_a_patch_with_its_channels_last(build, draw, run):
    layer = conv(build, draw, (4, 3, 2, 3), 1)
    patch = np.random.default_rng(2).integers(0, 256, (3, 2, 3))
    text = "g (float[1, 3, 2, 3] x) => (float[1, 4, 1, 1] y) { y = Conv (x, w) }"
    (wanted,) = run(build(text, w=layer.integers.astype(np.float32)), patch[None].astype(np.float32))
    np.testing.assert_array_equal(kernel_rows(layer) @ np.moveaxis(patch, 0, -1).reshape(-1), wanted.reshape(-1))


@pytest.mark.parametrize(
    ("shape", "groups", "found"),
    [
        ((4, 1, 3, 3), 4, False),
        ((4, 2, 3, 3), 4, True),
        ((8, 1, 3, 3), 4, True),
        ((1, 1, 3, 3), 1, True),
        ((1, 4, 3, 3), 1, True),
    ],
)
def test_a_depthwise_convolution_has_an_exact_kernel(build, draw, shape, groups, found):
    assert (kernel_rows(conv(build, draw, shape, groups)) is not None) == found


@pytest.mark.parametrize(
    ("node", "transposed"),
    [("Gemm (e, d)", True), ("Gemm <transB = 1> (e, d)", False), ("MatMul (e, d)", True)],
)
def test_rows_of_a_dense_layer_are_its_output_channels(build, node, transposed):
    layer = only(by_hand(build, ON_GRID.replace("MatMul (e, d)", node), z=np.uint8(3)))
    np.testing.assert_array_equal(kernel_rows(layer), layer.integers.T if transposed else layer.integers)
    assert layer.axis == int(transposed)


def test_rows_of_stacked_matrices_are_the_columns_of_each(build):
    weight = np.arange(24, dtype=np.int8).reshape(2, 4, 3)
    layer = only(by_hand(build, ON_GRID, z=np.uint8(3), v=weight))
    assert layer.axis == 2
    np.testing.assert_array_equal(kernel_rows(layer), [weight[k, :, i] for k in range(2) for i in range(3)])


def test_rows_are_the_integers_as_they_are_stored(build):
    """The kernel multiplies these, and takes what the zero point makes from the sums."""
    weight = np.arange(16, dtype=np.int8).reshape(4, 4)
    nodes = ON_GRID.replace("(v, s)", "(v, s, o)")
    layer = only(by_hand(build, nodes, z=np.uint8(3), v=weight, o=np.int8(-100)))
    np.testing.assert_array_equal(kernel_rows(layer), weight.T)
    np.testing.assert_array_equal(layer.integers, weight.astype(int) + 100)


def test_a_vector_is_one_row(build):
    layer = only(by_hand(build, ON_GRID, z=np.uint8(3), v=np.arange(4, dtype=np.int8)))
    assert kernel_rows(layer).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("zero", "weight"),
    [(np.uint16(3), np.int8), (np.int16(3), np.int8), (np.uint8(3), np.uint8), (None, np.int8)],
)
def test_no_kernel_saturates_on_other_types(build, zero, weight):
    nodes = ON_GRID if zero is not None else f"{WEIGHT} y = MatMul (x, d)"
    given = {} if zero is None else {"z": zero}
    assert kernel_rows(only(by_hand(build, nodes, v=np.ones((4, 4), weight), **given))) is None


def test_a_transposed_convolution_has_no_integer_kernel(build, rough, draw):
    text = "g (float[N, 4, 3, 3] x) => (float[N, 6, 4, 4] y) { [t] y = ConvTranspose (x, w) }"
    layer = only(rough(build(text, opset=21, ir=10, w=draw(4, 6, 2, 2)), draw(2, 4, 3, 3)))
    assert (layer.op, layer.axis, kernel_rows(layer)) == ("ConvTranspose", 1, None)


@pytest.mark.parametrize("domain", ["", "com.microsoft."])
def test_layers_are_found_behind_both_domains_of_quantize_linear(build, domain):
    nodes = ON_GRID.replace("= Quant", f"= {domain}Quant").replace("= Dequant", f"= {domain}Dequant")
    model = by_hand(build, nodes, z=np.uint8(10))
    model.graph.node[0].name = "entry"
    layer = only(model)
    assert (layer.source, layer.entry, layer.grid, layer.activation_bits) == ("x", "entry", (0.5, -5.0, 122.5), 8)


# Kernels


def test_layers_have_the_kernels_of_their_rows(quantized):
    model = quantized()
    kernels, layers = find_kernels(model), find_quantized_layers(model)
    assert [(k.name, k.highest) for k in kernels] == [(layer.name, layer.highest) for layer in layers]
    assert [k.weight for k in kernels][:3] == ["w1_quantized", "w2_quantized", "w3_quantized"]
    for kernel, layer in zip(kernels, layers, strict=True):
        np.testing.assert_array_equal(kernel.rows, kernel_rows(layer))


SQUARE = np.arange(16, dtype=np.int8).reshape(4, 4)
FILTERS = np.arange(36, dtype=np.int8).reshape(2, 2, 3, 3)
STACK = np.arange(24, dtype=np.int8).reshape(2, 4, 3)
CHANNELS_LAST = [[*FILTERS[i].transpose(1, 2, 0).reshape(-1)] for i in range(2)]
Q_CONV = "QLinearConv {} (x, s, z, w, s, o, s, z)"
Q_MATMUL = "QLinearMatMul (x, s, z, w, s, o, s, z)"
Q_GEMM = "com.microsoft.QGemm {} (x, s, z, w, s, o, b, s, z)"
INTEGERS = "MatMulInteger (x, w, z, o)"


def operate(build, node, weight, kind="uint8"):
    """The rows of one operator on integers; o is the zero point of its weight."""
    text = f"g ({kind} x) => ({kind} y) {{ [op] y = {node.replace('{}', '')} }}"
    constants = {"s": np.float32(0.5), "z": np.array(3, kind), "o": weight.dtype.type(0), "b": np.zeros(4, np.int32)}
    (kernel,) = find_kernels(build(text, w=weight, **constants))
    assert (kernel.name, kernel.weight, kernel.highest) == ("op", "w", 255)
    return kernel.rows


@pytest.mark.parametrize(
    ("node", "weight", "rows"),
    [
        (Q_CONV, FILTERS, CHANNELS_LAST),
        (Q_CONV.format("<group = 2>"), FILTERS, CHANNELS_LAST),
        (Q_MATMUL, SQUARE, SQUARE.T),
        (Q_MATMUL, STACK, [STACK[k, :, i] for k in range(2) for i in range(3)]),
        (Q_GEMM, SQUARE, SQUARE.T),
        (Q_GEMM.format("<transB = 1>"), SQUARE, SQUARE),
        (INTEGERS, SQUARE, SQUARE.T),
        ("MatMulInteger (x, w)", SQUARE, SQUARE.T),
        ("com.microsoft.MatMulIntegerToFloat (x, w, s, s, z, o)", SQUARE, SQUARE.T),
        ("com.microsoft.DynamicQuantizeMatMul (x, w, s)", SQUARE, SQUARE.T),
        ("com.microsoft.QAttention <num_heads = 1> (x, w, b, s, s, , z, o)", SQUARE, SQUARE.T),
    ],
)
def test_operators_on_integers_have_kernels_too(build, node, weight, rows):
    np.testing.assert_array_equal(operate(build, node, weight), rows)


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


def test_a_weight_that_is_computed_has_no_kernel(build):
    text = "g (uint8 x, int8[4, 4] w) => (int32 y) { y = MatMulInteger (x, w) }"
    assert find_kernels(build(text)) == ()


def test_an_lstm_has_a_kernel_for_what_it_reads_and_one_for_its_state(build):
    text = """g (float x) => (float y) {
        [op] y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 3> (x, w, r, , , , , , s, o, s, o) }"""
    read, state = np.arange(48, dtype=np.int8).reshape(1, 4, 12), np.arange(36, dtype=np.int8).reshape(1, 3, 12)
    kernels = find_kernels(build(text, w=read, r=state, s=np.ones(1, np.float32), o=np.zeros(1, np.int8)))
    assert [(kernel.name, kernel.weight) for kernel in kernels] == [("op", "w"), ("op", "r")]
    for kernel, weight in zip(kernels, (read, state), strict=True):
        np.testing.assert_array_equal(kernel.rows, weight[0].T)


@pytest.mark.parametrize(
    ("nodes", "highest"),
    [
        ("t = Transpose <perm = [1, 0]> (e)", 255),
        ("r = Reshape (e, shape) i = Identity (r) t = Flatten (i)", 255),
        ("t = Relu (e)", 0),
    ],
)
def test_values_that_are_moved_behind_their_dequantizer_are_those_of_the_kernel(build, nodes, highest):
    """The layer reads floats in the file, and integers once onnxruntime has moved the DequantizeLinear behind it."""
    model = by_hand(build, f"{ON_GRID.partition('[fc]')[0]} {nodes} [fc] y = MatMul (t, d)", z=np.uint8(3))
    model.graph.initializer.append(numpy_helper.from_array(np.int64([4, 2, 2]), "shape"))
    (kernel,) = find_kernels(model)
    assert (kernel.highest, kernel.rows is None, only(model).activation_bits) == (highest, not highest, 32)
