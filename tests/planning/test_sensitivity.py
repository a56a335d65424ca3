"""Sets of layers, and what each loses and costs at its candidates."""

import tempfile
from functools import partial

import numpy as np
import pytest
import torch

from onnxcalib.config import LayerConfig, QuantizeConfig
from onnxcalib.data import open_calibration
from onnxcalib.errors import ConfigError
from onnxcalib.graph.emit import emit_qdq
from onnxcalib.graph.load import inputs_of, load_model
from onnxcalib.graph.names import Selection
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.graph.stream import model_bytes
from onnxcalib.numeric.divergence import Divergence
from onnxcalib.planning.sensitivity import (
    Survey,
    UniformScheme,
    find_sets,
    measure_sets,
)
from onnxcalib.quantization import solve as solve_step
from onnxcalib.quantization.batches import Batches
from onnxcalib.quantization.calibrate import choose_grids, collect_statistics
from onnxcalib.quantization.columns import ColumnReader
from onnxcalib.quantization.padding_mask import PaddingMask
from onnxcalib.quantization.rewrite import rewrite
from onnxcalib.runtime.cache import Cache
from onnxcalib.runtime.session import Session
from onnxcalib.spec import Candidate

EIGHT, FOUR, LIGHT = Candidate(8, 8), Candidate(4, 4), Candidate(4, 8)
WIDE = [EIGHT, LIGHT, FOUR]
NET = """g (float[N, 3, 8, 8] x) => (float[N, 4, 1, 1] y) {
    [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)  [r0] r = Relu (a)
    [main] c = Conv <pads = [1, 1, 1, 1]> (r, w1, b1)  [side] d = Conv (r, w2, b2)
    [add] s = Add (c, d)  [r1] t = Relu (s)
    [deep] e = Conv <pads = [1, 1, 1, 1]> (t, w3, b3)  [r2] f = Relu (e)
    [pool] g = GlobalAveragePool (f)  [head] y = Conv (g, w4, b4)
}"""


@pytest.fixture
def net(build, weigh):
    shapes = [(6, 3, 3, 3), (6, 6, 3, 3), (6, 6, 1, 1), (5, 6, 3, 3), (4, 5, 1, 1)]
    weights = {f"w{i}": weigh(*shape) for i, shape in enumerate(shapes)}
    return build(NET, **weights, **{f"b{i}": weigh(shape[0]) for i, shape in enumerate(shapes)})


def measure(model, data, candidates=(EIGHT, LIGHT, FOUR), reads_float=(), **settings):
    """The prepared model, grids by candidate, samples, and what was measured; the layers heard of as they were done."""
    alone = Selection(layers=tuple((name, LayerConfig(activation_bits=32)) for name in reads_float))
    names = tuple(str(c) for c in candidates)
    config = QuantizeConfig(effort="fast", candidates=names, max_size="1", **settings)
    samples = open_calibration(data, inputs_of(model), config.data)
    prepared = rewrite(load_model(model), config).model
    make = partial(make_scheme, prepared, first_last_bits=config.first_last_bits, selection=alone)
    plans = {
        c: make(weight_bits=c.weight_bits, activation_bits=c.activation_bits)
        for c in dict.fromkeys((EIGHT, *candidates))
    }
    padding = PaddingMask(prepared)
    histograms = collect_statistics(prepared, list(plans[EIGHT].activations), samples, padding).histograms
    grids = {c: UniformScheme(scheme, choose_grids(scheme, histograms, config)) for c, scheme in plans.items()}
    heard = []
    survey = Survey(prepared, padding, grids, Batches(samples, 16), config, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        found = measure_sets(survey, Cache("test", folder), tell=heard.append)
    return prepared, grids, samples, found, heard


def test_layers_that_read_one_tensor_are_a_set(net, draw):
    _, grids, _, found, heard = measure(net, draw(8, 3, 8, 8))
    assert [each.layers for each in found.sets] == [("stem",), ("main", "side"), ("deep",), ("head",)]
    assert sorted(find_sets(grids[EIGHT].scheme)) == sorted(list(each.layers) for each in found.sets)
    assert heard == ["stem", "main", "side", "deep", "head"]


def test_first_and_last_have_their_own_bits_alone(net, draw):
    _, _, _, found, _ = measure(net, draw(8, 3, 8, 8), candidates=(LIGHT, FOUR))
    assert [list(each.losses) for each in found.sets] == [[EIGHT], WIDE, WIDE, [EIGHT]]
    _, _, _, found, _ = measure(net, draw(8, 3, 8, 8), candidates=(LIGHT, FOUR), first_last_bits=4)
    assert [list(each.losses) for each in found.sets] == [WIDE[1:], WIDE, WIDE, WIDE[1:]]


def test_a_layer_that_reads_float_is_a_set_of_its_own_that_has_the_weights_of_each_candidate(net, draw):
    _, _, _, found, _ = measure(net, draw(8, 3, 8, 8), reads_float=("side",))
    sets = {each.layers: each for each in found.sets}
    assert [*sets] == [("stem",), ("main",), ("side",), ("deep",), ("head",)]
    side = sets["side",]
    assert [*side.losses] == [*sets["main",].losses] == WIDE
    assert 0 < side.losses[EIGHT] < side.losses[LIGHT] == side.losses[FOUR]  # of the same weights
    assert side.costs[EIGHT].bytes > side.costs[LIGHT].bytes and side.costs[LIGHT] == side.costs[FOUR]
    assert [found.params["side"][c].grid.spec.bits for c in side.losses] == [8, 4, 4]
    assert side.losses[EIGHT] < sets["main",].losses[EIGHT]


def test_a_loss_is_the_divergence_of_the_model_with_one_set_quantized(net, draw):
    prepared, grids, samples, found, _ = measure(net, draw(40, 3, 8, 8))
    wanted = Session(prepared).run(samples.read(range(40)))["y"]
    for each in found.sets[1:3]:
        for candidate, loss in each.losses.items():
            own = grids[candidate]
            layers = tuple(k for k in own.scheme.layers if k.name in each.layers)
            tensors = {k.input for k in layers}
            scheme = type(own.scheme)(
                layers,
                {t: s for t, s in own.scheme.activations.items() if t in tensors},
                {t: s for t, s in own.scheme.requantized.items() if t in tensors},
            )
            params = {k.name: found.params[k.name][candidate] for k in layers}
            model = emit_qdq(prepared, scheme, own.grids, params)
            divergence = Divergence()
            divergence.add(wanted, Session(model).run(samples.read(range(40)))["y"])
            assert loss == pytest.approx(divergence.value, rel=1e-3)
        assert each.losses[EIGHT] < each.losses[LIGHT] < each.losses[FOUR]


def test_costs_are_bytes_and_products_of_one_sample(net, draw):
    _, _, _, found, _ = measure(net, draw(8, 3, 8, 8))
    tied, deep = found.sets[1], found.sets[2]
    assert tied.macs == 64 * 6 * 6 * 10 and deep.macs == 64 * 5 * 6 * 9
    assert deep.costs[FOUR].bops == 16 * deep.macs and deep.costs[LIGHT].bops == 32 * deep.macs
    saved = deep.costs[EIGHT].bytes - deep.costs[LIGHT].bytes
    assert 5 * 6 * 9 // 2 - 200 < saved < 5 * 6 * 9 // 2


def test_models_that_differ_in_one_set_differ_by_its_bytes(net, draw):
    prepared, grids, _, found, _ = measure(net, draw(8, 3, 8, 8), candidates=(EIGHT, LIGHT))
    own = grids[EIGHT]
    sizes = []
    for candidate in (EIGHT, LIGHT):
        eight, other = own.scheme.layers, grids[candidate].scheme.layers
        layers = tuple(y if y.name == "deep" else x for x, y in zip(eight, other, strict=True))
        scheme = type(own.scheme)(
            layers, own.scheme.activations, own.scheme.requantized, own.scheme.shared, own.scheme.nonnegative
        )
        params = {k.name: found.params[k.name][candidate if k.name == "deep" else EIGHT] for k in layers}
        sizes.append(model_bytes(emit_qdq(prepared, scheme, own.grids, params)))
    deep = found.sets[2].costs
    assert sizes[0] - sizes[1] == pytest.approx(deep[EIGHT].bytes - deep[LIGHT].bytes, abs=24)


def test_a_batch_that_the_model_fixes_is_kept(build, weigh, draw):
    text = "g (float[2, 3, 8, 8] x) => (float[2, 4, 8, 8] y) { [one] a = Conv (x, w0, b0)  [two] y = Conv (a, w1, b1) }"
    model = build(text, w0=weigh(5, 3, 1, 1), b0=weigh(5), w1=weigh(4, 5, 1, 1), b1=weigh(4))
    _, _, _, found, _ = measure(model, draw(4, 3, 8, 8), candidates=(EIGHT, LIGHT), first_last_bits=4)
    assert [each.macs for each in found.sets] == [64 * 15, 64 * 20]
    assert all(0 < each.losses[LIGHT] < 1 for each in found.sets)


def test_one_activation_width_is_measured_once(net, draw, monkeypatch):
    found = []
    measure_moments = ColumnReader._measure
    monkeypatch.setattr(ColumnReader, "_measure", lambda self: found.append(self.layer.name) or measure_moments(self))
    measure(net, draw(8, 3, 8, 8))
    assert found.count("deep") == 2 and found.count("stem") == 1
    assert np.isfinite(found.count("head"))


def test_activations_are_met_in_the_order_in_which_they_are_made(build, weigh, draw):
    text = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
        [stem] r = Conv (x, w0, b0)  [pool] p = AveragePool <kernel_shape = [1, 1]> (r)  [c1] a = Conv (r, w1, b1)
        [c2] b = Conv (a, w2, b2)  [side] d = Conv (p, w3, b3)  [late] e = Conv (x, w4, b4)
        [s1] s = Add (b, d)  [s2] y = Add (s, e)
    }"""
    weights = {f"w{i}": weigh(4, 3 if i in (0, 4) else 4, 1, 1) for i in range(5)}
    model = build(text, **weights, **{f"b{i}": weigh(4) for i in range(5)})
    _, _, _, found, heard = measure(model, draw(8, 3, 8, 8), candidates=(LIGHT,), first_last_bits=4)
    assert set(heard) == {"stem", "late", "c1", "c2", "side"} and heard[:2] == ["stem", "late"]
    assert all(each.losses[LIGHT] > 0 for each in found.sets)


def test_outputs_on_which_no_loss_can_be_measured_are_refused(build, weigh, draw):
    text = (
        "g (float[N, 3, 8, 8] x) => (int64[N, 1, 8, 8] y) { [c] a = Conv (x, w, b)  [top] y = ArgMax <axis = 1> (a) }"
    )
    with pytest.raises(
        ConfigError, match=r"^plan: found no output on which a loss can be measured among y; one of finite floating"
    ):
        measure(build(text, w=weigh(5, 3, 1, 1), b=weigh(5)), draw(8, 3, 8, 8))


def test_outputs_of_zeros_are_passed_over(build, weigh, draw):
    text = """g (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y, float[N, 5, 8, 8] z) {
        [c] y = Conv (x, w, b)  [sub] s = Sub (y, y)  [same] z = Identity (s)
    }"""
    model = build(text, w=weigh(5, 3, 1, 1), b=weigh(5))
    _, _, _, found, _ = measure(model, draw(8, 3, 8, 8), candidates=(LIGHT,), first_last_bits=4)
    assert 0 < found.sets[0].losses[LIGHT] < 1


def test_a_convolution_without_a_bias_that_cannot_be_solved_gets_one_of_its_channels(build, weigh, draw, monkeypatch):
    monkeypatch.setattr(solve_step, "MOST_INPUTS", 10)
    text = "g (float[N, 3, 6, 5] x) => (float[N, 4, 6, 5] y) { [c] y = Conv <pads = [1, 1, 1, 1]> (x, w) }"
    _, _, _, found, _ = measure(build(text, w=weigh(4, 3, 3, 3)), draw(4, 3, 6, 5), (LIGHT,), first_last_bits=4)
    assert found.params["c"][LIGHT].bias.shape == (4,)
