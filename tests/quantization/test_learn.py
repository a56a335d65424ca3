"""A block in torch: which quantizers are placed and learned, what is refused, and how results come back."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from onnxcalib.graph.blocks import find_blocks, join_blocks
from onnxcalib.graph.embeddings import find_embeddings
from onnxcalib.quantization.learn import BIASES, Learner, MiniBatches, convert_block
from onnxcalib.quantization.solve import round_embeddings, round_layers
from onnxcalib.quantization.state import run_block
from onnxcalib.runtime.blocks import BlockError
from onnxcalib.runtime.session import Session

DATA = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def state(residual, state_of):
    state = state_of(residual, DATA, size=8, weight_bits=4, activation_bits=4, first_last_bits=4)
    round_layers(state)
    return state


def first_block(state):
    block = next(block for block in find_blocks(state.problem.model, state.problem.scheme) if block.layers)
    run_block(state, block, set(block.outputs), quantized=False)
    return block


def learn(state, block, **options):
    learner = Learner(state, convert_block(state, block))
    data = MiniBatches(state, block, learner.size, holdout=8)
    return learner, learner.learn(data.draw, data.read_held_out, steps=100, **options)


def test_the_module_computes_what_the_block_does(state):
    block = first_block(state)
    converted = convert_block(state, block)
    given = converted.module(*(torch.from_numpy(state.stored.feeds("float:", [t], 0)[t]) for t in block.inputs))
    for value, tensor in zip(given, block.outputs, strict=True):
        wanted = state.stored.feeds("float:", [tensor], 0)[tensor]
        np.testing.assert_allclose(value.detach().numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_what_was_learned_replaces_grids_and_layers(state):
    block = first_block(state)
    grids, layers = state.grids, dict(state.layers)
    learner, outcome = learn(state, block)
    assert state.grids is grids and state.layers == layers  # nothing changes before it is read back
    learner.read_back()
    assert outcome.step > 0 and outcome.before > outcome.after
    assert state.grids is not grids and set(state.grids.activations) == set(grids.activations)
    assert {name for name in layers if state.layers[name] is not layers[name]} == set(block.layers)


def test_frozen_tensors_keep_their_grids(state):
    block = first_block(state)
    state.frozen |= set(state.grids.activations)
    grids = dict(state.grids.activations)
    learner, _ = learn(state, block)
    learner.read_back()
    for tensor, grid in grids.items():
        assert state.grids.activations[tensor].scale == grid.scale
        assert state.grids.activations[tensor].zero_point == grid.zero_point


def test_with_frozen_weights_biases_alone_are_learned(state):
    block = first_block(state)
    learner = Learner(state, convert_block(state, block), learned=BIASES)
    learned = {name for name, value in learner.module.named_parameters() if value.requires_grad}
    assert learned and all(name.endswith("bias") for name in learned)
    assert set(learner.biases()) == set(block.layers)


def test_learning_leaves_the_random_numbers_of_the_caller_alone(state):
    block = first_block(state)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    learn(state, block)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fault_of_torch_while_learning_is_one_of_the_block(state, monkeypatch):
    block = first_block(state)

    def fail(*_, **__):
        raise RuntimeError("no gradient here\nsecond line")

    monkeypatch.setattr("onnxcalib.quantization.learn.learn_block", fail)
    with pytest.raises(BlockError, match=r"^block: no gradient here$"):
        learn(state, block)


def test_too_little_memory_is_no_fault_of_the_block(state, monkeypatch):
    block = first_block(state)

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("onnxcalib.quantization.learn.learn_block", fail)
    with pytest.raises(torch.OutOfMemoryError):
        learn(state, block)


def test_samples_are_held_out_and_never_drawn(state):
    block = first_block(state)
    data = MiniBatches(state, block, 4, holdout=8)
    held_out = np.concatenate([inputs[0].numpy() for inputs, _ in data.read_held_out()])
    assert len(held_out) == 3
    drawn = np.concatenate([data.draw()[0][0].numpy() for _ in range(40)])
    assert not any(np.array_equal(one, other) for one in held_out for other in drawn)


def test_a_layer_that_reads_float_is_not_learned(residual, state_of):
    state = state_of(residual, DATA, size=8, weight_bits=4, activation_bits=32)
    round_layers(state)
    with pytest.raises(BlockError, match="what reads float activations is solved or rounded, and not learned"):
        Learner(state, convert_block(state, first_block(state)))


def test_a_table_has_its_quantized_rows_in_torch(build, weigh, state_of):
    text = """g (int64[N, 6] ids) => (float[N, 6, 24] y) {
        [look] e = Gather (table, ids)  [one] a = MatMul (e, w1)  [add] b = Add (a, b1)  [r] r = Relu (b)
        [two] c = MatMul (r, w2)  [sum] y = Add (c, b2) }"""
    model = build(text, table=weigh(300, 64), w1=weigh(64, 16), b1=weigh(16), w2=weigh(16, 24), b2=weigh(24))
    ids = np.random.default_rng(0).integers(0, 300, (24, 6))
    tables = find_embeddings(model, 4)
    state = state_of(model, ids, restrict=lambda scheme: replace(scheme, embeddings=tables), weight_bits=4)
    state.layers |= round_embeddings(state.problem.index, state.problem.scheme)
    round_layers(state)
    blocks = find_blocks(state.problem.model, state.problem.scheme)
    block = join_blocks(state.problem.model, state.problem.scheme, blocks)
    run_block(state, block, set(block.outputs), quantized=False)
    learner = Learner(state, convert_block(state, block), learned=BIASES)
    feeds = state.stored.arrays("float:", block.inputs, 1)
    wanted = Session(state.quantized_subgraph(block, list(block.outputs))).run(feeds)["y"]
    (given,) = learner.module.eval()(torch.from_numpy(feeds["ids"]))
    assert np.abs(given.detach().numpy() - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert tables and learner.biases().keys() == {"one", "two"}


DENSE = """g (float[N, 12] x) => (float[N, 6] y) {
    [one] a = Gemm (x, w1, b1)  [r] r = Relu (a)  [two] c = MatMul (r, w2)  [three] d = MatMul (r, w3)
    [sum] s = Add (c, d)  [four] y = Gemm (s, w4, b4)
}"""


def test_dynamic_layers_round_what_they_read_in_torch_as_in_the_file(build, weigh, state_of):
    weights = {"w1": weigh(12, 16), "w2": weigh(16, 8), "w3": weigh(16, 8), "w4": weigh(8, 6)}
    model = build(DENSE, **weights, b1=weigh(16), b4=weigh(6))
    state = state_of(model, np.random.default_rng(0).normal(size=(24, 12)).astype(np.float32), activations="dynamic")
    round_layers(state)
    blocks = [each for each in find_blocks(state.problem.model, state.problem.scheme) if each.layers]
    block = join_blocks(state.problem.model, state.problem.scheme, blocks)
    run_block(state, block, set(block.outputs), quantized=False)
    learner = Learner(state, convert_block(state, block), learned=BIASES)
    assert set(learner.quantizers.dynamic) == {"x", "r", "s"} and not learner.quantizers.activations
    feeds = state.stored.arrays("float:", block.inputs, 1)
    wanted = Session(state.quantized_subgraph(block, list(block.outputs))).run(feeds)["y"]
    (given,) = learner.module.eval()(torch.from_numpy(feeds["x"]))
    np.testing.assert_allclose(given.detach().numpy(), wanted, rtol=1e-3, atol=1e-4)
    assert learner.biases().keys() == {"one", "four"}
    data = MiniBatches(state, block, learner.size, holdout=8)
    outcome = learner.learn(data.draw, data.read_held_out, steps=10)
    assert np.isfinite(outcome.after) and outcome.after <= outcome.before
