import numpy as np
import pytest
from onnx import checker, numpy_helper

from onnxcalib.graph.passes.batchnorm import fold_affine, fold_batchnorm
from onnxcalib.graph.passes.normalise import name_nodes

NORM = "y = BatchNormalization (c, gamma, beta, mean, var)"
# Graph text and shape of the weight; all layers have six output channels.
LAYERS = {
    "Conv": ("g (float[2,4,6,6] x) => (float[2,6,p,q] y) {{ [layer] c = Conv (x, w{b}) {end} }}", (6, 4, 3, 3)),
    "1-d Conv": ("g (float[2,4,6] x) => (float[2,6,p] y) {{ [layer] c = Conv (x, w{b}) {end} }}", (6, 4, 3)),
    "grouped Conv": (
        "g (float[2,4,6,6] x) => (float[2,6,p,q] y) {{ [layer] c = Conv <group = 2> (x, w{b}) {end} }}",
        (6, 2, 3, 3),
    ),
    "ConvTranspose": (
        "g (float[2,4,6,6] x) => (float[2,6,p,q] y) {{ [layer] c = ConvTranspose (x, w{b}) {end} }}",
        (4, 6, 3, 3),
    ),
    "grouped ConvTranspose": (
        "g (float[2,4,6,6] x) => (float[2,6,p,q] y) {{ [layer] c = ConvTranspose <group = 2> (x, w{b}) {end} }}",
        (4, 3, 3, 3),
    ),
    "Gemm": (
        "g (float[2,4] x) => (float[2,6] y) {{ [layer] c = Gemm <alpha = 0.5, beta = 3.0> (x, w{b}) {end} }}",
        (4, 6),
    ),
    "transposed Gemm": (
        "g (float[2,4] x) => (float[2,6] y) {{ [layer] c = Gemm <transB = 1, beta = 3.0> (x, w{b}) {end} }}",
        (6, 4),
    ),
    "MatMul": ("g (float[2,4] x) => (float[2,6] y) {{ [layer] c = MatMul (x, w) {end} }}", (4, 6)),
}


@pytest.fixture
def norm(draw):
    return {"gamma": draw(6), "beta": draw(6), "mean": draw(6), "var": np.abs(draw(6)) + 0.1}


def ops(model):
    return [node.op_type for node in model.graph.node]


def input_of(model, draw):
    return draw(*(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim))


def assert_same(run, model, x, before):
    checker.check_model(model, full_check=True)
    for now, then in zip(run(model, x), before, strict=True):
        np.testing.assert_allclose(now, then, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_norm_behind_each_kind_of_layer_is_folded_and_its_output_survives(build, run, draw, norm, layer, bias):
    text, shape = LAYERS[layer]
    model = build(text.format(b=", b" if bias else "", end=NORM), w=draw(*shape), b=draw(6), **norm)
    name_nodes(model)
    x = input_of(model, draw)
    before = run(model, x)
    assert fold_batchnorm(model) == 1
    assert ops(model) == ["Gemm" if layer == "MatMul" else layer.split()[-1]]
    assert list(model.graph.node[0].output) == ["y"]
    assert "w" in model.graph.node[0].input
    assert_same(run, model, x, before)


def test_two_norms_in_a_row_are_both_folded(build, run, draw, norm):
    text, shape = LAYERS["Conv"]
    end = (
        "m = BatchNormalization (c, gamma, beta, mean, var)"
        " y = BatchNormalization <epsilon = 0.1> (m, beta, gamma, mean, var)"
    )
    model = build(text.format(b="", end=end), w=draw(*shape), **norm)
    name_nodes(model)
    x = input_of(model, draw)
    before = run(model, x)
    assert fold_batchnorm(model) == 2
    assert ops(model) == ["Conv"]
    assert_same(run, model, x, before)


def test_a_weight_and_a_bias_that_another_layer_reads_are_copied_first(build, run, draw, norm):
    model = build(
        "g (float[2,4,6,6] x) => (float[2,6,p,q] y, float[2,6,p,q] z) { [one] c = Conv (x, w, b) "
        "y = BatchNormalization (c, gamma, beta, mean, var) [two] z = Conv (x, w, b) }",
        w=draw(6, 4, 3, 3),
        b=draw(6),
        **norm,
    )
    name_nodes(model)
    x = draw(2, 4, 6, 6)
    before = run(model, x)
    assert fold_batchnorm(model) == 1
    assert list(model.graph.node[1].input) == ["x", "w", "b"]
    assert list(model.graph.node[0].input) == ["x", "one.w", "one.b"]
    assert_same(run, model, x, before)


OUT = "(float[2,6,p,q] y)"


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        (f"(float[2,6,p,q] y, float[2,6,p,q] c) {{ c = Conv (x, w) {NORM} }}", 17),
        (f"(float[2,6,p,q] y, float[2,6,p,q] z) {{ c = Conv (x, w) {NORM} z = Relu (c) }}", 17),
        (f"{OUT} {{ c = Conv (x, w) {NORM.replace('y =', 'y, m, v =').replace(' (', ' <training_mode = 1> (')} }}", 17),
        (f"{OUT} {{ c = Conv (x, w) k = Relu (beta) {NORM.replace('beta', 'k')} }}", 17),
        (f"{OUT} {{ k = Relu (w) c = Conv (x, k) {NORM} }}", 17),
        (f"{OUT} {{ k = Relu (beta) c = Conv (x, w, k) {NORM} }}", 17),
        (f"{OUT} {{ b = Conv (x, w) c = Relu (b) {NORM} }}", 17),
        (f"{OUT} {{ c = Conv (x, w) {NORM.replace(' (', ' <spatial = 0> (')} }}", 7),
    ],
    ids=[
        "output",
        "second reader",
        "training",
        "computed beta",
        "computed weight",
        "computed bias",
        "not a layer",
        "old",
    ],
)
def test_a_norm_that_cannot_be_folded_stays_with_its_layer(build, draw, norm, text, opset):
    model = build(f"g (float[2,4,6,6] x) => {text}", opset=opset, w=draw(6, 4, 3, 3), **norm)
    name_nodes(model)
    before = model.SerializeToString()
    assert fold_batchnorm(model) == 0
    assert model.SerializeToString() == before


def test_a_norm_whose_scale_is_not_finite_stays(build, draw, norm):
    text, shape = LAYERS["Conv"]
    model = build(text.format(b="", end=NORM), w=draw(*shape), **(norm | {"var": np.full(6, -1.0, np.float32)}))
    name_nodes(model)
    assert fold_batchnorm(model) == 0
    assert ops(model) == ["Conv", "BatchNormalization"]


def test_a_norm_behind_a_product_of_three_dimensions_stays(build, draw):
    model = build(
        "g (float[2,5,4] x) => (float[2,5,6] y) { c = MatMul (x, w) y = BatchNormalization (c, k, k, k, k) }",
        w=draw(4, 6),
        k=np.ones(5, np.float32),
    )
    name_nodes(model)
    assert fold_batchnorm(model) == 0
    assert ops(model) == ["MatMul", "BatchNormalization"]


def test_a_norm_behind_a_gemm_that_adds_a_matrix_stays(build, draw, norm):
    text, shape = LAYERS["Gemm"]
    model = build(text.format(b=", b", end=NORM), w=draw(*shape), b=draw(2, 6), **norm)
    name_nodes(model)
    assert fold_batchnorm(model) == 0


@pytest.mark.parametrize(
    "end",
    [
        "y = Mul (c, k)",
        "y = Mul (k, c)",
        "y = Div (c, k)",
        "y = Add (k, c)",
        "y = Sub (c, k)",
        "y = Sub (k, c)",
        "y = Mul (c, one)",
        "p = Sub (c, k) q = Mul (p, k2) y = Add (q, k)",
    ],
)
@pytest.mark.parametrize("layer", ["Conv", "grouped ConvTranspose", "transposed Gemm", "Gemm"])
def test_arithmetic_with_one_constant_a_channel_is_folded(build, run, draw, layer, end):
    text, shape = LAYERS[layer]
    tail = (6, 1, 1) if "Conv" in layer else (6,)
    constants = {"k": draw(*tail) + 3, "k2": draw(1, *tail), "one": np.float32(0.7)}
    model = build(text.format(b=", b", end=end), w=draw(*shape), b=draw(6), **constants)
    name_nodes(model)
    x = input_of(model, draw)
    before = run(model, x)
    assert fold_affine(model) == end.count("=")
    assert len(ops(model)) == 1 and list(model.graph.node[0].output) == ["y"]
    assert_same(run, model, x, before)


@pytest.mark.parametrize(
    ("end", "shape"),
    [
        ("y = Div (k, c)", (6, 1, 1)),
        ("y = Mul (c, k)", (4,)),
        ("y = Mul (c, k)", (2, 1, 1, 1)),
        ("y = Add (c, k)", (1, 1, 1, 1, 1)),
        ("y = Mul (c, c)", (1,)),
        ("y = Div (c, k)", None),
    ],
    ids=["divisor", "along the width", "along the batch", "one dimension more", "square", "division by zero"],
)
def test_arithmetic_that_is_not_per_channel_stays(build, draw, end, shape):
    text, weight = LAYERS["Conv"]
    k = np.zeros(1, np.float32) if shape is None else draw(*shape)
    model = build(text.format(b="", end=end), w=draw(*weight), k=k)
    name_nodes(model)
    assert fold_affine(model) == 0
    assert len(ops(model)) == 2


def test_a_factor_leaves_no_bias_where_there_was_none(build, draw):
    text, weight = LAYERS["Conv"]
    model = build(text.format(b="", end="y = Mul (c, k)"), w=draw(*weight), k=np.float32(2))
    name_nodes(model)
    assert fold_affine(model) == 1
    assert list(model.graph.node[0].input) == ["x", "w"]


def test_the_weight_is_multiplied_in_double_precision(build, draw, norm):
    text, shape = LAYERS["Conv"]
    weight = draw(*shape)
    model = build(text.format(b="", end=NORM), w=weight, **norm)
    name_nodes(model)
    fold_batchnorm(model)
    wide = {name: value.astype(np.float64) for name, value in norm.items()}
    scale = wide["gamma"] / np.sqrt(wide["var"] + np.float32(1e-5))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(values["w"], (weight * scale.reshape(-1, 1, 1, 1)).astype(np.float32))
    np.testing.assert_array_equal(values["w_bias"], (wide["beta"] - wide["mean"] * scale).astype(np.float32))
