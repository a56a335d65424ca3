"""Transformers with channels that reach far beyond the others, as norms of real ones have."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnxcalib import ConfigError, Observer, QuantizeConfig, calibrate, prepare, quantize, reconstruct
from onnxcalib.bitplan import BitPlan, Totals
from onnxcalib.cli.summary import print_summary
from onnxcalib.graph.save import fingerprint
from onnxcalib.quantization import smoothing

FEED_FORWARD = """g (float[N, 7, 16] x) => (float[N, 7, 16] y) {
    [norm] h = LayerNormalization (x, gain)  [up] u = MatMul (h, w1)  [up_bias] b = Add (u, b1)
    [act] r = Tanh (b)  [down] d = MatMul (r, w2)  [join] s = Add (d, h)  [last] n = LayerNormalization (s, gain2)
    [head] y = MatMul (n, w3)
}"""
GAIN = np.array([1, 1, 60, 1, 1, 1, 1, 1, 1, 1, 1, 45, 1, 1, 1, 1], np.float32)
AUTO = QuantizeConfig(placement="all")  # layers this small are faster in float
OFF = QuantizeConfig(placement="all", smoothing="off")


@pytest.fixture
def transformer(build, weigh):
    w1 = weigh(16, 32)
    return build(
        FEED_FORWARD,
        gain=GAIN, gain2=GAIN[::-1].copy(), b1=weigh(32), w2=weigh(32, 16),
        w1=(w1 / GAIN[:, None]).astype(np.float32), w3=(weigh(16, 16) / GAIN[::-1, None]).astype(np.float32),
    )  # fmt: skip


def draw_tokens(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 7, 16)).astype(np.float32)


def test_the_outputs_gain_and_the_report_says_by_what(transformer, tmp_path, capsys):
    samples, test = draw_tokens(48), draw_tokens(100, seed=1)
    plain, smoothed = (quantize(transformer, samples, config, test=test) for config in (OFF, AUTO))
    assert smoothed.report.outputs[0].sqnr_db > plain.report.outputs[0].sqnr_db + 6
    found = smoothed.report.smoothing
    assert [(each["tensor"], each["mul"]) for each in found["smoothed"]][-1] == ("n", None)
    assert found["smoothed"][0] == {"tensor": "h", "layers": ("up",), "mul": "h_smoothed_Mul"}
    best = max(found["tried_db"], key=found["tried_db"].get)
    tried, names = list(found["tried_db"]), [f"{each:g}" for each in smoothing.EXPONENTS]
    assert tried == ["off", *(name for name in names if name in tried)]
    assert set(tried).issuperset(names[max(names.index(best) - 1, 0) : names.index(best) + 2])  # on both sides
    assert best == f"{found['exponent']:g}" and smoothed.report.passes["smooth"] == len(found["smoothed"])
    assert {e.key: e.value for e in smoothed.model.metadata_props}["onnxcalib.smoothing"] == best
    print_summary(smoothed.report, tmp_path / "model.onnx")
    assert f"smoothing: exponent {best} for" in capsys.readouterr().out
    assert plain.report.smoothing is None and json.loads(smoothed.report.to_json())["smoothing"]["exponent"]


def test_inputs_of_dynamic_layers_are_smoothed_too(transformer):
    samples, test = draw_tokens(48), draw_tokens(100, seed=1)
    samples[:, 0] *= 1000  # as the first token of language models
    test[:, 0] *= 1000
    plain, smoothed = (
        quantize(transformer, samples, config.model_copy(update={"activations": "dynamic"}), test=test).report
        for config in (OFF, AUTO)
    )
    assert smoothed.outputs[0].sqnr_db > plain.outputs[0].sqnr_db + 4
    assert len(smoothed.smoothing["smoothed"]) == 3 and all(layer.dynamic for layer in smoothed.layers)


def test_where_nothing_is_gained_the_file_is_the_one_without(build, weigh):
    even = build(
        FEED_FORWARD,
        gain=np.ones(16, np.float32), gain2=np.ones(16, np.float32), b1=weigh(32), w1=weigh(16, 32), w2=weigh(32, 16),
        w3=weigh(16, 16),
    )  # fmt: skip
    samples = draw_tokens(48)
    tried, without = (quantize(even, samples, config, test=samples) for config in (AUTO, OFF))
    assert tried.report.smoothing["exponent"] is None and not tried.report.smoothing["smoothed"]
    assert tried.model.SerializeToString() == without.model.SerializeToString()


def test_ranges_of_other_factors_are_refused(transformer):
    samples = draw_tokens(32)
    ranges = calibrate(prepare(transformer, samples, AUTO))
    again = type(ranges).model_validate_json(ranges.to_json())
    assert again.smoothed.keys() >= {"h", "n"} and reconstruct(prepare(transformer, samples, AUTO), again)
    with pytest.raises(
        ConfigError, match=r"ranges: found .* as factors of the channels of 'h', where this run has none"
    ):
        reconstruct(prepare(transformer, samples, OFF), again)
    with pytest.raises(ConfigError, match="calibrate on the same ones with the same settings"):
        reconstruct(prepare(transformer, 3 * draw_tokens(32, seed=5) ** 3, AUTO), again)


def test_layers_of_fewer_bits_and_planned_ones_stay(transformer):
    samples = draw_tokens(32)
    four = prepare(transformer, samples, AUTO.model_copy(update={"weight_bits": 4}))
    assert four.smoothing is None
    totals = Totals(predicted_loss=0.0, measured_loss=0.0, bytes=1, bops=1)
    plan = BitPlan(
        model=fingerprint(transformer), budgets={"max_size": 1}, layers=dict.fromkeys(("up", "down", "head"), "W8A8"),
        totals=totals, eight_bit=totals, bound=0, rounds=0, sets=(),
    )  # fmt: skip
    assert prepare(transformer, samples, AUTO, plan=plan).smoothing is None


def test_a_run_that_goes_on_takes_the_factors_that_it_had(transformer, tmp_path, monkeypatch):
    class Stopped(Observer):
        def stage(self, name):
            if name == "verify":  # after the last block
                raise KeyboardInterrupt

    samples, output = draw_tokens(32), tmp_path / "model.onnx"
    whole = quantize(transformer, samples, AUTO, test=samples)
    with pytest.raises(KeyboardInterrupt):
        quantize(transformer, samples, AUTO, test=samples, output=output, observer=Stopped())
    monkeypatch.setattr(smoothing, "_Trial", None)  # not tried again
    again = quantize(transformer, samples, AUTO.model_copy(update={"resume": True}), test=samples, output=output)
    assert again.model.SerializeToString() == whole.model.SerializeToString()
