"""Models that draw random values, through the whole main job."""

import numpy as np
import pytest

from onnxcalib import OnnxCalibWarning, QuantizeConfig, quantize
from onnxcalib.graph.index import all_nodes

SAMPLES = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)
NOISE = {
    "RandomNormalLike": "z = RandomNormalLike (n)  e = Add (n, z)",
    "seeded": "z = RandomNormalLike <seed = 3.0> (n)  e = Add (n, z)",
    "Dropout": "e = Dropout (n, half, on)",
    "Bernoulli": "p = Sigmoid (n)  z = Bernoulli (p)  e = Mul (n, z)",
    "in a body": """z = If (on) <
        then_branch = then () => (float[N, 8, 8, 8] p) { p = RandomUniformLike (n) },
        else_branch = other () => (float[N, 8, 8, 8] q) { q = Identity (n) }>  e = Add (n, z)""",
}


@pytest.mark.parametrize(("weight_bits", "least"), [(8, 28), (4, 14)])
@pytest.mark.parametrize("kind", NOISE)
def test_a_model_that_draws_is_as_near_as_one_that_does_not_and_keeps_its_operator(
    build, weigh, kind, weight_bits, least
):
    text = f"""g (float[N, 3, 8, 8] x) => (float[N, 5] y) {{
        c = Conv <pads = [1, 1, 1, 1]> (x, w1)  n = BatchNormalization (c, s, s, b, s)  {NOISE[kind]}
        d = Conv (e, w2)  t = Tanh (d)  m = GlobalAveragePool (t)  f = Flatten (m)  y = MatMul (f, w3) }}"""
    weights = {"w1": weigh(8, 3, 3, 3), "w2": weigh(8, 8, 3, 3), "w3": weigh(8, 5)}
    ones, zeros = np.ones(8, np.float32), np.zeros(8, np.float32)
    model = build(text, **weights, s=ones, b=zeros, half=np.float32(0.5), on=np.bool_(True))
    with pytest.warns(OnnxCalibWarning, match=r"^1 operator \(\w+\) draws random values; all that follows is made and"):
        result = quantize(model, SAMPLES, QuantizeConfig(steps=5, weight_bits=weight_bits))
    assert result.report.outputs[0].sqnr_db > least
    drawing = {"seeded": "RandomNormalLike", "in a body": "RandomUniformLike"}.get(kind, kind)
    assert drawing in {node.op_type for node in all_nodes(result.model.graph)}
