"""Layers whose input 256 levels cannot hold stay in float, with the reason."""

import numpy as np
import pytest

from onnxcalib import pipeline
from onnxcalib.config import QuantizeConfig
from onnxcalib.errors import ModelError
from onnxcalib.graph.index import Index
from onnxcalib.graph.layers import find_layers
from onnxcalib.graph.twins import add_twins
from onnxcalib.quantization import coarse_inputs
from onnxcalib.quantization.coarse_inputs import Twins
from onnxcalib.spec import QParams, QuantSpec

NET = """g (float[N, 8] x) => (float[N, 4] y) {
    [first] a = Gemm (x, w1, b1)  [relu] h = Relu (a)  [second] y = MatMul (h, w2)
}"""


@pytest.fixture
def net(build, weigh):
    """A net whose hidden channels have any scale, which the second weight takes back; its input lies at ``shift``."""

    def make(scale=1.0, shift=0.0):
        columns = np.broadcast_to(np.float64(scale), 16)
        first, second = weigh(8, 16) * columns, weigh(16, 4) / columns[:, None]
        return build(
            NET,
            w1=first.astype(np.float32),
            b1=(-np.broadcast_to(np.float64(shift), 8) @ first).astype(np.float32),
            w2=second.astype(np.float32),
        )

    return make


def prepare(model, samples, **settings):
    return pipeline.prepare(model, samples.astype(np.float32), QuantizeConfig(threads=1, **settings))


@pytest.mark.parametrize("scale", [np.where(np.arange(16) == 3, 1e4, 1), 10.0 ** np.arange(-8, 8)])
def test_a_layer_that_reads_channels_of_unlike_scale_stays_in_float(net, draw, scale):
    prepared = prepare(net(scale), draw(48, 8))
    assert prepared.in_float.keys() == {"second"}
    assert prepared.in_float["second"].startswith("256 levels do not hold its input: its outputs would have ")
    assert [layer.name for layer in prepared.scheme.layers] == ["first"]


DEPTHWISE = """g (float[N, 8, 6, 6] x) => (float[N, 4, 6, 6] y) { [first] a = Conv (x, w1)  r = Relu (a)
    [depthwise] d = Conv <group = 8> (r, w2)  s = Relu (d)  [mix] m = Conv (s, w3)  t = Relu (m)
    [last] y = Conv (t, w4) }"""


def test_a_convolution_that_gives_such_channels_stays_in_float_too_as_it_would_give_integers(build, weigh, draw):
    scale = np.float32(10.0) ** np.arange(-4, 4, dtype=np.float32)
    weights = {"w1": weigh(8, 8, 1, 1), "w2": weigh(8, 1, 1, 1) * scale[:, None, None, None], "w4": weigh(4, 8, 1, 1)}
    model = build(DEPTHWISE, w3=weigh(8, 8, 1, 1) / scale[None, :, None, None], **weights)
    found = prepare(model, draw(32, 8, 6, 6), placement="all").in_float
    assert found.keys() == {"depthwise", "mix"}
    assert found["depthwise"] == "256 levels of its output do not hold what mix reads"


def test_channels_of_one_scale_are_quantized_however_small(net, draw):
    assert not prepare(net(1e-6), draw(48, 8)).in_float


def test_small_changes_of_large_values_are_lost_on_256_levels(net, draw):
    shift = np.array([5000, 0, 0, 0, 0, 0, 0, 0])
    assert prepare(net(shift=shift), draw(48, 8) + shift).in_float.keys() == {"first"}


def test_four_bits_are_judged_as_eight_are(net, draw):
    assert not prepare(net(), draw(48, 8), weight_bits=4, activation_bits=4, first_last_bits=4).in_float


def test_a_layer_that_reads_float_is_not_judged(net, draw):
    assert not prepare(net(10.0 ** np.arange(-8, 8)), draw(48, 8), activation_bits=32).in_float


def test_outputs_that_are_constant_say_nothing_of_their_layer(net):
    assert not prepare(net(), np.ones((48, 8))).in_float


def test_a_model_that_would_have_no_layer_left_is_refused(build, weigh, draw):
    model = build("g (float[N, 4] x) => (float[N, 3] y) { [only] y = MatMul (x, w) }", w=weigh(4, 3))
    with pytest.raises(
        ModelError,
        match="found no layer for which 256 levels are enough; only: 256 levels do not hold",
    ):
        prepare(model, draw(48, 4) + 500)


@pytest.mark.parametrize(("behind", "left"), [("z", {"head"}), ("z = Relu (y)", set()), ("z = Neg (y)", {"head"})])
def test_the_last_convolution_stays_in_float_where_its_channels_are_of_unlike_scale(build, weigh, draw, behind, left):
    end = behind if "=" in behind else "z = Identity (y)"
    model = build(
        "g (float[N, 3, 6, 6] x) => (float[N, 4, 4, 4] z) {"
        f" [body] h = Conv (x, w1)  [head] y = Conv (h, w2, b)  {end} }}",
        w1=weigh(8, 3, 3, 3),
        w2=weigh(4, 8, 1, 1) * np.array([100, 100, 1, 1], np.float32).reshape(4, 1, 1, 1),
        b=np.array([300, 300, 0, 0], np.float32),
    )
    prepared = prepare(model, draw(24, 3, 6, 6))
    assert prepared.in_float.keys() == left
    if left:
        assert prepared.in_float["head"].startswith(
            "256 levels do not hold every channel of its output: one would have "
        )


@pytest.mark.parametrize("spec", [QuantSpec(8), QuantSpec(8, signed=True, symmetric=True)])
def test_an_input_with_a_grid_of_its_own_is_judged_on_that(build, weigh, draw, spec):
    model = build("g (float[N, 4] x) => (float[N, 3] y) { [only] y = MatMul (x, w) }", w=weigh(4, 3))
    layers = list(find_layers(model, Index(model.graph), 8, 8))
    whole = QParams(np.asarray(1, np.float32), np.asarray(spec.qmin + 128, np.int32), spec)
    twins = Twins(add_twins(model, layers, {"x": whole}))
    assert not twins.measure([{"x": np.round(draw(48, 4) * 20)}]).inputs
    assert twins.measure([{"x": draw(48, 4) * 0.1}]).inputs["only"] == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize(
    ("text", "weight", "shape"),
    [
        ("g (float[N, 3, 6, 6] x) => (float[N, 4, h, v] y) { [k] y = Conv (x, w) }", (4, 3, 3, 3), (3, 6, 6)),
        ("g (float[N, 4, 6] x) => (float[N, 6, t] y) { [k] y = ConvTranspose <group = 2> (x, w) }", (4, 3, 3), (4, 6)),
        ("g (float[N, 5] x) => (float[N, 4] y) { [k] y = Gemm <transB = 1> (x, w) }", (4, 5), (5,)),
        ("g (float[N, 2, 5] x) => (float[N, 2, 4] y) { [k] y = MatMul (x, w) }", (5, 4), (2, 5)),
    ],
)
def test_the_error_is_that_of_rounding_the_input_between_its_ends(build, weigh, draw, text, weight, shape):
    model = build(text, w=weigh(*weight))
    layers = list(find_layers(model, Index(model.graph), 8, 8))
    values = draw(64, *shape)
    (ratio,) = Twins(add_twins(model, layers, {})).measure([{"x": values}]).inputs.values()
    step = np.ptp(values) / 255
    assert ratio == pytest.approx(10 * np.log10(np.var(values) / (step**2 / 12)), abs=1.0)


@pytest.mark.parametrize(("frequency", "left"), [(1.0, set()), (1000.0, {"angles"})])
def test_a_layer_that_gives_angles_stays_in_float_where_rounding_turns_them(build, weigh, draw, frequency, left):
    model = build(
        """g (float[N, 2] x) => (float[N, 4] y) {
            [angles] a = MatMul (x, w1)  t = Mul (a, f)  h = Sin (t)  [second] y = MatMul (h, w2)
        }""",
        w1=weigh(2, 16), w2=weigh(16, 4), f=np.float32(frequency),
    )  # fmt: skip
    in_float = prepare(model, draw(48, 2)).in_float
    assert in_float.keys() == left
    assert all("it gives angles, which 256 levels of its input would move by " in text for text in in_float.values())


@pytest.mark.parametrize(
    ("values", "scale", "runs"),
    [(1, 1.0, [2] * 4), (10**9, 1.0, [2] * 4 + [8] * 4), (1, 1e4, [2] * 4 + [8] * 4)],
)
def test_a_first_look_ends_the_search_where_it_has_values_enough_and_no_doubt(
    net, draw, monkeypatch, values, scale, runs
):
    counts = []
    measure = coarse_inputs.Twins.measure

    def record(self, batches):
        def note():
            for feeds in batches:
                counts.append(len(feeds["x"]))
                yield feeds

        return measure(self, note())

    monkeypatch.setattr(coarse_inputs, "ENOUGH_VALUES", values)
    monkeypatch.setattr(coarse_inputs.Twins, "measure", record)
    prepare(net(np.where(np.arange(16) == 3, scale, 1)), draw(48, 8))
    assert counts == runs
