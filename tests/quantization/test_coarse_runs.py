"""Dynamic layers whose rows 256 levels do not hold."""

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
    first = weigh(16, 12)
    first[0] /= 110  # of the channel that reaches far
    return build(NET, w1=first, w2=weigh(12, 8))


def find(model, x, **scheme):
    return find_coarse_runs(model, make_scheme(model, **scheme), [{"x": x}], PaddingMask(model))


def spread(draw, *shape):
    """Tokens of which one channel reaches far and hardly counts."""
    x = draw(*shape)
    x[..., 0] *= 110
    return x


def test_a_channel_that_takes_the_range_of_every_row_is_a_reason_for_its_layer(net, draw):
    x = draw(2, 20, 16)
    assert find(net, x, dynamic=True) == {}
    x[:, 0] *= 1000  # one token has a range of its own
    assert find(net, x, dynamic=True) == {}
    found = find(net, spread(draw, 2, 20, 16), dynamic=True)
    assert list(found) == ["one"]
    assert found["one"].startswith("256 levels do not hold the rows of its input: half of all would have ")
    assert find(net, spread(draw, 2, 20, 16)) == {}  # layers with grids of the file have rules of their own


def test_such_a_layer_reads_float_and_the_report_says_why(net, draw):
    report = quantize(net, spread(draw, 8, 20, 16), QuantizeConfig(activations="dynamic", placement="all")).report
    found = {layer.name: (layer.weight_bits, layer.activation_bits, layer.dynamic) for layer in report.layers}
    assert found == {"one": (8, 32, False), "two": (8, 8, True)}
    (record,) = (each for each in report.left_out if "dynamic" in each.what)
    assert record.what == "dynamic activations of one" and record.reason.startswith("256 levels do not hold the rows")


def test_its_weights_keep_the_bits_that_the_settings_give(net, draw):
    config = QuantizeConfig(activations="dynamic", placement="all", layers={"one": {"weight_bits": 4}})
    report = quantize(net, spread(draw, 8, 20, 16), config).report
    assert [(k.name, k.weight_bits, k.activation_bits) for k in report.layers] == [("one", 4, 32), ("two", 8, 8)]


def test_single_rows_and_constant_inputs_are_no_reason(net, draw):
    assert find(net, draw(1, 1, 16), dynamic=True) == {}
    assert find(net, np.zeros((2, 3, 16), np.float32), dynamic=True) == {}
