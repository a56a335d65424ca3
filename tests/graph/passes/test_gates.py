"""HardSigmoid folded into layers."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import checker

from onnxcalib.graph.passes.gates import fold_hardsigmoid
from onnxcalib.graph.passes.normalise import name_nodes

CONV = """g (float[N, 3, 4, 4] x) => (float[N, 3, 4, 4] y) {
    c = Conv (x, w)  h = HardSigmoid <alpha = 0.3, beta = 0.4> (c)  d = Conv (h, w, b)  y = HardSigmoid (d)
}"""
GEMM = "g (float[N, 3] x) => (float[N, 3] y) { c = Gemm <transB = 1> (x, w, b)  y = HardSigmoid (c) }"


@pytest.mark.parametrize(("text", "shape", "count"), [(CONV, (3, 3, 1, 1), 2), (GEMM, (3, 3), 1)])
def test_a_hardsigmoid_behind_a_layer_becomes_a_clip_and_computes_the_same(build, run, draw, text, shape, count):
    model = build(text, w=draw(*shape), b=draw(3))
    name_nodes(model)
    x = 3 * draw(2, 3, 4, 4)[(...,) if len(shape) == 4 else (..., 0, 0)]
    (before,) = run(model, x)
    assert fold_hardsigmoid(model) == count
    checker.check_model(model, full_check=True)
    assert "HardSigmoid" not in {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-5, atol=1e-5)
    assert fold_hardsigmoid(model) == 0


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv (x, w)  h = HardSigmoid (c)  y = Mul (c, h)",  # HardSwish: the layer's output is read twice
        "c = Relu (x)  y = HardSigmoid (c)",
        "c = Conv (x, w)  y = HardSigmoid <alpha = -0.1> (c)",
    ],
)
def test_others_stay(build, draw, body):
    model = build(f"g (float[N, 3, 4, 4] x) => (float[N, 3, 4, 4] y) {{ {body} }}", w=draw(3, 3, 1, 1))
    name_nodes(model)
    assert fold_hardsigmoid(model) == 0
