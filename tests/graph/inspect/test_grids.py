"""Every QuantizeLinear and DequantizeLinear of a graph, what it is for, and its grid."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, load
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from onnxcalib.errors import ModelError
from onnxcalib.graph.inspect.grids import read_graphs

LAYER = """g (float[1, 2, 3, 3] x) => (float[1, 2, 3, 3] y) <float s = {0.5}, uint8 z = {3}, float t = {0.25}> {
    [in_q] a = QuantizeLinear (x, s, z)  [in_dq] b = DequantizeLinear (a, s, z)
    [cast] i = Cast <to = 3> (wq)  [w_dq] w = DequantizeLinear <axis = 0> (i, ws, wz)
    [b_dq] bias = DequantizeLinear (bq, t)
    [conv] c = Conv (b, w, bias)  [relu] r = Relu (c)
    [out_q] d = QuantizeLinear (r, s, z)  [out_dq] y = DequantizeLinear (d, s, z)
}"""


@pytest.fixture
def layer(build):
    model = build(
        LAYER,
        opset=21,
        ir=10,
        ws=np.float32([1, 2]),
        wz=np.int8([0, 0]),
        bq=np.int32([1, 2]),
    )
    model.graph.initializer.append(helper.make_tensor("wq", 22, [2, 2, 1, 1], [1] * 4))  # int4
    return model


def test_each_node_has_its_role_its_types_and_its_grid(layer):
    (graph,) = read_graphs(layer)
    found = {grid.node.name: (grid.role, grid.type, grid.stored, grid.axis) for grid in graph.grids}
    assert found == {
        "in_q": ("activation", "uint8", "uint8", None),
        "in_dq": ("activation", "uint8", "uint8", None),
        "w_dq": ("weight", "int8", "int4", 0),
        "b_dq": ("bias", "int32", "int32", None),
        "out_q": ("activation", "uint8", "uint8", None),
        "out_dq": ("activation", "uint8", "uint8", None),
    }
    bias = next(grid for grid in graph.grids if grid.role == "bias")
    assert not bias.has_zero_point and bias.zero_point == 0 and bias.dims == (2,)


def test_a_layer_has_the_grids_around_it_through_its_activation_function(layer):
    (graph,) = read_graphs(layer)
    (found,) = graph.layers()
    grids = found.input, found.weight, found.bias, found.output
    assert [grid.node.name for grid in grids] == ["in_dq", "w_dq", "b_dq", "out_q"]
    assert found.where == "conv (Conv)"


def test_a_result_that_others_read_too_has_no_quantizer_behind_it(layer):
    layer.graph.node.append(helper.make_node("Abs", ["r"], ["other"]))
    (graph,) = read_graphs(layer)
    assert next(graph.layers()).output is None


def test_integers_from_elsewhere_are_told(build):
    text = """g (uint8[2] a, float[2] x) => (float[2] y, float[2] w) <float s = {0.5}> {
        y = DequantizeLinear (a, s)
        i, t, z = DynamicQuantizeLinear (x)  w = DequantizeLinear (i, t, z)
    }"""
    (graph,) = read_graphs(build(text))
    assert [(grid.source, grid.scale is None) for grid in graph.grids] == [("a", False), ("i", True)]


def test_a_node_without_a_scale_is_refused(layer):
    del layer.graph.node[0].input[1:]
    with pytest.raises(
        ModelError, match=r"node in_q \(QuantizeLinear\): found 1 inputs and 1 outputs; a tensor and its"
    ):
        read_graphs(layer)


@pytest.mark.parametrize(
    ("number", "tensor", "what"),
    [
        (1, helper.make_tensor("odd", TensorProto.STRING, [1], [b"x"]), r"string of dimensions \[1\]"),
        (2, helper.make_tensor("odd", TensorProto.UINT8, [0], []), r"uint8 of dimensions \[0\]"),
    ],
)
def test_a_scale_and_a_zero_point_that_are_no_numbers_are_refused(layer, number, tensor, what):
    layer.graph.initializer.append(tensor)
    layer.graph.node[0].input[number] = "odd"
    found = rf"node in_q \(QuantizeLinear\): its scale or zero point odd is {what}; numbers are needed"
    with pytest.raises(ModelError, match=found):
        read_graphs(layer)


def test_what_onnxruntimes_own_tool_writes_is_read(build, draw, tmp_path):
    model = build(
        "g (float[1, 2, 4, 4] x) => (float[1, 3, 4, 4] y) { [conv] y = Conv <kernel_shape = [1, 1]> (x, w, b) }",
        w=draw(3, 2, 1, 1),
        b=draw(3),
    )

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = [{"x": draw(1, 2, 4, 4)} for _ in range(2)]

        def get_next(self):
            return self.left.pop() if self.left else None

    quantize_static(model, tmp_path / "q.onnx", Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
    (graph,) = read_graphs(load(tmp_path / "q.onnx"))
    (layer,) = graph.layers()
    assert (layer.weight.type, layer.weight.axis, layer.bias.type) == ("int8", 0, "int32")
    assert layer.input is not None and layer.output is not None
