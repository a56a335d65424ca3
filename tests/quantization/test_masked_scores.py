import math

import numpy as np
import pytest

import onnxcalib
from onnxcalib import QuantizeConfig
from onnxcalib.data import open_calibration
from onnxcalib.graph.load import inputs_of
from onnxcalib.graph.passes.normalise import name_nodes
from onnxcalib.quantization.masked_scores import LEAK, find_masked

TEXT = """g (float[1, 4, 8] x, int64[1, 4] attention_mask) => (float[1, 4, 8] y) <
    float one = {1.0}, float far = {-1000.0}, int64[3] row = {1, 1, 4}
> {
    q = MatMul (x, w)  t = Transpose <perm = [0, 2, 1]> (x)  s = MatMul (q, t)
    f = Cast <to = 1> (attention_mask)  h = Sub (one, f)  m = Mul (h, far)  r = Reshape (m, row)
    [hide] a = Add (s, r)  p = Softmax (a)  y = MatMul (p, x)
}"""


@pytest.fixture
def model(build, weigh):
    model = build(TEXT, w=weigh(8, 8))
    name_nodes(model)
    return model


def feed(draw, mask):
    return {"x": draw(20, 4, 8), "attention_mask": np.tile(np.int64(mask), (20, 1))}


@pytest.mark.parametrize("mask", [[1, 1, 1, 1], [1, 1, 0, 0]])
def test_the_ends_of_a_mask_are_known_whatever_the_samples_hide(model, draw, mask):
    found = find_masked(model, open_calibration(feed(draw, mask), inputs_of(model)))
    assert found.ends == {"f": (0, 1), "h": (0, 1), "m": (-1000, 0), "r": (-1000, 0)}
    assert (found.sums, found.room) == (("a",), math.log(4 / LEAK))


def test_a_model_without_a_mask_has_none(build, weigh, draw):
    model = build("g (float[1, 8] x) => (float[1, 8] y) { y = MatMul (x, w) }", w=weigh(8, 8))
    assert find_masked(model, open_calibration(draw(20, 8), inputs_of(model))).ends == {}


def test_grids_hold_the_whole_mask_and_hidden_scores_far_below_the_others(model, draw):
    prepared = onnxcalib.prepare(model, feed(draw, [1, 1, 0, 0]), QuantizeConfig(target="qnn", threads=1))
    grids = prepared.choose_grids(prepared.scheme, prepared.collect(prepared.scheme)).activations
    low = {name: float(grid.scale) * (grid.spec.qmin - float(grid.zero_point)) for name, grid in grids.items()}
    assert low["attention_mask_by_token"] == pytest.approx(-1000, rel=1e-3)
    assert low["a"] < low["s"] - 0.8 * math.log(4 / LEAK)
