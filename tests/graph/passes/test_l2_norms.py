import numpy as np
import pytest

from onnxcalib.graph.passes.l2_norms import write_l2_norms

HEAD = """g (float[3, 8] x) => (float[3, 8] y) <
    float least = {1e-12}, float much = {0.5}, int64[1] one = {1}, int64[2] size = {3, 8}
> {"""


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        ("n = ReduceL2 <axes = [1], keepdims = 1> (x) c = Clip (n, least) e = Expand (c, size) y = Div (x, e)", 17),
        ("n = ReduceL2 <keepdims = 1> (x, one) c = Clip (n, least) y = Div (x, c)", 21),
        ("n = ReduceL2 (x, one) c = Max (n, least) y = Div (x, c)", 21),
        ("n = ReduceL2 <axes = [-1]> (x) y = Div (x, n)", 13),
    ],
)
def test_vectors_divided_by_their_length_become_one_operator(build, run, draw, text, opset):
    model = build(HEAD + text + "}", opset=opset)
    x = draw(3, 8)
    (before,) = run(model, x)
    assert write_l2_norms(model) == 1
    assert [node.op_type for node in model.graph.node] == ["LpNormalization"]
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-5)
    assert not run(model, 0 * x)[0].any()


@pytest.mark.parametrize(
    "text",
    [
        "n = ReduceL2 <keepdims = 1> (x, one) c = Clip (n, much) y = Div (x, c)",  # short vectors stay short
        "n = ReduceL2 <keepdims = 1> (x, one) c = Clip (n, least, much) y = Div (x, c)",
        "n = ReduceL2 <keepdims = 1> (x) y = Div (x, n)",  # of all
        "r = Relu (x) n = ReduceL2 <keepdims = 1> (r, one) y = Div (x, n)",
        "n = ReduceL1 <keepdims = 1> (x, one) y = Div (x, n)",
        "y = Div (x, much)",
    ],
)
def test_other_quotients_stay(build, text):
    model = build(HEAD + text + "}", opset=21)
    before = model.SerializeToString()
    assert write_l2_norms(model) == 0 and model.SerializeToString() == before
