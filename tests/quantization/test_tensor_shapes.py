"""Shapes of all tensors, as a run gives them."""

from __future__ import annotations

import numpy as np

from onnxcalib.quantization.tensor_shapes import measure_shapes


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
