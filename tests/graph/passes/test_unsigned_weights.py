"""int8 weights made unsigned: the same numbers, whatever dequantizes or multiplies them."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onnxcalib.graph.passes.unsigned_weights import SAFE, unsign_weights

RNG = np.random.default_rng(0)
# Of opposite signs in every pair that a kernel adds, so that these saturate nowhere.
WIDE = (RNG.integers(0, 128, (4, 4)) * [[1], [-1], [1], [-1]]).astype(np.int8)
FILTER = WIDE.T.reshape(4, 4, 1, 1).copy()
SCALES = {"s": np.float32(0.5), "t": np.array([0.1, 0.2, 0.3, 0.4], np.float32), "far": np.float32(900)}
ZEROS = {"low": np.uint8(3), "z": np.array([0, 5, -7, 0], np.int8), "i": np.int8(-9), "none": np.zeros(4, np.int8)}
FORMS = {
    "dequantized": "d = DequantizeLinear <axis = 1> (w, t, z) y = MatMul (x, d)",
    "twice, zero point and all": "d = DequantizeLinear <axis = 1> (w, t, z) a = MatMul (x, d)"
    " e = DequantizeLinear <axis = 1> (w, t, z) y = MatMul (a, e)",
    "without a zero point": "d = DequantizeLinear <axis = 1> (w, t) y = MatMul (x, d)",
    "with a scalar": "d = DequantizeLinear (w, s, i) y = MatMul (x, d)",
    "quantized in the graph": "q = QuantizeLinear <axis = 1> (floats, t, z) d = DequantizeLinear <axis = 1> (q, t, z)"
    " y = MatMul (x, d)",
    "of a domain of its own": "d = com.microsoft.DequantizeLinear (w, s, i) y = MatMul (x, d)",
    "in blocks": "d = DequantizeLinear <axis = 0, block_size = 2> (w, b) y = MatMul (x, d)",
    "QLinearMatMul": "q = QuantizeLinear (x, s, low) p = QLinearMatMul (q, s, low, w, t, none, far, low)"
    " y = DequantizeLinear (p, far, low)",
    "QLinearConv": "r = Reshape (x, image) q = QuantizeLinear (r, s, low)"
    " p = QLinearConv (q, s, low, f, t, none, far, low) c = DequantizeLinear (p, far, low) y = Reshape (c, flat)",
    "MatMulInteger": "q = QuantizeLinear (x, s, low) p = MatMulInteger (q, w, low, i) y = Cast <to = 1> (p)",
    "MatMulInteger without zero points": "q = QuantizeLinear (x, s, low) p = MatMulInteger (q, w)"
    " y = Cast <to = 1> (p)",
    "MatMulIntegerToFloat": "q = QuantizeLinear (x, s, low) y = com.microsoft.MatMulIntegerToFloat (q, w, s, t, low)",
    "DynamicQuantizeMatMul": "y = com.microsoft.DynamicQuantizeMatMul (x, w, t)",
    "QGemm": "q = QuantizeLinear (x, s, low) p = com.microsoft.QGemm (q, s, low, w, t, none, , far, low)"
    " y = DequantizeLinear (p, far, low)",
}
SHAPES = {"image": np.array([-1, 4, 1, 1]), "flat": np.array([-1, 4])}


@pytest.fixture
def make(build):
    def build_form(nodes, **more):
        given = {
            "floats": 9 * WIDE.astype(np.float32) / 127,
            "w": WIDE,
            "f": FILTER,
            "b": np.full((2, 4), 0.5, np.float32),
            **SCALES,
            **ZEROS,
            **SHAPES,
            **more,
        }
        model = build(f"g (float[N, 4] x) => (float[N, 4] y) {{ {nodes} }}", opset=21, ir=10, **given)
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        return model

    return build_form


def list_read(model):
    """Types of the constants that are read."""
    read = {name for node in model.graph.node for name in node.input}
    return [tensor.data_type for tensor in model.graph.initializer if tensor.name in read]


@pytest.mark.parametrize("form", FORMS)
def test_the_numbers_stay_and_no_signed_weight_does(form, make, run_exact, draw):
    model = make(FORMS[form])
    before = model.SerializeToString()
    unsigned = unsign_weights(model)
    assert model.SerializeToString() == before
    assert TensorProto.INT8 in list_read(model) and TensorProto.INT8 not in list_read(unsigned)
    x = 9 * draw(5, 4)
    np.testing.assert_array_equal(run_exact(model, x), run_exact(unsigned, x))


@pytest.fixture
def run_exact():
    """Without graph optimizations."""

    def run(model, x, *conditions):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feeds = dict(zip("xc", (x, *conditions), strict=False))
        return session.run(None, feeds)[0]

    return run


def test_weights_of_constant_nodes_and_in_bodies_are_made_unsigned_too(build, run_exact, draw):
    body = """{ d = DequantizeLinear (w, s) then = MatMul (x, d) }"""
    text = f"""g (float[N, 4] x, bool c) => (float[N, 4] y) {{
        v = Constant <value = int8[4, 4] {{{", ".join(map(str, WIDE.ravel()))}}}> ()
        k = DequantizeLinear (v, s) a = MatMul (x, k)
        b = If (c) <then_branch = t () => (float[N, 4] then) {body},
            else_branch = e () => (float[N, 4] other) {{ other = Identity (x) }}>
        y = Add (a, b) }}"""
    model = build(text, w=WIDE, s=np.float32(0.5))
    unsigned = unsign_weights(model)
    inner = [node.input[0] for node in unsigned.graph.node[3].attribute[0].g.node if node.op_type == "DequantizeLinear"]
    outer = [node.input[0] for node in unsigned.graph.node if node.op_type == "DequantizeLinear"]
    types = {tensor.name: tensor.data_type for tensor in unsigned.graph.initializer}
    assert [types[name] for name in (*outer, *inner)] == [TensorProto.UINT8] * 2
    for given in ((draw(3, 4), np.array(taken)) for taken in (True, False)):
        np.testing.assert_array_equal(run_exact(model, *given), run_exact(unsigned, *given))


@pytest.mark.parametrize(
    "nodes",
    [
        "d = DequantizeLinear (small, s) y = MatMul (x, d)",
        "q = QuantizeLinear (x, s, i) p = QLinearMatMul (q, s, i, w, s, i, far, i) y = DequantizeLinear (p, far, i)",
        "q = QuantizeLinear (x, s, i) p = MatMulInteger (q, w, i, i) y = Cast <to = 1> (p)",
    ],
)
def test_what_cannot_saturate_is_left_as_it_is(nodes, make):
    """Integers within 64, and those that signed ones are multiplied by."""
    model = make(nodes, small=np.clip(WIDE, -SAFE, SAFE))
    assert list(unsign_weights(model).graph.node) == list(model.graph.node)


def test_a_model_without_wide_integers_is_not_copied(build):
    model = build("g (float[N, 4] x) => (float[N, 4] y) { d = DequantizeLinear (w, s) y = MatMul (x, d) }",
                  w=np.full((4, 4), SAFE, np.int8), s=np.float32(1))  # fmt: skip
    assert unsign_weights(model) is model


def test_a_zero_point_is_not_made_up_where_the_scale_is_computed(make, run_exact, draw):
    model = make("c = Abs (t) d = DequantizeLinear <axis = 1> (w, c) y = MatMul (x, d)")
    x = draw(5, 4)
    np.testing.assert_array_equal(run_exact(model, x), run_exact(unsign_weights(model), x))


@pytest.mark.parametrize(
    "nodes",
    [
        "q = QuantizeLinear (x, s, i) y = com.microsoft.MatMulIntegerToFloat (q, w, s, t)",
        "k = Identity (i) q = QuantizeLinear (x, s, k) p = QLinearMatMul (q, s, k, w, t, none, far, i)"
        " y = DequantizeLinear (p, far, i)",
    ],
)
def test_weights_stay_beside_what_may_be_signed(nodes, make, run_exact, draw):
    model = make(nodes, i=np.int8(0))
    x = draw(5, 4)
    np.testing.assert_array_equal(run_exact(model, x), run_exact(unsign_weights(model), x))


def test_a_name_that_a_body_binds_anew_is_not_the_constant_outside(build):
    """The input of a body shadows it."""
    body = "b (int8[4, 4] w, float[4] e) => (float[4, 4] out) { out = DequantizeLinear (w, s) }"
    model = build(f"""g (int8[3, 4, 4] many, float[3, 4] e) => (float[3, 4, 4] y, float[4, 4] z) {{
        y = Scan <num_scan_inputs = 2, body = {body}> (many, e) z = DequantizeLinear (w, s) }}""",
        w=WIDE, s=np.float32(1))  # fmt: skip
    scan, plain = unsign_weights(model).graph.node
    (inner,) = (attribute.g.node[0] for attribute in scan.attribute if attribute.name == "body")
    assert inner.input[0] == "w" and plain.input[0] != "w"
