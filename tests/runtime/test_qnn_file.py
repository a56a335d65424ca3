"""What the plugin of QNN says of nodes that it does not take."""

from __future__ import annotations

import pytest

from onnxcalib.runtime.qnn_file import AT_EDGE


@pytest.mark.parametrize(
    ("reason", "edge"),
    [
        ("QNN EP is configured to not take DQ nodes that generate a graph output", True),
        ("QNN EP is configured to not take Q nodes that consume a graph input", True),
        ("Failed to add node; QNN refuses Dequantize, error 3110", False),
    ],
)
def test_only_what_stands_at_the_edge_of_the_graph_is_no_node_off_the_device(reason, edge):
    assert bool(AT_EDGE.search(reason)) == edge
