"""Smoothed files are explained: the float model gets the tensors that have factors there."""

import numpy as np
import pytest

from onnxcalib import QuantizeConfig, quantize
from onnxcalib.data import open_calibration
from onnxcalib.graph.edit import copy_model
from onnxcalib.graph.index import Index, known_constant
from onnxcalib.graph.layers import find_layers
from onnxcalib.graph.load import inputs_of
from onnxcalib.graph.passes.mix import find_bottlenecks, mix_bottleneck
from onnxcalib.graph.passes.smooth import find_smoothable, smooth
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.validation.explain import explain
from onnxcalib.validation.smoothed import mix_bottlenecks_alike, write_smoothed
from tests.small_models import change_constant

NET = """g (float[N, 6, 8] x) => (float[N, 6, 4] y) {
    [norm] n = LayerNormalization <axis = -1> (x, gain, shift)  [up] u = MatMul (n, w1)  [relu] r = Relu (u)
    [down] y = MatMul (r, w2)
}"""


@pytest.fixture
def net(build, weigh, draw):
    gain = np.abs(draw(8)) + np.float32(0.5)
    return build(NET, gain=gain, shift=draw(8), w1=weigh(8, 12), w2=weigh(12, 4))


def test_the_float_model_gets_the_factors_and_gives_what_it_gave(net, draw, run):
    changed, x = copy_model(net), draw(16, 6, 8)
    factors = {"n": np.exp(draw(8)), "r": np.exp(draw(12))}
    for chosen in find_smoothable(net, make_scheme(net)):
        smooth(changed, chosen, factors[chosen.tensor])
    own = copy_model(net)
    write_smoothed(own, changed, open_calibration(x, inputs_of(net)), 16, 1)
    index = Index(own.graph)
    made = {name for name in index.producer if name.endswith("smoothed")}
    assert made == {"n_smoothed", "u_smoothed", "r_smoothed"}
    for name, factor in (("n", factors["n"]), ("u", factors["r"]), ("r", factors["r"])):
        found = known_constant(index, f"{name}_smoothed_factor")
        alive = np.any(x, (0, 1)) if name == "n" else slice(None)
        np.testing.assert_allclose(found[alive], factor[alive], rtol=1e-4)
    np.testing.assert_allclose(run(own, x)[0], run(net, x)[0], rtol=1e-4, atol=1e-5)


def test_every_layer_of_a_smoothed_file_is_judged(net, draw):
    net = change_constant(net, "gain", lambda gain: gain * np.where(np.arange(8) == 3, 60, 1))  # one sticks out
    net, x = change_constant(net, "w1", lambda w: w / np.where(np.arange(8) == 3, 60, 1)[:, None]), draw(32, 6, 8)
    result = quantize(net, x, QuantizeConfig(placement="all"))
    assert any(name.endswith("smoothed") for node in result.model.graph.node for name in node.output)
    found = explain(net, result.model, open_calibration(x, inputs_of(net)))
    assert not found.unmatched
    assert {loss.name for loss in found.layers} == {"up", "down"}
    assert all(loss.alone_db > 25 and loss.at_output_db > 25 for loss in found.layers)


def test_channels_that_were_evened_are_no_fault_of_a_layer(build, weigh, draw):
    net = build(
        """g (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y) { [first] c = Conv (x, w0)
        [norm] a = BatchNormalization (c, gain, shift, shift, gain) [act] r = Clip (a, low, high)
        [mid] d = Conv <group = 8> (r, w1) [last] y = Conv (d, w2) }""",
        w0=weigh(8, 3, 1, 1) * np.geomspace(0.1, 2, 8, dtype=np.float32).reshape(8, 1, 1, 1),
        w1=weigh(8, 1, 1, 1), w2=weigh(5, 8, 1, 1), low=np.float32(0), high=np.float32(1.5),
        gain=np.ones(8, np.float32), shift=np.zeros(8, np.float32),
    )  # fmt: skip
    x, four = draw(32, 3, 8, 8), {"mid": {"activation_bits": 4}}  # also right behind the first layer
    result = quantize(net, x, QuantizeConfig(activation_bits=4, layers=four, placement="all", threads=1))
    assert result.report.passes["even_layers"] == 1
    found = explain(net, result.model, open_calibration(x, inputs_of(net)))
    assert {loss.name for loss in found.layers} >= {"mid"}
    assert all(loss.all_before_db > 12 for loss in (*found.layers, *found.others))
    assert not [reason for loss in found.layers for reason in loss.reasons if "times the float model's" in reason]


@pytest.mark.parametrize(("count", "told"), [(1, False), (4, True)])
def test_layers_are_named_where_samples_do_not_tell_how_channels_are_mixed(build, weigh, draw, count, told):
    net = build(
        "g (float[N, 3, 1, 1] x) => (float[N, 5, 1, 1] y) { [in] a = Conv (x, w0) [out] y = Conv (a, w1) }",
        w0=weigh(2, 3, 1, 1), w1=weigh(5, 2, 1, 1),
    )  # fmt: skip
    mixed, own, x = copy_model(net), copy_model(net), draw(count, 3, 1, 1)
    (found,) = find_bottlenecks(mixed, {each.name: each for each in find_layers(mixed, Index(mixed.graph), 8, 8)})
    mix_bottleneck(mixed, found, np.array([[1.0, 0.5], [-0.5, 2.0]]))
    untold = mix_bottlenecks_alike(own, mixed, open_calibration(x, inputs_of(net)), 16, 1)
    assert untold == ([] if told else ["in", "out"])
    for name in ("w0", "w1"):
        given = known_constant(Index((mixed if told else net).graph), name)
        np.testing.assert_allclose(known_constant(Index(own.graph), name), given, rtol=1e-4, atol=1e-5)


def test_without_smoothed_tensors_nothing_changes(net, draw):
    own = copy_model(net)
    write_smoothed(own, net, open_calibration(draw(4, 6, 8), inputs_of(net)), 16, 1)
    assert own == net
