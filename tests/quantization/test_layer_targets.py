"""Targets of layers from one pass of the float model, kept in place of its activations."""

from dataclasses import replace

import numpy as np
import pytest

import onnxcalib
from onnxcalib import QuantizeConfig
from onnxcalib.graph.blocks import find_blocks
from onnxcalib.quantization import layer_targets
from onnxcalib.quantization.layer_targets import Target, TargetKeeper, keep_targets, may_learn
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


WIDE = """g (float[N, 5, 6] x) => (float[N, 5, 4] z) {
    [up] m = MatMul (x, w0)  [bias] u = Add (m, b0)  [relu] r = Relu (u)  [down] z = MatMul (r, w1)
}"""


@pytest.fixture
def wide(build, weigh, draw, state_of):
    model = build(WIDE, w0=weigh(6, 20), b0=weigh(20), w1=weigh(20, 4))
    data = draw(40, 5, 6)
    return model, data, lambda: state_of(model, data, size=16, effort="fast")


@pytest.mark.parametrize("keep", [False, True])
def test_what_a_wide_layer_reads_stands_for_all_that_it_gives(wide, keep, monkeypatch):
    _, _, make = wide
    found = []
    for of_input in (True, False):
        if not of_input:
            monkeypatch.setattr(layer_targets, "_makes_more", lambda *_: False)
        state = make()
        up, down = state.problem.scheme.layers
        assert Target.of(state.problem, [up], None).tensors == (["x"] if of_input else ["u"])
        assert Target.of(state.problem, [down], None).tensors == ["z"]
        blocks = find_blocks(state.problem.model, state.problem.scheme)
        if keep:
            keep_targets(state, blocks)
        assert all(record.outcome == "solved" for record in reconstruct(state, blocks, Observer()))
        found.append(state.layers["up"])
    assert np.abs(found[0].integers.astype(int) - found[1].integers).max() <= 1
    np.testing.assert_allclose(found[0].grid.scale, found[1].grid.scale, rtol=1e-3)
    np.testing.assert_allclose(found[0].bias, found[1].bias, atol=1e-3)


@pytest.mark.parametrize(("bits", "expected"), [(8, [0, 1]), (32, [1, 2])])  # those of weights alone need no ranges
def test_targets_that_calibration_keeps_give_the_same_bytes_as_a_pass_of_their_own(
    wide, monkeypatch, tmp_path, bits, expected
):
    model, data, _ = wide
    runs, files, run = [], [], layer_targets._run_float
    monkeypatch.setattr(layer_targets, "_run_float", lambda *given: runs.append(1) or run(*given))
    for passes in expected:
        config = QuantizeConfig(effort="fast", cache_dir=tmp_path, activation_bits=bits)
        prepared = onnxcalib.prepare(model, data, config)
        found = onnxcalib.reconstruct(prepared)  # the second run has its statistics from the cache
        files.append(onnxcalib.emit(prepared, found).SerializeToString())
        assert len(runs) == passes and prepared.run.targets is None
    assert files[0] == files[1]


def test_targets_of_other_batches_or_layers_are_not_taken(walk):
    state, blocks = walk(weight_bits=8, effort="fast")
    given = TargetKeeper(*walk(weight_bits=8, effort="fast"))
    assert not TargetKeeper(state, blocks).take(given)  # nothing is kept yet
    given.whole = True
    assert TargetKeeper(state, blocks).take(given)
    given.stored.sizes = [20, 20]
    assert not TargetKeeper(state, blocks).take(given)
    given.stored.sizes, given.wanted = state.stored.sizes, [replace(each, choice=None) for each in given.wanted[1:]]
    assert not TargetKeeper(state, blocks).take(given)
