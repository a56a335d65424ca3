"""Blocks that are not learned run once in the quantized model, while their layers are solved."""

from collections import Counter

import numpy as np
import pytest

from onnxcalib.graph.blocks import find_blocks, join_blocks
from onnxcalib.quantization.layer_targets import keep_targets
from onnxcalib.quantization.passing import solve_in_passing
from onnxcalib.quantization.reconstruct import reconstruct
from onnxcalib.quantization.solve import solve_block
from onnxcalib.quantization.state import QUANTIZED, ReconstructionState, StoredActivations, run_block
from onnxcalib.report import Observer
from onnxcalib.runtime.store import Store

# The sum of the first residual is read on both sides of the layers behind it; the wide one has too many inputs.
ENCODER = """g (float[N, 5, 6] x) => (float[N, 5, 6] y) {
    [query] q = MatMul (x, wq)  [key] k = MatMul (x, wk)  [value] v = MatMul (x, wv)
    [turn] t = Transpose <perm = [0, 2, 1]> (k)  [score] s = MatMul (q, t)  [share] p = Softmax (s)
    [mix] c = MatMul (p, v)  [out] o = MatMul (c, wo)  [join] a = Add (o, x)  [bound] n = Tanh (a)
    [up] u = MatMul (n, wu)  [relu] r = Relu (u)  [down] d = MatMul (r, wd)  [skip] e = Add (d, a)
    [last] y = MatMul (e, wl)
}"""


@pytest.fixture
def walk(build, weigh, draw, state_of):
    weights = {name: weigh(6, 6) for name in ("wq", "wk", "wv", "wo", "wl")}
    model, data = build(ENCODER, **weights, wu=weigh(6, 12), wd=weigh(12, 6)), draw(24, 5, 6)

    def make(**settings):
        state = state_of(model, data, effort="fast", **settings)
        problem = state.problem
        block = join_blocks(problem.model, problem.scheme, find_blocks(problem.model, problem.scheme))
        keep_targets(state, [block])
        state.stored.integers = True
        return state, block

    return make


def same_layers(state, other):
    assert state.layers.keys() == other.layers.keys()
    for name, params in state.layers.items():
        np.testing.assert_allclose(params.integers.astype(int), other.layers[name].integers, atol=1)
        np.testing.assert_allclose(params.grid.scale, other.layers[name].grid.scale, rtol=1e-3)


@pytest.mark.parametrize("bits", [8, 4])
def test_layers_and_outputs_are_those_of_sessions_from_the_block_s_inputs(walk, bits):
    (state, block), (other, _) = walk(weight_bits=bits), walk(weight_bits=bits)
    assert solve_in_passing(state, block, {"y"}) == solve_block(other, block) == {}
    same_layers(state, other)
    run_block(other, block, {"y"}, quantized=True)
    assert state.stored.store.names() == ["quantized:y"]
    for number in range(len(state.stored.sizes)):
        found, wanted = (each.stored.store.batch("quantized:y", number) for each in (state, other))
        np.testing.assert_allclose(found.astype(float), wanted, atol=1 if found.dtype == np.uint8 else 1e-3)


def test_every_node_runs_once_and_what_nothing_reads_any_more_is_dropped(walk, monkeypatch):
    state, block = walk()
    runs, held, extract = [], [], ReconstructionState.float_subgraph

    def watch(self, part, outputs):
        model = extract(self, part, outputs)
        runs.append([node.name for node in model.graph.node])
        return model

    monkeypatch.setattr(ReconstructionState, "float_subgraph", watch)
    keep = StoredActivations.keep

    def look(self, *given, **options):
        keep(self, *given, **options)
        held.append({name.removeprefix(QUANTIZED) for name in self.store.names() if name.startswith(QUANTIZED)})

    monkeypatch.setattr(StoredActivations, "keep", look)
    solve_in_passing(state, block, {"y"})
    assert Counter(name for names in runs for name in names) == Counter(block.nodes)
    assert len(runs) == 5 and {"query", "key", "value", "mix"} <= set(runs[0])
    # What the second step reads and what it makes.
    assert max(held, key=len) == {"x", "c", "a", "n"} and held[-1] == {"e", "y"}


def test_a_layer_that_is_rounded_needs_no_input(walk, monkeypatch):
    for module in ("layer_targets", "siblings", "solve"):
        monkeypatch.setattr(f"onnxcalib.quantization.{module}.MOST_INPUTS", 6)
    state, block = walk()
    reasons = solve_in_passing(state, block, {"y"})
    assert list(reasons) == ["down"] and "12 inputs a channel are too many to solve" in reasons["down"]


def test_files_of_tensors_inside_a_block_go_at_once(walk, tmp_path, monkeypatch):
    state, block = walk()
    store, most = Store(tmp_path), []
    for name in state.stored.store.names():
        for number in range(len(state.stored.store.counts(name))):
            store.append(name, state.stored.store.batch(name, number))
    state.stored.store = store
    store.list_kept()
    drop = Store.drop
    monkeypatch.setattr(Store, "drop", lambda *given: (drop(*given), most.append(len(list(tmp_path.iterdir())))))
    listed = len(store.names())
    reconstruct(state, [block], Observer())
    assert max(most) <= listed + 3
    store.release()
    assert not list(tmp_path.iterdir())
