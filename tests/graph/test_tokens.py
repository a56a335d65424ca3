"""Axes that count tokens: followed through what operators do, not told by their lengths."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib.graph.tokens import find_tokens

# 6 tokens, 6 features, 6 classes: nothing is told by a length.
SQUARE = "float[N, 6, 6] x, int64[N, 6] ids"
WIDE = "float[N, 6, 8] x, int64[N, 6] ids"


def follow(build, inputs, body, output="float[N, K] y", length=6, **weights):
    model = build(f"g ({inputs}) => ({output}) {{ {body} }}", **weights)
    return find_tokens(model, ("x", "ids"), (None, length))


@pytest.mark.parametrize(
    ("body", "axes"),
    [
        ("y = Relu (x)", (1,)),
        ("y = Softmax <axis = -1> (x)", (1,)),
        ("y = Transpose <perm = [0, 2, 1]> (x)", (2,)),
        ("y = MatMul (x, square)", (1,)),
        ("t = Transpose <perm = [0, 2, 1]> (x) y = MatMul (x, t)", (1, 2)),
        ("t = Transpose <perm = [0, 2, 1]> (x) s = MatMul (x, t) y = MatMul (s, x)", (1,)),
        ("t = Transpose <perm = [0, 2, 1]> (x) y = MatMul (t, x)", ()),
        ('y = Einsum <equation = "nqd,nkd->nqk"> (x, x)', (1, 2)),
        ('y = Einsum <equation = "nqd...,nkd->nqk"> (x, x)', ()),
        ("y = Gather (square, ids)", (1,)),
        ("y = Gather <axis = 1> (x, first)", ()),
        ("y = Gather <axis = 1> (x, range)", ()),
        ("y = Gather <axis = 2> (x, first)", (1,)),
        ("y = ReduceMean <axes = [1], keepdims = 0> (x)", ()),
        ("y = ReduceMean <axes = [2], keepdims = 0> (x)", (1,)),
        ("y = ReduceMean <axes = [1]> (x)", ()),
        ("y = ReduceMean (x)", ()),
        ("y = ReduceSum <keepdims = 0> (x, one)", ()),
        ("y = ReduceSum (x, two)", (1,)),
        ("y = ArgMax <axis = 2, keepdims = 0> (x)", (1,)),
        ("y = Slice (x, zero, one, one)", ()),
        ("y = Shape (x)", ()),
        ("y = OneHot (ids, six, onoff)", (1,)),
        ("p = ReduceMean <axes = [1], keepdims = 0> (x) y = MatMul (p, square)", ()),
        ("c = Cast <to = 1> (ids) u = Unsqueeze (c, onetwo) y = Relu (u)", (3,)),
        ("c = Cast <to = 1> (ids) u = Unsqueeze (c, one) t = Transpose <perm = [0, 2, 1]> (x) "
         "s = MatMul (x, t) y = Add (s, u)", (1, 2)),
    ],
)  # fmt: skip
def test_an_axis_of_tokens_is_followed_where_features_are_as_many(build, body, axes):
    numbers = {"zero": [0], "one": [1], "two": [2], "onetwo": [1, 2], "range": np.arange(6)}
    weights = {name: np.asarray(value, np.int64) for name, value in numbers.items()}
    weights |= {"first": np.array(0), "six": np.array(6), "onoff": np.zeros(2, np.float32)}
    weights["square"] = np.ones((6, 6), np.float32)
    assert follow(build, SQUARE, body, **weights).get("y", ((),))[0] == axes


@pytest.mark.parametrize("samples", ["N", 6, 1])
@pytest.mark.parametrize(
    ("body", "tokens", "place"),
    [
        ("y = Transpose <perm = [2, 0, 3, 1, 4]> (h)", (3,), 1),
        ("t = Transpose <perm = [2, 0, 3, 1, 4]> (h) y = Relu (t)", (3,), 1),
        ("t = Transpose <perm = [2, 0, 3, 1, 4]> (h) y = Gather (t, first)", (2,), 0),
        ("t = Transpose <perm = [2, 0, 3, 1, 4]> (h) a, b, c = Split (t, ones) y = Squeeze (a, zero)", (2,), 0),
        ("t = Transpose (h) y = Transpose (t)", (1,), 0),
        ("t = Transpose <perm = [1, 0, 2]> (x) y = MatMul (t, w)", (0,), 1),
    ],
)
def test_samples_are_followed_too(build, body, tokens, place, samples):
    weights = {"all": [0, 0, 3, 2, 4], "zero": [0], "ones": [1, 1, 1], "first": 0}
    weights = {name: np.asarray(value, np.int64) for name, value in weights.items()}
    weights["w"] = np.ones((24, 6), np.float32)
    inputs = f"float[{samples}, 6, 24] x"
    model = build(f"g ({inputs}) => (float[K] y) {{ h = Reshape (x, all) {body} }}", **weights)
    assert find_tokens(model, ["x"], (samples if samples != "N" else None, 6))["y"] == (tokens, place)


@pytest.mark.parametrize("length", [6, None])
@pytest.mark.parametrize(
    ("body", "axes"),
    [
        ("y = Reshape (x, heads)", (1,)),
        ("h = Reshape (x, heads) y = Transpose <perm = [0, 2, 1, 3]> (h)", (2,)),
        ("h = Reshape (x, heads) t = Transpose <perm = [0, 2, 1, 3]> (h) u = Transpose <perm = [0, 2, 1, 3]> (t) "
         "y = Reshape (u, joined)", (1,)),
        ("y = Reshape (x, rows)", (0,)),
        ("r = Reshape (x, rows) y = Gemm (r, w)", (0,)),
        ("r = Reshape (x, rows) g = Gemm (r, w) y = Reshape (g, heads)", (1,)),
        ("y = Reshape (x, flat)", ()),
        ("y = Flatten (x)", ()),
        ("r = Reshape (x, rows) y = Reshape (r, line)", ()),
    ],
)  # fmt: skip
def test_an_axis_of_tokens_is_followed_through_reshapes(build, body, axes, length):
    inputs = WIDE if length else WIDE.replace("N, 6", "N, S")
    shapes = {"heads": [-1, 6, 2, 4] if length else [0, 0, 2, 4], "joined": [0, 0, 8], "rows": [-1, 8], "flat": [0, 48]}
    shapes["line"] = [-1]
    if length is None and ("Gemm" in body or "flat" in body):
        shapes |= {"heads": [-1, 6, 2, 4], "flat": [0, -1]}
        axes = () if "heads" in body else axes  # the number of tokens is open, and the Reshape fixes it
    weights = {name: np.asarray(value, np.int64) for name, value in shapes.items()}
    found = follow(build, inputs, body, length=length, w=np.ones((8, 8), np.float32), **weights)
    assert found.get("y", ((),))[0] == axes and found.get("y", ((), None))[1] == (0 if axes and axes[0] else None)


def test_behind_a_body_tokens_are_told_by_their_number(build):
    body = """c = Shape (x) t = Gather (c, zero) p = Greater (t, zero)
        y = If (p) <then_branch = a () => (float[N, 6, 8] u) { u = Relu (x) },
                    else_branch = b () => (float[N, 6, 8] v) { v = Neg (x) }>
        z = ReduceMax <axes = [1], keepdims = 0> (y)"""
    found = follow(build, WIDE, body, "float[N, 6, 8] y, float[N, 8] z", zero=np.array(0))
    assert (found["y"], "z" in found) == (((1,), 0), False)


def test_without_inputs_of_tokens_nothing_counts_them(build):
    assert (
        find_tokens(build("g (float[N, 6, 8] image) => (float[N, 6, 8] y) { y = Relu (image) }"), ("x",), (None, 6))
        == {}
    )
