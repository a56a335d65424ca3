"""Operators that onnxruntime's optimizer fused are taken apart, and compute the same."""

import numpy as np
import pytest
from onnx import helper

from onnxcalib.graph.edit import drop_dead
from onnxcalib.graph.passes.normalise import name_nodes
from onnxcalib.graph.passes.ort_fusions import split_fusions

X = ["N", 3, 6, 6]
ROWS = ["N", 5, 8]


def make(build, body, inputs, opset, **weights):
    named = ", ".join(f"{kind}[{', '.join(map(str, shape))}] {name}" for name, (kind, shape) in inputs.items())
    model = build(f"g ({named}) => (float y) {{ {body} }}", opset=opset, **weights)
    for node in model.graph.node:
        node.domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def split(model):
    name_nodes(model)
    count = split_fusions(model)
    drop_dead(model)
    return count, [node.op_type for node in model.graph.node]


def check(run, model, *inputs):
    """The operators that remain, if the model still computes the same."""
    (before,) = run(model, *inputs)
    count, ops = split(model)
    assert count >= 1
    (after,) = run(model, *inputs)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    assert not any(node.domain for node in model.graph.node)
    return " ".join(ops)


@pytest.mark.parametrize(
    ("activation", "ops"),
    [
        ('activation = "Relu"', "Conv Relu"),
        ('activation = "Sigmoid"', "Conv Sigmoid"),
        ('activation = "LeakyRelu", activation_params = [0.2]', "Conv LeakyRelu"),
        ('activation = "HardSigmoid", activation_params = [0.3, 0.4]', "Conv HardSigmoid"),
        ('activation = "Clip", activation_params = [0.0, 0.5]', "Conv Clip"),
    ],
)
def test_a_fused_convolution_is_a_layer_and_its_activation(build, run, draw, activation, ops):
    body = f"[own] y = FusedConv <pads = [1, 1, 1, 1], strides = [2, 2], {activation}> (x, w, b)"
    model = make(build, body, {"x": ("float", X)}, 17, w=draw(4, 3, 3, 3), b=draw(4))
    assert check(run, model, draw(2, 3, 6, 6)) == ops
    assert model.graph.node[0].name == "own"


def test_what_a_fused_convolution_adds_comes_before_its_activation(build, run, draw):
    body = 'y = FusedConv <activation = "Relu", kernel_shape = [1, 1]> (x, w, b, z)'
    inputs = {"x": ("float", X), "z": ("float", ["N", 4, 6, 6])}
    model = make(build, body, inputs, 17, w=draw(4, 3, 1, 1), b=draw(4))
    assert check(run, model, draw(2, 3, 6, 6), draw(2, 4, 6, 6)) == "Conv Add Relu"


def test_a_fused_gemm_keeps_its_factors(build, run, draw):
    body = 'y = FusedGemm <activation = "LeakyRelu", activation_alpha = 0.3, alpha = 0.5, transB = 1> (x, w, b)'
    model = make(build, body, {"x": ("float", ["N", 8])}, 17, w=draw(4, 8), b=draw(4))
    assert check(run, model, draw(3, 8)) == "Gemm LeakyRelu"


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        ("y = FusedMatMul <transB = 1> (x, w)", "MatMul"),
        ("y = FusedMatMul <alpha = 0.25> (x, v)", "MatMul Mul"),
        (
            "a = FusedMatMul <transB = 1> (x, x)  y = FusedMatMul <transA = 1> (a, x)",
            "Transpose MatMul Transpose MatMul",
        ),
    ],
)
def test_a_fused_product_turns_its_operands_before_it(build, run, draw, body, ops):
    weights = {name: value for name, value in {"w": draw(4, 8), "v": draw(8, 4)}.items() if f" {name})" in body}
    assert check(run, make(build, body, {"x": ("float", ROWS)}, 17, **weights), draw(2, 5, 8)) == ops


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("body", ["Gelu (x)", "BiasGelu (x, b)", "FastGelu (x, b)", "FastGelu (x)", "QuickGelu (x)"])
def test_each_gelu_is_written_out(build, run, draw, body, opset):
    weights = {"b": draw(8)} if " b)" in body else {}
    model = make(build, f"y = {body}", {"x": ("float", ROWS)}, opset, **weights)
    ops = check(run, model, draw(2, 5, 8))
    assert ("Gelu" in ops) == (opset == 20 and "Quick" not in body)


@pytest.mark.parametrize("opset", [15, 17])
def test_a_norm_of_a_sum_gives_the_sum_too(build, run, draw, opset):
    body = "s, , , y = SkipLayerNormalization <epsilon = 0.001> (x, z, g, h, b)"
    inputs = {"x": ("float", ROWS), "z": ("float", ROWS)}
    weights = {"g": draw(8), "h": draw(8), "b": draw(8)}
    feeds = draw(2, 5, 8), draw(2, 5, 8)
    summed = check(run, make(build, body, inputs, opset, **weights), *feeds)
    assert summed == "Add Add"
    norm = check(run, make(build, body.replace("s, , , y", "y"), inputs, opset, **weights), *feeds)
    assert ("LayerNormalization" in norm) == (opset == 17)


@pytest.mark.parametrize("opset", [15, 18])
def test_a_norm_without_a_mean_is_written_as_onnxruntime_fuses_it(build, run, draw, opset):
    norm = "Pow ReduceMean Add Sqrt Div Mul"
    alone = "y = SimplifiedLayerNormalization <axis = -1, epsilon = 0.001> (x, g)"
    model = make(build, alone, {"x": ("float", ROWS)}, opset, g=draw(8))
    model.graph.node[0].domain = ""  # as onnxruntime itself writes it
    assert check(run, model, draw(2, 5, 8)) == norm
    inputs = {"x": ("float", ROWS), "z": ("float", ROWS)}
    body = "s, , , y = SkipSimplifiedLayerNormalization <epsilon = 0.001> (x, z, g, b)"
    model = make(build, body, inputs, opset, g=draw(8), b=draw(8))
    assert check(run, model, draw(2, 5, 8), draw(2, 5, 8)) == "Add Add"
    model = make(build, body.replace("s, , , y", "y"), inputs, opset, g=draw(8), b=draw(8))
    assert check(run, model, draw(2, 5, 8), draw(2, 5, 8)) == f"Add Add {norm}"


@pytest.mark.parametrize("places", [True, False])
def test_embeddings_with_their_norm_are_look_ups(build, run, draw, places):
    body = "y, m = EmbedLayerNormalization (ids, seg, words, places, kinds, g, h" + (", , given)" if places else ")")
    inputs = {name: ("int32", [2, 4]) for name in ("ids", "seg", *(["given"] if places else []))}
    weights = {"words": draw(9, 8), "places": draw(6, 8), "kinds": draw(2, 8), "g": draw(8), "h": draw(8)}
    model = make(build, body, inputs, 17, **weights)
    ids, kinds = np.array([[1, 2, 3, 8], [0, 4, 4, 1]], np.int32), np.array([[0, 0, 1, 1]] * 2, np.int32)
    given = [np.array([[3, 2, 1, 0], [0, 1, 2, 5]], np.int32)] if places else []
    assert "LayerNormalization" in check(run, model, ids, kinds, *given)


def test_attention_is_three_layers_and_two_products(build, run, draw):
    model = make(
        build, "y = Attention <num_heads = 2> (x, w, b)", {"x": ("float", ROWS)}, 17, w=draw(8, 24), b=draw(24)
    )
    assert check(run, model, draw(2, 5, 8)).split().count("MatMul") == 5


@pytest.mark.parametrize(
    "body",
    [
        'y = FusedConv <activation = "Selu"> (x, w)',
        "y = FusedMatMul <transBatchA = 1> (x, w)",
        "y = Attention <num_heads = 2, unidirectional = 1> (x, w, w)",
        "s, y = SkipLayerNormalization (x, x, w)",
        "s, y = SkipSimplifiedLayerNormalization (x, x, w)",
        "y = SimplifiedLayerNormalization <axis = 1> (x, w)",
        "y = NhwcFusedConv (x, w)",
    ],
)
def test_fusions_of_an_unknown_form_stay(build, draw, body):
    model = make(build, body, {"x": ("float", X)}, 17, w=draw(4, 3, 1, 1))
    assert split(model) == (0, [model.graph.node[0].op_type])
