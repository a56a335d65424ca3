"""A model whose factors, grids and weights a run gives."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib.graph.factors import add_factors, feed_factors, feed_float_weight, feed_weight
from onnxcalib.runtime.session import Session
from onnxcalib.spec import QParams, QuantSpec


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("node", "transposed"), [("MatMul (h, w)", False), ("Gemm <transB = 1> (h, w)", True)])
def test_layers_read_rounded_multiples_and_the_weights_given(build, draw, node, transposed, bits):
    nodes = f"[first] h = Relu (x)  [a] u = {node}  [b] v = {node}  [c] y = Add (u, v)"
    text = f"g (float[N, 6] x) => (float[N, 4] y) {{ {nodes} }}"
    model = build(text, w=draw(4, 6) if transposed else draw(6, 4))
    changed = add_factors(model, {"h": ["a", "b"]})
    assert not changed.graph.initializer and len(model.graph.initializer) == 1
    factor, integers, steps = np.arange(1, 7) / 4, np.arange(24).reshape(6, 4) - 12, np.array([0.1, 0.2, 0.3, 0.4])
    grid = QParams(np.float32(0.05), np.int32(3), QuantSpec(bits))
    feeds = feed_factors("h", factor, grid) | feed_weight("a", integers.T if transposed else integers, steps)
    feeds |= feed_weight("b", 0 * (integers.T if transposed else integers), steps) | {"x": draw(3, 6)}
    read = np.clip(np.rint(np.maximum(feeds["x"], 0) * factor / 0.05) + 3, 0, 2**bits - 1) - 3
    given = Session(changed).run(feeds)["y"]
    assert np.allclose(given, 0.05 * read @ (integers * steps), atol=1e-4)


@pytest.mark.parametrize("opset", [17, 18])
def test_rows_without_a_grid_are_rounded_by_their_own_peaks(build, draw, opset):
    text = "g (float[N, 6] x) => (float[N, 4] y) { [first] h = Relu (x)  [a] y = MatMul (h, w) }"
    changed = add_factors(build(text, opset=opset, w=draw(6, 4)), {"h": ["a"]}, ["h"])
    factor, integers, steps = np.arange(1, 7) / 4, np.arange(24).reshape(6, 4) - 12, np.array([0.1, 0.2, 0.3, 0.4])
    x = np.abs(draw(3, 6)) * np.array([[1], [1000], [0]], np.float32)
    feeds = feed_factors("h", factor, None) | feed_weight("a", integers, steps) | {"x": x}
    scaled = x * factor
    peaks = np.maximum(scaled.max(1, keepdims=True), 1e-30)
    wanted = np.rint(scaled / peaks * 127) / 127 * peaks @ (integers * steps)
    assert np.allclose(Session(changed).run(feeds)["y"], wanted, rtol=1e-3, atol=1e-4)


def test_blocks_of_a_row_are_rounded_by_their_own_peaks(build, draw):
    text = "g (float[N, 2, 6] x) => (float[N, 2, 4] y) { [first] h = Relu (x)  [a] y = MatMul (h, w) }"
    changed = add_factors(build(text, w=draw(6, 4)), {"h": ["a"]}, blocks={"h": 3})
    factor, weight = np.arange(1, 7) / 4, draw(6, 4)
    x = np.abs(draw(3, 2, 6)) * np.array([1, 1, 1, 1000, 1000, 1000], np.float32)
    feeds = feed_factors("h", factor, None) | feed_float_weight("a", weight) | {"x": x}
    scaled = (x * factor).reshape(3, 2, 2, 3)
    peaks = scaled.max(3, keepdims=True)
    wanted = (np.rint(scaled / peaks * 127) / 127 * peaks).reshape(3, 2, 6) @ weight
    assert np.allclose(Session(changed).run(feeds)["y"], wanted, rtol=1e-4, atol=1e-3)
