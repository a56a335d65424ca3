"""A run of a model with switches gives what the model would give with grids on just these tensors."""

import numpy as np
import pytest

from onnxcalib.graph.emit import emit_qdq
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.graph.switches import add_switches, feed_switches
from onnxcalib.numeric.ranges import make_grid
from onnxcalib.runtime.session import Session
from onnxcalib.spec import Grids, QuantSpec

# The Add and the Concat give y and z on grids, and a Pow reads the Conv's output in float.
GRAPH = """g (float[N, 3, 4, 4] x) => (float[N, 4, 4, 4] y, float[N, 8, 4, 4] z, float[N, 4, 4, 4] p) {
    [c1] a = Conv (x, w1)  [r] r = Relu (a)  [c2] b = Conv (r, w2)  [add] y = Add (b, r)
    [cat] z = Concat <axis = 1> (y, r)  [pow] p = Pow (b, two) }"""


@pytest.fixture
def switched(build, weigh):
    model = build(GRAPH, w1=weigh(4, 3, 1, 1), w2=weigh(4, 4, 1, 1), two=np.array(2, np.float32))
    scheme = make_scheme(model, weight_bits=8, activation_bits=8)
    sets = list(dict.fromkeys(map(scheme.members_of, scheme.activations)))
    return model, scheme, sets, Session(add_switches(model, scheme, sets), threads=1)


def choose(sets, scheme, names):
    grids = {}
    for number, (name, *_) in enumerate(sets):
        grids[name] = make_grid(-1.5 - number / 8, 2 + number / 8, QuantSpec(8), bound=scheme.bound_of([name]))
    return {name: grids[name] for name in names}


def test_with_all_switches_off_the_model_is_the_float_model(switched, draw):
    model, _, sets, session = switched
    x = draw(2, 3, 4, 4)
    given, wanted = session.run({"x": x, **feed_switches(sets, {})}), Session(model, threads=1).run({"x": x})
    for name in wanted:
        np.testing.assert_allclose(given[name], wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 99])
def test_with_switches_on_it_is_the_model_with_these_grids(switched, draw, count):
    model, scheme, sets, session = switched
    chosen = choose(sets, scheme, [name for name, *_ in sets][:count])
    grids = Grids({t: chosen[name] for name, *others in sets if name in chosen for t in (name, *others)})
    alone = scheme.__class__(layers=(), activations=scheme.activations, float_reads=scheme.float_reads)
    quantized = Session(emit_qdq(model, alone, grids, {}, keep_outputs=False), optimize=False, threads=1)
    x = draw(2, 3, 4, 4)
    given, wanted = session.run({"x": x, **feed_switches(sets, chosen)}), quantized.run({"x": x})
    assert given.keys() == wanted.keys() == {"y", "z", "p"}
    for name in wanted:
        step = max(float(grid.scale) for grid in chosen.values())
        assert np.abs(given[name] - wanted[name]).max() <= 2 * step
        assert np.mean(np.abs(given[name] - wanted[name]) > 1e-4) < 0.01
    assert np.abs(given["y"] - Session(model, threads=1).run({"x": x})["y"]).max() > 1e-3


def test_the_given_model_stays_as_it_is(switched):
    model, scheme, sets, _ = switched
    before = model.SerializeToString()
    add_switches(model, scheme, sets)
    assert model.SerializeToString() == before
