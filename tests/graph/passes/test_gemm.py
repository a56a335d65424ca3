import numpy as np
import pytest
from onnx import checker, numpy_helper

from onnxcalib.graph.index import attribute_of
from onnxcalib.graph.passes.gemm import flatten_products, normalise_gemm, spread_biases
from onnxcalib.graph.passes.normalise import name_nodes
from onnxcalib.runtime.optimized import optimize


def ops(model):
    return [node.op_type for node in model.graph.node]


def values(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_alpha_and_beta_are_folded_into_constants(build, run, draw):
    model = build(
        "g (float[N, 4] x) => (float[N, 3] y) { y = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (x, w, b) }",
        w=draw(3, 4),
        b=draw(3),
    )
    name_nodes(model)
    x = draw(5, 4)
    before = run(model, x)[0]
    assert normalise_gemm(model) == 2
    node = model.graph.node[0]
    assert sorted(attribute.name for attribute in node.attribute) == ["transB"]
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-5, atol=1e-6)
    assert normalise_gemm(model) == 0


def test_a_shared_weight_is_copied_before_alpha_goes_in(build, run, draw):
    model = build(
        "g (float[N, 4] x) => (float[N, 4] y) { [one] a = Gemm <alpha = 0.5> (x, w) [two] y = Gemm (a, w) }",
        w=draw(4, 4),
    )
    x = draw(5, 4)
    before = run(model, x)[0]
    assert normalise_gemm(model) == 1
    assert model.graph.node[0].input[1] == "one.w" and model.graph.node[1].input[1] == "w"
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-5, atol=1e-6)


def test_a_factor_of_something_computed_stays(build, draw):
    model = build(
        "g (float[N, 4] x, float[N, 3] c) => (float[N, 3] y) { [fc] y = Gemm <alpha = 0.5, beta = 2.0> (x, w, c) }",
        w=draw(4, 3),
    )
    assert normalise_gemm(model) == 1
    assert attribute_of(model.graph.node[0], "alpha", 1.0) == 1.0
    assert attribute_of(model.graph.node[0], "beta", 1.0) == 2.0


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1,), ()])
@pytest.mark.parametrize("order", ["a, b", "b, a"])
def test_a_product_and_a_constant_sum_become_one_gemm(build, run, draw, shape, order):
    model = build(
        f"g (float[N, 4] x) => (float[N, 3] y) {{ [fc] a = MatMul (x, w) [add] y = Add ({order}) }}",
        w=draw(4, 3),
        b=np.asarray(draw(*shape), np.float32),
    )
    x = draw(5, 4)
    before = run(model, x)[0]
    assert normalise_gemm(model) == 1
    assert ops(model) == ["Gemm"]
    assert model.graph.node[0].name == "fc" and list(model.graph.node[0].output) == ["y"]
    checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-5, atol=1e-6)


def test_a_bias_that_two_layers_share_stays_shared(build, run, draw):
    model = build(
        "g (float[N, 4] x) => (float[N, 4] y) { [p] a = MatMul (x, w) [q] b = Add (a, k)"
        " [r] c = MatMul (b, w) [s] y = Add (c, k) }",
        w=draw(4, 4),
        k=draw(4),
    )
    x = draw(5, 4)
    before = run(model, x)[0]
    assert normalise_gemm(model) == 2
    assert ops(model) == ["Gemm", "Gemm"] and sorted(values(model)) == ["k", "w"]
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "bias"),
    [
        ("(float[N, 5, 4] x) => (float[N, 5, 3] y) { [p] a = MatMul (x, w) [q] y = Add (a, b) }", (3,)),
        ("(float[5, 4] x) => (float[5, 3] y) { [p] a = MatMul (x, w) [q] y = Add (a, b) }", (5, 3)),
        ("(float[1, 4] x) => (float[5, 3] y) { [p] a = MatMul (x, w) [q] y = Add (a, b) }", (5, 1)),
        ("(float[5, 4] x) => (float[1, 5, 3] y) { [p] a = MatMul (x, w) [q] y = Add (a, b) }", (1, 1, 3)),
        (
            "(float[5, 4] x) => (float[5, 3] y, float[5, 3] z) { a = MatMul (x, w) y = Add (a, b) z = Neg (a) }",
            (3,),
        ),
        ("(float[5, 4] x) => (float[5, 3] y, float[5, 3] a) { [p] a = MatMul (x, w) [q] y = Add (a, b) }", (3,)),
        ("(float[5, 4] x) => (float[5, 3] y) { [p] a = MatMul (x, w) [q] y = Add (a, a) }", (3,)),
        ("(float[5, 4] x) => (float[5, 3] y) { [p] a = MatMul (x, w) [q] y = Mul (a, b) }", (3,)),
        ("(float[5, 4] x, float[4, 3] v) => (float[5, 3] y) { [p] a = MatMul (x, v) [q] y = Add (a, b) }", (3,)),
    ],
    ids=["rank 3", "matrix", "column", "rank grows", "two readers", "output", "doubled", "factor", "computed"],
)
def test_a_product_that_no_gemm_can_stand_for_stays(build, draw, text, bias):
    model = build(f"g {text}", w=draw(4, 3), b=draw(*bias))
    before = ops(model)
    assert normalise_gemm(model) == 0
    assert ops(model) == before


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 3)])
@pytest.mark.parametrize(("dims", "attributes"), [((4, 3), ""), ((3, 4), "<transB = 1>")])
def test_the_bias_of_a_gemm_becomes_one_value_a_column(build, run, draw, shape, dims, attributes):
    model = build(
        f"g (float[N, 4] x) => (float[N, 3] y) {{ y = Gemm {attributes} (x, w, b) }}", w=draw(*dims), b=draw(*shape)
    )
    name_nodes(model)
    x = draw(5, 4)
    before = run(model, x)[0]
    assert normalise_gemm(model) == 1
    assert values(model)["b"].shape == (3,)
    np.testing.assert_array_equal(run(model, x)[0], before)
    assert normalise_gemm(model) == 0


def test_a_bias_of_one_value_a_row_stays(build, draw):
    model = build("g (float[3, 4] x) => (float[3, 3] y) { [fc] y = Gemm (x, w, b) }", w=draw(4, 3), b=draw(3, 1))
    assert normalise_gemm(model) == 0


def test_a_biased_product_of_static_shape_keeps_its_integer_kernel(build, run, rough, draw):
    def kernels(model):
        return [node.op_type for node in optimize(rough(model, x))[1].node]

    model = build(
        "g (float[2, 5, 4] x) => (float[2, 5, 3] y) { [m] a = MatMul (x, w) [b] y = Add (a, c) }",
        w=draw(4, 3),
        c=draw(3),
    )
    x = draw(2, 5, 4)
    before = run(model, x)[0]
    assert "Gemm" in kernels(model)
    assert spread_biases(model) == 1
    assert values(model)[model.graph.node[1].input[1]].shape == (1, 1, 3)
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-6)
    assert "MatMulIntegerToFloat" in kernels(model)
    assert "Gemm" not in kernels(model)


@pytest.mark.parametrize(("shape", "bias"), [("N, 5, 4", 3), ("5, 4", 3), ("2, 5, 4", 5)])
def test_biases_of_other_products_stay(build, draw, shape, bias):
    operand = draw(bias) if bias == 3 else draw(bias, 1)
    model = build(f"g (float[{shape}] x) => (y) {{ a = MatMul (x, w) y = Add (a, c) }}", w=draw(4, 3), c=operand)
    name_nodes(model)
    assert spread_biases(model) == 0


def test_a_product_becomes_the_first_operand_of_its_bias(build, run, draw):
    model = build("g (float[N, 5, 4] x) => (y) { a = MatMul (x, w) y = Add (c, a) }", w=draw(4, 3), c=draw(3))
    name_nodes(model)
    x = draw(2, 5, 4)
    before = run(model, x)[0]
    assert spread_biases(model) == 1 and list(model.graph.node[1].input) == ["a", "c"]
    assert np.array_equal(run(model, x)[0], before)


FLAT = """g (float[2, 5, 4] x) => (float[2, 5, 3] y, float[2, 5, 3] z) {
    [one] a = MatMul (x, w) [add] y = Add (a, b) [two] c = MatMul (x, v) [more] z = Add (d, c) }"""


@pytest.mark.parametrize("shape", [(3,), (1, 1, 3), (1,)])
def test_products_of_more_axes_and_their_biases_become_gemms_between_reshapes(build, run, draw, shape):
    model = build(FLAT, w=draw(4, 3), v=draw(4, 3), b=draw(*shape[-2:]), d=draw(3))
    x = draw(2, 5, 4)
    before = run(model, x)
    assert flatten_products(model) == 2
    checker.check_model(model, full_check=True)
    assert ops(model) == ["Reshape", "Gemm", "Reshape", "Gemm", "Reshape"]  # what both read is reshaped once
    assert [node.name for node in model.graph.node if node.op_type == "Gemm"] == ["one", "two"]
    for given, wanted in zip(run(model, x), before, strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)
    assert flatten_products(model) == 0


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N, 5, 4] x) => (float[N, 5, 3] y) { [one] a = MatMul (x, w) [add] y = Add (a, b) }",
        "g (float[2, 5, 4] x) => (float[2, 5, 3] y) { [one] y = MatMul (x, w) }",
        "g (float[5, 4] x) => (float[5, 3] y) { [one] a = MatMul (x, w) [add] y = Add (a, b) }",
        "g (float[2, 5, 4] x) => (float[2, 5, 3] y, float[2, 5, 3] a) { [one] a = MatMul (x, w) [add] y = Add (a, b) }",
    ],
    ids=["free batch", "no bias", "two axes", "read elsewhere"],
)
def test_other_products_stay(build, draw, text):
    model = build(text, w=draw(4, 3), b=draw(3))
    before = model.SerializeToString()
    assert flatten_products(model) == 0 and model.SerializeToString() == before
