"""Small parts in front of steps stay in float where these would jump, and no others."""

import re

import numpy as np
import pytest

from onnxcalib import pipeline
from onnxcalib.config import QuantizeConfig
from onnxcalib.quantization import coarse_steps

# Values of a small layer below a threshold give another constant, which two larger layers read.
GATED = """g (float[N, 8] x) => (float[N, 8] y) {
    [small] s = MatMul (x, w1)  [step] c = Greater (s, zero)  m = Where (c, VALUE)
    [wide] h = MatMul (m, w2)  r = Relu (h)  [last] y = MatMul (r, w3) }"""


@pytest.fixture
def gated(build, weigh):
    def make(value):
        weights = {"w1": weigh(8, 8), "w2": weigh(8, 64), "w3": weigh(64, 8)}
        return build(GATED.replace("VALUE", value), **weights, zero=np.float32(0), ten=np.float32(10))

    return make


def prepare(model, samples):
    return pipeline.prepare(model, samples, QuantizeConfig(threads=1))


def test_a_small_layer_in_front_of_a_threshold_stays_in_float(gated, draw, monkeypatch):
    monkeypatch.setattr(coarse_steps, "LEAST_DB", 40.0)
    found = prepare(gated("zero, ten"), draw(256, 8)).in_float
    assert list(found) == ["small"]
    text = r"256 levels of it make Greater \(step\) jump, which leaves [123]\d\.\d dB of output y"
    assert re.fullmatch(text, found["small"])


def test_a_large_layer_does_not(gated, draw, monkeypatch):
    monkeypatch.setattr(coarse_steps, "LEAST_DB", 40.0)
    monkeypatch.setattr(coarse_steps, "MOST_SHARE", 0.01)
    assert not prepare(gated("zero, ten"), draw(256, 8)).in_float


def test_a_threshold_at_which_nothing_jumps_asks_for_nothing(gated, draw):
    assert not prepare(gated("s, zero"), draw(256, 8)).in_float  # a Relu that is written out
