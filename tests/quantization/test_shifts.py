"""Grids and weights whose powers of two lie as near to each other as shifts need."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib.graph.layer_params import LayerParams
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.quantization.shifts import find_position, hold_shifts, hold_weights
from onnxcalib.spec import Grids, QParams
from onnxcalib.targets import load_target

XINT8 = load_target("xint8")
SUM = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
    { [first] a = Conv (x, w0) [act] r = Relu (a) [second] b = Conv (r, w) [sum] y = Add (b, r) }"""
GATE = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
    { [first] a = Conv (x, w0) [gate] s = HardSigmoid (a) [swish] m = Mul (a, s) [second] y = Conv (m, w) }"""


@pytest.fixture
def make(build, weigh):
    """A net, its scheme, and grids of these positions."""

    def net(text, scale=1.0, second=1.0, **positions):
        model = build(text, w0=weigh(4, 3, 1, 1) * np.float32(scale), w=weigh(4, 4, 1, 1) * np.float32(second))
        scheme = make_scheme(model, requirements=XINT8.requirements)
        grids = {
            tensor: QParams(np.asarray(2.0 ** -positions.get(tensor, 5), np.float32), np.asarray(0), spec)
            for tensor, spec in scheme.activations.items()
        }
        return model, scheme, Grids(grids)

    return net


def hold(model, scheme, grids):
    found = hold_shifts(model, scheme, grids, XINT8.rules)
    return {tensor: find_position(grid) for tensor, grid in found.activations.items()}


def test_grids_that_are_near_enough_stay(make):
    net = make(SUM)
    assert hold_shifts(*net, XINT8.rules) is net[2]
    assert set(hold(*net).values()) == {5}


def test_the_finer_input_of_an_add_is_made_coarser(make):
    assert hold(*make(SUM, second=2**-6, r=-4)) == {"x": 5, "r": -4, "b": 3, "y": 3}


def test_the_output_of_an_add_is_at_most_seven_positions_finer_than_its_inputs(make):
    assert hold(*make(SUM, y=20)) == {"x": 5, "r": 5, "b": 5, "y": 12}


def test_the_output_of_a_layer_is_no_finer_than_its_sums(make):
    model, scheme, grids = make(SUM, scale=2.0**7, r=15)
    weight = -int(np.ceil(np.log2(np.abs(np.frombuffer(model.graph.initializer[0].raw_data, np.float32)).max() / 127)))
    assert hold(model, scheme, grids)["r"] == weight + 5 < 15


def test_a_gate_reads_and_gives_positions_that_it_has(make):
    held = hold(*make(GATE, a=-3, s=5))
    assert held["a"] >= 0
    assert held["s"] == 7
    assert hold(*make(GATE, a=12, s=7, m=3)) == {"x": 5, "a": 11, "s": 7, "m": 3, "y": 5}


def test_a_weight_that_is_too_fine_is_made_coarser(make):
    model, scheme, grids = make(SUM)
    spec = scheme.layers[0].weight_spec
    integers = np.array([[64, -32, 127]] * 4, np.int8).reshape(4, 3, 1, 1)
    fine = LayerParams(integers, QParams(np.asarray(2.0**-20, np.float32), np.asarray(0), spec), None)
    held = hold_weights(model, scheme, grids, XINT8.rules, {"first": fine})
    assert find_position(held["first"].grid) == 16
    np.testing.assert_array_equal(held["first"].integers[0, :, 0, 0], [4, -2, 8])
    near = {"first": LayerParams(integers, QParams(np.asarray(2.0**-16, np.float32), np.asarray(0), spec), None)}
    assert hold_weights(model, scheme, grids, XINT8.rules, near) is near


def test_other_targets_have_no_shifts(make):
    net = make(SUM, b=14)
    assert hold_shifts(*net, load_target("symmetric").rules) is net[2]
