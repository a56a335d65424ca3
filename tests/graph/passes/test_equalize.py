"""Channels between layers that are multiplied by factors, which both sides take."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib.graph.index import Index, known_constant
from onnxcalib.graph.layers import find_layers
from onnxcalib.graph.passes.equalize import find_junctions, scale_junction

FACTORS = np.array([2.0, 0.5, 3.0, 1.0])
HEAD = "g (float[N, 3, 8, 8] x) => (float[N, 5, h, v] y) { [first] a = Conv (x, w0, b0) "
PATHS = {
    "nothing": "[last] y = Conv (a, w) }",
    "a Relu": "[act] r = Relu (a) [last] y = Conv (r, w) }",
    "a LeakyRelu and pools": """[act] r = LeakyRelu (a) [max] m = MaxPool <kernel_shape = [2, 2]> (r)
        [mean] p = AveragePool <kernel_shape = [2, 2]> (m) [last] y = Conv (p, w) }""",
    "a depthwise layer that reads it": "[act] r = Relu (a) [dw] d = Conv <group = 4> (r, wd) [last] y = Conv (d, w) }",
    "two readers": "[act] r = Relu (a) [one] c = Conv (r, w) [two] d = Conv (r, w2) [sum] y = Add (c, d) }",
    "a sum of two layers": "[other] c = Conv (x, w1) [sum] s = Add (a, c) [act] r = Relu (s) [last] y = Conv (r, w) }",
    "pads in space": "[pad] p = Pad (a, pads) [last] y = Conv (p, w) }",
    "a shortcut that pads channels": """[pad] p = Pad (a, wide) [other] c = Conv (x, w3) [sum] s = Add (c, p)
        [last] y = Conv (s, w4) }""",
}
WEIGHTS = {
    "w0": (4, 3, 1, 1),
    "b0": (4,),
    "w": (5, 4, 1, 1),
    "wd": (4, 1, 1, 1),
    "w2": (5, 4, 1, 1),
    "w1": (4, 3, 1, 1),
    "w3": (7, 3, 1, 1),
    "w4": (5, 7, 1, 1),
}
WIDE = np.array([0, 1, 0, 0, 0, 2, 0, 0])
CLOSED = {
    "another operator": "[act] r = Sigmoid (a) [last] y = Conv (r, w) }",
    "an Add of a constant": "[sum] s = Add (a, b5) [last] y = Conv (s, w) }",
    "an output of the graph": "[last] c = Conv (a, w) [y] y = Add (c, c) }",
    "pads of samples": "[pad] p = Pad (a, pads) [last] y = Conv (p, w) }",
    "a channel that would be another one too": """[pad] p = Pad (a, wide) [far] q = Pad (a, far) [sum] s = Add (p, q)
        [last] y = Conv (s, w4) }""",
    "a Clip from -1": "[act] r = Clip (a, low, high) [last] y = Conv (r, w) }",
}


@pytest.fixture
def make(build, draw):
    def net(path, **others):
        text = HEAD + path
        names = {name: draw(*shape) for name, shape in WEIGHTS.items() if f" {name}" in text} | others
        return build(text, **{name: value for name, value in names.items() if name in text})

    return net


def look(net):
    index = Index(net.graph)
    return find_junctions(net, {layer.name: layer for layer in find_layers(net, index, 8, 8)})


@pytest.mark.parametrize("path", PATHS)
def test_the_outputs_stay_as_they_are_through(path, make, run, draw):
    net = make(PATHS[path], pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]), wide=WIDE)
    x = draw(2, 3, 8, 8)
    (before,) = run(net, x)
    junction = look(net)[0][0]
    weight = known_constant(Index(net.graph), "w0")
    factors = np.array([0.3, *FACTORS, 1.5, 0.7]) if "wide" in PATHS[path] else FACTORS
    scale_junction(net, junction, factors, 1.0)
    np.testing.assert_allclose(known_constant(Index(net.graph), "w0"), weight * FACTORS.reshape(4, 1, 1, 1), rtol=1e-6)
    np.testing.assert_allclose(run(net, x)[0], before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", CLOSED)
def test_nothing_is_scaled_through(path, make, draw):
    net = make(
        CLOSED[path], b5=draw(1, 4, 1, 1), pads=np.array([1, 0, 0, 0, 0, 0, 0, 0]), wide=WIDE,
        far=np.roll(WIDE, 4), low=np.float32(-1), high=np.float32(6),
    )  # fmt: skip
    if path == "an output of the graph":
        net.graph.output[0].name = "a"
    assert not [each for each in look(net)[0] if "a" in each.tensors]


def test_the_bound_of_a_clip_takes_the_common_factor(make, run, draw):
    path = "[act] r = Clip (a, low, high) [last] y = Conv (r, w) }"
    net = make(path, low=np.float32(0), high=np.float32(0.7))
    x = draw(2, 3, 8, 8)
    (before,) = run(net, x)
    (junction,) = look(net)[0]
    assert junction.bound == pytest.approx(0.7)
    scale_junction(net, junction, np.full(4, 3.0), 3.0)
    assert known_constant(Index(net.graph), "high") == pytest.approx(2.1)
    np.testing.assert_allclose(run(net, x)[0], before, rtol=1e-5, atol=1e-5)


def test_the_columns_of_a_gemm_behind_a_flatten_take_factors(build, run, draw):
    net = build(
        """g (float[N, 3, 8, 8] x) => (float[N, 5] y) { [first] a = Conv (x, w0, b0) [act] r = Relu (a)
        [pool] p = GlobalAveragePool (r) [flat] f = Flatten (p) [last] y = Gemm <transB = 1> (f, w, b) }""",
        w0=draw(4, 3, 1, 1), b0=draw(4), w=draw(5, 4), b=draw(5),
    )  # fmt: skip
    x = draw(2, 3, 8, 8)
    (before,) = run(net, x)
    (junction,), readers = look(net)
    assert readers == {"first": {"last": 0}, "last": {}}
    scale_junction(net, junction, FACTORS, 1.0)
    np.testing.assert_allclose(run(net, x)[0], before, rtol=1e-5, atol=1e-5)


def test_a_weight_that_two_layers_share_is_not_scaled(build, draw):
    net = build(
        "g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) { [first] a = Conv (x, w) [last] y = Conv (a, w) }",
        w=draw(4, 4, 1, 1),
    )
    assert look(net)[0] == []
