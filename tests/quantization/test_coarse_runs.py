"""Dynamic layers of whose input a few rows take the range."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib import QuantizeConfig, quantize
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.quantization.coarse_runs import find_coarse_runs
from onnxcalib.quantization.padding_mask import PaddingMask

NET = """g (float[N, S, 16] x) => (float[N, S, 8] y) {
    [one] a = MatMul (x, w1)  [tanh] t = Tanh (a)  [two] y = MatMul (t, w2)
}"""


@pytest.fixture
def net(build, weigh):
    return build(NET, w1=weigh(16, 12), w2=weigh(12, 8))


def find(model, x, **scheme):
    return find_coarse_runs(model, make_scheme(model, **scheme), [{"x": x}], PaddingMask(model))


def test_a_token_of_huge_values_is_a_reason_for_its_layer(net, draw):
    x = draw(2, 20, 16)
    assert find(net, x, dynamic=True) == {}
    x[:, 0] *= 1000
    found = find(net, x, dynamic=True)
    assert list(found) == ["one"]
    assert found["one"].startswith("a few rows of its input take the range, half of all would have ")
    assert find(net, x) == {}  # layers with grids of the file have rules of their own


def test_such_a_layer_reads_float_and_the_report_says_why(net, draw):
    x = draw(8, 20, 16)
    x[:, 0] *= 1000
    report = quantize(net, x, QuantizeConfig(activations="dynamic", placement="all")).report
    found = {layer.name: (layer.weight_bits, layer.activation_bits, layer.dynamic) for layer in report.layers}
    assert found == {"one": (8, 32, False), "two": (8, 8, True)}
    (record,) = (each for each in report.left_out if "dynamic" in each.what)
    assert record.what == "dynamic activations of one" and record.reason.startswith("a few rows of its input take")


def test_its_weights_keep_the_bits_that_the_settings_give(net, draw):
    x = draw(8, 20, 16)
    x[:, 0] *= 1000
    config = QuantizeConfig(activations="dynamic", placement="all", layers={"one": {"weight_bits": 4}})
    assert [(k.name, k.weight_bits, k.activation_bits) for k in quantize(net, x, config).report.layers] == [
        ("one", 4, 32), ("two", 8, 8),
    ]  # fmt: skip


def test_single_rows_and_constant_inputs_are_no_reason(net, draw):
    assert find(net, draw(1, 1, 16), dynamic=True) == {}
    assert find(net, np.zeros((2, 3, 16), np.float32), dynamic=True) == {}
