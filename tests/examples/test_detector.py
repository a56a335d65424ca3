"""The detector as a test: trained, exported, quantized with and without its decoding, and compared."""

from __future__ import annotations

import onnx


def list_quantized(path) -> set[str]:
    """Names of the nodes that read a DequantizeLinear."""
    graph = onnx.load(path).graph
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    readers = (node for node in graph.node if node.op_type != "QuantizeLinear")
    return {node.name for node in readers if dequantized.intersection(node.input)}


def test_the_decoding_stays_in_float_and_the_boxes_where_they_were(call_example, tmp_path):
    float_row, everything, spared = call_example("detector", "--steps", "120")
    assert [row.name for row in (float_row, everything, spared)] == ["float", "all layers", "decoding in float"]
    assert float_row.overlap > 0.6
    assert float_row.overlap_with_float == 1.0
    for row in (everything, spared):
        assert row.overlap_with_float > 0.93 and row.overlap > float_row.overlap - 0.02
        assert row.size < 0.4 * float_row.size
    # The tool finds by itself that the decoding computes coordinates.
    for name in ("all_layers", "decoding_in_float"):
        found = list_quantized(tmp_path / f"detector.{name}.onnx")
        assert {"/sides/Conv", "/score/Conv"} <= found
        assert "/decode/mean/Conv" not in found
