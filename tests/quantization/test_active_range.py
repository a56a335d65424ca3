import sys

import numpy as np
import pytest

from onnxcalib.graph.blocks import find_blocks
from onnxcalib.quantization import columns as columns_module
from onnxcalib.quantization.active_range import find_active_end
from onnxcalib.quantization.solve import solve_block
from onnxcalib.runtime.session import Session

MODEL = """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
    %s  [t] z = Tanh (r)  [last] y = Conv <group = 4, pads = [1, 1, 1, 1]> (z, d, b)
}"""
FOUR = {"weight_bits": 4, "activation_bits": 4, "first_last_bits": 4}
THREE = {"weight_bits": 3, "activation_bits": 8, "first_last_bits": 3}


@pytest.fixture
def state_behind(build, weigh, draw, state_of):
    """Makes the state of a model whose first layers are these; half of its images bring their outputs far below 0."""

    def make(layers, **settings):
        values = {"w": weigh(4, 4, 1, 1), "b": weigh(4), "d": weigh(4, 1, 3, 3)}
        model = build(MODEL % layers, **values, low=np.float32(0), six=np.float32(6), one=np.float32(1))
        images = draw(24, 4, 6, 6)
        weights = np.diag(values["d"].sum((1, 2, 3))) if "group" in layers else values["w"][..., 0, 0]
        images[::2] -= 6 * np.linalg.solve(weights, np.ones(4))[:, None, None].astype(np.float32)
        return state_of(model, images, **{**FOUR, **settings})

    return make


def find_end(state):
    layer = state.problem.layers["c"]
    return find_active_end(state, layer, tuple(state.problem.index.initializers[layer.weight].dims))


@pytest.mark.parametrize(
    "layers",
    [
        "[c] a = Conv (x, w, b)  [r] r = Relu (a)",
        "[c] a = Conv (x, w, b)  [r] r = Clip (a, low, six)",
        "[c] a = Conv <group = 4, pads = [1, 1, 1, 1]> (x, d, b)  [r] r = Relu (a)",
    ],
)
def test_the_active_range_ends_with_the_grid_behind_the_activation(state_behind, layers):
    state = state_behind(layers)
    grid = state.grids.activations["r"]
    assert find_end(state) == pytest.approx(float(grid.scale) * (grid.spec.qmax - int(grid.zero_point)))


def test_a_clip_ends_it_before_a_wider_grid_does(state_behind):
    assert find_end(state_behind("[c] a = Conv (x, w, b)  [r] r = Clip (a, low, one)", **THREE)) <= 1


@pytest.mark.parametrize(
    ("layers", "settings"),
    [
        ("[c] a = Conv (x, w, b)  [r] r = Tanh (a)", {}),
        ("[c] a = Conv (x, w, b)  [r] r = Clip (a, one, six)", {}),
        ("[c] a = Conv (x, w, b)  [q] q = Relu (a)  [r] r = Add (a, q)", {}),
        ("[c] a = Conv (x, w, b)  [r] r = Relu (a)", {"weight_bits": 8, "first_last_bits": 8}),
        ("[c] a = Conv (x, w, b)  [r] r = Relu (a)", {"activation_bits": 32}),
    ],
)
def test_other_layers_have_none(state_behind, layers, settings):
    assert find_end(state_behind(layers, **settings)) is None


def test_without_layers_of_several_groups_none_has_one(state_behind, monkeypatch):
    monkeypatch.setattr(
        sys.modules[__name__],
        "MODEL",
        MODEL.replace("Conv <group = 4, pads = [1, 1, 1, 1]> (z, d, b)", "Conv (z, w, b)"),
    )
    assert find_end(state_behind("[c] a = Conv (x, w, b)  [r] r = Relu (a)")) is None


def test_a_layer_with_too_many_inputs_has_none(state_behind, monkeypatch):
    monkeypatch.setattr("onnxcalib.quantization.active_range.MOST_VALUES", 63)
    assert find_end(state_behind("[c] a = Conv (x, w, b)  [r] r = Relu (a)")) is None


def test_what_an_activation_lets_through_is_nearer_to_the_float_model(state_behind, monkeypatch):
    state = state_behind("[c] a = Conv (x, w, b)  [r] r = Relu (a)", **THREE)
    end, errors = find_end(state), []
    block = next(each for each in find_blocks(state.problem.model, state.problem.scheme) if "c" in each.layers)
    feeds = state.stored.feeds("float:", block.inputs, 0)
    for found in (find_active_end, lambda *_: None):
        monkeypatch.setattr(columns_module, "find_active_end", found)
        assert solve_block(state, block) == {}
        sessions = state.float_subgraph(block, ["r"]), state.quantized_subgraph(block, ["r"])
        wanted, given = (np.minimum(Session(each).run(feeds)["r"], end) for each in sessions)
        errors.append(np.square(wanted - given).mean())
    assert errors[0] < 0.8 * errors[1]
