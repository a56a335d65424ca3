"""What a run measured, in one sentence."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from onnxcalib.report import MeasuredOn, OutputRecord, Report, SpeedRecord
from onnxcalib.sentence import sum_up_plan, sum_up_report

CLASSES = OutputRecord("scores", 31.25, 0.999, 0.5, 0.9996, (30.0, 32.5), (0.9899, 0.99995))
REPORT = Report(
    settings={},
    outputs=(CLASSES,),
    float_bytes=1000,
    quantized_bytes=268,
    measured_on=MeasuredOn("held out", 2500),
    speed=SpeedRecord(2.0, 1.05, 1.9, (1.8, 2.0)),
)


def test_answers_size_and_speed_are_told_and_no_share_is_rounded_up():
    assert sum_up_report(REPORT) == (
        "on samples held out, 99.9% of 2,500 answers are the float model's (98.9 to 100% at 95% confidence); the file"
        " is 0.27 of its size; it runs 1.9 times as fast here"
    )


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"measured_on": MeasuredOn("test", 8), "outputs": (replace(CLASSES, agreement=0.875),)}, "7 of 8 answers"),
        ({"measured_on": MeasuredOn("calibration", 8)}, "on the samples that it was made from, 8 of 8 answers"),
        ({"outputs": (replace(CLASSES, positions=5120),)}, "99.9% of 5,120 answers"),
        ({"outputs": (OutputRecord("y", 34.0, 1.0, 0.1),)}, "outputs differ from the float model's by 2% (34.0 dB);"),
        (
            {"outputs": (OutputRecord("y", 80.0, 1.0, 0.1),)},
            "differ from the float model's by less than 0.1% (80.0 dB)",
        ),
        ({"outputs": (OutputRecord("y", float("inf"), 1.0, 0.0),)}, "outputs are exactly the float model's;"),
        ({"outputs": (OutputRecord("y", float("-inf"), 0.0, 1.0),)}, "values that are no finite numbers"),
        ({"outputs": (CLASSES, replace(CLASSES, name="b", agreement=0.5))}, "for b, the worst of 2 outputs"),
        (
            {"outputs": (CLASSES, OutputRecord("y", 20.0, 1.0, 0.1))},
            "; other outputs differ from the float model's by 10%",
        ),
        ({"outputs": ()}, "the file is 0.27 of the float model's size"),
        (
            {"speed": SpeedRecord(1.0, 1.0, 1.0, (0.97, 1.04))},
            "as fast as float here, as far as can be told (0.97 to 1.04",
        ),
        ({"speed": SpeedRecord(1.0, 2.0, 0.5, (0.4, 0.6))}, "it runs slower here, 0.5 times as fast"),
        ({"outputs": (), "float_bytes": 0, "speed": None}, ""),
    ],
)
def test_nothing_is_said_that_was_not_measured(changed, part):
    text = sum_up_report(replace(REPORT, **changed))
    assert part in text
    assert ("answers" in text) == any(each.agreement is not None for each in changed.get("outputs", REPORT.outputs))


def test_a_plan_counts_its_layers_by_bits():
    totals = SimpleNamespace(agreement=97.26, bytes=600)
    plan = SimpleNamespace(layers={"a": "W8A8", "b": "W4A8", "c": "W4A8"}, totals=totals, eight_bit=replace_bytes(1000))
    assert sum_up_plan(plan) == (
        "2 layers at W4A8, 1 layer at W8A8; 97.2% of the answers are the float model's on the samples planned with; the"
        " file will be 0.600 of that with all layers at 8 bits"
    )


def replace_bytes(size):
    return SimpleNamespace(bytes=size)
