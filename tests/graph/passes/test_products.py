"""Products by a constant in every form are layers, and compute what they did."""

import re

import numpy as np
import pytest
from onnx import checker

from onnxcalib.graph.edit import drop_dead
from onnxcalib.graph.index import Index
from onnxcalib.graph.layers import find_layers
from onnxcalib.graph.passes.normalise import name_nodes
from onnxcalib.graph.passes.products import products_as_layers

# What is read, the shape of its constant, and the operators that remain beside the layer.
FORMS = [
    ("MatMul (w, x)", [3, 5, 4], (6, 5), "Conv"),
    ("MatMul (w, x)", ["N", 5, 4], (1, 6, 5), "Conv"),
    ("MatMul (w, x)", [5, "T"], (6, 5), "Unsqueeze Conv Squeeze"),
    ("MatMul (w, x)", ["N", 2, 5, "T"], (6, 5), "Transpose MatMul Transpose"),
    ("MatMul (w, x)", ["N", 3, 5, 4], (3, 6, 5), "Reshape Conv Reshape"),
    ("MatMul (w, x)", [3, 5, "T"], (3, 6, 5), "Reshape Conv Reshape"),
    ("MatMul (w, x)", ["N", 1, 5, 4], (3, 6, 5), "Squeeze Conv Reshape"),
    ("MatMul (w, x)", [1, 5, 4], (3, 6, 5), "Conv Reshape"),
    ("MatMul (w, x)", [5, 4], (3, 6, 5), "Unsqueeze Conv Reshape"),
    ("MatMul (w, x)", ["N", 5, 4], (5,), "Conv Squeeze"),
    ("MatMul (x, w)", ["N", 4, 5], (5,), "MatMul Squeeze"),
    ("MatMul (x, w)", ["N", 4, 5], (1, 5, 6), "MatMul"),
    ("MatMul (x, w)", [4, 5], (1, 5, 6), "MatMul Reshape Transpose"),
    ("MatMul (x, w)", ["N", 3, "T", 5], (3, 5, 6), "Transpose Reshape Conv Reshape Transpose"),
    ("MatMul (x, w)", ["N", 3, 4, 5], (1, 3, 5, 6), "Transpose Reshape Conv Reshape Transpose"),
    ("MatMul (x, w)", ["N", 3, 1, 5], (3, 5, 6), "Reshape Conv Reshape"),
    ("MatMul (x, w)", [3, 1, 5], (3, 5, 6), "Reshape Conv Reshape"),
    ("MatMul (x, w)", [3, 4, 5], (3, 5, 6), "Transpose Reshape Conv Reshape Transpose"),
    ("MatMul (x, w)", ["N", 1, "T", 5], (3, 5, 6), "Squeeze MatMul Reshape Transpose"),
    ("MatMul (x, w)", [1, "T", 5], (3, 5, 6), "MatMul Reshape Transpose"),
    ("MatMul (x, w)", ["T", 5], (3, 5, 6), "MatMul Reshape Transpose"),
    ("Gemm <transA = 1> (x, w)", [5, "T"], (5, 6), "Transpose Gemm"),
    ("Gemm <transA = 1, transB = 1> (x, w)", [5, "T"], (6, 5), "Transpose Gemm"),
    ("Gemm <alpha = 0.5> (w, x)", [5, "T"], (6, 5), "Transpose Gemm Transpose"),
    ("Gemm <transA = 1, transB = 1> (w, x)", ["T", 5], (5, 6), "Gemm Transpose"),
]


def make(build, draw, body, shape, weight, **others):
    named = ", ".join(map(str, shape))
    model = build(f"g (float[{named}] x) => (float y) {{ {body} }}", w=draw(*weight), **others)
    x = draw(*(3 if size == "N" else 7 if isinstance(size, str) else size for size in shape))
    return model, x


def rewrite(model):
    name_nodes(model)
    made = products_as_layers(model)
    drop_dead(model)
    return len(made), " ".join(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(("form", "shape", "weight", "ops"), FORMS)
def test_a_product_is_a_layer_of_its_own_name_and_gives_the_same(build, run, draw, form, shape, weight, ops):
    model, x = make(build, draw, f"[own] y = {form}", shape, weight)
    (before,) = run(model, x)
    assert rewrite(model) == (1, ops)
    (after,) = run(model, x)
    assert after.shape == before.shape
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    assert [layer.name for layer in find_layers(model, Index(model.graph), 8, 8)] == ["own"]
    checker.check_model(model)
    assert rewrite(model)[0] == 0


@pytest.mark.parametrize(
    ("form", "shape", "weight", "bias", "ops"),
    [
        ("MatMul (w, x)", ["N", 5, 4], (6, 5), (6, 1), "Conv"),
        ("MatMul (w, x)", ["N", 5, 4], (6, 5), (1, 6, 1), "Conv"),
        ("MatMul (w, x)", ["N", 5, 4], (6, 5), (1,), "Conv"),
        ("MatMul (w, x)", ["N", 2, 5, 4], (6, 5), (6, 1), "Transpose MatMul Add Transpose"),
        ("MatMul (x, w)", ["N", 3, 4, 5], (3, 5, 6), (3, 1, 6), "Transpose Reshape Conv Reshape Transpose"),
        ("MatMul (x, w)", ["N", 3, 1, 5], (3, 5, 6), (6,), "Reshape Conv Reshape"),
        ("MatMul (x, w)", ["N", 1, 4, 5], (3, 5, 6), (1, 3, 1, 6), "Squeeze MatMul Add Reshape Transpose"),
    ],
)
def test_the_add_of_a_value_for_each_output_becomes_its_bias(build, run, draw, form, shape, weight, bias, ops):
    model, x = make(build, draw, f"[own] a = {form} y = Add (b, a)", shape, weight, b=draw(*bias))
    (before,) = run(model, x)
    assert rewrite(model) == (1, ops)
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-5, atol=1e-6)
    (layer,) = find_layers(model, Index(model.graph), 8, 8)
    assert layer.bias is not None


@pytest.mark.parametrize(("bias", "ops"), [((6, 1), "Gemm Transpose"), ((1, 7), "Gemm Transpose Add")])
def test_the_bias_of_a_gemm_from_the_left_is_one_of_rows(build, run, draw, bias, ops):
    body = "[own] y = Gemm <transB = 1, beta = 2.0> (w, x, b)"
    model, x = make(build, draw, body, [7, 5], (6, 5), b=draw(*bias))
    (before,) = run(model, x)
    assert rewrite(model) == (1, ops)
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "shape", "weight"),
    [
        ("[outer] y = MatMul (w, x)", ["N", 1, 4], (6, 1)),  # a table of angles, not a layer
        ("[unknown] y = MatMul (x, w)", ["N", "E", 4, 5], (3, 5, 6)),
        ("[plain] y = MatMul (x, w)", ["N", 4, 5], (5, 6)),
        ("[grid] y = MatMul (x, w)", ["N", 2, 3, 4, 5], (2, 3, 5, 6)),
        ("[two] y = MatMul (x, x)", ["N", 5, 5], (5, 5)),
        ("[added] y = Gemm (w, x, x)", [5, 5], (5, 5)),
    ],
)
def test_other_products_stay(build, draw, body, shape, weight):
    model, _ = make(build, draw, body, shape, weight)
    assert rewrite(model)[0] == 0
    assert [node.name for node in model.graph.node] == [re.search(r"\[(\w+)\]", body)[1]]


def test_a_product_whose_sum_is_no_bias_keeps_its_add(build, run, draw):
    model, x = make(build, draw, "[own] a = MatMul (w, x) y = Add (a, b)", ["N", 5, 4], (6, 5), b=draw(6, 4))
    (before,) = run(model, x)
    assert rewrite(model) == (1, "Conv Add")
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-5, atol=1e-6)


def test_one_constant_of_two_products_stays_one(build, run, draw):
    model, x = make(build, draw, "a = MatMul (w, x) r = Relu (a) y = MatMul (w, r)", ["N", 5, 4], (5, 5))
    (before,) = run(model, x)
    assert rewrite(model) == (2, "Conv Relu Conv")
    assert [list(tensor.dims) for tensor in model.graph.initializer] == [[5, 5, 1]]
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-5, atol=1e-6)


def test_a_product_of_a_name_to_keep_stays(build, draw):
    model, _ = make(build, draw, "[one] a = MatMul (w, x) [two] y = MatMul (w, x)", ["N", 5, 4], (6, 5))
    assert products_as_layers(model, {"one"}) == ["two"]
    assert [(node.name, node.op_type) for node in model.graph.node] == [("one", "MatMul"), ("two", "Conv")]
