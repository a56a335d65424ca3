"""onnx's evaluator as the judge of onnxruntime's sessions: what it says, and where it can say nothing."""

from __future__ import annotations

import re

import numpy as np
import pytest

from onnxcalib import GateError, QuantizeConfig, ValidateConfig, quantize, validate
from onnxcalib.report import OutputRecord
from onnxcalib.validation import arbitrate as module
from onnxcalib.validation.arbitrate import find_obstacle, list_remarks
from onnxcalib.verdict import ReferenceRecord, StepsRecord

NET = """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    [stem] c = Conv <pads = [1, 1, 1, 1]> (x, w)  [relu] r = Relu (c)
    [mean] p = GlobalAveragePool (r)  [flat] f = Flatten (p)  [head] y = MatMul (f, v) }"""
ODD = NET.replace("[mean] p", "[odd] q = LRN <size = 3> (r)  [mean] p").replace("(r)  [flat]", "(q)  [flat]")
DATA = np.random.default_rng(3).normal(size=(12, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def make(build, weigh):
    """A float model, and the same quantized."""

    def pair(text=NET):
        net = build(text, w=weigh(4, 3, 3, 3), v=weigh(5, 4).T.copy())
        return net, quantize(net, DATA, QuantizeConfig(reconstruct=False)).model

    return pair


def judge(models, **settings):
    return validate(*models, DATA, ValidateConfig(**settings))


def test_sessions_and_the_float_model_are_compared_with_the_evaluator(make):
    verdict = judge(make(), reference=4, min_reference_sqnr=1)  # sums of the deployed session may saturate here
    assert verdict.reference.samples == 4
    (deployed,), (unoptimized,) = verdict.reference.deployed, verdict.reference.unoptimized
    assert (deployed.name, unoptimized.name) == ("y", "y")
    assert unoptimized.sqnr_db > 30
    (record,) = verdict.reference.original
    assert record.sqnr_db > 100
    for steps in (verdict.reference.deployed_steps, verdict.reference.unoptimized_steps):
        assert {each.tensor for each in steps} == {each.tensor for each in verdict.contract.tensors}
    assert verdict.reference.unoptimized_steps[0].steps <= 1
    gate = verdict.gates[-1]
    assert (gate.name, gate.passed) == ("min_reference_sqnr", True)
    assert gate.text.endswith("on y, at least 1 dB")


def test_without_being_asked_for_there_is_no_reference(make):
    assert judge(make()).reference is None


def test_integers_of_4_bits_are_judged_too(build, weigh):
    net = build(NET, w=weigh(4, 3, 3, 3), v=weigh(5, 4).T.copy())
    quantized = quantize(net, DATA, QuantizeConfig(reconstruct=False, weight_bits=4, activation_bits=4)).model
    found = judge((net, quantized), reference=2).reference
    assert len(found.deployed_steps) == len(found.unoptimized_steps) > 0
    assert found.unoptimized_steps[0].steps <= 1


def test_a_file_without_integers_has_outputs_alone(build, weigh):
    net = build(NET, w=weigh(4, 3, 3, 3), v=weigh(5, 4).T.copy())
    found = judge((net, net), reference=2).reference
    assert (found.deployed_steps, found.unoptimized_steps) == ((), ())
    assert found.deployed[0].sqnr_db > 100


def test_a_kernel_that_is_steps_away_is_named_by_its_session():
    far, near = (StepsRecord("t", "Conv", 7, 0.2),), (StepsRecord("t", "Conv", 1, 0.1),)
    (text,) = list_remarks(ReferenceRecord(4, deployed_steps=far, unoptimized_steps=near))
    assert text.startswith("reference: the deployed session computes t (Conv) otherwise than the file says: from equal")
    assert "it is 7 quantization steps away" in text
    (text,) = list_remarks(ReferenceRecord(4, deployed_steps=near, unoptimized_steps=far))
    assert text.startswith("reference: the unoptimized session computes t (Conv)")


def test_whole_runs_are_compared_where_the_batch_is_fixed(build, weigh):
    net = build(NET.replace("[N, ", "[3, "), w=weigh(4, 3, 3, 3), v=weigh(5, 4).T.copy())
    quantized = quantize(net, DATA, QuantizeConfig(reconstruct=False)).model
    assert judge((net, quantized), reference=4).reference.samples == 6
    assert judge((net, quantized), reference=100).reference.samples == 12


def test_what_cannot_be_judged_is_a_warning_and_the_rest_is_measured(make):
    verdict = judge(make(ODD), reference=2)
    (warning,) = [text for text in verdict.warnings if text.startswith("reference: ")]
    assert re.fullmatch(
        r"reference: onnx's evaluator cannot judge the quantized model: odd \(LRN\): .*; leave --reference out, or"
        " change the operator",
        warning,
    )
    assert verdict.reference.reason and not verdict.reference.deployed
    assert verdict.outputs and verdict.passed


def test_a_float_model_that_cannot_be_judged_is_told_and_the_quantized_one_is(make, build, weigh):
    _, quantized = make()
    odd = build(ODD, w=weigh(4, 3, 3, 3), v=weigh(5, 4).T.copy())
    verdict = judge((odd, quantized), reference=2)
    assert verdict.reference.deployed and not verdict.reference.original
    (warning,) = [text for text in verdict.warnings if text.startswith("reference: ")]
    assert warning.startswith("reference: the float model has no row: odd (LRN): ")
    assert warning.endswith("; only its quantized model was judged")


def test_a_gate_that_cannot_be_judged_is_refused_before_any_model_runs(make, monkeypatch):
    models = make(ODD)
    monkeypatch.setattr("onnxcalib.validation.run.compare", None)
    for settings, text in (({"reference": 2}, r"odd \(LRN\)"), ({}, "found no reference")):
        with pytest.raises(GateError, match=f"^min_reference_sqnr: .*{text}"):
            judge(models, min_reference_sqnr=30, **settings)


def test_a_node_that_the_evaluator_stops_at_is_told_after_the_runs(make, monkeypatch):
    class Stops(module.Reference):
        def run(self, feeds):
            raise module.ReferenceFault("odd (Conv): the evaluator stops: no")

    models = make()
    monkeypatch.setattr(module, "Reference", Stops)
    assert judge(models, reference=2).reference.reason == "odd (Conv): the evaluator stops: no"
    with pytest.raises(GateError, match="the evaluator stops: no; leave the gate out"):
        judge(models, reference=2, min_reference_sqnr=1)


def test_a_model_without_obstacles_has_none(make):
    net, quantized = make()
    assert find_obstacle(net) == find_obstacle(quantized) == ""
    assert find_obstacle(make(ODD)[1]).startswith("odd (LRN): ")


def test_a_float_model_that_differs_too_is_warned_of():
    rows = tuple(OutputRecord(name, decibels, 1.0, 0.5) for name, decibels in (("y", 120.0), ("z", 41.5), ("i", None)))
    (text,) = list_remarks(ReferenceRecord(4, rows, rows, rows))
    assert text.startswith("reference: onnxruntime and onnx's evaluator differ on the float model too, 41.5 dB on z;")
    assert list(list_remarks(ReferenceRecord(4, rows, rows, rows[::2]))) == []


def test_an_output_that_could_not_be_compared_is_warned_of():
    (text,) = list_remarks(ReferenceRecord(4, missed=("y",)))
    assert text == "reference: output y was not compared; onnxruntime and onnx's evaluator give other shapes or types"
