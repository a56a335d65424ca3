import numpy as np
import pytest

import onnxcalib
from onnxcalib import QuantizeConfig
from onnxcalib.errors import ModelError
from onnxcalib.graph.finite import MOST, explain_nan, refuse_not_finite
from onnxcalib.graph.passes.normalise import normalise

CNN = """g (float[N, 3, 8, 8] x) => (float[N, 4] y) {
    [conv] c = Conv (x, w, b)  [norm] n = BatchNormalization (c, gain, shift, mean, var)  [r] t = PRelu (n, slope)
    [pool] p = GlobalAveragePool (t)  [flat] f = Flatten (p)  [head] m = MatMul (f, v)  [bias] y = Add (m, u) }"""
TEXT = """g (int64[N, S] ids, float[N, 1, S] mask) => (float[N, S, 4] y) {
    [words] e = Gather (table, ids)  [norm] h = LayerNormalization (e, gain, shift)  [head] m = MatMul (h, v)
    [turn] k = Transpose <perm = [0, 2, 1]> (m)  [scores] s = MatMul (m, k)  [hide] a = Mul (mask, low)
    [add] z = Add (s, a)  [soft] q = Softmax (z)  [top] c = Clip (m, least)  [mix] y = MatMul (q, c) }"""
VALUES = [np.nan, np.inf, -np.inf, 3e38, -2 * MOST]


@pytest.fixture
def weights(weigh):
    names = {"w": (4, 3, 1, 1), "b": (4,), "gain": (4,), "shift": (4,), "mean": (4,), "v": (4, 4), "u": (4,)}
    found = {name: weigh(*shape) for name, shape in names.items()}
    return found | {"var": np.ones(4, np.float32), "slope": np.full((4, 1, 1), 0.1, np.float32)}


@pytest.fixture
def words(weigh):
    constants = {"low": np.float32(np.finfo(np.float32).min), "least": np.float32(-np.inf)}
    return {"table": weigh(20, 4), "gain": weigh(4), "shift": weigh(4), "v": weigh(4, 4), **constants}


def spoil(array, value):
    spoiled = array.copy()
    spoiled.flat[-1] = value
    return spoiled


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    ("name", "node"),
    [("w", "conv"), ("b", "conv"), ("gain", "norm"), ("mean", "norm"), ("var", "norm"), ("slope", "r"), ("v", "head"),
     ("u", "bias")],
)  # fmt: skip
def test_weights_that_are_not_finite_are_refused_with_node_and_tensor(build, weights, name, node, value):
    model = build(CNN, **(weights | {name: spoil(weights[name], value)}))
    with pytest.raises(ModelError, match=f"node {node}: tensor {name} holds .*; finite weights up to 1e.15 are needed"):
        refuse_not_finite(model)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(("name", "node"), [("table", "words"), ("gain", "norm")])
def test_embeddings_and_norms_count_as_weights(build, words, name, node, value):
    with pytest.raises(ModelError, match=f"node {node}: tensor {name} holds"):
        refuse_not_finite(build(TEXT, **(words | {name: spoil(words[name], value)})))


def test_constants_that_are_no_weights_may_be_of_any_size(build, words, weights):
    refuse_not_finite(build(TEXT, **words))
    refuse_not_finite(build(CNN, **(weights | {"w": spoil(weights["w"], MOST / 2)})))


@pytest.mark.parametrize("variance", [-1.0, -1e-5])
def test_a_variance_below_zero_is_refused(build, weights, variance):
    model = build(CNN, **(weights | {"var": spoil(weights["var"], variance)}))
    with pytest.raises(
        ModelError, match=r"node norm: tensor var holds the variance -.*; with epsilon it must be above"
    ):
        refuse_not_finite(model)


def test_weights_of_float16_and_weights_in_constant_nodes_count(build, weights):
    half = {name: array.astype(np.float16) for name, array in weights.items()}
    model = build(CNN.replace("float[", "float16["), **(half | {"v": spoil(half["v"], np.inf)}))
    normalise(model)
    with pytest.raises(ModelError, match="node head: tensor v holds inf"):
        refuse_not_finite(model)


@pytest.mark.parametrize("settings", [{"pipeline": "light"}, {}, {"range": "min-max", "reconstruct": False}])
def test_every_pipeline_refuses_them(build, weights, draw, settings):
    model = build(CNN, **(weights | {"mean": spoil(weights["mean"], np.nan)}))
    with pytest.raises(ModelError, match="node norm: tensor mean holds nan"):
        onnxcalib.quantize(model, draw(4, 3, 8, 8), QuantizeConfig(**settings))


@pytest.mark.parametrize("value", [np.nan, 1.0])
def test_a_tensor_that_is_nan_is_traced_to_the_constant_that_holds_it(build, value):
    model = build(
        """g (float[N, 4] x, bool b) => (float[N, 4] y, float[N, 4] z) {
            [scale] s = Mul (x, gain)  [far] r = Relu (s)
            [choose] t = If (b) <
                then_branch = then () => (float[N, 4] p) { p = Relu (x) },
                else_branch = other () => (float[N, 4] q) { q = Add (x, inner) }
            >
            y = Identity (r)  z = Identity (t) }""",
        gain=np.float32([1, 2, value, 4]), inner=np.full(4, value, np.float32),
    )  # fmt: skip
    found = [str(error) for tensor in "yz" if (error := explain_nan(model, tensor))]
    assert found == ([] if value == 1 else [
        "node scale: tensor gain holds nan; finite weights are needed; train or export the model again",
        "node choose: tensor inner holds nan; finite weights are needed; train or export the model again",
    ])  # fmt: skip


@pytest.mark.parametrize("place", ["m = Mul (x, bad)  n = Add (x, m)", "m = Mul (bad, two)  n = Mul (x, m)"])
def test_a_model_that_gives_nan_by_a_constant_of_its_own_is_not_blamed_on_the_samples(build, weigh, place):
    text = f"g (float[N, 4] x) => (float[N, 4] y) {{ {place}  r = Relu (n)  o = Mul (r, r)  y = MatMul (o, w) }}"
    model = build(text, w=weigh(4, 4), bad=np.float32([1, np.nan, 1, 1]), two=np.float32(2))
    with pytest.raises(
        ModelError, match=r"^node \w+: tensor \w+ holds nan; finite weights are needed; train or export"
    ):
        onnxcalib.quantize(model, np.ones((20, 4), np.float32) * np.arange(20, dtype=np.float32)[:, None])
