"""Channels of activations in transformers times factors that the layers behind undo."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import checker

from onnxcalib.graph.passes.normalise import normalise
from onnxcalib.graph.passes.smooth import find_smoothable, smooth
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.runtime.session import Session

FACTOR = np.array([4.0, 0.3, 1.0, 20.0, 0.05, 1.7], np.float32)
HEAD = "g (float[N, S, 6] x) => (float[N, S, 6] y)"
BEHIND_NORM = f"""{HEAD} {{
    [norm] h = LayerNormalization (x, gain, shift)  [up] u = MatMul (h, w1)
    [act] r = Tanh (u)  [end] y = MatMul (r, w2) }}"""
RESIDUAL = f"""{HEAD} {{
    [norm] h = LayerNormalization (x, gain, shift)  [up] u = MatMul (h, w1)  [other] v = MatMul (h, w2)
    [join] s = Add (u, v)  [end] y = Add (s, h) }}"""
RELU = f"""{HEAD} {{
    [norm] h = LayerNormalization (x, gain)  [up] u = MatMul (h, w1)  [bias] b = Add (u, shift)
    [act] r = Relu (b)  [down] y = MatMul (r, w2) }}"""
SQUARED = f"""{HEAD} {{
    [norm] h = LayerNormalization (x, gain)  [up] u = MatMul (h, w1)  [act] r = Relu (u)  [square] m = Mul (r, r)
    [down] y = MatMul (m, w2) }}"""
GATED = f"""{HEAD} {{
    [norm] h = LayerNormalization (x, gain)  [gate] g = MatMul (h, w1)  [sig] s = Sigmoid (g)  [swish] a = Mul (g, s)
    [up] u = MatMul (h, w2)  [mix] m = Mul (a, u)  [down] y = MatMul (m, w3) }}"""
WRITTEN_OUT = f"""{HEAD} {{
    [mean] m = ReduceMean <axes = [-1]> (x)  [centre] d = Sub (x, m)  [square] p = Mul (d, d)
    [var] v = ReduceMean <axes = [-1]> (p)  [eps] e = Add (v, epsilon)  [root] r = Sqrt (e)  [divide] n = Div (d, r)
    [gain_by] g = Mul (n, gain)  [norm] h = Add (g, shift)  [up] y = MatMul (h, w1) }}"""


@pytest.fixture
def make(build, draw):
    def make(text):
        weights = {name: draw(6, 6) for name in ("w1", "w2", "w3") if name in text}
        vectors = {name: draw(6) for name in ("gain", "shift") if name in text}
        vectors |= {"epsilon": np.float32(1e-5)} if "epsilon" in text else {}
        model = build(text, **weights, **vectors)
        normalise(model)
        return model

    return make


@pytest.mark.parametrize(
    ("text", "tensor", "mul"),
    [
        (BEHIND_NORM, "h", False), (BEHIND_NORM, "r", True), (RESIDUAL, "h", True), (RELU, "r", False),
        (GATED, "m", False), (WRITTEN_OUT, "h", False), (SQUARED, "m", True),
    ],
)  # fmt: skip
def test_outputs_stay_and_a_mul_stands_only_where_no_constant_takes_the_factors(make, run, draw, text, tensor, mul):
    model, x = make(text), draw(2, 5, 6)
    (before,) = run(model, x)
    nodes = len(model.graph.node)
    (chosen,) = (each for each in find_smoothable(model, make_scheme(model)) if each.tensor == tensor)
    weights = {layer.weight for layer in chosen.layers}
    old = {t.name: t.raw_data for t in model.graph.initializer}
    name = smooth(model, chosen, FACTOR)
    checker.check_model(model, full_check=True)
    assert (name is not None, len(model.graph.node) - nodes) == (mul, int(mul))
    assert np.allclose(run(model, x)[0], before, rtol=1e-4, atol=1e-5)
    changed = {t.name for t in model.graph.initializer if old.get(t.name) != t.raw_data}
    assert weights < changed
    layers = [layer for layer in make_scheme(model).layers if layer.name in {each.name for each in chosen.layers}]
    assert {layer.input for layer in layers} == {f"{tensor}_smoothed"}


@pytest.mark.parametrize(("text", "tensor"), [(BEHIND_NORM, "h"), (RESIDUAL, "h"), (RELU, "r"), (GATED, "m")])
def test_a_tensor_of_the_same_name_has_the_same_values(make, run, draw, text, tensor):
    model, x = make(text), draw(2, 5, 6)
    before = read_all(model, x)
    smooth(model, next(each for each in find_smoothable(model, make_scheme(model)) if each.tensor == tensor), FACTOR)
    for name, value in read_all(model, x).items():
        assert name not in before or np.allclose(value, before[name], rtol=1e-4, atol=1e-5), name


def read_all(model, x):
    names = [node.output[0] for node in model.graph.node]
    session = Session(model, also=names)
    return session.run({"x": x}, names)


def test_all_readers_on_the_grid_are_smoothed_together(make):
    found = find_smoothable(model := make(RESIDUAL), make_scheme(model))
    assert [(each.tensor, [layer.name for layer in each.layers]) for each in found] == [("h", ["up", "other"])]


def test_a_residual_keeps_what_the_norm_gives(make):
    model = make(RESIDUAL)
    smooth(model, find_smoothable(model, make_scheme(model))[0], FACTOR)
    reads = {node.name: list(node.input) for node in model.graph.node}
    assert reads["end"][1] == "h" and {reads[name][0] for name in ("up", "other")} == {"h_smoothed"}


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ("[a] h = MatMul (x, w1)  [r] r = Relu (h)  [b] y = MatMul (r, w2)", ""),
        ("[n] h = LayerNormalization <axis = 1> (x, w1)  [b] y = MatMul (h, w2)", ""),
        ("[n] h = LayerNormalization (x, gain)  [t] t = Transpose <perm = [1, 0, 2]> (h)  [b] y = MatMul (t, w2)", ""),
        ("[n] h = LayerNormalization (x, gain) [b] u = MatMul (h, w2) [a] s = Add (u, x) [c] y = MatMul (s, w1)", "h"),
    ],
)  # fmt: skip
def test_what_no_norm_gives_is_left(make, nodes, found):
    model = make(f"{HEAD} {{ {nodes} }}")
    assert [each.tensor for each in find_smoothable(model, make_scheme(model))] == [*found]


def test_float_activations_count_where_all_layers_have_eight_bits_and_no_table_their_integers(make):
    model = make(BEHIND_NORM)
    eight, four = (
        make_scheme(model, weight_bits=bits, activation_bits=32, first_last_bits=bits, block_size=2) for bits in (8, 4)
    )
    found = find_smoothable(model, eight)
    assert [(each.tensor, each.block) for each in found] == [("h", 2), ("r", 2)]
    mixed = replace(eight, layers=(eight.layers[0], *four.layers[1:]))
    whole = make_scheme(model, activation_bits=32)  # blocks of 32, which do not divide 6 inputs
    assert [each.tensor for each in find_smoothable(model, eight, {"up"})] == ["r"]
    assert not find_smoothable(model, mixed) and not find_smoothable(model, whole)
