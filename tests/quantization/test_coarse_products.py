"""Products that spoil the outputs on grids are found by measuring, and no others."""

import re

import numpy as np
import pytest

from onnxcalib import pipeline
from onnxcalib.config import QuantizeConfig
from onnxcalib.quantization import coarse_products
from onnxcalib.quantization.placement import place_spectra

# Distances |a|^2 - 2ab + |b|^2 of points far from the origin: large sums cancel. Then attention by them.
DISTANCES = """g (float[N, 6, 8] x) => (float[N, 6, 4] y) {
    [points] p = MatMul (x, w1)  a = Add (p, far)  t = Transpose <perm = [0, 2, 1]> (a)  [product] ab = MatMul (a, t)
    s = Mul (a, a)  n = ReduceSum (s, last)  nt = Transpose <perm = [0, 2, 1]> (n)  m = Mul (ab, minus)
    d = Add (m, n)  e = Add (d, nt)  f = Neg (e)  q = Softmax (f)
    [values] v = MatMul (x, w2)  [mix] y = MatMul (q, v) }"""


@pytest.fixture
def distances(build, weigh):
    def make(far):
        constants = {"far": np.float32(far), "last": np.int64([2]), "minus": np.float32(-2)}
        return build(DISTANCES, w1=weigh(8, 3), w2=weigh(8, 4), **constants)

    return make


def prepare(model, samples):
    return pipeline.prepare(model, samples, QuantizeConfig(threads=1))


def test_a_product_whose_large_sums_cancel_stays_in_float(distances, draw):
    found = prepare(distances(100), draw(20, 6, 8))
    assert list(found.in_float) == ["product"]
    text = r"256 levels of its operands alone leave -?[\d.]+ dB of output y"
    assert re.fullmatch(text, found.in_float["product"])
    assert {"mix", "product"}.isdisjoint(layer.name for layer in found.scheme.layers)
    assert {"q", "v"} <= found.scheme.activations.keys() and "t" not in found.scheme.activations


@pytest.mark.parametrize(("enough", "samples"), [(0.0, [4]), (np.inf, [4, 16])])
def test_products_that_lose_little_are_measured_on_few_samples_first(distances, draw, monkeypatch, enough, samples):
    runs = []
    measure = coarse_products._Probe.measure

    def record(self, names):
        runs.append((names, sum(self.prepared.samples.count(feeds) for feeds, *_ in self.batches)))
        return measure(self, names)

    monkeypatch.setattr(coarse_products, "ENOUGH_DB", enough)
    monkeypatch.setattr(coarse_products._Probe, "measure", record)
    assert not prepare(distances(0), draw(20, 6, 8)).in_float
    assert runs == [(("product", "mix"), count) for count in samples]


def test_products_that_no_run_was_left_for_stay_in_float_and_the_reason_says_so(distances, draw, monkeypatch):
    monkeypatch.setattr(coarse_products, "MOST_RUNS", 1)
    found = prepare(distances(100), draw(20, 6, 8)).in_float
    assert list(found) == ["product", "mix"]
    text = (
        r"256 levels of the operands of this product and another leave -?[\d.]+ dB of output y, and no more than 1"
        " groups are measured"
    )
    assert all(re.fullmatch(text, reason) for reason in found.values())


# Powers of loud and of quiet sounds, which a layer sums into bands, and their logarithms.
SPECTRUM = """g (float[N, 6, 8] x) => (float[N, 6, 4] y) { p = Mul (x, x)  [bands] b = MatMul (p, w1)  c = Add (b, tiny)
    l = LOG (c)  [last] y = MatMul (l, w2) }"""


@pytest.mark.parametrize(("op", "found"), [("Log", ["bands"]), ("Relu", [])])
def test_a_layer_in_front_of_a_logarithm_stays_in_float_where_256_levels_lose_what_is_quiet(build, draw, op, found):
    constants = {"w1": np.abs(draw(8, 4)), "w2": draw(4, 4), "tiny": np.float32(1e-9)}
    model = build(SPECTRUM.replace("LOG", op), **constants)
    loudness = np.float32(10) ** np.arange(-4, 0, 0.2, dtype=np.float32)
    assert list(prepare(model, draw(20, 6, 8) * loudness[:, None, None]).in_float) == found


def test_a_layer_whose_rounding_makes_an_output_infinite_stays_in_float_and_the_reason_says_so(build, draw):
    model = build(SPECTRUM.replace("LOG", "Log"), w1=np.abs(draw(8, 4)), w2=draw(4, 4), tiny=np.float32(0))
    loudness = np.float32(10) ** np.arange(-4, 0, 0.2, dtype=np.float32)
    found = prepare(model, draw(20, 6, 8) * loudness[:, None, None]).in_float
    assert found == {"bands": "256 levels of its operands alone make values of output y infinite"}


# The magnitudes of a spectrum of waves, and two layers that read them.
WAVES = """g (float[N, 1, 64] x) => (float[N, 4, 5] y) { [waves] c = Conv <strides = [8]> (x, f)
    [real] r = Slice (c, zero, half, one)  [imaginary] i = Slice (c, half, all, one)  rr = Pow (r, two)  ii = Mul (i, i)
    s = Add (rr, ii)  [size] m = Sqrt (s)  [first] u = Conv (m, w1)  v = Relu (u)
    [last] t = Conv (v, w2)  a = Abs (t)  d = ReduceMax <axes = [1]> (a)
    e = Add (d, tiny)  y = Div (t, e) }"""


@pytest.fixture
def spectrum(build, draw):
    turns = np.arange(8)[:, None] * np.arange(32) * np.pi / 16
    waves = np.concatenate((np.cos(turns), np.sin(turns)))[:, None].astype(np.float32)
    numbers = {"zero": [0], "half": [8], "all": [16], "one": [1]}
    constants = {name: np.array(value) for name, value in numbers.items()} | {
        "two": np.float32(2),
        "tiny": np.float32(1e-3),
    }
    return build(WAVES, f=waves, w1=draw(6, 8, 1), w2=draw(4, 6, 1), **constants)


def make_sounds(draw):
    """Random walks of 20 loudnesses, (20, 1, 64)."""
    loudness = np.float32(10) ** np.arange(-3, 1, 0.2, dtype=np.float32)
    return (draw(20, 1, 64).cumsum(2) * loudness[:, None, None]).astype(np.float32)


def test_layers_of_a_spectrum_that_256_levels_do_not_hold_read_float_and_what_reads_it_is_evened(spectrum, draw):
    x = make_sounds(draw)
    found = prepare(spectrum, x)
    assert [layer.name for layer in found.scheme.layers if layer.reads_float] == ["waves"] and not found.in_float
    (record,) = found.run.left_out
    assert record.what == "integer activations of waves"
    assert re.fullmatch(
        r"256 levels of .* leave -?[\d.]+ dB of output y; its weights alone are quantized", record.reason
    )
    assert found.passes["even_channels"] == 1  # of a slow wave and of fast ones
    named = pipeline.prepare(spectrum, x, QuantizeConfig(threads=1, layers={"waves": {"activation_bits": 8}}))
    assert not any(layer.reads_float for layer in named.scheme.layers)


def test_quiet_samples_behind_many_loud_ones_are_looked_at_too(spectrum, draw):
    loud = 10 * draw(20, 1, 64)
    assert not any(layer.reads_float for layer in prepare(spectrum, loud).scheme.layers)
    found = prepare(spectrum, np.concatenate((loud, make_sounds(draw))))
    assert [layer.name for layer in found.scheme.layers if layer.reads_float] == ["waves"]


def test_layers_that_read_the_magnitudes_of_steps_read_float_too(spectrum, draw, monkeypatch):
    monkeypatch.setattr("onnxcalib.quantization.prepare.even_channels", lambda *args, **options: {})
    settings = QuantizeConfig(threads=1, layers={"waves": {"activation_bits": 8}})
    prepared = pipeline.prepare(spectrum, make_sounds(draw), settings)
    assert not place_spectra(prepared).alone  # the settings name what makes the magnitudes
    prepared.samples.steps = True
    assert place_spectra(prepared).alone == {"first"}
    (record,) = prepared.run.left_out
    assert record.reason.startswith("256 levels of its operands alone leave")


def test_what_is_in_front_of_a_group_is_not_run_again_and_changes_nothing(build, draw, monkeypatch):
    blocks = "".join(
        f"a{i} = MatMul (x{i}, wa)  b{i} = MatMul (x{i}, wb)  c{i} = MatMul (x{i}, wc)"
        f" t{i} = Transpose <perm = [0, 2, 1]> (b{i})  [p{i}] s{i} = MatMul (a{i}, t{i})"
        f" q{i} = Softmax (s{i})  [o{i}] x{i + 1} = MatMul (q{i}, c{i}) "
        for i in range(3)
    )
    weights = {name: draw(8, 8) / np.float32(3) for name in ("wa", "wb", "wc")}
    model = build(f"g (float[N, 6, 8] x0) => (float[N, 6, 8] y) {{ {blocks} y = MatMul (x3, wa) }}", **weights)
    with monkeypatch.context() as patch:
        patch.setattr(coarse_products, "ENOUGH_DB", -np.inf)
        prepared = prepare(model, draw(20, 6, 8))
    products = coarse_products._find_products(prepared.model, prepared.scheme)
    probe = coarse_products._Probe(prepared, products)
    assert probe.read(16) and len(products) == 6 and len(probe.cuts) == 5
    whole = coarse_products._Probe(prepared, products)
    whole.cuts = whole.cuts[:1]
    assert whole.read(16)
    for names in (("o0", "p1"), ("p1",), ("p2", "o2"), ("o2",)):
        (output, decibels), (same, wanted) = probe.measure(names), whole.measure(names)
        assert output == same and decibels == pytest.approx(wanted, abs=0.01)


def test_tensors_are_not_kept_where_they_would_take_too_much(distances, draw, monkeypatch):
    kept = []
    keep = coarse_products._Probe._keep

    def record(self, *given):
        keep(self, *given)
        kept.append((len(self.cuts), len(self.batches[-1][2])))

    monkeypatch.setattr(coarse_products._Probe, "_keep", record)
    prepare(distances(100), draw(20, 6, 8))
    assert kept and all(cuts > 1 and tensors for cuts, tensors in kept)
    kept.clear()
    monkeypatch.setattr(coarse_products, "BATCH_BYTES", 1000)
    assert "product" in prepare(distances(100), draw(20, 6, 8)).in_float
    assert set(kept) == {(1, 0)}
