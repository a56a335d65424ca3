"""``onnxcalib inspect``: what is printed and written."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcalib.cli.main import main

TEXT = """g (float[N, 8] x) => (float[N, 4] y) <float s = {0.1}, uint8 z = {0}, float t = {0.01}, int8 n = {0}> {
    q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  w = DequantizeLinear (wq, t, n)
    [m] y = MatMul (d, w) }"""


@pytest.fixture
def quantized(build, tmp_path):
    model = build(TEXT, wq=np.ones((8, 4), np.int8))
    helper.set_model_props(model, {"onnxcalib.version": "9.9", "onnxcalib.bits": '{"m": "W8A8"}', "by": "somebody"})
    onnx.save(model, tmp_path / "quantized.onnx")
    return tmp_path / "quantized.onnx"


def test_the_screen_tells_layers_kernels_and_metadata(quantized, capsys):
    assert main(["inspect", str(quantized)]) == 0
    printed = capsys.readouterr().out
    assert "32 parameters, 4 nodes" in printed and "int8 symmetric, one scale" in printed
    assert "in onnxruntime here: 1 on integers" in printed and "made by onnxcalib 9.9: 1 layer W8A8" in printed
    assert "metadata by: somebody" in printed


def test_a_float_model_has_an_outlook_and_the_record_is_written(build, draw, tmp_path, capsys):
    model = build("g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { [c] y = Conv (x, w) }", w=draw(4, 3, 3, 3))
    onnx.save(model, tmp_path / "model.onnx")
    assert main(["inspect", str(tmp_path / "model.onnx"), "--json", str(tmp_path / "record.json")]) == 0
    printed = capsys.readouterr().out
    assert "quantize would take 1 layer (1 Conv) in 1 block\n" in printed and "a folder of images" in printed
    assert "W4A4" in printed and "one sample takes" in printed
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["parameters"] == 108 and record["outlook"]["layers"] == {"c": "Conv"}


def test_a_page_has_the_layers_and_the_outlook_and_loads_nothing(quantized, build, draw, tmp_path):
    model = build(
        "g (float[N, 8] x) => (float[N, 4] y) { [<b>] y = MatMul (x, w) }".replace("[<b>] ", ""), w=draw(8, 4)
    )
    model.graph.node[0].name = "<b>&"
    onnx.save(model, tmp_path / "float.onnx")
    pages = []
    for path in (quantized, tmp_path / "float.onnx"):
        assert main(["inspect", str(path), "--html", str(tmp_path / "page.html"), "--quiet"]) == 0
        pages.append((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "1 of 1 quantized layers run on integers here" in pages[0] and "int8 symmetric, one scale" in pages[0]
    assert "A float model; quantize would take 1 layer" in pages[1] and "&lt;b&gt;&amp;" in pages[1]
    assert not any("http:" in page or "https:" in page for page in pages) and max(map(len, pages)) < 200_000


def test_a_pipe_has_the_record_alone(quantized, capsys):
    assert main(["inspect", str(quantized), "--json", "-"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["bits"] == {"m": "W8A8"} and "32 parameters" in printed.err


@pytest.mark.parametrize("width", [60, 100])
def test_tables_are_no_wider_than_the_screen(quantized, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["inspect", str(quantized)]) == 0
    tables = capsys.readouterr().out.split("\n\n")[1:5]
    assert max(len(line) for table in tables for line in table.splitlines()) <= width
    assert "QDQ" in tables[3] and "integers" in tables[3]


def test_no_model_is_one_line_on_stderr(tmp_path, capsys):
    (tmp_path / "model.onnx").write_bytes(b"text")
    assert main(["inspect", str(tmp_path / "model.onnx")]) == 1
    printed = capsys.readouterr()
    assert not printed.out and printed.err.count("\n") == 1 and "is not an ONNX model" in printed.err
