"""Layers of small blocks, solved on what the quantized layers before them give."""

import weakref
from dataclasses import replace

import numpy as np
import pytest

from onnxcalib.errors import DataError
from onnxcalib.graph.blocks import find_blocks
from onnxcalib.graph.embeddings import find_embeddings
from onnxcalib.graph.index import Index, constant, known_constant
from onnxcalib.numeric.prior import Prior
from onnxcalib.numeric.rounding import fake_quantize
from onnxcalib.quantization import column_choice as choice_module
from onnxcalib.quantization import columns as columns_module
from onnxcalib.quantization import solve as solve_module
from onnxcalib.quantization.column_choice import ColumnChoice
from onnxcalib.quantization.columns import ColumnReader
from onnxcalib.quantization.shortcuts import Shortcut
from onnxcalib.quantization.solve import round_embeddings, round_layers, solve_block, solve_widths
from onnxcalib.quantization.state import SubgraphRunner, run_block
from onnxcalib.runtime.session import Session
from onnxcalib.runtime.store import Store
from onnxcalib.spec import QuantScheme

CONV = "g (float[N, 4, 6, 6] x) => (float[N, 5, 6, 6] y) { [c] y = Conv <pads = [1, 1, 1, 1]> (x, w, b) }"
RESIDUAL = """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
    [stem] s = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)  [relu0] r = Relu (s)
    [inner] c = Conv <pads = [1, 1, 1, 1]> (r, w1, b1)  [relu1] d = Relu (c)
    [outer] e = Conv <pads = [1, 1, 1, 1]> (d, w2, b2)  %s  [relu2] y = Relu (z)
}"""
PLAIN = RESIDUAL % "[add] z = Add (e, r)"
PROJECTED = RESIDUAL % "[short] p = Conv (r, w3, b3)  [add] z = Add (p, e)"


@pytest.fixture
def conv(build, weigh):
    return build(CONV, w=weigh(5, 4, 3, 3), b=weigh(5))


def make_residual(build, weigh, text):
    weights = {f"w{i}": weigh(4, 4, 3, 3) for i in range(3)} | {f"b{i}": weigh(4) for i in range(3)}
    return build(text, **weights, **({"w3": weigh(4, 4, 1, 1), "b3": weigh(4)} if "w3" in text else {}))


def measure(state, block):
    """Error of the block's outputs from its quantized inputs, against the float model's: relative, and its mean."""
    sessions = {
        "float:": Session(state.float_subgraph(block, list(block.outputs))),
        "quantized:": Session(state.quantized_subgraph(block, list(block.outputs))),
    }
    found = {prefix: [] for prefix in sessions}
    for number in range(len(state.stored.sizes)):
        for prefix, session in sessions.items():
            found[prefix].append(session.run(state.stored.feeds(prefix, session.inputs, number))[block.outputs[0]])
    wanted, given = (np.concatenate(found[prefix]) for prefix in sessions)
    error = given - wanted
    return float(np.square(error).mean() / np.square(wanted).mean()), error.mean(axis=(0, *range(2, error.ndim)))


def change_prefix(state, tensor, change):
    """Let the quantized layers before ``tensor`` give ``change`` of what the float model does."""
    values = [state.stored.store.batch(f"float:{tensor}", number) for number in range(len(state.stored.sizes))]
    state.stored.store.drop(f"quantized:{tensor}")
    for value in values:
        state.stored.store.append(f"quantized:{tensor}", np.asarray(change(value), np.float32))


def first_block(state):
    return next(block for block in find_blocks(state.problem.model, state.problem.scheme) if block.layers)


def residual_block(state):
    """The block of the Add, its inputs and outputs stored as the float model has them."""
    stem, block = [b for b in find_blocks(state.problem.model, state.problem.scheme) if b.layers]
    session = Session(state.float_subgraph(stem, list(stem.outputs)))
    for number in range(len(state.stored.sizes)):
        value = session.run(state.stored.feeds("float:", session.inputs, number))[stem.outputs[0]]
        state.stored.store.append(f"float:{stem.outputs[0]}", value)
        state.stored.store.append(f"quantized:{stem.outputs[0]}", value)
    return block


@pytest.mark.parametrize(("bits", "most"), [(8, 1e-4), (4, 2e-2)])
def test_a_solved_layer_is_close_to_float_and_has_no_mean_error(conv, draw, state_of, bits, most):
    state = state_of(conv, draw(40, 4, 6, 6), weight_bits=bits, first_last_bits=bits, size=16)
    block = first_block(state)
    assert solve_block(state, block) == {}
    error, mean = measure(state, block)
    step = np.abs(state.layers["c"].grid.scale) * state.grids.activations["x"].scale
    assert error < most and (np.abs(mean) <= 0.51 * step).all()
    assert state.layers["c"].integers.dtype == np.int8 and state.layers["c"].grid.spec.bits == bits


def test_weights_make_up_for_what_the_prefix_lost(conv, draw, state_of):
    state = state_of(conv, draw(40, 4, 6, 6))
    block = first_block(state)
    change_prefix(state, "x", lambda x: 0.8 * x + 0.1)
    solve_block(state, block)
    error, mean = measure(state, block)
    round_layers(state)
    assert error < 0.1 * measure(state, block)[0] and np.abs(mean).max() < 1e-3


@pytest.mark.parametrize("text", [PLAIN, PROJECTED])
def test_the_last_layer_before_an_add_makes_up_for_the_shortcut_too(build, weigh, draw, state_of, monkeypatch, text):
    errors = []
    for other in (columns_module.find_shortcut, lambda *_: None):
        monkeypatch.setattr(columns_module, "find_shortcut", other)
        state = state_of(make_residual(build, weigh, text), draw(40, 4, 6, 6), weight_bits=4, activation_bits=4)
        block = residual_block(state)
        change_prefix(state, "r", lambda r: r * np.float32([0.7, 1.2, 1.0, 0.8]).reshape(4, 1, 1) + 0.1)
        solve_block(state, block)
        errors.append(measure(state, block)[0])
    assert errors[0] < 0.9 * errors[1]


def test_the_shortcut_is_made_up_for_once(build, weigh, draw, state_of):
    state = state_of(make_residual(build, weigh, PROJECTED), draw(8, 4, 6, 6))
    block = residual_block(state)
    waits = {layer.name: layer for layer in state.problem.scheme.layers}
    order = [name for name in ("inner", "outer", "short") if name in block.layers]
    found = {}
    for name in order:
        found[name] = columns_module.find_shortcut(state, block, waits[name])
        state.layers[name] = None
    assert found == {"inner": None, "outer": None, "short": Shortcut("e", on_grid=True)}


def test_a_product_without_a_bias_keeps_its_mean(build, draw, state_of):
    model = build("g (float[N, 5, 16] x) => (float[N, 5, 8] y) { [l] y = MatMul (x, w) }", w=draw(16, 8))
    state = state_of(model, np.abs(draw(40, 5, 16)) + 2, first_last_bits=4)
    block = first_block(state)
    solve_block(state, block)
    assert state.layers["l"].bias is None
    solved = measure(state, block)[0]
    round_layers(state)
    assert solved < 0.3 * measure(state, block)[0]


@pytest.mark.parametrize("rows", [0, 1])
def test_a_layer_that_no_row_reaches_is_rounded_and_says_why(build, draw, state_of, rows):
    model = build(
        """g (float[N, 4] x) => (float[M, 3] y) {
           [sum] s = ReduceSum <keepdims = 0> (x, one)  [mask] k = Greater (s, limit)
           [rows] d = Compress <axis = 0> (x, k)  [l] y = Gemm (d, w, b) }""",
        one=np.int64([1]), limit=np.float32(100), w=draw(4, 3), b=draw(3),
    )  # fmt: skip
    data = draw(24, 4)
    data[20 : 20 + rows] = 200  # in the last batch alone
    state = state_of(model, data)
    glue, block = find_blocks(state.problem.model, state.problem.scheme)
    session = Session(state.float_subgraph(glue, ["d"]))
    for number in range(len(state.stored.sizes)):
        value = session.run(state.stored.feeds("float:", session.inputs, number))["d"]
        for prefix in ("float:", "quantized:"):
            state.stored.keep(prefix, "d", value)
    reasons = solve_block(state, block)
    assert reasons.keys() == (set() if rows else {"l"})
    assert rows or reasons["l"].startswith("l: no sample gives it an input to solve on")
    assert np.array_equal(state.layers["l"].bias, weight_of(state, "b")) == (not rows)


def test_a_product_of_vectors_is_solved(build, draw, state_of):
    model = build("g (float[6] x) => (float[5] y) { [l] y = MatMul (x, w) }", w=draw(6, 5))
    state = state_of(model, draw(24))
    assert solve_block(state, first_block(state)) == {}
    assert state.layers["l"].integers.shape == (6, 5)


@pytest.mark.parametrize(
    ("text", "shape", "data"),
    [
        ("Conv <group = 4, pads = [1, 1, 1, 1]> (x, w, b)", (4, 1, 3, 3), (24, 4, 6, 6)),
        ("Conv <group = 2, strides = [2, 1], pads = [0, 1, 2, 1]> (x, w, b)", (6, 2, 3, 2), (24, 4, 6, 6)),
        ('Conv <auto_pad = "SAME_LOWER", strides = [2]> (x, w, b)', (5, 4, 3), (24, 4, 9)),
        ("Conv <dilations = [1, 2, 1]> (x, w, b)", (3, 4, 2, 2, 1), (16, 4, 4, 5, 3)),
        ("Gemm (x, w, b)", (4, 6), (60, 4)),
        ("Gemm <transB = 1> (x, w, b)", (6, 4), (60, 4)),
        ("MatMul (x, w)", (4, 6), (30, 3, 4)),
    ],
)
def test_every_kind_of_layer_is_solved(build, weigh, draw, state_of, text, shape, data):
    dims = ", ".join(["N", *map(str, data[1:])])
    channels = shape[1] if text.startswith(("Gemm (", "MatMul")) else shape[0]
    weights = {"w": weigh(*shape), "b": weigh(channels)} if "b)" in text else {"w": weigh(*shape)}
    model = build(f"g (float[{dims}] x) => (float y) {{ [l] y = {text} }}", **weights)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    state = state_of(model, draw(*data), weight_bits=8)
    block = first_block(state)
    assert solve_block(state, block) == {}
    assert measure(state, block)[0] < 1e-3


TRANSPOSED = [
    ("group = 1", 1),
    ("strides = [2, 2]", 1),
    ("strides = [2, 3], pads = [1, 0, 0, 2], dilations = [2, 1]", 1),
    ("strides = [2, 2], pads = [1, 1, 0, 1], output_padding = [1, 1]", 1),
    ("strides = [3, 3], output_padding = [2, 1], group = 2", 2),
    ('strides = [2, 2], auto_pad = "SAME_UPPER"', 1),
    ('strides = [2, 2], auto_pad = "SAME_LOWER", group = 4', 4),
    ("strides = [2, 2], output_shape = [12, 11]", 1),
    ("pads = [2, 2, 2, 2]", 1),
]


@pytest.mark.parametrize(("attributes", "groups"), TRANSPOSED)
def test_a_transposed_convolution_is_solved_with_less_loss_than_rounded(
    build, weigh, draw, state_of, attributes, groups
):
    model = build(
        f"g (float[N, 4, 6, 6] x) => (float[N, C, H, W] y) {{ [up] y = ConvTranspose <{attributes}> (x, w, b) }}",
        w=weigh(4, 8 // groups, 3, 3), b=weigh(8),
    )  # fmt: skip
    state = state_of(model, draw(40, 4, 6, 6) + 0.5, weight_bits=4, first_last_bits=4)
    block = first_block(state)
    assert solve_block(state, block) == {}
    error, mean = measure(state, block)
    assert state.layers["up"].grid.scale.shape == (8 // groups,) and state.layers["up"].bias.shape == (8,)
    round_layers(state)
    rounded, offset = measure(state, block)
    assert error < (0.95 if groups == 1 else 1) * rounded  # a stride of 3 leaves one tap, and nothing to make up for
    assert np.abs(mean).max() < 0.2 * np.abs(offset).max() + 1e-4


def test_a_transposed_convolution_of_an_unknown_window_is_rounded(build, weigh, draw, state_of, monkeypatch):
    model = build(
        "g (float[N, 4, 6, 6] x) => (float[N, 2, 7, 7] y) { [up] y = ConvTranspose (x, w, b) }",
        w=weigh(4, 2, 2, 2), b=weigh(2),
    )  # fmt: skip
    state = state_of(model, draw(8, 4, 6, 6))
    monkeypatch.setattr(choice_module, "output_sizes", lambda *_: (8, 8))
    (reason,) = solve_block(state, first_block(state)).values()
    assert reason.startswith("up: no sample gives it an input to solve on")
    assert state.layers["up"].integers.shape == (4, 2, 2, 2) and state.layers["up"].grid.scale.shape == (2,)
    np.testing.assert_array_equal(state.layers["up"].bias, weight_of(state, "b"))


def weight_of(state, name):
    return known_constant(state.problem.index, name)


def test_a_layer_of_too_many_inputs_is_rounded_and_says_why(conv, draw, state_of, monkeypatch):
    monkeypatch.setattr(solve_module, "MOST_INPUTS", 35)
    state = state_of(conv, draw(8, 4, 6, 6))
    assert solve_block(state, first_block(state)) == {"c": "c: 36 inputs a channel are too many to solve, 35 the most"}
    np.testing.assert_array_equal(state.layers["c"].bias, weight_of(state, "b"))


def test_rounding_alone_keeps_biases_and_the_nearest_weights(conv, draw, state_of):
    state = state_of(conv, draw(8, 4, 6, 6))
    round_layers(state)
    params = state.layers["c"]
    weight, scale = weight_of(state, "w"), params.grid.scale.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(params.integers * scale, fake_quantize(weight, scale, 0, params.grid.spec), rtol=1e-6)
    np.testing.assert_array_equal(params.bias, weight_of(state, "b"))


@pytest.mark.parametrize("solve", [True, False])
def test_a_channel_of_next_to_no_weights_keeps_its_bias(build, draw, state_of, solve):
    weight = np.abs(draw(3, 4, 3, 3))
    weight[1] *= 1e-12
    bias = np.float32([0.5, -300.0, 20.0])
    state = state_of(build(CONV.replace("5,", "3,"), w=weight, b=bias), np.abs(draw(16, 4, 6, 6)))
    block = first_block(state)
    if solve:
        solve_block(state, block)
    else:
        round_layers(state)
    _, mean = measure(state, block)
    assert abs(mean[1]) < 1e-3
    levels = np.abs(state.layers["c"].bias) / (state.layers["c"].grid.scale * state.grids.activations["x"].scale)
    assert levels.max() < 2**30


@pytest.mark.parametrize("size", [1, 7, 40])
def test_batches_do_not_change_the_result(conv, draw, state_of, size):
    data, layers = draw(40, 4, 6, 6), []
    for each in (16, size):
        state = state_of(conv, data, size=each)
        solve_block(state, first_block(state))
        layers.append(state.layers["c"])
    assert sum(state.stored.sizes) == 40 and len(state.stored.sizes) == -(-40 // size)
    assert np.abs(layers[0].integers.astype(int) - layers[1].integers).max() <= 1
    np.testing.assert_allclose(layers[0].grid.scale, layers[1].grid.scale, rtol=1e-2)
    np.testing.assert_allclose(layers[0].bias, layers[1].bias, atol=1e-3)


def test_columns_are_taken_in_parts_of_bounded_size(conv, draw, state_of, monkeypatch):
    seen = []
    unfold = choice_module.unfold
    monkeypatch.setattr(choice_module, "unfold", lambda *given, **fill: seen.append(unfold(*given, **fill)) or seen[-1])
    monkeypatch.setattr(choice_module, "UNFOLD_BYTES", 3 * 36 * 36 * 4)
    state = state_of(conv, draw(40, 4, 6, 6), size=16)
    solve_block(state, first_block(state))
    assert max(columns.shape[2] for columns in seen) <= 3 * 36
    assert sum(columns.shape[2] for columns in seen) == 40 * 36


def test_positions_are_sampled_where_there_are_more_than_needed(conv, draw, state_of, monkeypatch):
    seen = []
    unfold = choice_module.unfold
    monkeypatch.setattr(choice_module, "unfold", lambda *given, **fill: seen.append(unfold(*given, **fill)) or seen[-1])
    monkeypatch.setattr(choice_module, "LEAST_COLUMNS", 400)
    monkeypatch.setattr(choice_module, "COLUMNS_PER_INPUT", 10)
    state = state_of(conv, draw(40, 4, 6, 6))
    for bits, columns in ((4, 400), (8, 400 * choice_module.FULL_BITS_SHARE + 20)):
        (layer,) = state.problem.scheme.layers
        solve_widths(state, first_block(state), [layer], [replace(layer.weight_spec, bits=bits)])
        assert sum(each.shape[2] for each in seen) == columns
        seen.clear()
    solve_block(state, first_block(state))
    assert measure(state, first_block(state))[0] < 1e-3


def test_one_sample_in_four_is_held_out_and_chooses_the_prior(conv, draw, state_of, monkeypatch):
    counts = []

    def choose(fitted, held_out, _weight):
        counts.append((fitted.columns, held_out.columns))
        return Prior(0.1)

    monkeypatch.setattr(columns_module, "choose_prior", choose)
    for number in (40, 3):
        state = state_of(conv, draw(number, 4, 6, 6), size=16)
        solve_block(state, first_block(state))
    assert counts == [(30 * 36, 10 * 36)]


@pytest.mark.parametrize(("groups", "bits", "damped"), [(4, 4, 3.0), (1, 4, 0.0), (4, 8, 0.0)])
def test_held_out_samples_damp_convolutions_of_models_with_several_groups(
    build, weigh, draw, state_of, monkeypatch, groups, bits, damped
):
    text = f"""g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {{
        [c] a = Conv (x, w, b)  [t] t = Tanh (a)  [d] y = Conv <group = {groups}> (t, v, b)
    }}"""
    model = build(text, w=weigh(4, 4, 1, 1), b=weigh(4), v=weigh(4, 4 // groups, 1, 1))
    state = state_of(model, draw(16, 4, 6, 6), weight_bits=bits, first_last_bits=bits)
    solve_layer, given = columns_module.solve_layer, []
    monkeypatch.setattr(columns_module, "choose_damping", lambda *_: 3.0)
    monkeypatch.setattr(
        columns_module, "solve_layer", lambda *a, **k: given.append(k["damping"]) or solve_layer(*a, **k)
    )
    block = next(each for each in find_blocks(model, state.problem.scheme) if "c" in each.layers)
    assert solve_block(state, block) == {}
    assert given[0] == damped


@pytest.mark.parametrize("size", [16, 10])
def test_views_follow_the_samples_and_are_held_out_with_them(conv, draw, state_of, monkeypatch, size):
    found = []
    split = ColumnChoice.split

    def watch(self, number, first, shape):
        for chunk in split(self, number, first, shape):
            found.extend(
                (first + row, number >= len(chunk.rows) - chunk.held_out) for number, row in enumerate(chunk.rows)
            )
            yield chunk

    monkeypatch.setattr(ColumnChoice, "split", watch)
    data = draw(42, 4, 6, 6)
    state = state_of(conv, data, size=size, axes=(2, 3), views=2)
    assert state.stored.passes == 3 and sum(state.stored.sizes) == 3 * 42
    stored = state.stored.store.rows("float:x", range(3 * 42))
    assert np.array_equal(stored[:42], data) and np.array_equal(
        stored, state.stored.store.rows("quantized:x", range(3 * 42))
    )
    views = stored[42:].reshape(2, 42, 4, 6, 6)
    assert not np.array_equal(views[0], data) and not np.array_equal(views[0], views[1])
    assert all(set(view.flat) <= set(image.flat) for pass_ in views for view, image in zip(pass_, data, strict=True))
    solve_block(state, first_block(state))
    held_out = {index for index, is_held_out in found if is_held_out}
    assert held_out == {index for index in range(3 * 42) if index % 42 % 4 == 3}


@pytest.mark.parametrize(("axes", "views"), [(None, 2), ((2, 3), 0)])
def test_there_are_no_views_of_what_is_no_image_or_where_none_are_asked_for(conv, draw, state_of, axes, views):
    state = state_of(conv, draw(10, 4, 6, 6), axes=axes, views=views)
    assert state.stored.passes == 1 and sum(state.stored.sizes) == 10


def test_nothing_is_kept_per_sample(conv, draw, state_of, monkeypatch):
    alive, most = [], []
    read = Store.batch

    def watch(self, name, number):
        value = read(self, name, number)
        alive.append(weakref.ref(value))
        most.append(sum(ref() is not None for ref in alive))
        return value

    state = state_of(conv, draw(60, 4, 6, 6), size=4)
    monkeypatch.setattr(Store, "batch", watch)
    solve_block(state, first_block(state))
    assert len(most) >= 30 and max(most) <= 5


def test_columns_are_what_a_layer_reads_behind_both_grids(build, weigh, draw, state_of, monkeypatch):
    seen = []
    add = columns_module.MomentSum.add
    monkeypatch.setattr(
        columns_module.MomentSum, "add", lambda self, x, y: seen.append(x.flatten(2).numpy()) or add(self, x, y)
    )
    state = state_of(make_residual(build, weigh, PLAIN), draw(8, 4, 6, 6), weight_bits=4, activation_bits=4)
    block = residual_block(state)
    state.grids.requantized["r"] = replace(
        state.grids.requantized["r"], scale=np.float32(1.3) * state.grids.requantized["r"].scale
    )
    solve_block(state, block)
    r = state.stored.store.batch("quantized:r", 0)
    for grid in (state.grids.activations["r"], state.grids.requantized["r"]):
        r = fake_quantize(r, grid.scale, grid.zero_point, grid.spec)
    # The middle of the kernel reads every position once.
    middle = np.concatenate([columns[0, 4::9] for columns in seen[:2]], axis=1)
    np.testing.assert_allclose(np.sort(middle, axis=1), np.sort(np.moveaxis(r, 1, 0).reshape(4, -1), axis=1), rtol=1e-6)


ADDED = (
    "g (float[N, 5, 6] x) => (float[N, 5, 4] y) { [mul] t = MatMul (x, w)  [add] y = Add (t, b)  [tanh] z = Tanh (y) }"
)


def test_the_bias_behind_a_matmul_takes_up_the_mean_error(build, weigh, draw, state_of):
    state = state_of(build(ADDED, w=weigh(6, 4), b=weigh(4)), draw(40, 5, 6), weight_bits=4, first_last_bits=4)
    block = first_block(state)
    change_prefix(state, "x", lambda x: x + 0.2)
    solve_block(state, block)
    wanted, given = (
        np.concatenate(
            [Session(subgraph).run(state.stored.feeds(prefix, ["x"], n))["y"] for n in range(len(state.stored.sizes))]
        )
        for prefix, subgraph in (
            ("float:", state.float_subgraph(block, ["y"])),
            ("quantized:", state.quantized_subgraph(block, ["y"])),
        )
    )
    assert np.abs((given - wanted).mean((0, 1))).max() < 1e-3
    assert np.square(given - wanted).mean() < 0.02 * np.square(wanted).mean()


def test_a_shortcut_that_is_read_in_float_is_made_up_for_as_it_is(build, weigh, draw, state_of):
    text = """g (float[N, 6] x) => (float[N, 6] y) {
        [norm] h = Tanh (x)  [one] t = MatMul (h, w)  [add] u = Add (t, b)  [join] y = Add (u, h)
    }"""
    state = state_of(build(text, w=weigh(6, 6), b=weigh(6)), draw(40, 6))
    block = next(b for b in find_blocks(state.problem.model, state.problem.scheme) if b.layers)
    for prefix in ("float:", "quantized:"):
        for number in range(len(state.stored.sizes)):
            state.stored.store.append(f"{prefix}h", np.tanh(state.stored.store.batch("float:x", number)))
    reader = ColumnReader(state, block, state.problem.scheme.layers[:1], (6, 6))
    assert reader.shortcut.tensor == "h" and not reader.shortcut.on_grid
    state.grids.activations["h"] = replace(state.grids.activations["h"], scale=np.float32(0.5))
    part, _, target = next(reader._read_columns(0, 0))
    wanted = reader.reference.run(0)["u"][part.rows]
    assert np.allclose(target[0].T.numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])  # a head with zero points gives them to its table
def test_layers_behind_an_embedding_are_solved_on_what_its_integers_give(build, weigh, draw, state_of, symmetric):
    text = "g (int64[N, 5] ids) => (float[N, 5, 4] y) { [look] e = Gather (table, ids)  [mul] y = MatMul (e, w) }"
    ids = np.random.default_rng(0).integers(0, 500, (40, 5))
    state = state_of(build(text, table=draw(500, 64), w=weigh(64, 4)), ids, activation_bits=32, embedding_bits=4)
    (table,) = find_embeddings(state.problem.model, 4)
    table = replace(table, weight_spec=replace(table.weight_spec, symmetric=symmetric))
    scheme = replace(state.problem.scheme, embeddings=(table,))
    state.problem = replace(state.problem, scheme=scheme)
    state.layers |= round_embeddings(state.problem.index, state.problem.scheme)
    params = state.layers["look"]
    assert params.integers.shape == (500, 64) and params.grid.scale.shape == (500, 2)
    table = constant(state.problem.index, "table")
    given = (params.integers - params.grid.zero_point.repeat(32, 1)) * params.grid.scale.repeat(32, 1)
    assert np.square(given - table).mean() < 0.02 * np.square(table).mean()
    glue, block = find_blocks(state.problem.model, state.problem.scheme)
    found = SubgraphRunner(state, glue, ["e"], quantized=True).run(0)["e"]
    assert np.allclose(found, given[ids[:8]], atol=1e-6) and block.layers == ("mul",)


def test_the_parts_of_a_large_table_are_rounded_as_the_whole(build, draw, monkeypatch):
    model = build("g (int64[N] ids) => (float[N, 40] y) { [look] y = Gather (table, ids) }", table=draw(500, 40))
    scheme = QuantScheme((), {}, embeddings=find_embeddings(model, 8))
    whole = round_embeddings(Index(model.graph), scheme)["look"]
    monkeypatch.setattr(solve_module, "TABLE_BYTES", 3 * 160)
    parts = round_embeddings(Index(model.graph), scheme)["look"]
    assert np.array_equal(whole.integers, parts.integers) and np.array_equal(whole.grid.scale, parts.grid.scale)


@pytest.mark.parametrize("trans", [0, 1])
def test_blocks_of_a_gemm_are_along_its_inputs_however_it_is_stored(build, weigh, draw, state_of, trans):
    weight = weigh(40, 6).T.copy() if trans else weigh(40, 6)
    text = f"g (float[N, 40] x) => (float[N, 6] y) {{ [fc] y = Gemm <transB = {trans}> (x, w, b) }}"
    state = state_of(
        build(text, w=weight, b=weigh(6)), draw(64, 40), weight_bits=4, first_last_bits=4, activation_bits=32
    )
    block = first_block(state)
    assert solve_block(state, block) == {}
    params = state.layers["fc"]
    assert params.integers.shape == weight.shape and params.grid.scale.shape == ((6, 2) if trans else (2, 6))
    assert measure(state, block)[0] < 0.02


def test_values_that_are_not_finite_are_a_fault_of_the_data_where_no_range_is_measured(build, weigh, draw, state_of):
    text = "g (float[N, 6] x) => (float[N, 4] y) { [log] h = Log (x)  [mul] y = MatMul (h, w) }"
    state = state_of(build(text, w=weigh(6, 4)), draw(40, 6), activation_bits=32)
    block = next(b for b in find_blocks(state.problem.model, state.problem.scheme) if b.layers)
    for prefix in ("float:", "quantized:"):
        for number in range(len(state.stored.sizes)):
            state.stored.store.append(f"{prefix}h", np.full((state.stored.sizes[number], 6), np.nan, np.float32))
    with pytest.raises(DataError, match="tensor h: layer mul reads or gives values that are not finite"):
        solve_block(state, block)


def test_a_layer_of_values_whose_squares_overflow_is_rounded(build, weigh, draw, state_of):
    text = "g (float[N, 6] x) => (float[N, 4] y) { [mul] y = MatMul (x, w) }"
    state = state_of(build(text, w=weigh(6, 4)), draw(40, 6) * np.float32(1e25), weight_bits=4, first_last_bits=4)
    reasons = solve_block(state, first_block(state))
    assert "squares" in reasons["mul"] and state.layers["mul"].integers.any()


LAYERS = {
    "depthwise": ("[c] y = Conv <group = 4> (x, w, b)", (4, 1, 3, 3), 4),
    "groups": ("[c] y = Conv <group = 2> (x, w, b)", (6, 2, 3, 3), 6),
    "transposed": ("[c] y = ConvTranspose <group = 2> (x, w, b)", (4, 3, 2, 2), 6),
    "gemm": ("[c] y = Gemm (x, w, b)", (12, 5), 5),
    "turned gemm": ("[c] y = Gemm <transB = 1> (x, w, b)", (5, 12), 5),
    "matmul": ("[c] m = MatMul (x, w)  y = Add (m, b)", (12, 5), 5),
}


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_is_solved_on_scales_that_its_spec_restricts(
    build, weigh, draw, state_of, restrict, kind, channels
):
    nodes, shape, count = LAYERS[kind]
    given = (200, 4, 6, 6) if len(shape) == 4 else (200, 12)
    model = build(
        f"g (float{['N', *given[1:]]} x) => (float y) {{ {nodes} }}".replace("'", ""), w=weigh(*shape), b=weigh(count)
    )
    state = state_of(model, draw(*given), size=64, restrict=lambda scheme: restrict(scheme, channels=channels))
    block = first_block(state)
    (layer,) = state.problem.scheme.layers
    assert solve_block(state, block) == {}
    solved, grid = measure(state, block)[0], state.layers["c"].grid
    assert grid.scale.shape == ((shape[layer.axis],) if channels else ()) and grid.spec == layer.weight_spec
    assert np.all(np.log2(grid.scale) % 1 == 0)
    round_layers(state)
    assert state.layers["c"].grid.scale.shape == grid.scale.shape
    assert solved <= 1.01 * measure(state, block)[0] and solved < 2e-3


def test_a_dynamic_layer_is_solved_on_its_input_as_it_rounds_each_row(build, weigh, state_of):
    """One row has a value that is far out, so that its other values are rounded coarsely."""
    model = build("g (float[N, 6] x) => (float[N, 5] y) { [fc] y = Gemm (x, w, b) }", w=weigh(6, 5), b=weigh(5))
    data = np.random.default_rng(3).normal(size=(64, 6)).astype(np.float32)
    data[40, 2] = 60.0
    state = state_of(model, data, size=32, activations="dynamic")
    (block,) = (each for each in find_blocks(state.problem.model, state.problem.scheme) if each.layers)
    run_block(state, block, set(block.outputs), quantized=False)
    reader = ColumnReader(state, block, state.problem.scheme.layers, (6, 5))
    read = [columns for number in (0, 1) for _, columns, _ in reader._read_columns(number, 32 * number)]
    for number, columns in enumerate(read):
        batch = data[32 * number : 32 * number + 32]
        peaks = np.abs(batch).max(1, keepdims=True)
        wanted = np.rint(batch / peaks / np.float32(1 / 127)) * np.float32(1 / 127) * peaks
        given = columns[0].numpy().T  # those held out come last
        np.testing.assert_array_equal(given[np.lexsort(given.T)], wanted[np.lexsort(wanted.T)])
    assert solve_block(state, block) == {}
    error, _ = measure(state, block)
    solved = state.layers["fc"]
    round_layers(state)
    assert error < measure(state, block)[0] and solved.grid.spec.pair_limit == 128
