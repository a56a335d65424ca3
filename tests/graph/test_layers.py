"""What layers cost."""

from __future__ import annotations

import pytest
from onnx import helper

from onnxcalib.graph.layers import count_macs


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
