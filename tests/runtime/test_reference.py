"""onnx's evaluator as a judge: what it computes beside NumPy, where it is refused, what its faults are called."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import helper

from onnxcalib.runtime.reference import Reference, ReferenceFault
from onnxcalib.runtime.session import Session

RNG = np.random.default_rng(5)
X = RNG.normal(size=(2, 4, 5, 6)).astype(np.float32)
TIES = (np.arange(-40, 40) * 0.25).reshape(4, 20).astype(np.float32)
ROWS = {"s": np.float32([0.5, 0.25, 1, 2]), "z": np.array([3, 0, 255, 9], np.uint8)}
INT4 = np.arange(-8, 8).reshape(4, 4).astype(np.int8)
FOUR_BITS = {"w": INT4.astype(ml_dtypes.int4), "s": np.float32([1, 0.5, 2, 4])}
WEIGHT = RNG.normal(size=(6, 2, 3, 2)).astype(np.float32)
BLOCKS = {"w": INT4.astype(ml_dtypes.int4), "s": np.float32([[1, 2], [0.5, 1], [2, 2], [4, 8]])}


def quantize(x, scale, zero, low, high):
    return np.clip(np.rint(x / scale) + zero, low, high)


def convolve(x, weight):
    """Stride 2 and 1, pads 1, 0, 0, 2, dilations 1 and 2, in two groups."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 0), (0, 2))).astype(np.float64)
    out = np.zeros((2, 6, 2, 6))
    for channel in range(6):
        part = padded[:, 0:2] if channel < 3 else padded[:, 2:4]
        for row in range(2):
            for column in range(6):
                window = part[:, :, 2 * row : 2 * row + 3, column : column + 4 : 2][..., :2]
                out[:, channel, row, column] = (window * weight[channel]).sum((1, 2, 3))
    return out


def pool(x, take):
    """Windows of 2 x 3, at strides 2 and 1."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 3), axis=(2, 3))[:, :, ::2]
    return take(windows, axis=(4, 5))


# what is checked, opset, graph, constants, input, what NumPy gives
CHECKED = [
    (
        "half steps go to even integers, and the ends saturate", 13,
        "(float[4, 20] x) => (uint8[4, 20] y) { y = QuantizeLinear (x, s, z) }",
        {"s": np.float32(0.5), "z": np.uint8(3)}, TIES, quantize(TIES, 0.5, 3, 0, 255),
    ),
    (
        "a scale for each row", 17, "(float[4, 20] x) => (uint8[4, 20] y) { y = QuantizeLinear <axis = 0> (x, s, z) }",
        ROWS, TIES, quantize(TIES, ROWS["s"][:, None], ROWS["z"][:, None].astype(float), 0, 255),
    ),
    (
        "a scale for each column, counted from the last axis", 21,
        "(float[20, 4] x) => (uint8[20, 4] y) { y = QuantizeLinear <axis = -1> (x, s, z) }",
        ROWS, TIES.T.copy(), quantize(TIES.T, ROWS["s"], ROWS["z"].astype(float), 0, 255),
    ),
    (
        "int8 at its lower end", 21, "(float[4, 20] x) => (int8[4, 20] y) { y = QuantizeLinear (x, s, z) }",
        {"s": np.float32(0.0625), "z": np.int8(-9)}, TIES, quantize(TIES, 0.0625, -9, -128, 127),
    ),
    (
        "uint16", 21, "(float[4, 20] x) => (uint16[4, 20] y) { y = QuantizeLinear (x, s, z) }",
        {"s": np.float32(2**-13), "z": np.uint16(32768)}, TIES, quantize(TIES, 2**-13, 32768, 0, 65535),
    ),
    *(
        (
            "back from integers, below the opset at which the evaluator has it too", opset,
            "(uint8[4, 20] x) => (float[4, 20] y) { y = DequantizeLinear <axis = 0> (x, s, z) }",
            ROWS, np.arange(80, dtype=np.uint8).reshape(4, 20),
            (np.arange(80.0).reshape(4, 20) - ROWS["z"][:, None]) * ROWS["s"][:, None],
        )
        for opset in (13, 17, 19, 21, 23)
    ),
    (
        "one scale without an axis at the first opset", 10,
        "(uint8[80] x) => (float[80] y) { y = DequantizeLinear (x, s, z) }",
        {"s": np.float32(0.5), "z": np.uint8(3)}, np.arange(80, dtype=np.uint8), (np.arange(80.0) - 3) / 2,
    ),
    (
        "a bias of int32 without a zero point", 17,
        "(int32[4] x) => (float[4] y) { y = DequantizeLinear <axis = 0> (x, s) }",
        {"s": ROWS["s"]}, np.array([-(2**20), 5, 2**20, 7], np.int32), np.array([-(2**20), 5, 2**20, 7]) * ROWS["s"],
    ),
    (
        "weights of 4 bits", 21,
        "(float[2, 4] x) => (float[2, 4] y) { d = DequantizeLinear <axis = 1> (w, s)  y = MatMul (x, d) }",
        FOUR_BITS, X[0, 0, :2, :4].copy(), X[0, 0, :2, :4].astype(float) @ (INT4 * FOUR_BITS["s"]),
    ),
    (
        "weights of 4 bits through a Cast", 21,
        """(float[2, 4] x) => (float[2, 4] y)
        { c = Cast <to = 3> (w)  d = DequantizeLinear <axis = 0> (c, s)  y = MatMul (x, d) }""",
        FOUR_BITS, X[0, 0, :2, :4].copy(), X[0, 0, :2, :4].astype(float) @ (INT4 * FOUR_BITS["s"][:, None]),
    ),
    (
        "weights of 4 bits in blocks", 21,
        """(float[2, 4] x) => (float[2, 4] y)
        { d = DequantizeLinear <axis = 1, block_size = 2> (w, s)  y = MatMul (x, d) }""",
        BLOCKS, X[0, 0, :2, :4].copy(), X[0, 0, :2, :4].astype(float) @ (INT4 * BLOCKS["s"].repeat(2, axis=1)),
    ),
    (
        "a Conv with groups, strides, dilations and pads of unlike sizes", 17,
        """(float[2, 4, 5, 6] x) => (float[2, 6, M, K] y)
        { y = Conv <group = 2, strides = [2, 1], pads = [1, 0, 0, 2], dilations = [1, 2]> (x, w) }""",
        {"w": WEIGHT}, X, convolve(X, WEIGHT),
    ),
    (
        "a MaxPool", 17,
        "(float[2, 4, 5, 6] x) => (float[2, 4, 2, 4] y) { y = MaxPool <kernel_shape = [2, 3], strides = [2, 1]> (x) }",
        {}, X, pool(X, np.max),
    ),
    (
        "an AveragePool", 17,
        """(float[2, 4, 5, 6] x) => (float[2, 4, 2, 4] y)
        { y = AveragePool <kernel_shape = [2, 3], strides = [2, 1]> (x) }""",
        {}, X, pool(X.astype(float), np.mean),
    ),
    *(
        (
            f"pads of mode {mode}", 19,
            f'(float[2, 4, 5, 6] x) => (float[N, C, H, W] y) {{ y = Pad <mode = "{mode}"> (x, p) }}',
            {"p": np.int64([0, 0, 1, 2, 0, 0, 3, 0])}, X,
            np.pad(X, ((0, 0), (0, 0), (1, 3), (2, 0)), mode=mode),
        )
        for mode in ("constant", "reflect", "edge", "wrap")
    ),
    (
        "a Resize to the nearest value", 13,
        """(float[2, 4, 5, 6] x) => (float[2, 4, 10, 18] y)
        { y = Resize <mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = "asymmetric"> (x, , s)
        }""",
        {"s": np.float32([1, 1, 2, 3])}, X, X.repeat(2, axis=2).repeat(3, axis=3),
    ),
    (
        "a linear Resize with aligned corners", 13,
        """(float[1, 1, 1, 3] x) => (float[1, 1, 1, 5] y)
        { y = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (x, , , s) }""",
        {"s": np.int64([1, 1, 1, 5])}, np.float32([[[[0, 1, 4]]]]), [[[[0, 0.5, 1, 2.5, 4]]]],
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("opset", "text", "constants", "x", "wanted"), [row[1:] for row in CHECKED], ids=[row[0] for row in CHECKED]
)
def test_what_the_evaluator_computes_is_what_numpy_does(build, opset, text, constants, x, wanted):
    (given,) = Reference(build(f"g {text}", opset=opset, ir=10, **constants)).run({"x": x}).values()
    assert given.shape == np.shape(wanted)
    np.testing.assert_allclose(given.astype(float), wanted, rtol=1e-5, atol=1e-5)


def test_outputs_are_those_of_onnxruntime_without_optimizations(build, weigh, draw, rough):
    text = """g (float[N, 3, 8, 8] x) => (float[N, 5] y, float[N, 4] z) {
        [c] c = Conv <pads = [1, 1, 1, 1]> (x, w)  [r] r = Relu (c)  [p] p = GlobalAveragePool (r)  [z] z = Flatten (p)
        [y] y = MatMul (z, v) }"""
    x = draw(2, 3, 8, 8)
    quantized = rough(build(text, w=weigh(4, 3, 3, 3), v=weigh(5, 4).T.copy()), x)
    wanted = Session(quantized, optimize=False).run({"x": x})
    given = Reference(quantized).run({"x": x, "unread": x})
    assert list(given) == list(wanted) == ["y", "z"]
    for name in wanted:
        np.testing.assert_allclose(given[name], wanted[name], atol=1e-5)


def test_bodies_are_run_and_a_second_run_gives_the_same(build, draw):
    text = """g (float[4] x, bool c) => (float[4] y) {
        t = Relu (x)
        b = If (c) <then_branch = a () => (float[4] u) { u = Add (t, x) },
                    else_branch = e () => (float[4] u) { u = Sub (t, x) }>
        y = Neg (b) }"""
    x, reference = draw(4), Reference(build(text))
    for _ in range(2):
        for which, wanted in ((True, np.maximum(x, 0) + x), (False, np.maximum(x, 0) - x)):
            (given,) = reference.run({"x": x, "c": np.array(which)}).values()
            np.testing.assert_array_equal(given, -wanted)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("y = LRN <size = 3> (x)", "(LRN): the evaluator computes it otherwise than ONNX says: squares are summed for"),
        ("y = TfIdfVectoriser (x)", "(TfIdfVectoriser): the evaluator does not have it: No registered schema"),
    ],
)
def test_a_node_that_is_no_judge_is_refused_by_its_name(build, text, fault):
    with pytest.raises(ReferenceFault) as refusal:
        Reference(build(f"g (float[2, 4, 5, 6] x) => (float[N, C, H, W] y) {{ [odd] {text} }}"))
    assert str(refusal.value).startswith(f"odd {fault}") and "\n" not in str(refusal.value)


def test_an_operator_of_a_runtime_alone_is_refused(build):
    model = build("g (float[2] x) => (float[2] y) { [fast] y = com.microsoft.QuickGelu (x) }")
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(
        ReferenceFault, match=r"^fast \(com.microsoft::QuickGelu\): ONNX does not define the operators of"
    ):
        Reference(model)


def test_a_node_in_a_body_is_refused_too(build):
    text = """g (float[2] x, bool c) => (float[N] y) {
        y = If (c) <then_branch = a () => (float[N] u) { [inner] u = LpNormalization <p = 1> (x) },
                    else_branch = e () => (float[N] u) { u = Neg (x) }> }"""
    with pytest.raises(ReferenceFault, match=r"^inner \(LpNormalization\): .*: p = 1 sums values with their signs$"):
        Reference(build(text))


def test_what_the_evaluator_stops_at_is_told_by_the_node(build, weigh):
    model = build(
        "g (float[2, 4, 5, 6] x) => (float[N, C, H, W] y) { [up] y = ConvTranspose <group = 2> (x, w) }",
        w=weigh(4, 3, 2, 2),
    )
    with pytest.raises(ReferenceFault, match=r"^up \(ConvTranspose\): the evaluator stops: .+"):
        Reference(model).run({"x": X})


@pytest.mark.parametrize("scale", [np.float32(1e-9), np.float32([1, 1e-9, 1, 1])])
def test_values_that_the_evaluator_would_turn_to_the_other_end_are_refused(build, scale):
    text = "g (float[4, 20] x) => (uint8[4, 20] y) { [round] y = QuantizeLinear <axis = 0> (x, s) }"
    with pytest.raises(ReferenceFault, match=r"^round \(QuantizeLinear\): .*: values beyond 2\^31 steps"):
        Reference(build(text, s=scale)).run({"x": TIES})
