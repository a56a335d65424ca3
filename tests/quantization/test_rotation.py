"""Pre-norm transformers whose residual stream has channels that reach far beyond the others."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import ModelProto, helper

from onnxcalib import Observer, QuantizeConfig, prepare, quantize
from onnxcalib.cli.console import open_console
from onnxcalib.cli.summary import print_summary
from onnxcalib.data import open_calibration
from onnxcalib.errors import ModelError
from onnxcalib.graph.load import inputs_of
from onnxcalib.graph.passes import rotate
from onnxcalib.quantization import rotatable, rotation
from onnxcalib.validation.explain import explain
from tests.small_prenorm import PRENORM, build_prenorm

FOUR = QuantizeConfig(placement="all", weight_bits=4, activation_bits=4, effort="fast", smoothing="off")


@pytest.fixture(autouse=True)
def mixes_small_layers(monkeypatch):
    monkeypatch.setattr(rotate, "LEAST_WEIGHTS", 0)


def draw_tokens(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 6, 8)).astype(np.float32)


def test_the_outputs_gain_and_the_report_says_by_what(build, tmp_path, capsys, monkeypatch):
    class Stopped(Observer):
        def stage(self, name):
            if name == "verify":  # after the last block
                raise KeyboardInterrupt

    monkeypatch.setattr(rotation, "LEAST_MIXED_DB", -99.0)  # for a model this small
    model = build_prenorm(build, PRENORM.replace("Relu", "Tanh"))
    samples, test = draw_tokens(32), draw_tokens(32, seed=1)
    given = FOUR.model_copy(update={"weight_bits": 3, "activation_bits": 8, "tensors": {"t0": 8}})
    off = given.model_copy(update={"rotation": "off"})
    plain, rotated = (quantize(model, samples, config, test=test) for config in (off, given))
    assert rotated.report.outputs[0].sqnr_db > plain.report.outputs[0].sqnr_db + 3
    found = rotated.report.rotation
    assert found["chosen"] and (found["streams"], found["heads"], found["mixed"]) == (1, 2, ["t1"])
    assert list(found["tried_db"]) == ["off", "on", "mixed"]
    told = json.loads({e.key: e.value for e in rotated.model.metadata_props}["onnxcalib.rotation"])
    assert told == {"streams": [48], "heads": [24, 24], "mixed": 1}
    mixing = [each for each in rotated.report.in_float if each.reason == rotation.MIXES]
    assert [each.op for each in mixing] == ["MatMul"] and rotated.report.passes["rotate"] == 4
    explained = explain(model, rotated.model, open_calibration(samples[:8], inputs_of(model)), 1)
    assert [line.split(" (")[0] for line in explained.unmatched] == ["t1_smoothed_rotated_turn"]
    losses = {each.name: each for each in (*explained.layers, *explained.others)}
    assert len(losses) == 18 and all(each.alone_db > 12 and each.at_output_db > 25 for each in losses.values())
    print_summary(rotated.report, tmp_path / "model.onnx", open_console())
    assert "rotation: 1 residual stream, the values of 2 attentions, 1 input of layers" in capsys.readouterr().out
    assert json.loads(rotated.report.to_json())["rotation"]["chosen"] and plain.report.rotation is None
    places = {"test": test, "output": tmp_path / "stopped.onnx"}
    with pytest.raises(KeyboardInterrupt):
        quantize(model, samples, given, observer=Stopped(), **places)
    monkeypatch.setattr(rotation, "_choose", None)  # not tried again
    again = quantize(model, samples, given.model_copy(update={"resume": True}), **places)
    assert again.model.SerializeToString() == rotated.model.SerializeToString()
    assert again.report.left_out == rotated.report.left_out
    assert "t0 has bits in the settings" in next(e.reason for e in again.report.left_out if e.what == "rotation")


@pytest.mark.parametrize(
    ("update", "text", "reason"),
    [
        ({"weight_bits": 8, "activation_bits": 8}, PRENORM, None),
        ({}, PRENORM.replace("Add (p0, bo0)", "Add (p0, h0)"), "of the sums that norm0 reads: Add bias_o0 reads norm"),
        ({"tensors": {"mb0": 8}}, PRENORM, "mb0 has bits in the settings"),
        ({"activations": "dynamic", "activation_bits": 8}, PRENORM, "each row of the activations has a range"),
        ({"activation_bits": 32}, PRENORM, None),
    ],
)  # fmt: skip
def test_what_is_not_rotated_says_why_where_that_is_news(build, update, text, reason):
    prepared = prepare(build_prenorm(build, text), draw_tokens(8), FOUR.model_copy(update=update))
    told = [each.reason for each in prepared.run.left_out if each.what == "rotation"]
    streams = 0 if prepared.rotation is None else prepared.rotation.streams
    assert streams == 0 and (told == [] if reason is None else reason in told[0])


def test_a_rotation_that_float_does_not_hold_is_refused_and_the_model_is_the_one_without(build, monkeypatch):
    monkeypatch.setattr(rotation, "MOST_CHANGE", 0.0)
    model, samples = build_prenorm(build), draw_tokens(8)
    off, folded = (FOUR.model_copy(update={"rotation": way}) for way in ("off", "folded"))
    plain, tried = (prepare(model, samples, config) for config in (off, folded))
    assert tried.rotation.count == 0 and list(tried.rotation.decibels) == ["off", "on"] and plain.rotation is None
    assert tried.model.SerializeToString(deterministic=True) == plain.model.SerializeToString(deterministic=True)
    assert "it changes outputs by" in next(e.reason for e in tried.run.left_out if e.what == "rotation")


def test_weights_are_tried_as_the_pipeline_rounds_them(build):
    given = FOUR.model_copy(update={"activation_bits": 8, "rotation": "folded"})
    solved, rounded = (
        prepare(build_prenorm(build), draw_tokens(32), given.model_copy(update={"pipeline": name})).rotation.decibels
        for name in ("default", "light")
    )
    assert all(solved[way] > rounded[way] + 1 for way in ("off", "on"))


def test_a_float_model_is_rotated_only_as_a_file_tells(build, monkeypatch):
    model = build_prenorm(build)

    def rotate_as(told, **settings):
        file = ModelProto()
        helper.set_model_props(file, {} if told is None else {rotatable.ROTATION_KEY: told})
        return rotatable.rotate_alike(model, file, settings, open_calibration(draw_tokens(2), inputs_of(model)), 1)

    assert rotate_as(None) is model and rotate_as('{"streams": [], "heads": [], "mixed": 2}') is model
    sizes = '{"streams": [48], "heads": [24, 24], "mixed": 0}'
    assert "s1_rotated" in {t for node in rotate_as(sizes).graph.node for t in node.output}
    with pytest.raises(ModelError, match=r"onnxcalib.rotation in the metadata: found '5'; a record .* again"):
        rotate_as("5")
    with pytest.raises(ModelError, match=r"found \{'streams': \(48,\), .*\}; the float model has .* to rotate"):
        rotate_as('{"streams": [48], "heads": []}')
    with pytest.raises(ModelError, match="the settings in the metadata: weight_bits: found 5"):
        rotate_as(sizes, weight_bits=5)
    with pytest.raises(ModelError, match="the settings in the metadata: target: found 'mine'"):
        rotate_as(sizes, target="mine")
    monkeypatch.setattr(rotatable, "MOST_CHANGE", 0.0)
    with pytest.raises(ModelError, match="rotated as the file is, has outputs that are"):
        rotate_as(sizes)


def test_inputs_of_layers_that_have_bits_in_the_settings_are_not_mixed(build, monkeypatch):
    monkeypatch.setattr(rotation, "LEAST_MIXED_DB", -99.0)
    given = FOUR.model_copy(update={"weight_bits": 3, "activation_bits": 8, "tensors": {"t0": 8}})
    prepared = prepare(build_prenorm(build), draw_tokens(8), given)
    assert "t0" in prepared.scheme.activations and list(prepared.rotation.mixed) == ["t1"]
    assert "t0 has bits in the settings" in next(e.reason for e in prepared.run.left_out if e.what == "rotation")
