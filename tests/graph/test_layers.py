"""What layers cost."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnxcalib.graph.layers import count_macs, layers_behind_first
from onnxcalib.spec import Around


@pytest.mark.parametrize(
    ("op", "attributes", "weight", "given", "made", "macs"),
    [
        ("Conv", {}, (6, 4, 3, 3), (2, 4, 5, 5), (2, 6, 5, 5), 2 * 6 * 5 * 5 * 4 * 9),
        ("Conv", {"group": 2}, (6, 2, 3, 3), (2, 4, 5, 5), (2, 6, 5, 5), 2 * 6 * 5 * 5 * 2 * 9),
        ("ConvTranspose", {"strides": [2, 2]}, (4, 6, 2, 2), (2, 4, 5, 5), (2, 6, 10, 10), 2 * 4 * 5 * 5 * 6 * 4),
        ("Gemm", {"transB": 1}, (6, 4), (2, 4), (2, 6), 2 * 6 * 4),
        ("MatMul", {}, (4, 6), (2, 3, 4), (2, 3, 6), 2 * 3 * 6 * 4),
    ],
)
def test_the_products_of_a_layer_are_counted(op, attributes, weight, given, made, macs):
    node = helper.make_node(op, ["x", "w"], ["y"], **attributes)
    assert count_macs(node, weight, given, made) == macs


@pytest.mark.parametrize(("behind", "found"), [((), {"b"}), (("p",), set())])
def test_a_layer_is_right_behind_the_first_where_none_is_in_front_of_anything_else_that_it_reads(build, behind, found):
    model = build(
        """g (float[N, 2] x, float[N, 2] p) => (float[N, 2] y) {
            [a] h = MatMul (x, w)  [s] s = Add (h, p)  [b] y = MatMul (s, w) }""",
        w=np.eye(2, dtype=np.float32),
    )
    assert layers_behind_first(model.graph, {"a", "b"}, Around(behind=frozenset(behind))) == found
