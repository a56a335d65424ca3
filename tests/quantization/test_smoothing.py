"""Transformers with channels that reach far beyond the others, as norms of real ones have."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from onnxcalib import ConfigError, Observer, QuantizeConfig, calibrate, prepare, quantize, reconstruct
from onnxcalib.bitplan import BitPlan, Totals
from onnxcalib.cli.console import open_console
from onnxcalib.cli.summary import print_summary
from onnxcalib.graph.save import fingerprint
from onnxcalib.numeric.smooth import climb
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
    print_summary(smoothed.report, tmp_path / "model.onnx", open_console())
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


@pytest.mark.parametrize("gains", [True, False])
def test_fitted_factors_are_kept_where_the_outputs_gain(transformer, monkeypatch, tmp_path, capsys, gains):
    if gains:  # on an exponent that alone is far from the best
        monkeypatch.setattr(smoothing, "EXPONENTS", (0.2,))
        monkeypatch.setattr(smoothing, "FIRST", (0.2,))
    else:
        monkeypatch.setattr(smoothing, "fit_factors", lambda values, weights, start, steps: start[::-1].copy())
    samples = draw_tokens(48)
    samples[:, 0] *= 1000
    result = quantize(transformer, samples, AUTO.model_copy(update={"activations": "dynamic"}))
    found = result.report.smoothing
    name = f"{found['exponent']:g}{' fitted' if gains else ''}"
    (fitted,) = (name for name in found["tried_db"] if name.endswith("fitted"))
    assert found["fitted"] is gains and (found["tried_db"][fitted] == max(found["tried_db"].values())) is gains
    assert {e.key: e.value for e in result.model.metadata_props}["onnxcalib.smoothing"] == name
    print_summary(result.report, tmp_path / "model.onnx", open_console())
    assert f"smoothing: exponent {name} for" in capsys.readouterr().out


ALONE = {"activation_bits": 32, "block_size": 16}


def test_weights_alone_are_smoothed_for_the_blocks_that_onnxruntime_rounds(transformer):
    """It rounds float activations inside MatMulNBits, which the file does not say."""
    samples, test = draw_tokens(48), draw_tokens(100, seed=1)
    plain, smoothed = (
        quantize(transformer, samples, config.model_copy(update=ALONE), test=test) for config in (OFF, AUTO)
    )
    found = smoothed.report.smoothing
    assert smoothed.report.outputs[0].sqnr_db > plain.report.outputs[0].sqnr_db + 3
    assert abs(found["tried_db"]["off"] - plain.report.outputs[0].sqnr_db) < 4
    assert [each["tensor"] for each in found["smoothed"]] == ["h", "r", "n"]


def test_a_head_that_shares_its_integers_with_a_table_keeps_its_weight(build, weigh):
    nodes = FEED_FORWARD[FEED_FORWARD.index("[norm]") :].replace("(x, gain)", "(e, gain)").replace("16] y", "1200] y")
    text = f"g (int64[N, 7] x) => (float[N, 7, 1200] y) {{ [look] e = Gather (table, x)  {nodes}"
    table = weigh(1200, 16)
    model = build(
        text, table=table, w3=np.ascontiguousarray(table.T), gain=GAIN, gain2=GAIN, b1=weigh(32), w2=weigh(32, 16),
        w1=(weigh(16, 32) / GAIN[:, None]).astype(np.float32),
    )  # fmt: skip
    tokens = np.random.default_rng(3).integers(0, 1200, (48, 7))
    prepared = prepare(model, tokens, AUTO.model_copy(update=ALONE))
    assert prepared.tied == {"table": "head"}
    assert [each["tensor"] for each in prepared.smoothing.record()["smoothed"]] == ["h", "r"]


@pytest.mark.parametrize("others", [{"weight_bits": 4}, {"block_size": 32}], ids=str)
def test_weights_alone_of_fewer_bits_or_other_blocks_are_not_smoothed(transformer, others):
    """Blocks of 32 do not divide the 16 inputs of the layers behind norms."""
    prepared = prepare(transformer, draw_tokens(48), AUTO.model_copy(update=ALONE | others))
    taken = [] if prepared.smoothing is None else [each["tensor"] for each in prepared.smoothing.record()["smoothed"]]
    assert "h" not in taken and "n" not in taken


def test_factors_of_calibrated_inputs_are_not_fitted(transformer):
    found = prepare(transformer, draw_tokens(48), AUTO).smoothing
    assert not found.fitted and not any("fitted" in name for name in found.decibels)


@pytest.mark.parametrize(
    ("decibels", "best"),
    [([27.1, 27.2, 21.2, 21.3], 1), ([20, 21, 25, 24], 2), ([20, 24, 25, 26], 3), ([27, 26, 25, 25], 0)],
)
def test_both_sides_of_the_first_exponent_are_looked_at(decibels, best):
    assert climb(4, 2, decibels.__getitem__) == best
    assert climb(1, 0, decibels.__getitem__) == 0


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


def test_a_model_of_a_fixed_batch_is_tried_on_whole_runs(build, weigh, transformer):
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in transformer.graph.initializer}
    fixed = build(FEED_FORWARD.replace("[N,", "[6,"), **weights)
    assert prepare(fixed, draw_tokens(60), AUTO).smoothing.exponent is not None
    assert smoothing._spread([[0, 3], [1, 2], [4, 5]], 5) == [0, 3, 4, 5]
    assert smoothing._spread([[0, 3, 1], [2, 4, 5]], 2) == [0, 3, 1]


def test_ranges_of_other_factors_are_refused(transformer):
    samples = draw_tokens(32)
    ranges = calibrate(prepare(transformer, samples, AUTO))
    again = type(ranges).model_validate_json(ranges.to_json())
    assert again.smoothed.keys() >= {"h", "n"} and reconstruct(prepare(transformer, samples, AUTO), again)
    with pytest.raises(
        ConfigError, match=r"ranges: found .* as factors of the channels of 'h', where this run has none"
    ):
        reconstruct(prepare(transformer, samples, OFF), again)
    with pytest.raises(ConfigError, match="calibrate on the same samples with the same settings"):
        reconstruct(prepare(transformer, 3 * draw_tokens(32, seed=5) ** 3, AUTO), again)


def quantize_plain(model, samples, test, **bits):
    """The dB that a run without smoothing reaches, and that the choice of one with it expects of one without."""
    plain, tried = (
        quantize(model, samples, config.model_copy(update=bits), test=test).report for config in (OFF, AUTO)
    )
    return plain.outputs[0].sqnr_db, tried.smoothing["tried_db"]["off"]


# Scales that are powers of two even the channels of what first layers read, with or without smoothing.
FIRST = """g (float[N, 7, 16] x) => (float[N, 7, 8] y) {
    [norm] h = LayerNormalization (x, gain)  [up] y = MatMul (h, w)
}"""


def test_without_smoothing_means_with_the_channels_evened_that_first_layers_read(build, weigh):
    gain = np.float32(2.0) ** np.arange(-4, 4).repeat(2).astype(np.float32)
    model = build(FIRST, gain=gain, w=(weigh(16, 8) / gain[:, None]).astype(np.float32))
    found, expected = quantize_plain(model, draw_tokens(48), draw_tokens(100, seed=1))
    assert abs(expected - found) < 4


@pytest.mark.parametrize("bits", [{"activation_bits": 4}, {"weight_bits": 4}], ids=str)
def test_without_smoothing_means_on_the_grids_of_the_file_and_with_solved_weights(transformer, bits):
    mix = np.random.default_rng(5).normal(size=(5, 16)).astype(np.float32)  # few directions: solving gains much
    samples, test = (draw_tokens(count, seed=count)[..., :5] @ mix for count in (48, 100))
    found, expected = quantize_plain(transformer, samples, test, first_last_bits=4, **bits)
    assert abs(expected - found) < 4


def test_of_channels_that_four_bit_weights_read_those_are_cut_that_stick_out(transformer, tmp_path, capsys):
    samples, test, four = draw_tokens(48), draw_tokens(100, seed=1), {"weight_bits": 4, "first_last_bits": 4}
    plain, smoothed = (
        quantize(transformer, samples, config.model_copy(update=four), test=test) for config in (OFF, AUTO)
    )
    found = smoothed.report.smoothing
    name = f"reach {found['reach']:g}"
    assert found["exponent"] is None and name in found["tried_db"]
    assert {e.key: e.value for e in smoothed.model.metadata_props}["onnxcalib.smoothing"] == name
    print_summary(smoothed.report, tmp_path / "model.onnx", open_console())
    assert f"smoothing: {name} for" in capsys.readouterr().out
    factor = next(onnx.numpy_helper.to_array(i) for i in smoothed.model.graph.initializer if i.name.endswith("_factor"))
    assert (factor < 0.5).sum() == 2 and (factor == 1).sum() > 8
    assert smoothed.report.outputs[0].sqnr_db > plain.report.outputs[0].sqnr_db + 1


def test_planned_layers_stay_and_the_report_says_so(transformer):
    samples = draw_tokens(32)
    totals = Totals(predicted_loss=0.0, measured_loss=0.0, bytes=1, bops=1)
    plan = BitPlan(
        model=fingerprint(transformer), budgets={"max_size": 1}, layers=dict.fromkeys(("up", "down", "head"), "W8A8"),
        totals=totals, eight_bit=totals, bound=0, rounds=0, sets=(),
    )  # fmt: skip
    prepared = prepare(transformer, samples, AUTO, plan=plan)
    assert prepared.smoothing is None
    assert [(each.what, each.reason.partition(";")[0]) for each in prepared.run.left_out] == [
        ("smoothing", "bits are planned by what layers lose without it")
    ]
    assert not prepare(transformer, samples, OFF, plan=plan).run.left_out
    alone = plan.model_copy(update={"layers": dict.fromkeys(plan.layers, "W8A32g16")})
    prepared = prepare(transformer, samples, AUTO, plan=alone)
    assert prepared.smoothing is None and not prepared.run.left_out


def test_a_run_that_goes_on_takes_the_factors_that_it_had(transformer, tmp_path, monkeypatch):
    class Stopped(Observer):
        def stage(self, name):
            if name == "verify":  # after the last block
                raise KeyboardInterrupt

    samples, output = draw_tokens(32), tmp_path / "model.onnx"
    whole = quantize(transformer, samples, AUTO, test=samples)
    with pytest.raises(KeyboardInterrupt):
        quantize(transformer, samples, AUTO, test=samples, output=output, observer=Stopped())
    monkeypatch.setattr(smoothing, "Trial", None)  # not tried again
    again = quantize(transformer, samples, AUTO.model_copy(update={"resume": True}), test=samples, output=output)
    assert again.model.SerializeToString() == whole.model.SerializeToString()
