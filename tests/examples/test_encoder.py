"""The sentence encoder as a test: trained, exported, quantized with plain sentences and compared."""

from __future__ import annotations

import onnx


def test_the_encoder_keeps_its_embeddings_at_8_and_4_bits(call_example, tmp_path, capsys):
    float_row, eight, four = call_example("encoder", "--steps", "80")
    assert [row.name for row in (float_row, eight, four)] == ["float", "W8A8", "W4A8"]
    assert float_row.accuracy > 0.95
    assert eight.cosine > 0.999 and eight.accuracy > float_row.accuracy - 0.01
    assert four.cosine > 0.99 and four.accuracy > float_row.accuracy - 0.03
    assert four.size < eight.size < 0.5 * float_row.size
    assert len((tmp_path / "sentences.txt").read_text().splitlines()) == 200
    assert f"W4A8   accuracy {four.accuracy:6.1%}" in capsys.readouterr().out
    graph = onnx.load(tmp_path / "encoder.w8a8.onnx").graph
    assert sum(node.op_type == "MatMul" for node in graph.node) == 16  # six weights and two products in each layer
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) > 16
