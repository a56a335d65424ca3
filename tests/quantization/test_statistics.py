"""Statistics tuning: scales and biases move, integers do not."""

from dataclasses import replace

import numpy as np
import pytest

from onnxcalib.graph.layer_params import LayerParams
from onnxcalib.numeric.ranges import make_grid
from onnxcalib.numeric.statistics import Affine
from onnxcalib.quantization import statistics
from onnxcalib.quantization.solve import round_layers
from onnxcalib.quantization.statistics import apply_affine, tune_statistics
from onnxcalib.runtime.session import Session
from onnxcalib.spec import QParams, QuantSpec


@pytest.fixture
def rounded(state_of, residual, draw):
    state = state_of(residual, draw(256, 3, 8, 8), weight_bits=4, first_last_bits=4)
    round_layers(state)
    return state


def spoil(state):
    """Layers whose outputs are off by a factor and a shift in each channel."""
    for name, params in state.layers.items():
        scale = params.grid.scale * np.linspace(0.6, 1.5, len(params.grid.scale), dtype=np.float32)
        bias = params.bias + np.linspace(-1, 1, len(scale))
        state.layers[name] = replace(params, grid=replace(params.grid, scale=scale), bias=bias)


def error(state, feeds):
    from onnxcalib.graph.emit import emit_qdq

    model = emit_qdq(state.problem.model, state.problem.scheme, state.grids, state.layers, keep_outputs=False)
    given, wanted = Session(model).run(feeds)["y"], Session(state.problem.model).run(feeds)["y"]
    return float(np.square(given - wanted).sum() / np.square(wanted).sum())


def test_outputs_come_near_to_the_float_model_again(rounded, draw):
    feeds = {"x": draw(64, 3, 8, 8)}
    plain = error(rounded, feeds)
    spoil(rounded)
    spoilt = error(rounded, feeds)
    tune_statistics(rounded)
    assert error(rounded, feeds) < 0.1 * spoilt and error(rounded, feeds) < 2 * plain


def test_a_layer_with_many_values_of_each_channel_is_fitted_on_some_of_the_samples_spread_evenly(
    rounded, draw, monkeypatch
):
    feeds, added = {"x": draw(64, 3, 8, 8)}, []
    spoil(rounded)
    spoilt = error(rounded, feeds)
    monkeypatch.setattr(statistics, "ENOUGH_VALUES", 5 * 8 * 64)  # of 32 batches of 8 samples of 8x8 values
    add = statistics.ChannelTally.add
    monkeypatch.setattr(
        statistics.ChannelTally, "add", lambda tally, *rest: (added.append(tally), add(tally, *rest))[1]
    )
    tune_statistics(rounded)
    assert min(added.count(tally) for tally in added) == 5
    assert error(rounded, feeds) < 0.1 * spoilt


def test_of_a_layer_of_images_evenly_spread_positions_are_compared(rounded, draw, monkeypatch):
    feeds, seen = {"x": draw(64, 3, 8, 8)}, []
    spoil(rounded)
    spoilt = error(rounded, feeds)
    monkeypatch.setattr(statistics, "ENOUGH_VALUES", 8 * 20)  # 20 of 64 positions in a batch of 8 samples
    add = statistics.ChannelTally.add
    monkeypatch.setattr(
        statistics.ChannelTally, "add", lambda tally, *rest: (seen.append(rest[0].shape), add(tally, *rest))[1]
    )
    tune_statistics(rounded)
    assert {shape[2:] for shape in seen if len(shape) > 2} == {(22,)}  # each third, which meets every column
    assert error(rounded, feeds) < 0.1 * spoilt


def test_integers_and_grids_of_activations_stay(rounded):
    spoil(rounded)
    before, grids = dict(rounded.layers), dict(rounded.grids.activations)
    tune_statistics(rounded)
    assert rounded.grids.activations == grids
    for name, params in rounded.layers.items():
        assert np.array_equal(params.integers, before[name].integers)
        assert not np.array_equal(params.grid.scale, before[name].grid.scale)


SPEC = QuantSpec(bits=8, signed=True, symmetric=True, axis=0)
INPUT = make_grid(0.0, 1.0, QuantSpec(bits=8, signed=False, symmetric=False))


def layer(scale, bias):
    scale = np.float32(scale)
    grid = QParams(scale, np.zeros(len(scale), np.int32), SPEC)
    return LayerParams(np.ones((len(scale), 2), np.int8), grid, bias)


def test_a_layer_takes_in_the_map():
    fit = Affine(np.array([2.0, 0.5]), np.array([1.0, -1.0]), np.array([0.25, 3.0]))
    params = layer([0.1, 0.2], np.array([0.5, 1.5]))
    found = apply_affine(params, fit, INPUT)
    x = np.array([0.3, 0.7])
    before = (params.integers * params.grid.scale[:, None]) @ x + params.bias
    after = (found.integers * found.grid.scale[:, None]) @ x + found.bias
    assert after == pytest.approx(fit.target + fit.gain * (before - fit.centre), rel=1e-6)


def test_a_layer_without_a_bias_gets_one_only_if_its_mean_moves():
    still = Affine(np.ones(2) * 2, np.zeros(2), np.zeros(2))
    assert apply_affine(layer([0.1, 0.2], None), still, INPUT).bias is None
    moved = replace(still, target=np.array([0.0, 1.0]))
    assert apply_affine(layer([0.1, 0.2], None), moved, INPUT).bias == pytest.approx([0, 1])


def test_a_scale_stays_above_what_the_bias_needs():
    params = layer([1e-9], np.array([1.0]))
    found = apply_affine(params, Affine(np.array([0.5]), np.zeros(1), np.zeros(1)), INPUT)
    assert found.bias[0] / (found.grid.scale[0] * INPUT.scale) <= 2.0**29 * 1.01


def test_a_model_with_a_branch_of_no_layers_is_tuned_through(state_of, build, weigh, draw):
    text = """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y, float[N, 4, 6, 6] z) {
        [n] n = Neg (x)  [c] a = Conv (n, w, b)  [m] y = Mul (a, x)  [q] z = Sqrt (x)
    }"""
    state = state_of(
        build(text, w=weigh(4, 4, 1, 1), b=weigh(4)), np.abs(draw(8, 4, 6, 6)), first_last_bits=4, weight_bits=4
    )
    round_layers(state)
    before = state.layers["c"]
    tune_statistics(state)
    assert np.array_equal(state.layers["c"].integers, before.integers)
    assert not np.array_equal(state.layers["c"].bias, before.bias)


def test_each_layer_is_run_with_what_follows_it(rounded, monkeypatch):
    parts = []
    run = statistics.run_block

    def record(state, part, later, *, quantized):
        parts.append(part)
        run(state, part, later, quantized=quantized)

    monkeypatch.setattr(statistics, "run_block", record)
    tune_statistics(rounded)
    assert [len(part.layers) for part in parts] == [1] * len(rounded.problem.layers)
    assert sorted(name for part in parts for name in part.nodes) == sorted(
        n.name for n in rounded.problem.model.graph.node
    )


@pytest.mark.parametrize("bias", ["", ", b"])
def test_groups_of_a_transposed_convolution_share_their_scales_and_keep_them(state_of, build, weigh, draw, bias):
    text = f"g (float[N, 4, 6, 6] x) => (float[N, 6, 7, 7] y) {{ [t] y = ConvTranspose <group = 2> (x, w{bias}) }}"
    weights = {"w": weigh(4, 3, 2, 2), **({"b": weigh(6)} if bias else {})}
    state = state_of(build(text, **weights), draw(64, 4, 6, 6), weight_bits=4, first_last_bits=4)
    round_layers(state)
    before = state.layers["t"]
    tune_statistics(state)
    assert np.array_equal(state.layers["t"].grid.scale, before.grid.scale) and state.layers["t"].bias.shape == (6,)


@pytest.mark.parametrize("axis", [0, 1])
def test_all_blocks_of_a_channel_take_in_its_gain(axis):
    fit = Affine(np.array([2.0, 0.5]), np.zeros(2), np.zeros(2))
    spec = QuantSpec(bits=4, signed=True, symmetric=True, axis=axis, block=2)
    scale = np.float32([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    scale = scale if axis == 0 else scale.T
    grid = QParams(scale, np.zeros(scale.shape, np.int32), spec)
    found = apply_affine(LayerParams(np.ones((2, 6) if axis == 0 else (6, 2), np.int8), grid, None), fit, None)
    wanted = scale * (np.float32([[2], [0.5]]) if axis == 0 else np.float32([2, 0.5]))
    assert found.grid.scale == pytest.approx(wanted) and found.bias is None
