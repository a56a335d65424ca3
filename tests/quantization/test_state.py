"""What reconstruction stores and knows: batches of both models, subgraphs of the current state, what is read later."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from onnxcalib.graph.blocks import find_blocks
from onnxcalib.quantization.solve import round_layers
from onnxcalib.quantization.state import FLOAT, QUANTIZED, SubgraphRunner, read_later, run_block
from onnxcalib.runtime.session import Session

DATA = np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def state(residual, state_of):
    return state_of(residual, DATA, size=8)


def blocks_of(state):
    return find_blocks(state.problem.model, state.problem.scheme)


def test_the_problem_does_not_change(state):
    with pytest.raises(FrozenInstanceError):
        state.problem.scheme = None
    with pytest.raises(FrozenInstanceError):
        state.grids.activations = {}


def test_the_inputs_of_both_models_are_stored_in_batches(state):
    assert state.stored.sizes == [8, 8, 4] and state.stored.masks == [None] * 3
    for prefix in (FLOAT, QUANTIZED):
        found = [state.stored.feeds(prefix, ["x"], number)["x"] for number in range(3)]
        assert np.array_equal(np.concatenate(found), DATA)


def test_samples_and_batches_are_counted_without_views(residual, state_of):
    state = state_of(residual, DATA, size=8, axes=(2, 3), views=2)
    assert state.stored.passes == 3 and sum(state.stored.sizes) == 60
    assert state.stored.count(by_sample=True) == 20 and state.stored.count(by_sample=False) == 3


def test_a_block_is_run_on_what_both_models_give_it(state):
    round_layers(state)
    blocks = blocks_of(state)
    for block, later in zip(blocks, read_later(state, blocks, {"y"}), strict=True):
        for quantized in (False, True):
            run_block(state, block, later, quantized=quantized)
    wanted = Session(state.problem.model).run({"x": DATA})["y"]
    found = {p: np.concatenate([state.stored.feeds(p, ["y"], n)["y"] for n in range(3)]) for p in (FLOAT, QUANTIZED)}
    np.testing.assert_allclose(found[FLOAT], wanted, rtol=1e-4, atol=1e-5)
    assert 0 < np.abs(found[QUANTIZED] - wanted).max() < 0.2 * np.abs(wanted).max()


def test_what_no_later_block_reads_is_not_run(state):
    blocks = blocks_of(state)
    round_layers(state)
    run_block(state, blocks[0], set(), quantized=True)
    assert not any(name.startswith(QUANTIZED) and not name.endswith(":x") for name in state.stored.store.names())


def test_a_runner_gives_inputs_as_they_are_stored_and_inner_tensors_computed(state):
    block = next(block for block in blocks_of(state) if block.layers)
    runner = SubgraphRunner(state, block, ["x", "a"], quantized=False)
    found = runner.run(1)
    assert np.array_equal(found["x"], DATA[8:16])
    np.testing.assert_allclose(
        found["a"], Session(state.problem.model, also=["a"]).run({"x": DATA[8:16]})["a"], atol=1e-5
    )


def test_a_runner_gives_what_is_in_front_of_a_grid_where_the_store_keeps_integers(state):
    round_layers(state)
    state.stored.integers = True
    block = next(block for block in blocks_of(state) if block.layers)
    tensor = next(t for t in block.outputs if state.integer_grid(t) is not None)
    given, wanted = (
        SubgraphRunner(state, block, [tensor], quantized=True, integers=each).run(0)[tensor] for each in (True, False)
    )
    grid = state.integer_grid(tensor)
    assert given.dtype.kind == "u" and wanted.dtype == np.float32
    np.testing.assert_allclose((given.astype(int) - int(grid.zero_point)) * grid.scale, wanted, atol=grid.scale)


def test_a_runner_of_inputs_alone_opens_no_session(state):
    block = next(block for block in blocks_of(state) if block.layers)
    assert SubgraphRunner(state, block, ["x"], quantized=True).session is None


def test_the_quantized_subgraph_has_the_layers_that_are_known(state):
    block = next(block for block in blocks_of(state) if block.layers)
    before = {n.op_type for n in state.quantized_subgraph(block, list(block.outputs)).graph.node}
    assert "QuantizeLinear" in before
    weights = len(state.quantized_subgraph(block, list(block.outputs)).graph.initializer)
    round_layers(state)
    assert len(state.quantized_subgraph(block, list(block.outputs)).graph.initializer) > weights


def test_forgetting_keeps_what_is_read_later_and_probes(state):
    state.stored.store.append("probe:a", np.zeros((8, 1, 1), np.float16))
    state.stored.keep(FLOAT, "a", np.zeros((8, 2), np.float32))
    state.stored.forget({"x"})
    assert set(state.stored.store.names()) == {"float:x", "quantized:x", "probe:a"}


def test_a_tensor_without_a_known_type_has_that_of_its_values(state):
    state.stored.keep(FLOAT, "made", np.zeros((8, 2), np.int64))
    assert state.stored.types["made"].type.tensor_type.elem_type == 7
    assert "made" not in state.problem.types
