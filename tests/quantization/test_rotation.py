"""Pre-norm transformers whose residual stream has channels that reach far beyond the others."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnxcalib import Observer, QuantizeConfig, prepare, quantize
from onnxcalib.cli.console import open_console
from onnxcalib.cli.summary import print_summary
from onnxcalib.graph.passes import rotate
from onnxcalib.quantization import rotation
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
    off = FOUR.model_copy(update={"rotation": "off"})
    plain, rotated = (quantize(model, samples, config, test=test) for config in (off, FOUR))
    assert rotated.report.outputs[0].sqnr_db > plain.report.outputs[0].sqnr_db + 3
    found = rotated.report.rotation
    assert found["chosen"] and (found["streams"], found["heads"], found["mixed"]) == (1, 2, ["t0", "t1"])
    assert list(found["tried_db"]) == ["off", "on", "mixed"]
    assert {e.key: e.value for e in rotated.model.metadata_props}["onnxcalib.rotation"] == "5"
    mixing = [each for each in rotated.report.in_float if each.reason == rotation.MIXES]
    assert [each.op for each in mixing] == ["MatMul"] * 2 and rotated.report.passes["rotate"] == 5
    print_summary(rotated.report, tmp_path / "model.onnx", open_console())
    assert "rotation: 1 residual stream, the values of 2 attentions, 2 inputs of layers" in capsys.readouterr().out
    assert json.loads(rotated.report.to_json())["rotation"]["chosen"] and plain.report.rotation is None
    given = {"test": test, "output": tmp_path / "stopped.onnx"}
    with pytest.raises(KeyboardInterrupt):
        quantize(model, samples, FOUR, observer=Stopped(), **given)
    monkeypatch.setattr(rotation, "_choose", None)  # not tried again
    again = quantize(model, samples, FOUR.model_copy(update={"resume": True}), **given)
    assert again.model.SerializeToString() == rotated.model.SerializeToString()


@pytest.mark.parametrize(
    ("update", "text", "reason"),
    [
        ({"weight_bits": 8, "activation_bits": 8}, PRENORM, None),
        ({}, PRENORM.replace("Add (p0, bo0)", "Add (p0, h0)"), "of the sums that norm0 reads: Add bias_o0 reads norm"),
        ({"tensors": {"mb0": 8}}, PRENORM, "mb0 has bits in the settings"),
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


def test_inputs_of_layers_that_have_bits_in_the_settings_are_not_mixed(build, monkeypatch):
    monkeypatch.setattr(rotation, "LEAST_MIXED_DB", -99.0)
    given = FOUR.model_copy(update={"weight_bits": 3, "activation_bits": 8, "tensors": {"t0": 8}})
    prepared = prepare(build_prenorm(build), draw_tokens(8), given)
    assert "t0" in prepared.scheme.activations and list(prepared.rotation.mixed) == ["t1"]
    assert "t0 has bits in the settings" in next(e.reason for e in prepared.run.left_out if e.what == "rotation")
