"""Channels between layers whose weights have one scale each."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib import QuantizeConfig, quantize
from onnxcalib.config import LayerConfig
from onnxcalib.data import open_calibration
from onnxcalib.graph.index import Index, known_constant
from onnxcalib.graph.load import inputs_of
from onnxcalib.graph.names import Selection
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.quantization.even_layers import even_layers
from onnxcalib.spec import Requirements

NET = """g (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y)
    { [first] a = Conv (x, w0) [act] r = Clip (a, low, high) [dw] d = Conv <group = 4> (r, wd)
    [last] y = Conv (d, w) }"""
OWN_TARGET = """
name = "chip"
[rules.activation_types]
types = ["int8"]
source = "manual"
[rules.activation_zero_points]
source = "manual"
[rules.weight_scales]
granularity = "tensor"
source = "manual"
[rules.power_of_two]
of = ["activations", "weights"]
source = "manual"
"""
# The layer right behind the first one reads 4 bits too.
FEW = QuantizeConfig(activation_bits=4, layers={"dw": {"activation_bits": 4}}, placement="all", threads=1)
ONE_SCALE = Requirements(one_weight_scale=True, power_of_two_weights=True)
SCALES = np.array([0.01, 1.0, 0.1, 0.4], np.float32).reshape(4, 1, 1, 1)


@pytest.fixture
def make(build, weigh):
    """A net with channels of unlike scale in front of a Clip to [0, bound]."""

    def net(bound):
        return build(
            NET, w0=weigh(4, 3, 1, 1) * SCALES, wd=weigh(4, 1, 1, 1) / SCALES, w=weigh(5, 4, 1, 1),
            low=np.float32(0), high=np.float32(bound),
        )  # fmt: skip

    return net


def even(net, x, requirements=ONE_SCALE):
    return even_layers(net, make_scheme(net, requirements=requirements), open_calibration(x, inputs_of(net)), 1)


def spread(net, name):
    rows = np.abs(known_constant(Index(net.graph), name)).reshape(4, -1).max(1)
    return rows.max() / rows.min()


def test_rows_of_unlike_ranges_come_nearer_and_the_outputs_stay(make, run, draw):
    net, x = make(1000.0), draw(16, 3, 8, 8)
    (before,), rows, columns = run(net, x), spread(net, "w0"), spread(net, "wd")
    assert len(even(net, x)) == 2
    assert spread(net, "w0") < rows / 3
    assert spread(net, "wd") < columns / 3
    np.testing.assert_allclose(run(net, x)[0], before, rtol=1e-4, atol=1e-5)


def test_samples_that_are_all_black_leave_finite_weights(make):
    net = make(1000.0)
    even(net, np.zeros((16, 3, 8, 8), np.float32))  # a RuntimeWarning is an error here
    assert all(np.isfinite(known_constant(Index(net.graph), name)).all() for name in ("w0", "wd", "w"))


def test_channels_that_reach_the_bound_of_a_clip_take_its_factor_alone(make, run, draw):
    net, x = make(0.5), draw(16, 3, 8, 8)
    (before,), weight = run(net, x), known_constant(Index(net.graph), "w0")
    even(net, x)
    common = float(known_constant(Index(net.graph), "high")) / 0.5
    factors = (known_constant(Index(net.graph), "w0") / weight)[:, 0, 0, 0]
    assert factors[1] == pytest.approx(common)
    assert factors[0] > common
    np.testing.assert_allclose(run(net, x)[0], before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bound", [1000.0, 1.0])
def test_channels_come_nearer_for_layers_that_read_few_levels_whatever_a_clip_cuts_off(make, run, draw, bound):
    net, x = make(bound), draw(16, 3, 8, 8)
    (before,), rows = run(net, x), spread(net, "w0")
    scheme = make_scheme(net, activation_bits=4, selection=Selection(layers=(("dw", LayerConfig(activation_bits=4)),)))
    found = even_layers(net, scheme, open_calibration(x, inputs_of(net)), 1)
    assert found.keys() == {"r"}  # the last layer reads 8 bits
    assert spread(net, "w0") < rows / 5
    np.testing.assert_allclose(run(net, x)[0], before, rtol=1e-4, atol=1e-5)


def test_channels_of_a_residual_net_come_nearer_where_its_layers_read_few_levels(build, weigh, run, draw):
    net = build(
        """g (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y)
           { [first] a = Conv (x, w0) r = Relu (a) [inner] b = Conv (r, w1) c = Add (b, r) s = Relu (c)
           [next] d = Conv (s, w2) t = Relu (d) [last] y = Conv (t, w3) }""",
        w0=weigh(4, 3, 1, 1) * SCALES, w1=weigh(4, 4, 1, 1) * SCALES, w2=weigh(4, 4, 1, 1), w3=weigh(5, 4, 1, 1),
    )  # fmt: skip
    x = draw(16, 3, 8, 8)
    (before,), rows = run(net, x), spread(net, "w0")
    scheme = make_scheme(net, activation_bits=4)
    found = even_layers(net, scheme, open_calibration(x, inputs_of(net)), 1)
    assert found.keys() == {"r"}  # and of s, which has the same; the last layer reads 8 bits
    assert spread(net, "w0") < rows / 2
    np.testing.assert_allclose(run(net, x)[0], before, rtol=1e-4, atol=1e-5)


def test_grids_take_the_place_of_bounds_in_the_file(make, draw):
    net, x = make(1.0), draw(64, 3, 8, 8)
    result = quantize(net, x, FEW)
    assert result.report.passes["even_layers"] == 1
    assert "Min" not in {node.op_type for node in result.model.graph.node}
    assert result.report.outputs[0].sqnr_db > 10


def test_layers_with_a_scale_a_channel_stay_as_they_are(make, draw):
    net = make(1000.0)
    before = net.SerializeToString()
    assert even(net, draw(4, 3, 8, 8), Requirements()) == {}
    assert net.SerializeToString() == before


def test_a_target_of_ones_own_gets_one_power_of_two_a_weight_and_channels_evened(make, draw, tmp_path):
    path = tmp_path / "chip.toml"
    path.write_text(OWN_TARGET)
    config = QuantizeConfig(target=str(path), pipeline="light", threads=1)
    result = quantize(make(1000.0), draw(16, 3, 8, 8), config, test=draw(4, 3, 8, 8))
    assert not result.lint.violations
    assert result.report.passes["even_layers"] == 2
    assert result.report.outputs[0].sqnr_db > 25
