"""Parts of a graph: they have the weights that they are allowed, and cuts go where nothing is fused."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcalib.graph.cuts import count_weights, find_segments, join_segments, take_segment

RESIDUAL = """g (float[N, 8] x) => (float[N, 8] x3) {
    h0 = MatMul (x, u0)  r0 = Relu (h0)  y0 = MatMul (r0, d0)  x1 = Add (x, y0)
    h1 = MatMul (x1, u1)  r1 = Relu (h1)  y1 = MatMul (r1, d1)  x2 = Add (x1, y1)
    h2 = MatMul (x2, u2)  r2 = Relu (h2)  y2 = MatMul (r2, d2)  x3 = Add (x2, y2)
}"""
PAIR = 2 * 4 * 8 * 8


@pytest.fixture
def residual(build, draw):
    return build(RESIDUAL, **{f"{kind}{number}": draw(8, 8) for kind in "ud" for number in range(3)})


def list_ends(model, most, outputs=None, **options):
    """The outputs of each segment."""
    names = [value.name for value in model.graph.output] if outputs is None else outputs
    return [segment.outputs for segment in find_segments(model, names, most, **options)]


def test_weights_are_counted_those_of_bodies_too(build, draw, residual):
    assert count_weights(residual) == 3 * PAIR
    inner = build(
        "g (bool b, float[4] x) => (float[4] y) { y = If (b) < then_branch = t () => (float[4] u)"
        " <float[4] c = {1, 2, 3, 4}> { u = Add (x, c) }, else_branch = e () => (float[4] v) { v = Identity (x) }> }"
    )
    assert count_weights(inner) == 16


def test_cuts_go_where_the_fewest_tensors_pass(residual):
    assert list_ends(residual, PAIR) == [("x1",), ("x2",), ("x3",)]
    assert list_ends(residual, 2 * PAIR) == [("x2",), ("x3",)]
    assert list_ends(residual, 3 * PAIR) == [("x3",)]


def test_a_node_with_more_than_is_allowed_is_a_segment_of_its_own(residual):
    segments = find_segments(residual, ["x3"], 1)
    assert [
        [residual.graph.node[at].op_type for at in segment.nodes if residual.graph.node[at].op_type == "MatMul"]
        for segment in segments
    ] == [["MatMul"]] * 6


def test_no_cut_goes_through_tensors_that_are_to_stay_whole(residual):
    assert list_ends(residual, PAIR, whole={"x1"}) == [("y0",), ("x2",), ("x3",)]


def test_segments_are_not_small_where_few_tensors_pass_at_the_beginning(build, draw):
    text = """g (float[N, 8] x) => (float[N, 8] y) { a = MatMul (x, w0)  b = MatMul (a, w1)  c = MatMul (a, w2)
        d = MatMul (b, w3)  e = MatMul (d, w4)  f = Add (c, e)  y = Add (f, a) }"""
    model = build(text, **{f"w{number}": draw(8, 8) for number in range(5)})
    assert list_ends(model, 2 * PAIR) == [("a", "b"), ("y",)]


def test_tensors_that_are_asked_for_are_given_by_their_segments(residual):
    assert list_ends(residual, PAIR, ["h0", "x3", "r2"]) == [("h0", "x1"), ("x2",), ("r2", "x3")]


def test_a_weight_that_two_segments_share_is_in_both(build, draw):
    model = build(
        "g (float[N, 8] x) => (float[N, 8] z) { y = MatMul (x, w) a = MatMul (y, v) z = MatMul (a, w) }",
        w=draw(8, 8),
        v=draw(8, 8),
    )
    segments = [
        take_segment(
            model,
            segment,
            {
                v.name: v
                for v in (*model.graph.input, *(onnx.helper.make_tensor_value_info(n, 1, ["N", 8]) for n in "ya"))
            },
        )
        for segment in find_segments(model, ["z"], 4 * 64)
    ]
    assert [[tensor.name for tensor in segment.graph.initializer] for segment in segments] == [["w"], ["v"], ["w"]]


QUANTIZED = """g (float[N, 8] x) => (float[N, 8] z) {
    w1 = DequantizeLinear (v1, one)  w2 = DequantizeLinear (v2, one)
    q = QuantizeLinear (x, one, low)  d = DequantizeLinear (q, one, low)
    a = MatMul (d, w1)  r = Relu (a)  s = QuantizeLinear (r, one, low)  e = DequantizeLinear (s, one, low)
    b = MatMul (e, w2)  c = Add (b, e)  t = QuantizeLinear (c, one, low)  z = DequantizeLinear (t, one, low)
}"""


def test_cuts_of_a_quantized_model_go_through_integers_and_both_sides_dequantize_them(build):
    integers = np.arange(64, dtype=np.int8).reshape(8, 8)
    model = build(QUANTIZED, v1=integers, v2=integers, one=np.float32(1), low=np.uint8(0))
    first, second = find_segments(model, ["z"], 80)
    assert first.outputs == second.inputs == ("s",)
    assert [model.graph.node[at].output[0] for at in first.nodes] == ["w1", "q", "d", "a", "r", "s"]
    assert [model.graph.node[at].output[0] for at in second.nodes] == ["w2", "e", "b", "c", "t", "z"]


def test_what_draws_is_computed_once(build, draw):
    model = build(
        "g (float[N, 8] x) => (float[N, 8] z) { n = RandomNormalLike (w) y = MatMul (x, n) a = MatMul (y, v)"
        " z = MatMul (a, n) }",
        w=draw(8, 8),
        v=draw(8, 8),
    )
    segments = find_segments(model, ["z"], 4 * 64)
    assert sum(0 in segment.nodes for segment in segments) == 1


def test_graphs_of_segments_are_joined_and_what_they_name_alike_stays_apart(build):
    one = build(
        "g (float[N] x) => (uint8[N] y) { t = Relu (x) y = QuantizeLinear (t, c, z)"
        " d = DequantizeLinear (y, c, z) u = Neg (d) }",
        c=np.float32(1),
        z=np.uint8(0),
    ).graph
    two = build(
        "g (uint8[N] y) => (float[N] v) { d = DequantizeLinear (y, c, z) t = Sqrt (d) v = Mul (t, c) }",
        c=np.float32(2),
        z=np.uint8(0),
    ).graph
    for graph in (one, two):
        next(node for node in graph.node if node.op_type == "DequantizeLinear").name = "same"
    whole = join_segments([one, two])
    assert [(node.op_type, *node.input, *node.output) for node in whole.node] == [
        ("Relu", "x", "t"),
        ("QuantizeLinear", "t", "c", "z", "y"),
        ("DequantizeLinear", "y", "c", "z", "d"),
        ("Neg", "d", "u"),
        ("Sqrt", "d", "t_1"),
        ("Mul", "t_1", "c_1", "v"),
    ]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in whole.initializer}
    assert values == {"c": 1, "z": 0, "c_1": 2, "z_1": 0}
