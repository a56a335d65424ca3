"""The public stages in a row give what ``quantize`` gives, and what a run does without is in its report."""

import json

import numpy as np
import pytest

import onnxcalib
from onnxcalib import ConfigError, QuantizeConfig
from onnxcalib.quantization import stages
from onnxcalib.quantization.state import StoredActivations

NET = """g (float[N, 3, 6, 6] x) => (float[N, 5] y) {
    [c1] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  [r1] r = Relu (a)
    [p] p = GlobalAveragePool (r)  [f] f = Flatten (p)  [fc] y = Gemm (f, w2, b2)
}"""


@pytest.fixture
def net(build, weigh):
    return build(NET, w1=weigh(6, 3, 3, 3), b1=weigh(6), w2=weigh(6, 5), b2=weigh(5))


@pytest.fixture
def samples(draw):
    return draw(16, 3, 6, 6)


def run_stages(net, samples, config, ranges=None):
    prepared = onnxcalib.prepare(net, samples, config)
    found = onnxcalib.reconstruct(prepared, ranges or onnxcalib.calibrate(prepared))
    return onnxcalib.emit(prepared, found)


@pytest.mark.parametrize(
    "changes",
    [{}, {"weight_bits": 4, "first_last_bits": 4, "views": 1}, {"pipeline": "light"}, {"activation_bits": 32}],
    ids=str,
)
def test_the_stages_in_a_row_give_the_bytes_of_quantize(net, samples, changes):
    config = QuantizeConfig(steps=5, **changes)
    assert (
        run_stages(net, samples, config).SerializeToString()
        == onnxcalib.quantize(net, samples, config).model.SerializeToString()
    )


def test_ranges_that_are_given_replace_those_that_are_calibrated(net, samples, tmp_path):
    config = QuantizeConfig(reconstruct=False)
    calibrated = onnxcalib.calibrate(onnxcalib.prepare(net, samples, config))
    widened = {t: (2 * low, 2 * high) for t, (low, high) in calibrated.activations.items()}
    given = calibrated.model_copy(update={"activations": widened})
    given.save(tmp_path / "ranges.json")
    result = onnxcalib.quantize(net, samples, config, ranges=given)
    assert result.model.SerializeToString() != onnxcalib.quantize(net, samples, config).model.SerializeToString()
    for ranges in (given, tmp_path / "ranges.json"):
        assert run_stages(net, samples, config, ranges).SerializeToString() == result.model.SerializeToString()


def test_calibrated_ranges_change_nothing_when_they_are_given(net, samples):
    config = QuantizeConfig(steps=5, weight_bits=4)
    ranges = onnxcalib.calibrate(onnxcalib.prepare(net, samples, config))
    assert (
        onnxcalib.quantize(net, samples, config, ranges=ranges).model.SerializeToString()
        == onnxcalib.quantize(net, samples, config).model.SerializeToString()
    )


def test_ranges_of_another_model_are_refused_before_any_reconstruction(net, samples, build, weigh):
    other = build(NET, w1=weigh(6, 3, 3, 3), b1=weigh(6), w2=weigh(6, 5), b2=weigh(5))
    ranges = onnxcalib.calibrate(onnxcalib.prepare(other, samples))
    prepared = onnxcalib.prepare(net, samples)
    with pytest.raises(
        ConfigError, match=r"^ranges: found those of another model, .*; calibrate it too, with the same shape$"
    ):
        onnxcalib.reconstruct(prepared, ranges)


def test_stages_and_ranges_take_a_plan(net, samples):
    config = QuantizeConfig(effort="fast", steps=5)
    plan = onnxcalib.plan(net, samples, config.model_copy(update={"max_size": "1@8-bit", "first_last_bits": 4}))
    prepared = onnxcalib.prepare(net, samples, config, plan=plan)
    ranges = onnxcalib.calibrate(prepared)
    found = onnxcalib.emit(prepared, onnxcalib.reconstruct(prepared, ranges))
    for given in (None, ranges):
        result = onnxcalib.quantize(net, samples, config, plan=plan, ranges=given)
        assert result.model.SerializeToString() == found.SerializeToString()


def test_ranges_beside_a_budget_are_refused(net, samples):
    ranges = onnxcalib.calibrate(onnxcalib.prepare(net, samples))
    with pytest.raises(ConfigError, match=r"^ranges: found a budget beside them; .*; plan first, calibrate with the"):
        onnxcalib.quantize(net, samples, QuantizeConfig(max_size="0.9@8-bit"), ranges=ranges)


def test_ranges_of_another_model_are_refused_before_planning_and_preparing(net, samples, build, weigh):
    other = build(NET, w1=weigh(6, 3, 3, 3), b1=weigh(6), w2=weigh(6, 5), b2=weigh(5))
    ranges = onnxcalib.calibrate(onnxcalib.prepare(other, samples))
    heard = []

    class Listener(onnxcalib.Observer):
        def stage(self, name):
            heard.append(name)

    with pytest.raises(ConfigError, match=r"^ranges: found those of another model"):
        onnxcalib.quantize(net, samples, ranges=ranges, observer=Listener())
    assert heard == []


def test_verify_gives_the_report_of_quantize_which_tells_what_follows_calibration(net, samples):
    heard, told = [], []

    class Listener(onnxcalib.Observer):
        def stage(self, name):
            heard.append(name)

        def expect(self, stages):
            told.extend([heard[-1], *stages])

    config = QuantizeConfig(steps=5, weight_bits=4, statistics=True)
    prepared = onnxcalib.prepare(net, samples, config)
    found = onnxcalib.reconstruct(prepared)
    report = onnxcalib.verify(prepared, found, onnxcalib.emit(prepared, found))
    wanted = onnxcalib.quantize(net, samples, config, observer=Listener()).report
    assert (report.outputs, report.layers, report.left_out) == (wanted.outputs, wanted.layers, wanted.left_out)
    assert told == heard[-5:] == ["calibrate", "reconstruct", "evaluate", "statistics", "verify"]


def test_a_stage_that_is_called_again_leaves_no_second_line_in_the_report(net, samples):
    prepared = onnxcalib.prepare(net, samples, QuantizeConfig(views=1, weight_bits=4, steps=5))
    for _ in range(2):
        found = onnxcalib.reconstruct(prepared)
    report = onnxcalib.verify(prepared, found, onnxcalib.emit(prepared, found))
    assert len(set(report.left_out)) == len(report.left_out)
    assert len(set(report.warnings)) == len(report.warnings)


@pytest.mark.parametrize(
    ("name", "budget"), [("max_size", "0.8@8-bit"), ("max_bops", "0.8@8-bit"), ("max_disagreement", 1.0)]
)
def test_a_budget_is_refused_by_the_stages(net, samples, name, budget):
    wanted = rf"^{name}: found a budget; stages take the bits of the settings or of a plan; plan first, and give the"
    with pytest.raises(ConfigError, match=wanted):
        onnxcalib.prepare(net, samples, QuantizeConfig(**{name: budget}))


def left_out(report):
    found = [(record.what, record.reason) for record in report.left_out]
    assert [tuple(each.values()) for each in json.loads(report.to_json())["left_out"]] == found
    return dict(found)


def test_nothing_is_left_out_of_a_plain_run(net, samples):
    assert left_out(onnxcalib.quantize(net, samples, QuantizeConfig(steps=5)).report) == {}


def test_the_report_says_why_there_are_no_views(build, weigh, draw):
    model = build("g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) { [c] y = Conv (x, w) }", w=weigh(4, 4, 1, 1))
    report = onnxcalib.quantize(model, draw(8, 4, 6, 6), QuantizeConfig(views=2, steps=5)).report
    assert left_out(report) == {
        "views": "one input of images is needed, of 4 dimensions and 1 or 3 channels, or one of tokens, input_ids"
    }


def test_the_report_says_why_there_are_no_probes(build, weigh, draw):
    text = "g (float[N, 4, 5, 5] x) => (float[N, 6, 5, 5] y, float[N, 6, 5, 5] z) "
    text += "{ [c] y = Conv <pads = [1, 1, 1, 1]> (x, w, b)  [odd] z = Shrink (y) }"
    config = QuantizeConfig(effort="best", steps=5, weight_bits=4, first_last_bits=4)
    report = onnxcalib.quantize(build(text, w=weigh(6, 4, 3, 3), b=weigh(6)), draw(8, 4, 5, 5), config).report
    reasons = left_out(report)
    assert list(reasons) == ["probes"]
    assert reasons["probes"].startswith("odd: Shrink-9 cannot be converted to torch")


def test_each_tuning_stage_is_measured_and_recorded(net, samples):
    config = QuantizeConfig(pipeline="light", biases=True)
    first, statistics, biases = onnxcalib.reconstruct(onnxcalib.prepare(net, samples, config)).stages
    assert (first.name, first.outcome, first.reason) == ("round", "done", None)
    assert statistics.name == "statistics" and statistics.outcome in ("kept", "rolled back")
    assert (biases.name, biases.outcome, biases.outputs) == ("biases", "rolled back", statistics.outputs)
    assert biases.reason == "16 samples are too few to see whether it helps, 128 would do"
    assert np.isfinite([stage.outputs[0].sqnr_db for stage in (first, statistics, biases)]).all()


@pytest.mark.parametrize(
    ("pipeline", "nearer", "looks"),
    [("default", False, [8]), ("default", True, [8, 32]), ("light", False, [32]), ("light", True, [32])],
)
def test_statistics_of_solved_layers_are_first_looked_at_on_few_samples(
    net, samples, monkeypatch, pipeline, nearer, looks
):
    seen, fill = [], StoredActivations.fill_some
    monkeypatch.setattr(StoredActivations, "fill_some", lambda *given, **_: seen.append(given[-1]) or fill(*given))
    monkeypatch.setattr(stages, "is_nearer", lambda *_: nearer)
    config = QuantizeConfig(pipeline=pipeline, statistics=True, steps=5)
    tuned = onnxcalib.reconstruct(onnxcalib.prepare(net, samples, config)).stages[1]
    assert seen == looks
    refused = "by a first look on 8 samples " * (looks == [8]) + "the outputs were no nearer to the float model's"
    assert (tuned.outcome, tuned.reason) == (("kept", None) if nearer else ("rolled back", refused))


def test_a_layer_that_reads_float_behind_integers_is_solved_on_their_values(build, weigh, draw):
    text = """g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y) {
        [one] a = Conv <pads = [1, 1, 1, 1]> (x, w)  [r] b = Relu (a)  [two] c = Conv <pads = [1, 1, 1, 1]> (b, v)
        [s] d = Relu (c)  [three] y = Conv <pads = [1, 1, 1, 1]> (d, z) }"""
    model = build(text, w=3 * weigh(8, 3, 3, 3), v=weigh(8, 8, 3, 3), z=weigh(4, 8, 3, 3))
    config = QuantizeConfig(layers={"two": {"activation_bits": 32}})
    report = onnxcalib.quantize(model, draw(32, 3, 6, 6), config).report
    assert min(layer.sqnr_db for layer in report.layers) > 25
