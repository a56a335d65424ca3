"""HardSigmoids of quantized graphs, written as Adds."""

import numpy as np
import pytest

from onnxcalib.graph import emit
from onnxcalib.graph.names import Selection
from onnxcalib.graph.passes.normalise import name_nodes
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.spec import Requirements
from tests.small_models import run_model

SWISH = """g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) {
    c = Conv (x, w)  [gate] h = HardSigmoid <alpha = %s, beta = %s> (c)  s = Mul (c, h)  y = Conv (s, w)
}"""
LONE = """g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) {
    c = Conv (x, w)  p = GlobalAveragePool (c)  [gate] h = HardSigmoid (p)  s = Mul (c, h)  y = Conv (s, w)
}"""


@pytest.fixture
def make(build, draw):
    def make(text):
        model = build(text, w=3 * draw(3, 3, 1, 1))
        name_nodes(model)
        return model

    return make


def find_kind(model):
    return next(node.op_type for node in model.graph.node if node.name == "gate")


@pytest.mark.parametrize("ends", [(0.2, 0.5), (1 / 6, 0.5), (0.3, -0.25), (0.3, 0.0), (2.0, 0.1), (0.1, 3.0)])
def test_an_add_on_integers_gives_the_numbers_of_the_hardsigmoid(make, rough, draw, monkeypatch, ends):
    model, x = make(SWISH % ends), draw(2, 3, 8, 8)
    assert make_scheme(model).gates == {"gate"} and make_scheme(model).nonnegative["h"] == 1
    written = rough(model, x)
    assert find_kind(written) == "Add"
    monkeypatch.setattr(emit, "write_gates", lambda *_: 0)
    kept = rough(model, x)
    assert find_kind(kept) == "HardSigmoid"
    (given,), (wanted,) = run_model(written, x), run_model(kept, x)
    # The sums of both round in their last bit, which may put a value on the next level.
    assert np.mean(given != wanted) < 0.02
    np.testing.assert_allclose(given, wanted, atol=0.02 * np.abs(wanted).max())


@pytest.mark.parametrize("text", [LONE, SWISH % (-0.2, 0.5)])
def test_a_hardsigmoid_alone_or_falling_stays_in_float(make, rough, draw, text):
    model, x = make(text), draw(2, 3, 8, 8)
    assert not make_scheme(model).gates
    assert find_kind(rough(model, x)) == "HardSigmoid"


def test_other_targets_have_hardsigmoids_of_their_own(make):
    scheme = make_scheme(make(SWISH % (0.2, 0.5)), requirements=Requirements(for_onnxruntime=False))
    assert not scheme.gates and "h" in scheme.activations


def test_an_excluded_hardsigmoid_stays_in_float(make):
    model = make(SWISH % (0.2, 0.5))
    assert not make_scheme(model, selection=Selection(frozenset({"gate"}))).gates


def test_a_grid_that_ends_beyond_one_does_not_stand_for_the_clip(make, rough, draw):
    model = make(SWISH % (0.2, 0.5))
    written = rough(model, draw(2, 3, 8, 8))
    node = next(node for node in written.graph.node if node.name == "gate")
    node.op_type, node.input[:] = "HardSigmoid", ["c_dequantized"]
    scale = next(node.input[1] for node in written.graph.node if node.input[:1] == ["h"])
    for tensor in written.graph.initializer:
        if tensor.name == scale:
            tensor.raw_data = np.float32(1 / 200).tobytes()
    assert emit.write_gates(written, {"gate"}) == 0 and find_kind(written) == "HardSigmoid"
