import numpy as np
import pytest
from onnx import checker

from onnxcalib.graph.passes.duplicates import merge_duplicates
from onnxcalib.graph.passes.normalise import name_nodes


def make(build, body, outputs="float[a, b, c, d] y", **weights):
    model = build(f"g (float[N, 3, 8, 8] x, bool yes) => ({outputs}) {{ {body} }}", **weights)
    name_nodes(model)
    return model


def test_chains_of_the_same_nodes_become_one(build, run, draw):
    body = """c = Conv (x, w)  r = Relu (c)  s = Relu (c)  k = Clip (r, zero, six)  l = Clip (s, nought, half_dozen)
        m, i = MaxPool <kernel_shape = [2, 2]> (k)  n, j = MaxPool <kernel_shape = [2, 2]> (l)
        d = Add (m, n)  f = Cast <to = 1> (i)  h = Cast <to = 1> (j)  e = Add (f, h)  y = Add (d, e)"""
    bounds = {name: np.float32(value) for name, value in (("zero", 0), ("nought", 0), ("six", 6), ("half_dozen", 6))}
    model = make(build, body, w=draw(3, 3, 1, 1), **bounds)
    inputs = draw(2, 3, 8, 8), np.array(True)
    (before,) = run(model, *inputs)
    assert merge_duplicates(model) == 4
    checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == [
        "Conv", "Relu", "Clip", "MaxPool", "Add", "Cast", "Add", "Add",
    ]  # fmt: skip
    assert {tensor.name for tensor in model.graph.initializer} == {"w", "zero", "six"}
    np.testing.assert_array_equal(run(model, *inputs)[0], before)
    assert merge_duplicates(model) == 0


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("a = LeakyRelu <alpha = 0.1> (x)  b = LeakyRelu <alpha = 0.2> (x)  y = Add (a, b)", None),
        ("a = Clip (x, low)  b = Clip (x, , low)  y = Add (a, b)", None),
        ("a = Mul (x, low)  b = Mul (x, high)  y = Add (a, b)", None),
        ("a = Mul (x, row)  b = Mul (x, column)  y = Add (a, b)", None),
        ("a = Mul (x, large)  b = Mul (x, equal)  y = Add (a, b)", None),
        ("a = Conv (x, w)  b = Conv (x, w)  y = Add (a, b)", None),
        ("a = RandomNormalLike (x)  b = RandomNormalLike (x)  y = Add (a, b)", None),
        ("a = com.example.Twin (x)  b = com.example.Twin (x)  y = Add (a, b)", None),
        ("y = Relu (x)  z = Relu (x)", "float[a, b, c, d] y, float[a, b, c, d] z"),
        ("a = MaxPool <kernel_shape = [1, 1]> (x)  b, i = MaxPool <kernel_shape = [1, 1]> (x)  y = Add (a, b)", None),
        (
            """a = Relu (x)  b = Relu (x)  c = Add (a, b)
            y = If (yes) <then_branch = t () => (float[e, f, g, h] u) { u = Neg (b) },
                          else_branch = n () => (float[i, j, k, l] v) { v = Abs (c) }>""",
            None,
        ),
    ],
)
def test_nodes_that_differ_or_are_needed_by_name_stay(build, draw, body, outputs):
    model = make(
        build, body, outputs or "float[a, b, c, d] y", w=draw(3, 3, 1, 1), low=np.float32(1), high=np.float32(2),
        row=np.ones((1, 8), np.float32), column=np.ones((8, 1), np.float32), large=np.ones(17, np.float32),
        equal=np.ones(17, np.float32),
    )  # fmt: skip
    before = model.SerializeToString(deterministic=True)
    assert merge_duplicates(model) == 0
    assert model.SerializeToString(deterministic=True) == before


def test_the_first_twin_may_be_an_output(build, run, draw):
    model = make(build, "z = Relu (x)  a = Relu (x)  y = Neg (a)", "float[a, b, c, d] y, float[a, b, c, d] z")
    inputs = draw(2, 3, 8, 8), np.array(True)
    before = run(model, *inputs)
    assert merge_duplicates(model) == 1
    for wanted, given in zip(before, run(model, *inputs), strict=True):
        np.testing.assert_array_equal(given, wanted)
