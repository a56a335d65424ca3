"""What noise in front of layers and behind them does to the outputs."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib.data import open_calibration
from onnxcalib.graph.load import inputs_of
from onnxcalib.quantization import noise_gains
from onnxcalib.quantization.noise_gains import measure_gains

LAYERS = {"first": "a", "side": "b", "last": "c"}


@pytest.fixture
def net(build, weigh):
    return build(
        """g (float[N, 3, 4, 4] x) => (float[N, 6, 4, 4] y)
           { [first] a = Conv (x, w0) [side] b = Conv (a, w1) [last] c = Conv (a, w2) y = Concat <axis = 1> (b, c) }""",
        w0=weigh(4, 3, 1, 1), w1=weigh(2, 4, 1, 1), w2=weigh(4, 4, 1, 1),
    )  # fmt: skip


def test_gains_are_what_noise_in_a_channel_adds_to_the_outputs_through_one_layer(net, run, draw):
    x = draw(64, 3, 4, 4)
    (y,) = run(net, x)
    found = measure_gains(net, LAYERS, open_calibration(x, inputs_of(net)), 1)
    weights = {
        each.name: np.frombuffer(each.raw_data, np.float32).reshape(each.dims[:2]) for each in net.graph.initializer
    }
    share = 64 * 16 / np.square(y).sum()  # a unit of power in each place
    np.testing.assert_allclose(found["side"].inputs, np.square(weights["w1"]).sum(0) * share, rtol=0.1)
    np.testing.assert_allclose(found["last"].inputs, np.square(weights["w2"]).sum(0) * share, rtol=0.1)
    np.testing.assert_allclose(found["last"].outputs, share, rtol=0.01)
    both = found["side"].inputs + found["last"].inputs
    np.testing.assert_allclose(found["first"].outputs, both, rtol=0.15)


def test_without_torch_there_are_none(net, draw, monkeypatch):
    monkeypatch.setattr(noise_gains, "MOST_MODEL_BYTES", 0)
    assert measure_gains(net, LAYERS, open_calibration(draw(4, 3, 4, 4), inputs_of(net)), 1) == {}
