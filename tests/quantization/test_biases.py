"""Bias tuning: kept where held-out samples show that it helps."""

from dataclasses import replace

import numpy as np
import pytest

from onnxcalib.numeric.adaquant import Pace
from onnxcalib.quantization import biases as biases_module
from onnxcalib.quantization.biases import tune_biases
from onnxcalib.quantization.solve import round_layers
from tests.quantization.test_statistics import error


@pytest.fixture
def rounded(state_of, residual, draw):
    state = state_of(residual, draw(128, 3, 8, 8), weight_bits=4, first_last_bits=4)
    round_layers(state)
    return state


def shift(state, name, by):
    state.layers[name] = replace(state.layers[name], bias=state.layers[name].bias + by)


def test_a_bias_that_is_off_is_mended(rounded, draw, monkeypatch):
    monkeypatch.setattr(biases_module, "PACE", Pace(others=2.0))
    feeds = {"x": draw(64, 3, 8, 8)}
    shift(rounded, "fc", np.linspace(-0.5, 0.5, 5))
    before, layers = error(rounded, feeds), dict(rounded.layers)
    assert tune_biases(rounded) == (True, None)
    assert error(rounded, feeds) < 0.7 * before
    for name, params in rounded.layers.items():
        assert np.array_equal(params.integers, layers[name].integers)
        assert np.array_equal(params.grid.scale, layers[name].grid.scale)


def test_where_nothing_is_gained_nothing_changes(rounded, monkeypatch):
    monkeypatch.setattr(biases_module, "PACE", Pace(others=5000.0))  # each iteration makes it worse
    before = dict(rounded.layers)
    assert tune_biases(rounded) == (False, "the loss on held-out samples did not fall")
    assert rounded.layers == before


def test_a_gain_within_the_noise_is_not_kept(rounded, monkeypatch):
    monkeypatch.setattr(biases_module, "is_better", lambda *_: False)
    shift(rounded, "fc", 1.0 * np.arange(5))
    before = dict(rounded.layers)
    assert tune_biases(rounded) == (False, "what it gains on held-out samples is within their noise")
    assert rounded.layers == before


@pytest.mark.parametrize(
    ("gains", "better"), [([0.1, 0.1, 0.1], True), ([1.0, -0.9, 0.1], False), ([-0.1], False), ([0.2], True)]
)
def test_a_gain_counts_beyond_its_standard_error(gains, better):
    before = np.full((1, len(gains)), 2.0)
    assert biases_module.is_better(before, before - gains) == better


def test_the_longest_end_that_torch_takes_is_trained(state_of, build, weigh, draw, monkeypatch):
    monkeypatch.setattr(biases_module, "PACE", Pace(others=2.0))
    text = """g (float[N, 3, 6, 6] x) => (float[N, 5, 6, 6] y) {
        [c1] a = Conv (x, w1, b1)  [odd] n = Shrink (a)
        [c2] r = Conv (n, w2, b2)  [c3] y = Conv (r, w3, b3)
    }"""
    weights = {"w1": weigh(4, 3, 1, 1), "w2": weigh(4, 4, 1, 1), "w3": weigh(5, 4, 1, 1)}
    state = state_of(build(text, **weights, b1=weigh(4), b2=weigh(4), b3=weigh(5)), draw(128, 3, 6, 6), weight_bits=4)
    round_layers(state)
    shift(state, "c3", np.linspace(-1, 1, 5))
    before = dict(state.layers)
    kept, remark = tune_biases(state)
    assert kept and remark.startswith("the layers from c2 on alone: ") and "Shrink" in remark
    assert state.layers["c1"] is before["c1"] and state.layers["c3"] is not before["c3"]


def test_a_model_that_torch_does_not_take_at_all_says_why(state_of, build, weigh, draw):
    text = "g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y) { [c] a = Conv (x, w, b)  [odd] y = Shrink (a) }"
    state = state_of(build(text, w=weigh(4, 3, 1, 1), b=weigh(4)), draw(128, 3, 6, 6))
    round_layers(state)
    kept, reason = tune_biases(state)
    assert not kept and "Shrink" in reason


def test_few_samples_decide_nothing(state_of, residual, draw):
    state = state_of(residual, draw(64, 3, 8, 8), weight_bits=4)
    round_layers(state)
    assert tune_biases(state) == (False, "64 samples are too few to see whether it helps, 128 would do")


def test_outputs_that_do_not_count_samples_need_more_batches(state_of, build, weigh, draw):
    text = """g (float[N, 4] x) => (float[N, 5] y, float m) {
        [c] y = Gemm (x, w, b)  [mean] m = ReduceMean <keepdims = 0> (y)
    }"""
    state = state_of(build(text, w=weigh(4, 5), b=weigh(5)), draw(128, 4), weight_bits=4, first_last_bits=4)
    round_layers(state)
    kept, reason = tune_biases(state)
    assert not kept and reason.startswith("its outputs do not count samples")


def test_layers_without_biases_are_left_alone(state_of, build, weigh, draw):
    text = "g (float[N, 6, 8] x) => (float[N, 6, 8] y) { [a] h = MatMul (x, w) [r] t = Relu (h) [b] y = MatMul (t, v) }"
    state = state_of(build(text, w=weigh(8, 8), v=weigh(8, 8)), draw(128, 6, 8), weight_bits=4, first_last_bits=4)
    round_layers(state)
    assert tune_biases(state) == (False, "no layer that torch takes has a bias")


def test_layers_that_read_float_are_left_out_before_anything_is_computed(state_of, build, weigh, draw, monkeypatch):
    monkeypatch.setattr(biases_module, "_store", lambda *_: pytest.fail("computed"))
    text = """g (float[N, 8] x) => (float[N, 5] y) {
        [one] h = Gemm (x, w, b)  [relu] r = Relu (h)  [two] y = Gemm (r, v, c)
    }"""
    model = build(text, w=weigh(8, 8), b=weigh(8), v=weigh(8, 5), c=weigh(5))
    state = state_of(model, draw(128, 8), weight_bits=4, activation_bits=32)
    round_layers(state)
    assert tune_biases(state) == (False, "two reads float activations, and is not learned")


def test_a_part_is_no_larger_than_torch_should_hold(rounded, monkeypatch):
    monkeypatch.setattr(biases_module, "MOST_MODEL_BYTES", 1000)
    shift(rounded, "fc", np.linspace(-0.5, 0.5, 5))
    _, remark = tune_biases(rounded)
    assert remark.startswith("the layers from fc on alone: 0 MB of weights are more than the 0 MB for torch")
