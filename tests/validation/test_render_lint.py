"""The lint of a file as Markdown, JUnit XML and JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

from onnxcalib.targets import LintRecord, Violation
from onnxcalib.validation.render_lint import draw_lint, to_json, to_junit, to_markdown

BROKEN = Violation("opset", "a|b (Conv)", "opset 9", "opset 13 or later", "the manual <1>")
SOUND = LintRecord("chip", "q.onnx", ("opset", "pairs"), (), 4)
RECORD = LintRecord("chip", "q.onnx", ("opset", "pairs"), (BROKEN,), 4)


def test_markdown_has_a_row_a_violation():
    text = to_markdown(RECORD)
    assert text.startswith(
        "## onnxcalib validate: FAILED\n\n`q.onnx`: 1 violation of 1 of the 2 rules of target chip: "
    )
    row = "| refused | <code>a&#124;b &#40;Conv&#41;</code> | `opset` | opset 9 | opset 13 or later |"
    assert text.splitlines()[-1] == f"{row} the manual \\<1\\> |"
    assert to_markdown(SOUND).startswith("## onnxcalib validate: PASSED\n") and draw_lint(SOUND) == []


def test_junit_has_one_case_whose_failure_lists_the_violations():
    suite = ElementTree.fromstring(to_junit(RECORD).encode()).find("testsuite")
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    assert suite.find("testcase/failure").text.splitlines() == [f"target: {RECORD.text}", BROKEN.text]
    suite = ElementTree.fromstring(to_junit(SOUND).encode()).find("testsuite")
    assert (suite.get("failures"), suite.find("testcase/failure")) == ("0", None)


def test_advice_is_in_every_report_and_passes():
    record = LintRecord("chip", "q.onnx", ("opset", "pairs"), (replace(BROKEN, level="advice"),), 4)
    assert record.text.startswith("1 of 2 rules of target chip hold; advice: opset; the file was read")
    assert to_markdown(record).startswith("## onnxcalib validate: PASSED") and "\n| advice | " in to_markdown(record)
    suite = ElementTree.fromstring(to_junit(record).encode()).find("testsuite")
    assert suite.get("failures") == "0" and "\nadvice: a|b (Conv): opset: " in suite.find("testcase/system-out").text
    found = json.loads(to_json(record))
    assert found["passed"] and found["lint"]["violations"][0]["level"] == "advice"


def test_json_has_the_record_at_its_key():
    found = json.loads(to_json(RECORD))
    assert (found["passed"], found["quantized_model"], found["lint"]["target"]) == (False, "q.onnx", "chip")
    assert found["lint"]["violations"][0]["source"] == "the manual <1>"
