import numpy as np
import pytest

from onnxcalib import QuantizeConfig, quantize
from onnxcalib.data import open_calibration
from onnxcalib.graph.index import Index, known_constant
from onnxcalib.graph.load import inputs_of
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.numeric.rotation import turn
from onnxcalib.quantization.bottlenecks import mix_bottlenecks
from onnxcalib.validation.explain import explain

NET = """g (float[N, 3, 6, 6] x) => (float[N, 5, 6, 6] y) {
    [first] f = Conv (x, w0)  [relu] a = Relu (f)  [project] p = Conv (a, w1)  [expand] u = Conv (p, w2)
    [act] r = Relu (u)  [mid] d = Conv <group = 8> (r, w3)  [cut] e = Relu (d)  [last] y = Conv (e, w4)
}"""
NORMED = NET.replace(
    "p = Conv (a, w1)", "q = Conv (a, w1)  [norm] p = BatchNormalization (q, gain, shift, mean, power)"
)


@pytest.fixture
def make(build, weigh):
    """A bottleneck p of which sums of channels that hardly vary count as much as those that vary most."""
    scales = turn(4) @ np.diag(np.geomspace(0.1, 1, 4)) @ turn(4, 1)
    w1, w2 = scales @ weigh(4, 6), weigh(8, 4) @ np.linalg.inv(scales)
    norm = {"gain": 1 + weigh(4) ** 2, "shift": weigh(4), "mean": weigh(4), "power": 1 + weigh(4) ** 2}
    weights = {"w1": w1[..., None, None].astype(np.float32), "w2": w2[..., None, None].astype(np.float32)}
    weights |= {"w0": weigh(6, 3, 1, 1), "w3": weigh(8, 1, 1, 1), "w4": weigh(5, 8, 1, 1)}
    return lambda text: build(text, **weights, **(norm if text is NORMED else {}))


@pytest.fixture
def net(make):
    return make(NET)


def mix(net, x, bits=4):
    scheme = make_scheme(net, activation_bits=bits)
    return mix_bottlenecks(net, scheme, open_calibration(x, inputs_of(net)), 1)


def test_bottlenecks_that_layers_of_few_bits_read_are_mixed_and_the_outputs_stay(net, draw, run):
    x = draw(16, 3, 6, 6)
    (before,) = run(net, x)
    assert not mix(net, x, bits=8)
    ((tensor, (least, most)),) = mix(net, x).items()
    assert tensor == "p" and least < 0 < most
    np.testing.assert_allclose(run(net, x)[0], before, rtol=1e-3, atol=1e-4)


def test_samples_may_have_several_sizes(make, draw):
    images = [{"x": draw(1, 3, *size)} for size in [(6, 6), (30, 8)] * 8]
    assert "p" in mix(make(NET.replace("6, 6]", "H, W]")), images)


def test_a_shortcut_behind_a_bottleneck_is_followed_to_later_layers_alone(build, weigh, net, draw):
    text = """g (float[N, 3, 6, 6] x) => (float[N, 8, 6, 6] y) {
        [first] f = Conv (x, w0)  [relu] a = Relu (f)  [project] p = Conv (a, w1)  [expand] u = Conv (p, w2)
        [act] r = Relu (u)  [in] i = Conv (r, v0)  [mid] m = Relu (i)  [out] o = Conv (m, v1)  [join] s = Add (r, o)
        [cut] t = Relu (s)  [last] y = Conv (t, v2)
    }"""
    known = {name: known_constant(Index(net.graph), name) for name in ("w0", "w1", "w2")}
    model = build(text, **known, **{f"v{number}": weigh(8, 8, 1, 1) for number in range(3)})
    assert "p" in mix(model, draw(16, 3, 6, 6))


def test_a_matrix_that_gains_too_little_on_other_samples_is_not_taken(net, draw, monkeypatch):
    assert not mix(net, draw(1, 3, 6, 6))
    monkeypatch.setattr("onnxcalib.quantization.bottlenecks.WORTH", 0.01)
    assert not mix(net, draw(16, 3, 6, 6))


def test_every_layer_of_a_mixed_file_is_judged(make, draw):
    net, x = make(NORMED), draw(32, 3, 6, 6)
    result = quantize(net, x, QuantizeConfig(activation_bits=4, placement="all", threads=1))
    assert result.report.passes["mix_bottlenecks"] == 1
    told = explain(net, result.model, open_calibration(x, inputs_of(net)))
    assert {loss.name for loss in told.layers} >= {"expand"}
    assert all(loss.all_before_db > 8 for loss in told.layers)
