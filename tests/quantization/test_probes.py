"""Probes of small models whose Jacobian is known."""

import numpy as np
import pytest
import torch

from onnxcalib.data import open_calibration
from onnxcalib.graph.blocks import find_blocks
from onnxcalib.graph.load import inputs_of
from onnxcalib.numeric.gram import unfold
from onnxcalib.quantization import learn as learn_module
from onnxcalib.quantization import probes as probes_module
from onnxcalib.quantization.columns import ColumnReader
from onnxcalib.quantization.probes import SIGNS, draw_probes
from onnxcalib.quantization.solve import solve_block
from onnxcalib.quantization.state import PROBE

POOLED = """g (float[N, 4, 5, 5] x) => (float[N, 6, 1, 1] y) {
    [c] a = Conv <pads = [1, 1, 1, 1]> (x, w, b)  [pool] y = GlobalAveragePool (a)
}"""
DEEP = """g (float[N, 4, 5, 5] x) => (float[N, 3] y) {
    [c] a = Conv <pads = [1, 1, 1, 1]> (x, w, b)  [relu] r = Relu (a)
    [d] d = Conv <group = 1, pads = [1, 1, 1, 1]> (r, wd, bd)  [pool] p = GlobalAveragePool (d)
    [flat] f = Flatten (p)  [fc] y = Gemm <transB = 1> (f, wf, bf)
}"""
TOKENS = "g (float[N, 7, 4] x) => (float[N, 7, 6] y) { [m] y = MatMul (x, w) }"


@pytest.fixture
def pooled(build, weigh):
    return build(POOLED, w=weigh(6, 4, 3, 3), b=weigh(6))


def make_deep(build, weigh, groups=1):
    weights = {"w": weigh(6, 4, 3, 3), "b": weigh(6), "wd": weigh(6, 6 // groups, 3, 3), "bd": weigh(6)}
    return build(DEEP.replace("group = 1", f"group = {groups}"), **weights, wf=weigh(3, 6), bf=weigh(3))


def probe(state, data, directions=2):
    return draw_probes(
        state, open_calibration(data, inputs_of(state.problem.model), state.problem.config.data), directions
    )


def first_reader(state):
    block = next(block for block in find_blocks(state.problem.model, state.problem.scheme) if block.layers)
    layer = state.problem.scheme.layers[0]
    return ColumnReader(
        state, block, [layer], next(t for t in state.problem.model.graph.initializer if t.name == layer.weight).dims
    )


def test_what_only_an_average_passes_on_is_seen_as_the_average(pooled, draw, state_of):
    data = draw(20, 4, 5, 5)
    state = state_of(pooled, data, weight_bits=4, first_last_bits=4, size=8)
    assert probe(state, data) == (1, None)
    reader = first_reader(state)
    seen, held_out = reader._measure_output_metrics(torch.zeros(1, 36, dtype=torch.float64))
    assert (seen.columns, held_out.columns) == (15 * 2 * SIGNS, 5 * 2 * SIGNS)  # one sample in four
    seen = seen.pooled(held_out)
    columns = (
        unfold(torch.from_numpy(data), reader.choice.find_window((5, 5)), torch.arange(25), reader._read_input)[0]
        .reshape(36, 25, 20)
        .mean(1)
        .double()
    )
    gram = columns @ columns.T
    assert seen.columns == 20 * 2 * SIGNS
    np.testing.assert_allclose(seen.gram[0] / seen.gram[0].trace(), gram / gram.trace(), atol=1e-4)
    assert PROBE + "a" not in state.stored.store


def test_layers_whose_weights_alone_have_few_bits_have_probes_of_every_sample(build, weigh, draw, state_of):
    data = draw(20, 4, 5, 5)
    state = state_of(make_deep(build, weigh), data, weight_bits=4, size=8)
    assert probe(state, data, directions=0) == (0, None)
    assert probe(state, data, directions=3) == (1, None)
    shapes = [state.stored.store.batch(PROBE + "d", number).shape for number in range(3)]
    assert shapes == [(8, 3 * SIGNS, 25), (8, 3 * SIGNS, 25), (4, 3 * SIGNS, 25)]
    np.testing.assert_allclose(
        np.linalg.norm(state.stored.store.batch(PROBE + "d", 0).astype(float), axis=(1, 2)), 1, rtol=1e-3
    )


@pytest.mark.parametrize(
    ("bits", "groups"),
    [
        ({"weight_bits": 8}, 1),
        ({"weight_bits": 4, "activation_bits": 4}, 1),
        ({"weight_bits": 4}, 6),
    ],
)
def test_no_layer_has_probes_where_more_than_rounding_its_weight_is_lost(build, weigh, draw, state_of, bits, groups):
    data = draw(20, 4, 5, 5)
    state = state_of(make_deep(build, weigh, groups), data, **bits)
    assert probe(state, data) == (0, None)


def test_samples_pass_in_parts_of_bounded_size(build, weigh, draw, state_of, monkeypatch):
    data, found = draw(11, 4, 5, 5), []
    compute = probes_module._ProbeComputer._compute
    monkeypatch.setattr(probes_module._ProbeComputer, "_compute", lambda *a: found.append(a[2]) or compute(*a))
    monkeypatch.setattr(probes_module, "MOST_BYTES", 3 * 4 * (2 * 6 * 25 + 3 + 3))
    state = state_of(make_deep(build, weigh), data, weight_bits=4, first_last_bits=4, size=8)
    assert probe(state, data) == (3, None) and found == [3, 3, 2, 3]
    assert len(state.stored.store.batch(PROBE + "a", 0)) == 8


def test_tokens_are_output_positions(build, weigh, draw, state_of):
    data = draw(10, 7, 4)
    state = state_of(build(TOKENS, w=weigh(4, 6)), data, weight_bits=4, first_last_bits=4)
    assert probe(state, data) == (1, None)
    seen, held_out = first_reader(state)._measure_output_metrics(torch.zeros(1, 4, dtype=torch.float64))
    assert seen.gram.shape == (1, 4, 4) and seen.columns + held_out.columns == 10 * 2 * SIGNS


def test_a_model_that_gives_a_large_map_alone_has_none_and_says_why(build, weigh, draw, state_of, monkeypatch):
    monkeypatch.setattr(probes_module, "MOST_MAP_VALUES", 149)
    text = "g (float[N, 4, 5, 5] x) => (float[N, 6, 5, 5] y) { [c] y = Conv <pads = [1, 1, 1, 1]> (x, w, b) }"
    data = draw(10, 4, 5, 5)
    state = state_of(build(text, w=weigh(6, 4, 3, 3), b=weigh(6)), data, weight_bits=4, first_last_bits=4)
    assert probe(state, data) == (0, "y is a map of 150 values, of which few random sums tell too little")


def test_a_model_that_torch_cannot_take_has_none_and_says_why(build, weigh, draw, state_of):
    text = "g (float[N, 4, 5, 5] x) => (float[N, 6, 5, 5] y, float[N, 6, 5, 5] z) "
    text += "{ [c] y = Conv <pads = [1, 1, 1, 1]> (x, w, b)  [odd] z = Shrink (y) }"
    data = draw(10, 4, 5, 5)
    state = state_of(build(text, w=weigh(6, 4, 3, 3), b=weigh(6)), data, weight_bits=4, first_last_bits=4)
    count, reason = probe(state, data)
    assert count == 0 and "torch" in reason and not [t for t in state.stored.store.names() if t.startswith(PROBE)]


def make_gated(build, weigh):
    text = """g (float[N, 4, 8, 8] x) => (float[N, 6, 1, 1] y) {
        [first] a = Conv <strides = [2, 2]> (x, w0, b0)  [gate] g = Conv <strides = [2, 2]> (x, w1, b1)
        [up] p = Greater (g, zero)  [cast] c = Cast <to = 1> (p)  [mul] m = Mul (a, c)
        [last] d = Conv <strides = [2, 2]> (m, w2, b2)  [pool] y = GlobalAveragePool (d)
    }"""
    weights = {"w0": weigh(6, 4, 3, 3), "w1": weigh(6, 4, 3, 3), "w2": weigh(6, 6, 2, 2)}
    return build(text, **weights, **{f"b{i}": weigh(6) for i in range(3)}, zero=np.zeros(1, np.float32))


def test_a_layer_without_a_gradient_leaves_the_others_theirs(build, weigh, draw, state_of):
    data = draw(11, 4, 8, 8)
    state = state_of(make_gated(build, weigh), data, weight_bits=4, first_last_bits=4, size=4)
    assert probe(state, data) == (2, None)
    shapes = {t: [state.stored.store.batch(PROBE + t, n).shape[::2] for n in range(3)] for t in ("a", "d")}
    assert shapes == {"a": [(4, 9), (4, 9), (3, 9)], "d": [(4, 1), (4, 1), (3, 1)]}
    assert PROBE + "g" not in state.stored.store


def test_gradients_that_end_at_an_operator_have_no_say(build, weigh, draw, state_of):
    text = "g (float[N, 4, 5, 5] x) => (float[N, 6, 5, 5] y) { [c] a = Conv (x, w, b)  [r] t = Round (a)  y = Neg (t) }"
    data = draw(6, 4, 5, 5)
    state = state_of(build(text, w=weigh(6, 4, 1, 1), b=weigh(6)), data, weight_bits=4, first_last_bits=4)
    assert probe(state, data)[0] == 0 and PROBE + "a" not in state.stored.store


def test_a_model_of_integer_outputs_has_none_and_says_why(build, weigh, draw, state_of):
    text = (
        "g (float[N, 4, 5, 5] x) => (int64[N, 1, 5, 5] y) { [c] a = Conv (x, w, b)  [top] y = ArgMax <axis = 1> (a) }"
    )
    data = draw(6, 4, 5, 5)
    state = state_of(build(text, w=weigh(6, 4, 1, 1), b=weigh(6)), data, weight_bits=4, first_last_bits=4)
    assert probe(state, data) == (0, "no output has a gradient")


def test_rows_that_are_no_samples_are_not_seen(pooled, draw, state_of):
    data = draw(8, 4, 5, 5)
    state = state_of(pooled, data, weight_bits=4, first_last_bits=4, size=8)
    state.stored.store.append(PROBE + "a", np.ones((8, 16, 24), np.float16))
    assert first_reader(state)._measure_output_metrics(torch.zeros(1, 36)) is None
    assert PROBE + "a" not in state.stored.store


@pytest.mark.parametrize("fault", [RuntimeError("no such kernel\nsecond line"), ValueError("bad sample")])
def test_whatever_torch_raises_leaves_the_model_without_probes(pooled, draw, state_of, monkeypatch, fault):
    data = draw(8, 4, 5, 5)
    state = state_of(pooled, data, weight_bits=4, first_last_bits=4)

    def fail(*_, **__):
        raise fault

    monkeypatch.setattr(torch.autograd, "grad", fail)
    assert probe(state, data) == (0, f"torch cannot run the model ({str(fault).partition(chr(10))[0]})")


def test_a_fault_of_our_own_is_not_taken_for_one_of_torch(pooled, draw, state_of, monkeypatch):
    data = draw(8, 4, 5, 5)
    state = state_of(pooled, data, weight_bits=4, first_last_bits=4)

    def fail(*_):
        raise TypeError("a fault of our own")

    monkeypatch.setattr(probes_module._ProbeComputer, "_mix", fail)
    with pytest.raises(TypeError, match="a fault of our own"):
        probe(state, data)


def test_too_little_memory_says_nothing_of_the_model(pooled, draw, state_of, monkeypatch):
    data = draw(8, 4, 5, 5)
    state = state_of(pooled, data, weight_bits=4, first_last_bits=4)

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.autograd, "grad", fail)
    with pytest.raises(torch.OutOfMemoryError):
        probe(state, data)


def test_a_torch_model_that_computes_other_numbers_gives_none(pooled, draw, state_of, monkeypatch):
    data = draw(8, 4, 5, 5)
    state = state_of(pooled, data, weight_bits=4, first_last_bits=4)
    monkeypatch.setattr(learn_module, "compare", lambda *_: 0.5)
    reason = "torch differs from onnxruntime by 5.0e-01 of the largest output, more than 1e-03"
    assert probe(state, data) == (0, reason)


def test_probes_that_would_fill_the_disk_are_left_out(pooled, draw, state_of, monkeypatch):
    data = draw(8, 4, 5, 5)
    state = state_of(pooled, data, weight_bits=4, first_last_bits=4)
    monkeypatch.setattr(probes_module, "MOST_STORED_BYTES", 1000)
    assert probe(state, data) == (0, "their probes would take 0 GB of disk, more than 0 GB")
    assert not [t for t in state.stored.store.names() if t.startswith(PROBE)]


def test_a_model_too_large_for_torch_has_none_and_says_why(pooled, draw, state_of, monkeypatch):
    data = draw(10, 4, 5, 5)
    state = state_of(pooled, data, weight_bits=4, first_last_bits=4)
    monkeypatch.setattr(probes_module, "MOST_MODEL_BYTES", 400)
    assert probe(state, data) == (0, "the model has 0 MB, more than the 0 MB for torch")


def test_samples_without_a_gradient_have_no_say(build, weigh, draw, state_of):
    text = "g (float[N, 4, 5, 5] x) => (float[N, 6, 5, 5] y) { [c] a = Conv (x, w, b)  [relu] y = Relu (a) }"
    data = draw(10, 4, 5, 5)
    data[::2] = 0
    state = state_of(
        build(text, w=weigh(6, 4, 1, 1), b=-np.ones(6, np.float32)), data, weight_bits=4, first_last_bits=4
    )
    assert probe(state, data) == (1, None)
    batch = state.stored.store.batch(PROBE + "a", 0)
    assert np.isfinite(batch).all() and not batch[::2].any() and batch[1::2].any(axis=(1, 2)).all()


def test_outputs_suffer_less_where_integers_are_chosen_for_them(pooled, draw, state_of, run):
    data = draw(64, 4, 5, 5) + draw(64, 4, 1, 1)
    errors = []
    for directions in (0, 4):
        state = state_of(pooled, data, weight_bits=4, first_last_bits=4, size=16)
        probe(state, data, directions)
        block = next(block for block in find_blocks(state.problem.model, state.problem.scheme) if block.layers)
        solve_block(state, block)
        outputs = [
            run(subgraph(block, ["y"]), data)[0] for subgraph in (state.float_subgraph, state.quantized_subgraph)
        ]
        errors.append(np.square(outputs[0] - outputs[1]).mean())
    assert errors[1] < 0.8 * errors[0]
