"""Targets of layers from one pass of the float model, kept in place of its activations."""

import numpy as np
import pytest

from onnxcalib.graph.blocks import find_blocks
from onnxcalib.quantization import layer_targets
from onnxcalib.quantization.layer_targets import keep_targets, may_learn
from onnxcalib.quantization.reconstruct import reconstruct
from onnxcalib.quantization.state import StoredActivations
from onnxcalib.report import Observer

MODEL = """g (float[N, 4, 6, 6] x) => (float[N, 5] z) {
    [stem] s = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)  [relu] r = Relu (s)
    [inner] c = Conv <pads = [1, 1, 1, 1]> (r, w1, b1)  [add] a = Add (c, r)
    [flat] f = Flatten (a)  [head] z = MatMul (f, w2)
}"""


@pytest.fixture
def walk(build, weigh, draw, state_of):
    model = build(MODEL, w0=weigh(4, 4, 3, 3), b0=weigh(4), w1=weigh(4, 4, 3, 3), b1=weigh(4), w2=weigh(144, 5))
    data = draw(40, 4, 6, 6)

    def make(**settings):
        state = state_of(model, data, size=16, **settings)
        return state, find_blocks(state.problem.model, state.problem.scheme)

    return make


def test_kept_targets_give_the_same_layers_as_the_float_activations(walk):
    found = []
    for keep in (False, True):
        state, blocks = walk(weight_bits=4, effort="fast")
        if keep:
            keep_targets(state, blocks)
            assert not state.stored.has_float and "target:c" in state.stored.store
        assert all(record.outcome == "solved" for record in reconstruct(state, blocks, Observer()))
        assert state.stored.store.names() == []
        found.append(state.layers)
    assert found[0].keys() == found[1].keys() == {"stem", "inner", "head"}
    for name, params in found[0].items():
        np.testing.assert_array_equal(params.integers, found[1][name].integers)
        np.testing.assert_array_equal(params.grid.scale, found[1][name].grid.scale)


def test_integers_are_stored_where_a_grid_of_8_bits_is_all_that_reads_a_tensor(walk, monkeypatch):
    kinds, found = {}, []
    keep = StoredActivations.keep

    def watch(self, prefix, tensor, value, **options):
        kinds[prefix + tensor] = value.dtype
        keep(self, prefix, tensor, value, **options)

    monkeypatch.setattr(StoredActivations, "keep", watch)
    for integers in (False, True):
        state, blocks = walk(weight_bits=8, effort="fast")
        keep_targets(state, blocks)
        state.stored.integers = integers
        reconstruct(state, blocks, Observer())
        assert kinds["quantized:r"] == (np.uint8 if integers else np.float32)
        found.append(state.layers)
    for name, params in found[0].items():
        assert np.abs(params.integers.astype(int) - found[1][name].integers).max() <= 1
        np.testing.assert_allclose(params.grid.scale, found[1][name].grid.scale, rtol=1e-3)


def test_activations_stay_where_a_block_is_learned_or_targets_take_more_room(walk, monkeypatch):
    for steps, most in ((2, 2**31), (0, 10**4)):
        monkeypatch.setattr(layer_targets, "MOST_TARGET_BYTES", most)
        state, blocks = walk(steps=steps)
        assert any(may_learn(state, block) for block in blocks) == (steps > 0)
        keep_targets(state, blocks)
        assert sorted(state.stored.store.names()) == ["float:x", "quantized:x"]
