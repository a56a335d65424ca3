"""Layers that read one tensor in the same way, solved as one."""

from dataclasses import replace

import numpy as np
import pytest

from onnxcalib.errors import DataError
from onnxcalib.graph.blocks import find_blocks, join_blocks
from onnxcalib.quantization import siblings as siblings_module
from onnxcalib.quantization.columns import ColumnReader
from onnxcalib.quantization.siblings import find_siblings
from onnxcalib.quantization.solve import solve_block, solve_widths
from onnxcalib.quantization.state import PROBE
from onnxcalib.runtime.session import Session

ATTENTION = """g (float[N, 5, 6] x) => (float[N, 5, 4] y, float[N, 5, 4] p, float[N, 5, 6] u) {
    [query] q0 = MatMul (x, wq)  [q_bias] q = Add (q0, bq)
    [key] k0 = MatMul (x, wk)  [k_bias] k = Add (k0, bk)
    [plain] p = MatMul (x, wp)
    [value] v0 = MatMul (x, wv)  [v_bias] v = Add (v0, bv)
    [turn] t = Transpose <perm = [0, 2, 1]> (k)  [score] s = MatMul (q, t)  [mix] c = MatMul (s, v)
    [out] y = MatMul (c, wo)  [last] l = MatMul (x, wl)  [skip] u = Add (l, x)
}"""


@pytest.fixture
def make(build, weigh, draw, state_of):
    weights = {"wq": weigh(6, 8), "wk": weigh(6, 8), "wv": weigh(6, 7), "wp": weigh(6, 4), "wo": weigh(7, 4)}
    biases = {"bq": weigh(8), "bk": weigh(8), "bv": weigh(7)}
    model, data = build(ATTENTION, **weights, **biases, wl=weigh(6, 6)), draw(40, 5, 6)

    def state(**settings):
        return state_of(model, data, first_last_bits=settings.get("weight_bits", 8), **settings)

    return state


def whole(state):
    problem = state.problem
    return join_blocks(problem.model, problem.scheme, find_blocks(problem.model, problem.scheme))


def names_of(groups):
    return [tuple(layer.name for layer in group) for group in groups]


def test_query_key_and_value_are_siblings_and_what_differs_is_not(make, monkeypatch):
    state = make()
    block = whole(state)
    # The plain one has no bias, and a shortcut belongs to one layer.
    expected = [("query", "key", "value"), ("plain",), ("out",), ("last",)]
    assert names_of(find_siblings(state, block)) == expected
    monkeypatch.setattr(siblings_module, "MOST_WEIGHTS", 100)
    assert names_of(find_siblings(state, block))[:3] == [("query", "key"), ("plain",), ("value",)]


def test_other_specs_scales_and_probes_part_siblings(make, restrict):
    state = make()
    block, (layer, *_) = whole(state), state.problem.scheme.layers
    specs = {each.name: [each.weight_spec] for each in state.problem.scheme.layers}
    apart = {**specs, "key": [replace(layer.weight_spec, bits=4)]}
    assert names_of(find_siblings(state, block, apart))[:2] == [("query", "value"), ("key",)]
    apart = {name: [replace(spec, axis=None)] for name, (spec,) in specs.items()}
    assert names_of(find_siblings(state, block, apart))[:2] == [("query",), ("key",)]
    state.stored.store.append(PROBE + "q", np.zeros(1))
    assert names_of(find_siblings(state, block))[:2] == [("query",), ("key", "value")]


@pytest.mark.parametrize("bits", [8, 4])
def test_siblings_are_as_near_to_float_as_each_alone(make, monkeypatch, bits):
    errors = []
    for most in (siblings_module.MOST_WEIGHTS, 0):
        monkeypatch.setattr(siblings_module, "MOST_WEIGHTS", most)
        state = make(weight_bits=bits)
        block = whole(state)
        assert solve_block(state, block) == {}
        wanted, given = (
            Session(make_graph(block, ["q", "k", "v"])).run({"x": state.stored.store.batch("float:x", 0)})
            for make_graph in (state.float_subgraph, state.quantized_subgraph)
        )
        errors.append([np.square(given[t] - wanted[t]).mean() for t in "qkv"])
        assert state.layers["value"].integers.shape == (6, 7) and state.layers["value"].bias.shape == (7,)
    np.testing.assert_allclose(errors[0], errors[1], rtol=0.05)


def test_columns_of_siblings_are_read_once_for_all_widths(make, monkeypatch):
    measured, measure = [], ColumnReader._measure
    monkeypatch.setattr(ColumnReader, "_measure", lambda self: measured.append(self.layers) or measure(self))
    state = make()
    block = whole(state)
    siblings = find_siblings(state, block)[0]
    specs = [replace(siblings[0].weight_spec, bits=bits) for bits in (8, 4)]
    found = solve_widths(state, block, siblings, specs)
    assert measured == [siblings]
    assert [[each.grid.spec.bits for each in one.params] for one in found] == [[8, 4]] * 3
    assert [one.params[1].integers.shape for one in found] == [(6, 8), (6, 8), (6, 7)]


def test_values_that_are_not_finite_name_all_siblings(make):
    state = make()
    state.stored.store.drop("float:x")
    for _ in state.stored.sizes:
        state.stored.store.append("float:x", np.full((8, 5, 6), np.nan, np.float32))
    with pytest.raises(DataError, match="tensor x: layers query and key and value read or give values that are not"):
        solve_block(state, whole(state))
