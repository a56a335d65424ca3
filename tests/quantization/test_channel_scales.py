"""Features in units of their own."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib import QuantizeConfig, quantize
from onnxcalib.data import open_calibration
from onnxcalib.graph.load import inputs_of
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.quantization import channel_scales
from onnxcalib.quantization.channel_scales import UNLIKE, even_channels

TABLE = """g (float[N, 6] x) => (float[N, 4] y) {
    [first] h = Gemm <transB = 1> (x, w1, b1)  r = Relu (h)  [last] y = Gemm <transB = 1> (r, w2)
}"""
UNITS = np.array([1, 524_717, 1, 0.02, 1, 1])


def make_table(build, weigh, units):
    return build(TABLE, w1=(weigh(16, 6) / units).astype(np.float32), b1=weigh(16), w2=weigh(4, 16))


def draw_table(count, units, seed=0):
    return (np.random.default_rng(seed).uniform(-1, 1, size=(count, 6)) * units).astype(np.float32)


def test_features_in_units_of_their_own_cost_nothing(build, weigh):
    found, weights = [], {shape: weigh(*shape) for shape in ((16, 6), (16,), (4, 16))}
    for units in (np.ones(6), UNITS):
        net, samples = make_table(build, lambda *shape: weights[shape], units), draw_table(48, units)
        report = quantize(net, samples, QuantizeConfig(), test=draw_table(200, units, seed=1)).report
        found.append((report.outputs[0].sqnr_db, report.passes.get("even_channels", 0), len(report.unfused)))
    (usual, none, unfused), (unlike, scaled, as_many) = found
    assert (none, scaled) == (0, 1) and unlike > usual - 1 > 25 and unfused == as_many


def test_what_was_found_is_told(build, weigh):
    net = make_table(build, weigh, UNITS)
    samples = open_calibration(draw_table(48, UNITS), inputs_of(net))
    (found,) = even_channels(net, make_scheme(net), samples).values()
    line = found.line
    assert line.startswith("x: channel 1 reaches 2") and line.endswith("as channel 3; each is scaled in front of first")


@pytest.mark.parametrize("ratio", [UNLIKE * 0.9, 0.0])
def test_like_channels_and_empty_ones_stay(build, weigh, ratio):
    units = np.array([1, ratio, 1, 1, 1, 1])
    net = build(TABLE, w1=weigh(16, 6), b1=weigh(16), w2=weigh(4, 16))
    assert not even_channels(net, make_scheme(net), open_calibration(draw_table(48, units), inputs_of(net)))


def test_what_is_computed_from_the_inputs_is_looked_at(build, weigh):
    net = build("g (float[N, 6] x) => (float[N, 4] y) { [exp] s = Exp (x) [first] y = MatMul (s, w) }", w=weigh(6, 4))
    samples = open_calibration(draw_table(48, np.array([1, 9, 1, 1, 1, 1])), inputs_of(net))
    assert list(even_channels(net, make_scheme(net), samples)) == ["first"]
    assert [node.op_type for node in net.graph.node] == ["Exp", "Mul", "MatMul"]


def test_a_layer_has_the_factors_that_it_is_given_and_another_has_its_own(build, weigh):
    net = make_table(build, weigh, UNITS)
    samples, factor = open_calibration(draw_table(48, UNITS), inputs_of(net)), np.full(6, 0.5, np.float32)
    names = [layer.name for layer in make_scheme(net).layers]
    found = even_channels(net, make_scheme(net), samples, given={names[0]: factor, "elsewhere": factor})
    assert list(found) == [names[0]] and np.array_equal(found[names[0]].factor, factor)
    assert "as in front of others with its weight" in found[names[0]].line


def test_what_several_first_layers_read_is_computed_once(build, weigh, monkeypatch):
    net = build(
        """g (float[N, 6] x) => (float[N, 8] y, float[N, 8] z) {
            [a] a = Neg (x)  [y] y = MatMul (a, w)  [z] z = MatMul (a, v) }""",
        w=weigh(6, 8), v=weigh(6, 8),
    )  # fmt: skip
    opened = []
    compute = channel_scales.compute_up_to
    monkeypatch.setattr(channel_scales, "compute_up_to", lambda *given: opened.append(1) or compute(*given))
    samples = open_calibration(draw_table(48, UNITS), inputs_of(net))
    assert len(even_channels(net, make_scheme(net), samples, 1)) == 2 and len(opened) == 1
