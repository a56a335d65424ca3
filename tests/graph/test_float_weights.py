"""Weights that stay in float: which nodes have one, why, and how many bytes they hold."""

import numpy as np
import pytest
from onnx import helper

from onnxcalib.errors import ModelError
from onnxcalib.graph.float_weights import list_float_weights, spell_holders
from onnxcalib.graph.load import refuse_unsuitable
from onnxcalib.graph.scheme import make_scheme


def reasons(model, *quantized):
    return {each.name: each.reason for each in list_float_weights(model, quantized)}


def test_a_quantized_layer_is_not_listed_and_another_is_with_its_bytes(build, draw):
    model = build(
        "g (float[N, 4] x) => (float[N, 2] y) { [one] a = MatMul (x, w) [two] y = MatMul (a, v) }",
        w=draw(4, 3), v=draw(3, 2),
    )  # fmt: skip
    (found,) = list_float_weights(model, ["one"])
    assert (found.name, found.op, found.bytes) == ("two", "MatMul", 24)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("[it] y = MatMul (w, x)", "its weight is the left operand"),
        ("[it] y = MatMul (x, stack)", "its weight has 3 dimensions, where a layer has a matrix"),
        ("[it] y = MatMul (x, vector)", "its weight has 1 dimensions, where a layer has a matrix"),
        ('[it] y = Einsum <equation = "ab,cb->ac"> (x, w)', "its equation, ab,cb->ac, is no product of a matrix"),
        ("[it] y = Gemm <transA = 1> (x, w)", "it transposes its input"),
        ("t = ReduceSum (x) [it] y = Gemm (x, w, t)", "its bias is computed, or no value for each output channel"),
        ("i = Cast <to = 7> (x) [it] y = Gather (w, i)", "a table below 65,536 bytes"),
        ("[it] y = Add (x, large)", "a constant that is no layer's weight"),
    ],
)
def test_the_reason_is_what_sets_a_node_apart_from_a_layer(build, draw, body, reason):
    weights = {"w": draw(4, 4), "stack": draw(2, 4, 4), "vector": draw(4), "large": draw(128, 128)}
    used = {name: value for name, value in weights.items() if name in body.replace("(x, w)", " w ")}
    (found,) = list_float_weights(build(f"g (float[4, 4] x) => (float y) {{ {body} }}", **used), ())
    assert found.name == "it"
    assert found.reason.startswith(reason)


def test_weights_of_other_types_domains_and_recurrent_layers_have_reasons_of_their_own(build, draw):
    model = build(
        "g (float[5, 1, 4] x, float[1, 3, 8, 8] z, double[2, 2] d) => (float y, double e, float c, float v) {"
        " [memory] y = LSTM <hidden_size = 2> (x, w, r) [wide] e = MatMul (d, dw)"
        " [dynamic] c = Conv (z, y) [fused] v = FusedConv (z, k) [foreign] u = Odd (z, k) }",
        w=draw(1, 8, 4), r=draw(1, 8, 2), dw=np.eye(2), k=draw(2, 3, 3, 3),
    )  # fmt: skip
    model.graph.node[3].domain, model.graph.node[4].domain = "com.microsoft", "mine"
    found = reasons(model)
    assert found["memory"].startswith("a recurrent layer, which files for onnxruntime alone have")
    assert found["wide"] == "its weight is of type double; export the model in float32"
    assert found["dynamic"] == "its weight is computed, not stored"
    assert "quantize the model as it was before onnxruntime optimised it" in found["fused"]
    assert found["foreign"] == "its operator is not a standard one"
    assert [each.bytes for each in list_float_weights(model, ())][-2:] == [4 * 54, 0]  # one weight of both


def test_layers_inside_bodies_are_listed_with_the_node_that_has_them_where_nothing_else_keeps_them_float(build, draw):
    model = build(
        "g (float[N, 4] x, bool flag) => (float[N, 3] y) { [which] y = If (flag) <"
        " then_branch = yes () => (float[N, 3] p) { [inner] h = MatMul (x, w) [stack] p = MatMul (h, s) },"
        " else_branch = no () => (float[N, 3] q) { [other] h = MatMul (x, w) q = Relu (h) } > }",
        w=draw(4, 3), s=draw(1, 3, 3),
    )  # fmt: skip
    assert reasons(model, "other") == {
        "inner": "inside the body of If which, which stays in float",
        "stack": "its weight has 3 dimensions, where a layer has a matrix",
    }


def test_what_holds_most_weights_is_named_where_no_layer_is_left(build, draw):
    model = build(
        "g (float[N, 3, 4] x) => (float[N, 3, 4] y) { a = MatMul (w, x) b = MatMul (w, a) y = MatMul (b, stack) }",
        w=draw(3, 3), stack=draw(1, 4, 4),
    )  # fmt: skip
    assert spell_holders(model) == "2 of its 3 weights are read by MatMul: its weight is the left operand"
    with pytest.raises(ModelError, match="no quantizable layer found, as 2 of its 3 weights are read by MatMul"):
        make_scheme(model)
    del model.graph.node[2]
    with pytest.raises(ModelError, match="no quantizable layer found, as 2 of its 2 weights are read by MatMul"):
        refuse_unsuitable(model)
    model.graph.node.extend([helper.make_node("Neg", ["x"], ["n"])])
    del model.graph.node[:2]
    assert spell_holders(model) == ""


def test_the_rotations_of_positions_are_no_weights(build, draw):
    body = "y = RotaryEmbedding (x, places, cosines, sines)"
    model = build(f"g (float x, int64 places) => (float y) {{ {body} }}", cosines=draw(16, 4), sines=draw(16, 4))
    model.graph.node[0].domain, model.graph.node[0].name = "com.microsoft", "turn"
    (found,) = list_float_weights(model, ())
    assert found.reason == "its constants are cosines and sines of positions, no weights"
