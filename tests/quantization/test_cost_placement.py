"""Placement by cost: what the model of time leaves in float."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcalib import QuantizeConfig, prepare, quantize
from onnxcalib.graph.index import Index
from onnxcalib.graph.kernel_times import KernelTime, time_node
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.graph.units import Unit, find_units
from onnxcalib.quantization import cost_placement
from onnxcalib.quantization.cost_placement import COSTS_MORE, Rounding, cut_units, name_nodes
from onnxcalib.quantization.tensor_shapes import measure_shapes

# A depthwise layer of few channels on a large image, which has no fast integer kernel, in front of a dense one.
THIN = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 16, 64, 64] x) => (float[N, 64, 32, 32] y) {
  a = Conv<kernel_shape = [1, 1]>(x, w1)
  r = Relu(a)
  b = Conv<kernel_shape = [5, 5], pads = [2, 2, 2, 2], group = 8>(r, w2)
  s = Relu(b)
  y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(s, w3)
}
"""
# A dense layer that is several times faster on integers.
WIDE = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 64, 32, 32] x) => (float[N, 64, 32, 32] y) {
  a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w)
  r = Relu(a)
  y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r, w)
}
"""


def weigh(text, **shapes):
    model = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


@pytest.fixture
def thin():
    return weigh(THIN, w1=(8, 16, 1, 1), w2=(8, 1, 5, 5), w3=(64, 8, 3, 3))


def draw(*shape):
    return np.random.default_rng(1).normal(size=(16, *shape)).astype(np.float32)


def make(model, samples, **settings):
    return prepare(model, samples, QuantizeConfig(**settings))


def test_a_depthwise_layer_of_few_channels_stays_in_float_with_its_reason(thin):
    prepared = make(thin, draw(16, 64, 64))
    left = {node.op_type for node in prepared.model.graph.node if node.name in prepared.in_float}
    assert left == {"Conv"} and set(prepared.in_float.values()) == {COSTS_MORE}
    depthwise = next(node.name for node in prepared.model.graph.node if node.input[1:2] == ["w2"])
    assert depthwise in prepared.in_float
    assert {layer.name for layer in prepared.scheme.layers}.isdisjoint(prepared.in_float)


def test_all_quantizes_what_can_be(thin):
    prepared = make(thin, draw(16, 64, 64), placement="all")
    assert not prepared.in_float and len(prepared.scheme.layers) == 3


def test_a_layer_to_which_the_settings_give_bits_is_quantized(thin):
    thin.graph.node[2].name = "thin"
    prepared = make(thin, draw(16, 64, 64), layers={"thin": {"weight_bits": 8}})
    assert "thin" in {layer.name for layer in prepared.scheme.layers}


def test_dense_layers_are_on_integers_and_no_cut_is_looked_for(monkeypatch):
    monkeypatch.setattr(cost_placement, "cut", None)
    prepared = make(weigh(WIDE, w=(64, 64, 3, 3)), draw(64, 32, 32))
    assert not prepared.in_float and len(prepared.scheme.layers) == 2


def test_no_choice_saves_more_than_the_bound(thin):
    shapes = measure_shapes(thin, {"x": draw(16, 64, 64)[:1]})
    placement = find_units(thin, make_scheme(thin), shapes)
    none, *choices = product((False, True), repeat=len(placement.units))
    gains = [placement.time([*none]) - placement.time([*choice]) for choice in choices]
    assert 0 < max(gains) <= placement.bound_gain() < placement.time([*none])


def test_a_tiny_model_is_quantized_whole(thin):
    thin.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 4
    thin.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 4
    del thin.graph.output[0].type.tensor_type.shape.dim[2:]
    for _ in range(2):
        thin.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 2
    assert not make(thin, draw(16, 4, 4)).in_float


def test_the_report_lists_what_stays_in_float(thin):
    report = quantize(thin, draw(16, 64, 64)).report
    assert {record.reason for record in report.in_float} == {COSTS_MORE}
    assert len(report.layers) + len(report.in_float) == 3


def test_shapes_are_those_of_a_run_and_the_model_is_left_as_it_was(thin):
    before = thin.SerializeToString()
    shapes = measure_shapes(thin, {"x": draw(16, 64, 64)[:2]})
    assert shapes["x"] == (2, 16, 64, 64) and shapes["y"] == (2, 64, 32, 32) and shapes["w2"] == (8, 1, 5, 5)
    assert thin.SerializeToString() == before


def test_a_dense_layer_gains_on_integers_and_a_thin_depthwise_one_loses(thin):
    index, shapes = Index(thin.graph), measure_shapes(thin, {"x": draw(16, 64, 64)[:1]})
    thin_time = time_node(index, thin.graph.node[2], shapes)
    assert thin_time.on_integers > 2 * thin_time.in_float
    wide = weigh(WIDE, w=(64, 64, 3, 3))
    dense = time_node(Index(wide.graph), wide.graph.node[0], measure_shapes(wide, {"x": draw(64, 32, 32)[:1]}))
    assert dense.in_float > 2 * dense.on_integers


POOLED = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 16, 32, 32] x) => ({}) {{
  a = Conv<kernel_shape = [1, 1]>(x, w1)
  b = {}
  [pool] p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b)
  {}
}}
"""
HEAD = "g = GlobalAveragePool(p) f = Flatten(g) y = Gemm<transB = 1>(f, w2)"


@pytest.mark.parametrize(
    ("before", "behind", "slow"),
    [
        ("LeakyRelu(a)", HEAD, True),
        ("LeakyRelu(a)", "c = Sigmoid(p) y = Conv<kernel_shape = [1, 1]>(c, w3)", False),
        ("Relu(a)", HEAD, False),
    ],
)
def test_a_pool_on_integers_is_slow_behind_single_values_where_no_conv_follows(before, behind, slow):
    kind = "float[N, a] y" if behind == HEAD else "float[N, 64, a, b] y"
    model = weigh(POOLED.format(kind, before, behind), w1=(64, 16, 1, 1), w2=(8, 64), w3=(64, 64, 1, 1))
    scheme = make(model, draw(16, 32, 32), placement="all").scheme
    units = find_units(model, scheme, measure_shapes(model, {"x": draw(16, 32, 32)[:1]})).units
    time = next(unit.time for unit in units if unit.op == "MaxPool")
    assert (time.on_integers > 10 * time.in_float) == slow


def test_what_rounding_costs_is_weighed_against_time():
    model = weigh(WIDE.replace("y = Conv", "s = Sigmoid(r)  y = Conv").replace("(r, w)", "(s, w)"), w=(64, 64, 3, 3))
    prepared = make(model, draw(64, 32, 32))
    units = find_units(prepared.model, prepared.scheme, measure_shapes(prepared.model, prepared.samples.read([0])))
    first, second = (node.name for node in prepared.model.graph.node if node.op_type == "Conv")

    def place(**costs):
        rounding = Rounding({tensor: tensor for tensor in prepared.scheme.activations}, costs)
        return name_nodes(prepared.model, units, cut_units(units, (), price=0.0, rounding=rounding))

    assert not place()
    assert not place(r=10.0)
    assert first in place(r=1e9) and second not in place(r=1e9)


def test_tensors_of_one_set_are_rounded_once():
    unit = Unit("node", "Reshape", ("a",), ("b",), KernelTime(1.0, 1.0))
    assert Rounding({"a": "a", "b": "a"}, {"a": 7.0}).of_unit(unit) == 0.0
    assert Rounding({"a": "a", "b": "b"}, {"a": 7.0, "b": 3.0}).of_unit(unit) == 3.0
