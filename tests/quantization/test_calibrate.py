import weakref

import numpy as np
import pytest
from onnx import TensorProto

from onnxcalib.config import DataConfig, QuantizeConfig
from onnxcalib.data import open_calibration
from onnxcalib.errors import DataError, ModelError
from onnxcalib.graph.load import inputs_of
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.numeric import histogram as histogram_module
from onnxcalib.quantization import batches, calibrate
from onnxcalib.quantization.batches import batch_size
from onnxcalib.quantization.calibrate import choose_grids, collect_statistics
from onnxcalib.quantization.padding_mask import PaddingMask
from onnxcalib.runtime.session import Session
from onnxcalib.spec import QuantScheme, QuantSpec

BODY = """{ [a] c = Conv (x, w1)  [b] r = Relu (c)  [d] d = Conv (r, w2)  [e] s = Add (d, r)  [f] y = Conv (s, w2) }"""


@pytest.fixture
def model(build, draw):
    return build(f"g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {BODY}", w1=draw(4, 4, 1, 1), w2=draw(4, 4, 1, 1))


def collect(model, tensors, samples):
    """Histograms of the tensors."""
    return collect_statistics(model, tensors, samples, PaddingMask(model)).histograms


def samples_of(model, array):
    return open_calibration(array, inputs_of(model), DataConfig())


def test_histograms_count_every_value_with_the_exact_ends(model, draw):
    x = draw(70, 4, 6, 6)
    histograms = collect(model, ["x", "c", "r", "y"], samples_of(model, x))
    y, c = Session(model, also=["c"]).run({"x": x}).values()
    for name, value in {"x": x, "c": c, "r": np.maximum(c, 0), "y": y}.items():
        assert histograms[name].counts.sum() == value.size
        assert histograms[name].minimum == pytest.approx(value.min(), rel=1e-5, abs=1e-6)
        assert histograms[name].maximum == pytest.approx(value.max(), rel=1e-5)


def test_the_peaks_are_those_of_each_sample(model, draw):
    x = draw(70, 4, 6, 6)
    peaks = collect(model, ["x"], samples_of(model, x))["x"].peaks
    np.testing.assert_array_equal(peaks, [x.min(axis=(1, 2, 3)), x.max(axis=(1, 2, 3))])


def test_the_way_the_set_is_divided_into_batches_does_not_matter(model, draw, monkeypatch):
    samples = samples_of(model, draw(10, 4, 6, 6))
    whole = collect(model, ["x"], samples)["x"]
    monkeypatch.setattr(batches, "MOST_SAMPLES", 3)
    parts = collect(model, ["x"], samples)["x"]
    assert np.average(parts.centres, weights=parts.counts) == pytest.approx(
        np.average(whole.centres, weights=whole.counts), abs=parts.width
    )


def test_values_of_steps_count_relative_to_the_signal_of_their_step(model, draw):
    x = draw(32, 4, 6, 6)
    x[1:] /= 16
    x[0, 0, 0, 0] = 20  # beyond what a grid for quiet steps holds
    samples, scheme = samples_of(model, x), make_scheme(model)
    scales = []
    for steps in (False, True):
        samples.steps = steps
        histograms = collect(model, [*scheme.activations], samples)
        scales.append(choose_grids(scheme, histograms, QuantizeConfig()).activations["x"].scale)
    assert scales[1] < 0.8 * scales[0]


def test_no_tensor_is_kept(model, draw, monkeypatch):
    alive, most = [], 0
    original = histogram_module.Histogram.add

    def watch(self, values):
        nonlocal most
        alive[:] = [r for r in alive if r() is not None]
        alive.append(weakref.ref(values))
        most = max(most, len(alive))
        original(self, values)

    monkeypatch.setattr(histogram_module.Histogram, "add", watch)
    monkeypatch.setattr(batches, "MOST_SAMPLES", 2)
    collect(model, ["c", "r", "y"], samples_of(model, draw(40, 4, 6, 6)))
    assert most <= 2 * 3


@pytest.mark.parametrize(
    ("bad", "fault", "expected"),
    [
        (
            np.inf,
            DataError,
            "tensor d: the float model gives values that are not finite on the calibration set; .*check",
        ),
        (np.nan, ModelError, "node d: tensor w2 holds nan; finite weights are needed; train or export"),
    ],
)
def test_a_value_that_is_not_finite_names_its_tensor_or_the_constant_that_is_why(model, draw, bad, fault, expected):
    weights = np.frombuffer(model.graph.initializer[1].raw_data, np.float32).copy()
    weights[0] = bad
    model.graph.initializer[1].raw_data = weights.tobytes()
    with pytest.raises(fault, match=expected):
        collect(model, ["x", "r", "d"], samples_of(model, draw(4, 4, 6, 6)))


def test_a_batch_is_as_large_as_its_outputs_allow(model, draw):
    samples = samples_of(model, draw(40, 4, 6, 6))
    session = Session(model, also=["c", "r"])
    sample_bytes = 3 * 4 * 6 * 6 * 4
    assert batch_size(session, samples) == batches.MOST_SAMPLES
    assert batch_size(session, samples, limit=5 * sample_bytes + 1) == 5
    assert batch_size(session, samples, limit=1) == 1


def test_sequences_are_left_out_of_the_size_of_a_batch(build, draw):
    model = build(
        """g (float[N, 4] x) => (float[N, 4] y, seq(float[N, 2]) s) {
           y = Relu (x) s = SplitToSequence <axis = 1> (x, k) }""",
        k=np.int64(2),
    )
    assert batch_size(Session(model), samples_of(model, draw(40, 4)), limit=5 * 4 * 4) == 5


def test_a_fixed_batch_is_kept_to(build, draw):
    model = build("g (float[3, 4] x) => (float[3, 4] y) { [a] y = MatMul (x, w) }", w=draw(4, 4))
    samples = samples_of(model, draw(9, 4))
    assert batch_size(Session(model), samples) == 3
    histograms = collect(model, ["x", "y"], samples)
    assert histograms["y"].counts.sum() == 36


def histogram_of(values):
    histogram = histogram_module.Histogram()
    histogram.add(np.asarray(values, np.float32))
    return histogram


def test_tensors_that_share_get_one_grid_over_all_of_them():
    spec = QuantSpec(8)
    scheme = QuantScheme((), {"a": spec, "b": spec, "c": spec}, shared=(("a", "b"),))
    histograms = {"a": histogram_of([-1, 1]), "b": histogram_of([0, 3]), "c": histogram_of([0, 1])}
    activations = choose_grids(scheme, histograms, QuantizeConfig(range="min-max")).activations
    assert activations["a"] is activations["b"]
    assert float(activations["a"].scale) == pytest.approx(4 / 255)
    assert float(activations["c"].scale) == pytest.approx(1 / 255)


def test_a_bound_of_one_holds_for_all_that_share():
    spec = QuantSpec(8)
    scheme = QuantScheme((), {"a": spec, "b": spec}, shared=(("a", "b"),), nonnegative={"b": 6.0})
    histograms = {"a": histogram_of([-1, 9]), "b": histogram_of([0, 6])}
    activations = choose_grids(scheme, histograms, QuantizeConfig(range="min-max")).activations
    assert activations["a"].zero_point == 0 and float(activations["a"].scale) * 255 <= 6


def test_a_requantized_tensor_has_a_grid_of_its_own(model, draw):
    scheme = make_scheme(model, activation_bits=4)
    assert list(scheme.requantized) == ["r"]
    histograms = collect(model, list(scheme.activations), samples_of(model, draw(8, 4, 6, 6)))
    grids = choose_grids(scheme, histograms, QuantizeConfig(activation_bits=4))
    activations, requantized = grids.activations, grids.requantized
    assert activations["r"].spec.bits == 8 and requantized["r"].spec.bits == 4
    assert requantized["r"].scale > activations["r"].scale and requantized["r"].zero_point == 0


def test_the_settings_choose_the_range(model, draw):
    scheme = make_scheme(model)
    histograms = collect(model, list(scheme.activations), samples_of(model, draw(8, 4, 6, 6) ** 5))
    settings = [
        {"range": "min-max"},
        {"range": "percentile", "percentile": 99.0},
        {"range": "percentile", "percentile": 80.0},
    ]
    scales = [float(choose_grids(scheme, histograms, QuantizeConfig(**s)).activations["x"].scale) for s in settings]
    assert scales[0] > scales[1] > scales[2]


def test_integer_inputs_are_fed_as_they_are(build, draw):
    model = build(
        "g (int64[N, 3] ids) => (float[N, 3, 5] y) { e = Gather (table, ids) [a] y = MatMul (e, w) }",
        table=draw(10, 4), w=draw(4, 5),
    )  # fmt: skip
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.INT64
    ids = np.arange(12).reshape(4, 3) % 10
    assert collect(model, ["e"], samples_of(model, ids))["e"].counts.sum() == 48


def test_of_large_tensors_some_values_are_counted_and_the_ends_of_all(model, draw, monkeypatch):
    samples = samples_of(model, draw(70, 4, 6, 6))
    whole = collect(model, ["x", "c"], samples)
    monkeypatch.setattr(calibrate, "MOST_VALUES", 70 * 4 * 6 * 6 // 4)
    some = collect(model, ["x", "c"], samples)
    for name, histogram in whole.items():
        ends = (histogram.minimum, histogram.maximum)
        assert (some[name].minimum, some[name].maximum) == ends
        assert np.array_equal(some[name].peaks, histogram.peaks)
        assert set(some[name].counts % 5) == {0}  # the least number from 4 on that divides no axis
        assert 0 < some[name].counts.sum() < 1.1 * histogram.counts.sum()
