"""Gates: each passes at its limit and fails beyond it, by the measure itself or by the near end of its interval."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from onnxcalib.config import ValidateConfig
from onnxcalib.errors import GateError
from onnxcalib.report import BoundRecord, OutputRecord, SaturationRecord, UnfusedRecord
from onnxcalib.validation.compare import Comparisons
from onnxcalib.validation.judge import check_gates, check_reference, judge
from onnxcalib.verdict import ContractRecord, LatencyRecord, ReferenceRecord, ScoreRecord, StepsRecord, Verdict

NAN, INF = float("nan"), float("inf")


def found(**changes) -> Verdict:
    """A verdict of a sound model, with changes."""
    given = {
        "float_model": "f.onnx",
        "quantized_model": "q.onnx",
        "settings": {},
        "samples": 100,
        "scores": (score(2.0), ScoreRecord("top-5", 95.0, 50.0, 45.0, (40.0, 50.0))),
        "outputs": (output("y", 20.0),),
        "float_bytes": 4000,
        "quantized_bytes": 1000,
        "latency": latency(2.0, (1.5, 2.5)),
        "unfused": (UnfusedRecord("QuantizeLinear", "x", "entry"),) * 3,
        "contract": ContractRecord(8, (StepsRecord("t", "Conv", 1, 0.1), StepsRecord("u", "Add", 0, 0.0))),
    }
    return Verdict(**given | changes)


def score(drop, interval=(1.0, 3.0), name="top-1"):
    return ScoreRecord(name, 80.0, 80.0 - drop, drop, interval)


def output(name, sqnr, agreement=0.95, *, sqnr_interval=(18.0, 22.0), agreement_interval=(0.92, 0.97)):
    return OutputRecord(name, sqnr, 0.99, 0.5, agreement, sqnr_interval, agreement_interval)


def latency(speedup, interval):
    return LatencyRecord(4, 25, 4.0, 2.0, 0.01, 0.01, speedup, interval)


def gate(verdict, missed=(), **settings):
    """The one record of the gate asked for, max_steps apart."""
    (name,) = settings.keys() - {"confident"}
    return next(record for record in judge(verdict, ValidateConfig(**settings), missed) if record.name == name)


@pytest.mark.parametrize(
    ("name", "passes", "fails"),
    [
        ("max_drop", 2.0, 1.99),
        ("min_agreement", 95.0, 95.01),
        ("min_sqnr", 20.0, 20.01),
        ("max_size_ratio", 0.25, 0.249),
        ("min_speedup", 2.0, 2.01),
        ("max_unfused", 3, 2),
        ("max_steps", 1, 0),
    ],
)
def test_a_gate_passes_at_its_limit_and_fails_beyond_it(name, passes, fails):
    assert gate(found(), **{name: passes}).passed
    assert not gate(found(), **{name: fails}).passed


def test_values_that_are_not_finite_where_the_float_models_are_fail_every_gate():
    broken = replace(found(), outputs=(replace(output("y", 20.0), broken=3),))
    limits = {"max_size_ratio": 1e6, "min_speedup": 1e-6, "max_unfused": 10**9, "max_steps": 65535}
    for record in judge(broken, ValidateConfig(**limits)):
        assert not record.passed and record.text.endswith("; 3 values of y are not finite"), record


@pytest.mark.parametrize(
    ("name", "passes", "fails"),
    [
        ("max_drop", 3.0, 2.99),
        ("min_agreement", 92.0, 92.01),
        ("min_sqnr", 18.0, 18.01),
        ("max_size_ratio", 0.25, 0.249),
        ("min_speedup", 1.5, 1.51),
        ("max_unfused", 3, 2),
        ("max_steps", 1, 0),
    ],
)
def test_confident_judges_the_end_of_the_interval_that_is_nearer_to_the_limit(name, passes, fails):
    assert gate(found(), **{name: passes}, confident=True).passed
    assert not gate(found(), **{name: fails}, confident=True).passed


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_drop": 2}, "top-1 80.00 to 78.00, a drop of 2.00 points (95%: 1.00 to 3.00), at most 2"),
        ({"min_agreement": 90}, "95.00% (95%: 92.00 to 97.00) on y, at least 90%"),
        ({"min_sqnr": 20.5}, "20.00 dB (95%: 18.00 to 22.00) on y, at least 20.5 dB"),
        ({"max_size_ratio": 0.3}, "0.250 (1,000 of 4,000 bytes), at most 0.3"),
        ({"min_speedup": 1.5}, "2.00 times as fast (95%: 1.50 to 2.50) at batch 4, at least 1.5"),
        ({"max_unfused": 4}, "3 QuantizeLinear and DequantizeLinear left, at most 4"),
        ({"max_steps": 2}, "1 step between graph optimizations off and on at t (Conv), at most 2"),
    ],
)
def test_a_gate_says_what_was_measured_and_its_limit(settings, text):
    assert gate(found(), **settings).text == text


def test_a_gate_has_its_numbers_apart_from_its_text():
    record = gate(found(), max_drop=2)
    assert (record.limit, record.measured, record.interval, record.unit) == (2, 2.0, (1.0, 3.0), "points")
    record = gate(found(), min_agreement=90)
    assert (record.limit, record.measured, record.interval, record.unit) == (90, 95.0, (92.0, 97.0), "%")
    assert (gate(found(), max_steps=2).measured, gate(found(), max_unfused=4).measured) == (1, 3)


def test_only_gates_that_were_asked_for_are_judged_in_the_order_of_the_settings():
    every = {
        "max_steps": 1, "max_unfused": 9, "min_speedup": 1, "max_size_ratio": 1, "min_sqnr": 1, "min_agreement": 90,
        "max_drop": 9, "max_saturating": 3, "min_reference_sqnr": 1, "min_placed": 50,
    }  # fmt: skip
    order = [name for name in ValidateConfig.model_fields if name.startswith(("max_", "min_"))]
    assert [record.name for record in judge(found(), ValidateConfig(**every))] == order
    assert set(every) == set(order)
    assert [record.name for record in judge(found(), ValidateConfig())] == ["max_steps"]


def test_a_rise_is_a_negative_drop_and_passes_a_limit_of_none():
    record = gate(found(scores=(score(-1.5, (-3.0, 0.5)),)), max_drop=0)
    assert record.passed
    assert record.text == "top-1 80.00 to 81.50, a drop of -1.50 points (95%: -3.00 to 0.50), at most 0"
    assert not gate(found(scores=(score(-1.5, (-3.0, 0.5)),)), max_drop=0, confident=True).passed


def test_a_rise_can_be_asked_for():
    assert gate(found(scores=(score(-1.5),)), max_drop=-1.5).passed
    assert not gate(found(scores=(score(-1.5),)), max_drop=-2).passed


def test_the_drop_is_that_of_the_first_score():
    assert gate(found(), max_drop=2).passed  # top-5 drops by 45


def test_a_metric_has_no_points():
    record = gate(found(scores=(score(0.5, None, "mine:f1"),)), max_drop=1)
    assert (record.passed, record.text) == (True, "mine:f1 80 to 79.5, a drop of 0.5, at most 1")


# Several outputs


def test_the_output_of_the_lowest_sqnr_decides():
    outputs = (output("a", 30.0), output("b", 10.0), output("c", 20.0), output("d", None))
    record = gate(found(outputs=outputs), min_sqnr=15)
    assert (record.passed, "10.00 dB" in record.text, "on b" in record.text) == (False, True, True)


def test_the_part_of_the_lowest_sqnr_decides_and_is_named():
    parts = (output("a[:, 0:4]", 31.0, None), output("a[:, 4:84]", 9.0, None))
    record = gate(found(outputs=(replace(output("a", 30.0), parts=parts),)), min_sqnr=15)
    assert (record.passed, "9.00 dB" in record.text, "on a[:, 4:84]," in record.text) == (False, True, True)


def test_the_output_of_the_lowest_agreement_decides():
    outputs = (output("a", 30.0, 0.99), output("b", 10.0, 0.5), output("c", 20.0, None))
    record = gate(found(outputs=outputs), min_agreement=60)
    assert (record.passed, record.text[:6], "on b" in record.text) == (False, "50.00%", True)


def test_confident_judges_the_output_whose_near_end_is_lowest():
    """Of two outputs the better may be the less certain."""
    outputs = (
        output("sure", 19.0, 0.94, sqnr_interval=(18.0, 20.0), agreement_interval=(0.93, 0.95)),
        output("unsure", 20.0, 0.95, sqnr_interval=(10.0, 30.0), agreement_interval=(0.80, 0.99)),
    )
    for settings in ({"min_sqnr": 15}, {"min_agreement": 90}):
        assert gate(found(outputs=outputs), **settings).passed
        record = gate(found(outputs=outputs), **settings, confident=True)
        assert not record.passed and "on unsure" in record.text


def test_an_output_that_could_not_be_compared_fails_the_sqnr_gate_by_its_name():
    record = gate(found(), ["boxes", "other"], min_sqnr=1)
    assert (record.passed, record.text) == (False, "output boxes could not be compared, at least 1 dB")
    assert not gate(found(outputs=()), ["boxes"], min_sqnr=1).passed


def test_an_output_that_could_not_be_compared_leaves_the_other_gates_alone():
    settings = ValidateConfig(max_drop=5, max_size_ratio=1, min_speedup=1, max_unfused=9)
    assert all(record.passed for record in judge(found(), settings, ["boxes"]))


# What is no number


@pytest.mark.parametrize("confident", [False, True])
def test_a_measure_that_is_not_a_number_passes_no_gate(confident):
    nan = (NAN, NAN)
    cases = [
        ({"max_drop": 1e9}, {"scores": (score(NAN, nan),)}),
        ({"min_agreement": 0}, {"outputs": (output("y", 1.0, NAN, agreement_interval=nan),)}),
        ({"min_sqnr": -1e4}, {"outputs": (output("y", NAN, sqnr_interval=nan),)}),
        ({"min_speedup": 1e-30}, {"latency": latency(NAN, nan)}),
        ({"max_size_ratio": 1e6}, {"quantized_bytes": NAN}),
    ]
    for settings, changes in cases:
        assert not gate(found(**changes), **settings, confident=confident).passed, settings


@pytest.mark.parametrize("confident", [False, True])
@pytest.mark.parametrize("drop", [-INF, INF, NAN])
def test_a_score_that_is_not_finite_passes_no_gate(drop, confident):
    verdict = found(scores=(score(drop, None, "mine:f1"),))
    settings = {"max_drop": 1e9 if drop != -INF else 0.5, "confident": confident}
    check_gates(Comparisons((ScoreRecord("mine:f1", 1e10, 0.0, drop),), (), {}), ValidateConfig(**settings))
    assert not gate(verdict, **settings).passed


def test_an_output_that_is_not_finite_fails_every_gate():
    gates = {"max_drop": 5, "min_agreement": 50, "min_sqnr": 1, "max_size_ratio": 1, "min_speedup": 1, "max_unfused": 9}
    outputs = (output("x", 30.0), replace(output("y", 20.0), broken=1200))
    settings = ValidateConfig(**gates)
    assert all(record.passed for record in judge(found(), settings))
    records = judge(found(outputs=outputs), settings)
    assert len(records) == len(gates) + 1 and not any(record.passed for record in records)
    assert records[3].text == "0.250 (1,000 of 4,000 bytes), at most 1; 1,200 values of y are not finite"


def test_nan_is_worse_than_any_other_output():
    outputs = (output("a", -50.0), output("b", NAN, sqnr_interval=(-INF, INF)), output("c", 30.0))
    for confident in (False, True):
        record = gate(found(outputs=outputs), min_sqnr=-100, confident=confident)
        assert not record.passed and record.text.startswith("nan dB") and "on b" in record.text
    # b first or last makes no difference
    assert "on b" in gate(found(outputs=outputs[::-1]), min_sqnr=-100).text


def test_an_infinite_error_fails_and_no_error_passes():
    assert not gate(found(outputs=(output("y", -INF, sqnr_interval=(-INF, INF)),)), min_sqnr=-1e4).passed
    for confident in (False, True):
        assert gate(
            found(outputs=(output("y", INF, sqnr_interval=(INF, INF)),)), min_sqnr=99, confident=confident
        ).passed


def test_an_interval_without_an_end_fails_where_one_must_be_confident():
    """One sample alone has no interval to speak of."""
    outputs = (output("y", 50.0, sqnr_interval=(-INF, INF)),)
    assert gate(found(outputs=outputs), min_sqnr=10).passed
    assert not gate(found(outputs=outputs), min_sqnr=10, confident=True).passed


# Kernel consistency


def test_a_pair_on_two_grids_fails_whatever_the_limit():
    contract = ContractRecord(8, (StepsRecord("t", "Conv", 0, 0.0),), ("stem",))
    record = gate(found(contract=contract), max_steps=255)
    assert (record.passed, record.text) == (False, "stem is dequantized on another grid than it was quantized on")
    contract = ContractRecord(8, (), ("stem", "head", "deep"))
    record = gate(found(contract=contract), max_steps=255)
    assert record.text == "stem and 2 more is dequantized on another grid than it was quantized on"


def test_several_steps_are_named_by_their_tensor_and_none_by_no_tensor():
    contract = ContractRecord(8, (StepsRecord("t", "Conv", 3, 0.1),))
    text = "3 steps between graph optimizations off and on at t (Conv), at most 1"
    assert gate(found(contract=contract), max_steps=1).text == text
    contract = ContractRecord(8, (StepsRecord("t", "Conv", 0, 0.0),))
    text = "0 steps between graph optimizations off and on, at most 1"
    assert gate(found(contract=contract), max_steps=1).text == text


def test_a_model_without_integer_tensors_keeps_the_contract():
    record = gate(found(contract=ContractRecord(0, ())), max_steps=0)
    assert (record.passed, record.text) == (True, "no integer tensor to judge, at most 0")


# What was not measured


@pytest.mark.parametrize(
    ("changes", "settings", "text"),
    [
        (
            {"scores": ()},
            {"max_drop": 1},
            "max_drop: found no labels; accuracy needs the class of every sample; give --labels, or ask for"
            " --min-agreement or --min-sqnr in its place",
        ),
        (
            {"scores": (score(0.5, None, "mine:f1"),)},
            {"max_drop": 1, "confident": True},
            "confident: found one number for all samples from metric mine:f1, which has no interval; return one number"
            " for each sample, or leave --confident out",
        ),
        (
            {"scores": (score(0.5, None, "mine:f1"),)},
            {"max_drop": 80},
            "max_drop: found 80 where mine:f1 of the float model is 80; not even a drop to 0 would fail; give less, in",
        ),
        (
            {"outputs": (output("y", 20.0, None),)},
            {"min_agreement": 90},
            "min_agreement: found no output that is class scores, (samples, classes), probabilities of classes at"
            " each position, or whole numbers; agreement needs one; use --min-sqnr, or --metric with --max-drop",
        ),
        (
            {"outputs": (output("y", None),)},
            {"min_sqnr": 9},
            "min_sqnr: found no output of floats; SQNR needs one; use --min-agreement",
        ),
    ],
)
def test_a_gate_on_what_was_not_measured_is_refused(changes, settings, text):
    verdict = found(**changes)
    with pytest.raises(GateError, match=re.escape(text)):
        check_gates(Comparisons(verdict.scores, verdict.outputs, {}), ValidateConfig(**settings))


def test_gates_that_fit_are_let_pass_and_so_are_those_that_an_output_fails_that_was_not_compared():
    every = ValidateConfig(max_drop=1, min_agreement=90, min_sqnr=9)
    check_gates(Comparisons(found().scores, found().outputs, {}), every)
    check_gates(Comparisons(found().scores, (), {"y": "it is no tensor"}), every)


def test_a_share_passes_a_limit_that_it_equals_but_for_binary_rounding():
    assert gate(found(outputs=(output("y", 20.0, 241 / 250),)), min_agreement=96.4).passed
    assert not gate(found(outputs=(output("y", 20.0, 240 / 250),)), min_agreement=96.4).passed
    assert gate(found(scores=(score(100 * (301 - 300) / 500),)), max_drop=0.2).passed


# Saturation


@pytest.mark.parametrize(
    ("layers", "outputs", "limit", "passed", "text"),
    [
        ((), (), 0, True, "0 of 7 integer kernels can saturate on x86 without VNNI, at most 0"),
        (
            ("a", "b"), ((12.84, 0.9012), (30.0, None)), 1, False,
            "2 of 7 integer kernels can saturate on x86 without VNNI (12.8 dB, 90.1% agreement there), at most 1",
        ),
        (
            ("a", "b"), ((None, 0.5),), 2, True,
            "2 of 7 integer kernels can saturate on x86 without VNNI (50.0% agreement there), at most 2",
        ),
        (("a",), (), 0, False, "1 of 7 integer kernels can saturate on x86 without VNNI, at most 0"),
    ],
)  # fmt: skip
def test_layers_that_can_saturate_are_counted_and_what_they_do_is_said(layers, outputs, limit, passed, text):
    bounds = tuple(BoundRecord(name, 40_000) for name in layers)
    records = tuple(OutputRecord("y", sqnr, None, None, agreement) for sqnr, agreement in outputs)
    record = gate(found(saturation=SaturationRecord(7, bounds, 16, records)), max_saturating=limit)
    assert (record.name, record.passed, record.text) == ("max_saturating", passed, text)


def test_a_model_without_integer_kernels_cannot_saturate():
    record = gate(found(), max_saturating=0)
    assert (record.passed, record.text) == (True, "no integer kernel to judge, at most 0")


@pytest.mark.parametrize(
    ("reference", "passed", "text"),
    [
        (ReferenceRecord(4, (output("y", 40.0), output("z", 35.5))), True,
         "35.50 dB (95%: 18.00 to 22.00) on z, at least 35 dB"),
        (ReferenceRecord(4, (output("y", 34.0),), (output("y", 50.0),)), False,
         "34.00 dB (95%: 18.00 to 22.00) on y, at least 35 dB"),
        (ReferenceRecord(4, (output("y", 50.0),), missed=("z",)), False,
         "output z could not be compared, at least 35 dB"),
        (ReferenceRecord(4, (output("y", None),)), False, "no output of floats to judge, at least 35 dB"),
    ],
)  # fmt: skip
def test_the_reference_judges_the_worst_output_as_deployed(reference, passed, text):
    record = gate(found(reference=reference), min_reference_sqnr=35)
    assert (record.passed, record.text) == (passed, text)


def test_a_gate_on_the_reference_without_one_is_refused():
    check_reference(ValidateConfig(), "odd (LRN): wrong")
    check_reference(ValidateConfig(min_reference_sqnr=30, reference=4), "")
    with pytest.raises(GateError, match=r"^min_reference_sqnr: found no reference; .*; give --reference 4, or leave"):
        check_reference(ValidateConfig(min_reference_sqnr=30), "")
    with pytest.raises(
        GateError, match=r"^min_reference_sqnr: onnx's evaluator cannot judge .*: odd \(LRN\): wrong; leave"
    ):
        check_reference(ValidateConfig(min_reference_sqnr=30, reference=4), "odd (LRN): wrong")
