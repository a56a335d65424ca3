"""Ends of a quantized subgraph as integers."""

import numpy as np
import onnx.parser
from onnx import numpy_helper

from onnxcalib.graph.integer_ends import give_integers, read_integers
from onnxcalib.numeric.rounding import dequantize, quantize
from onnxcalib.runtime.session import Session
from onnxcalib.spec import QParams, QuantSpec

GRID = QParams(np.float32(0.1), np.int32(20), QuantSpec(8))
DATA = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def make():
    """A model that reads x on its grid, and once in float."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 13]> g (float[N, 4] x) => (float[N, 4] y, float[N, 4] t) {
            [q] i = QuantizeLinear (x, s, z)  [d] v = DequantizeLinear (i, s, z)  [r] t = Relu (v)  [a] y = Add (t, x)
        }"""
    )
    constants = {"s": GRID.scale, "z": np.uint8(GRID.zero_point)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items())
    return model


def test_integers_give_what_their_values_give():
    model, integers = make(), quantize(DATA, GRID.scale, GRID.zero_point, GRID.spec)
    wanted = Session(make()).run({"x": dequantize(integers, GRID.scale, GRID.zero_point).astype(np.float32)})
    read_integers(model, {"x": GRID})
    assert sorted(node.op_type for node in model.graph.node) == ["Add", "DequantizeLinear", "DequantizeLinear", "Relu"]
    given = Session(model).run({"x": integers.astype(np.uint8)})
    assert all(np.array_equal(given[name], wanted[name]) for name in ("y", "t"))


def test_outputs_are_rounded_to_their_integers():
    model, wanted = make(), Session(make()).run({"x": DATA})["t"]
    names = give_integers(model, {"t": GRID, "other": GRID})
    given = Session(model).run({"x": DATA})
    assert names == {"t": "t_integers"} and list(given) == ["y", "t_integers"]
    assert given["t_integers"].dtype == np.uint8
    assert np.array_equal(given["t_integers"], quantize(wanted, GRID.scale, GRID.zero_point, GRID.spec))
