"""Shapes of all tensors, as a run gives them."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib.quantization import tensor_shapes
from onnxcalib.quantization.tensor_shapes import measure_shapes, tell_shapes


def test_the_shapes_of_inputs_constants_and_all_that_nodes_make_are_those_of_a_run(build, weigh, draw):
    model = build(
        """g (float[N, 4] x) => (float[M] y) {
            h = MatMul (x, w)  n = NonZero (h)  y = ReduceSum <keepdims = 0> (h, axes) }""",
        w=weigh(4, 3), axes=np.int64([1]),
    )  # fmt: skip
    before = model.SerializeToString()
    assert measure_shapes(model, {"x": draw(5, 4)}, threads=1) == {
        "x": (5, 4), "w": (4, 3), "axes": (1,), "h": (5, 3), "n": (2, 15), "y": (5,),
    }  # fmt: skip
    assert model.SerializeToString() == before


def test_a_sequence_has_no_shape(build, draw):
    model = build(
        "g (float[N, 4] x) => (float[N, 4] y) { s = SequenceConstruct (x, x)  y = ConcatFromSequence <axis = 0> (s) }"
    )
    assert measure_shapes(model, {"x": draw(5, 4)}, threads=1) == {"x": (5, 4), "y": (10, 4)}


@pytest.fixture
def computed(build, weigh):
    """Its sizes are computed from shapes, of the tokens that are given and of a past without any."""
    return build(
        """g (float[N, T, 4] x, float[N, P, 4] past, int64[N, T] ids) => (float[N, M, 6] y, float[K] z) {
            [c] c = Concat <axis = 1> (past, x)  [m] m = MatMul (c, w)  [a] s = Shape (m)
            [b] last = Gather (s, two)  [d] half = Div (last, two)  [e] ends = Unsqueeze (half, zero)
            [f] l = Slice (m, zero, ends, two_axis)  [h] y = Concat <axis = 2> (l, l)  [i] t = Shape <start = 1> (ids)
            [n] count = Squeeze (t)  [j] p = Range (none, count, one)  [k] q = Cast <to = 1> (p)
            [o] z = Add (q, one_float) }""",
        w=weigh(4, 6), two=np.int64(2), zero=np.int64([0]), two_axis=np.int64([2]), none=np.int64(0), one=np.int64(1),
        one_float=np.float32(1),
    )  # fmt: skip


def test_shapes_that_rules_give_are_those_of_a_run_and_no_layer_is_run(computed, draw, monkeypatch):
    ops = set()

    class Watched(tensor_shapes.Session):
        def __init__(self, model, **options):
            ops.update(node.op_type for node in model.graph.node)
            super().__init__(model, **options)

    feeds = {"x": draw(2, 3, 4), "past": np.zeros((2, 0, 4), np.float32), "ids": np.zeros((2, 3), np.int64)}
    wanted = measure_shapes(computed, feeds)
    assert wanted["y"] == (2, 3, 6) and wanted["z"] == (3,) and wanted["past"] == (2, 0, 4)
    monkeypatch.setattr(tensor_shapes, "Session", Watched)
    assert list(tell_shapes(computed, feeds).items()) == list(wanted.items())
    assert "Gather" in ops and "MatMul" not in ops


def test_a_node_without_a_rule_is_run(build, weigh, draw):
    model = build(
        """g (float[N, 4] x) => (float[M] y) { [m] h = MatMul (x, w)  [n] n = NonZero (h)
            [s] y = ReduceSum <keepdims = 0> (h, axes) }""",
        w=weigh(4, 3), axes=np.int64([1]),
    )  # fmt: skip
    before, feeds = model.SerializeToString(), {"x": draw(5, 4)}
    assert tell_shapes(model, feeds) == measure_shapes(model, feeds) and model.SerializeToString() == before
