"""Reports of a verdict: JUnit XML that parsers take, Markdown that shows every name as it is."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from onnxcalib.report import BoundRecord, OutputRecord, SaturationRecord, UnfusedRecord
from onnxcalib.validation.render import (
    WORST_LAYERS,
    conclude,
    gather_toml,
    spell_facts,
    spell_outputs,
    spell_reference,
    spell_saturation,
    to_junit,
    to_markdown,
)
from onnxcalib.verdict import (
    ContractRecord,
    Explanation,
    GateRecord,
    LatencyRecord,
    LayerLoss,
    ReferenceRecord,
    ScoreRecord,
    StepsRecord,
    Verdict,
)

STEPS = GateRecord("max_steps", True, "1 step, at most 1")
DROP = GateRecord("max_drop", False, "3.00 points (95%: 1.00 to 5.00), at most 2")
BOUNDS = (BoundRecord("stem", 41_000), BoundRecord("head", 33_000))
VERDICT = Verdict(
    float_model="float.onnx",
    quantized_model="quantized.onnx",
    settings={},
    samples=200,
    scores=(
        ScoreRecord("top-1", 71.25, 68.25, 3.0, (1.0, 5.0)),
        ScoreRecord("top-5", 91.0, 91.5, -0.5),
        ScoreRecord("mine:f1_score", 0.8125, 0.75, 0.0625, (0.05, 0.075)),
    ),
    outputs=(
        OutputRecord("scores", 31.25, 0.999, 0.5, 0.975, (30.0, 32.5), (0.95, 1.0)),
        OutputRecord("index", None, None, None, 0.99),
        OutputRecord("copy", float("inf"), 1.0, 0.0),
    ),
    float_bytes=4_000_000,
    quantized_bytes=1_000_000,
    latency=LatencyRecord(4, 51, 12.5, 5.0, 0.03, 0.06, 2.5, (2.25, 2.75)),
    unfused=(UnfusedRecord("QuantizeLinear", "image", "follows Resize"),),
    contract=ContractRecord(16, (StepsRecord("a", "Conv", 1, 0.01), StepsRecord("b", "Add", 0, 0.0)), (), 39.84),
    saturation=SaturationRecord(
        23,
        BOUNDS,
        64,
        (OutputRecord("scores", 12.84, 0.95, 3.5, 0.9012),),
        (OutputRecord("scores", 30.5, 0.998, 0.25, 0.96875),),
    ),
    gates=(DROP, STEPS),
)
ROWS = [
    ["top-1 %", "71.25", "68.25", "drop 3.00 (95%: 1.00 to 5.00)"],
    ["top-5 %", "91.00", "91.50", "drop -0.50"],
    ["mine:f1_score", "0.8125", "0.75", "drop 0.0625 (95%: 0.05 to 0.075)"],
    ["file bytes", "4,000,000", "1,000,000", "0.250 of float"],
    ["latency ms, batch 4", "12.5 (spread 3%)", "5 (spread 6%)", "speedup 2.50 (95%: 2.25 to 2.75)"],
    ["unfused Q/DQ", "-", "1", ""],
    [
        "kernel consistency",
        "-",
        "-",
        "1 of 2 tensors moved by optimizations; outputs of the two sessions agree to 39.8 dB",
    ],
    ["integer kernels", "-", "23", "2 can saturate on x86 without VNNI"],
]
OUTPUT_ROWS = [
    ["scores", "97.50 (95.00 to 100.00)", "31.25 (30.00 to 32.50)", "0.999000", "0.5"],
    ["index", "99.00", "-", "-", "-"],
    ["copy", "-", "inf", "1.000000", "0"],
]
SATURATED_ROWS = [
    ["scores", "exact sums (64 samples)", "96.88", "30.50", "0.998000", "0.25"],
    ["scores", "without VNNI (64 samples)", "90.12", "12.84", "0.950000", "3.5"],
]
FINE = OutputRecord("y", 30.0, 1, 1)
ODD_NAMES = ("a|b", "a\\|b", "`", "``a` b", "<b>&amp;", "*a* _b_ ~~c~~", "[x](http://y)", "two\nlines\r\nmore", "<!--")


def lose(name: str, toml: str = "", *reasons: str, remedy: str = "") -> LayerLoss:
    return LayerLoss(name, "Conv", 4, 8, 20.0, 18.0, float("nan"), reasons, remedy, toml)


class Reader(HTMLParser):
    """The rows of all tables, the items of lists and the blocks of code that HTML shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows, self.items, self.blocks, self.into = [], [], [], None
        self.feed(MarkdownIt("commonmark").enable("table").render(text))

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        into = {"td": lambda: self.rows[-1], "li": lambda: self.items, "pre": lambda: self.blocks}.get(tag)
        if into:
            self.into = into()
            self.into.append("")

    def handle_endtag(self, tag):
        if tag in ("td", "li", "pre"):
            self.into = None

    def handle_data(self, text):
        if self.into is not None:
            self.into[-1] += text


def test_each_gate_is_a_test_case_and_its_line_the_failure():
    root = ElementTree.fromstring(to_junit(VERDICT))
    (suite,) = root.findall("testsuite")
    assert suite.get("name") == "onnxcalib validate quantized.onnx"
    for element in (root, suite):
        assert [element.get(key) for key in ("tests", "failures", "errors")] == ["2", "1", "0"]
    drop, steps = suite.findall("testcase")
    assert (drop.get("classname"), drop.get("name")) == ("onnxcalib.validate", "max_drop")
    failure = drop.find("failure")
    assert failure.get("message") == "max_drop: 3.00 points (95%: 1.00 to 5.00), at most 2"
    assert failure.get("type") == "GateFailure"
    assert failure.text == failure.get("message")
    assert (steps.find("failure"), steps.findtext("system-out")) == (None, "max_steps: 1 step, at most 1")
    assert not [element for element in root.iter() if "time" in element.attrib]  # no time was measured
    assert {p.get("name"): p.get("value") for p in suite.iter("property")} == {
        "float_model": "float.onnx",
        "quantized_model": "quantized.onnx",
        "samples": "200",
        "size_ratio": "0.25",
    }


def test_what_was_measured_is_the_output_of_the_test_suite():
    explained = replace(
        VERDICT,
        explanation=Explanation(8, (lose("conv", "", "few channels hold the range", remedy="keep it in float"),)),
        warnings=("odd values",),
    )
    lines = ElementTree.fromstring(to_junit(explained)).findtext("testsuite/system-out").splitlines()
    assert "top-1 %: float 71.25, quantized 68.25, drop 3.00 (95%: 1.00 to 5.00)" in lines
    assert "index: agreement % 99.00" in lines
    assert "unfused Q/DQ: quantized 1" in lines
    assert "integer kernels: quantized 23, 2 can saturate on x86 without VNNI" in lines
    session = "scores: session without VNNI (64 samples), "
    assert f"{session}agreement % 90.12, SQNR dB 12.84, cosine 0.950000, max error 3.5" in lines
    assert "warning: odd values" in lines
    assert "conv: op Conv, bits W4A8, alone dB 20.00, with all before dB 18.00, at output dB nan" in lines
    assert "conv: few channels hold the range; keep it in float" in lines


@given(st.text())
@example("\x00\x1b\ud800\ufffe")
def test_any_name_leaves_the_xml_well_formed_and_both_texts_encodable(name):
    output = OutputRecord(name, 30.0, 1.0, 0.5)
    verdict = replace(VERDICT, outputs=(output,), gates=(replace(DROP, text=name),), quantized_model=name)
    assert len(ElementTree.fromstring(to_junit(verdict).encode()).findall("testsuite/testcase/failure")) == 1
    assert to_markdown(verdict).encode()


def test_characters_that_xml_cannot_hold_or_that_change_what_is_seen_are_escaped():
    verdict = replace(
        VERDICT, gates=(GateRecord("max_steps", False, "2 steps of a\x00\x1b\ud800\ufffe\u202e<&b, at most 1"),)
    )
    failure = ElementTree.fromstring(to_junit(verdict).encode()).find("testsuite/testcase/failure")
    assert failure.get("message") == r"max_steps: 2 steps of a\x00\x1b\ud800\ufffe\u202e<&b, at most 1"
    assert r"a\\x00\\x1b\\ud800\\ufffe\\u202e\<\&b" in to_markdown(verdict)


def test_values_that_are_not_finite_are_counted_beside_their_output():
    outputs = (replace(VERDICT.outputs[0], broken=1200, left_out=3),)
    verdict = replace(VERDICT, outputs=outputs)
    assert spell_outputs(verdict).headers[-1] == "not finite"
    assert spell_outputs(verdict).rows[0][-1] == "1,200 quantized, 3 float"
    assert "1,200 quantized, 3 float |" in to_markdown(verdict)
    assert "not finite 1,200 quantized, 3 float" in to_junit(verdict)
    assert spell_outputs(VERDICT).headers[-1] == "max error"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (SaturationRecord(), "none"),
        (SaturationRecord(23), "23, none can saturate on x86 without VNNI"),
        (
            VERDICT.saturation,
            "23, 2 can saturate on x86 without VNNI (worst stem: sums of two products reach 41,000, int16 ends at"
            " 32,767): there the outputs have 12.8 dB, 90.1% agreement, with exact sums 30.5 dB, 96.9% agreement"
            " (64 samples)",
        ),
        (
            SaturationRecord(2, BOUNDS, 9, (FINE, OutputRecord("z", 20.0, 1, 1)), (FINE, FINE), ("a", "b")),
            "2, 2 can saturate on x86 without VNNI (worst stem: sums of two products reach 41,000, int16 ends at"
            " 32,767): there the outputs have at least 20.0 dB, with exact sums 30.0 dB (9 samples); the first leaves"
            " out saturation in a, b, which cannot be emulated",
        ),
        (
            SaturationRecord(2, BOUNDS, 9, (FINE, OutputRecord("z", float("nan"), 1, 1)), (FINE, FINE)),
            "2, 2 can saturate on x86 without VNNI (worst stem: sums of two products reach 41,000, int16 ends at"
            " 32,767): there the outputs have at least nan dB, with exact sums 30.0 dB (9 samples)",
        ),
        (
            SaturationRecord(5, BOUNDS, unread=("a", "b", "c", "d")),
            "5, 2 can saturate on x86 without VNNI (worst stem: sums of two products reach 41,000, int16 ends at"
            " 32,767): the outputs there were not measured; a, b, c and 1 more cannot be emulated",
        ),
        (
            SaturationRecord(5, BOUNDS, reason="no memory"),
            "5, 2 can saturate on x86 without VNNI (worst stem: sums of two products reach 41,000, int16 ends at"
            " 32,767): the outputs there were not measured; no memory",
        ),
    ],
)
def test_one_line_says_what_can_saturate_and_what_the_outputs_are_there(given, text):
    assert spell_saturation(given) == f"integer kernels: {text}"


@pytest.mark.parametrize("make", [to_markdown, to_junit])
def test_the_reference_has_a_row_for_each_session_where_it_was_asked_for(make):
    rows = (OutputRecord("scores", decibels, 1.0, 0.25) for decibels in (46.21, 51.65, 129.2))
    steps = {
        "deployed_steps": (StepsRecord("t", "Conv", 2, 0.1),),
        "unoptimized_steps": (StepsRecord("t", "Conv", 0, 0.0),),
    }
    found = ReferenceRecord(4, *((row,) for row in rows), **steps)
    texts = ["deployed", "unoptimized", "float model", "46.21", "51.65", "129.20", "at most 2", "of 1 tensors moved"]
    shown = make(replace(VERDICT, reference=found))
    assert all(text in shown for text in texts)
    assert "unoptimized" not in make(VERDICT)
    header = spell_reference(replace(VERDICT, reference=found)).headers[0]
    assert header == "reference (4 samples)"
    assert spell_reference(VERDICT).rows == ()


def test_there_is_no_table_of_saturated_outputs_where_none_can_saturate():
    sound = replace(VERDICT, saturation=SaturationRecord(23))
    assert "without VNNI (64 samples) |" in to_markdown(VERDICT)
    assert "exact sums" not in to_markdown(sound) + to_junit(sound)


@pytest.mark.parametrize(
    ("contract", "steps", "text"),
    [
        (ContractRecord(8, ()), "-", ""),
        (ContractRecord(8, (), (), 45.0), "-", "outputs of the two sessions agree to 45.0 dB"),
        (ContractRecord(8, (StepsRecord("a", "Conv", 0, 0.0),)), "0", "0 of 1 tensors moved by optimizations"),
        (
            ContractRecord(8, (StepsRecord("a", "Conv", 0, 0.0),), (), float("inf")),
            "0",
            "0 of 1 tensors moved by optimizations; outputs of the two sessions are equal",
        ),
    ],
)
def test_kernel_consistency_says_what_was_compared_and_the_steps_where_no_gate_says_them(contract, steps, text):
    def find(gates):
        rows = spell_facts(replace(VERDICT, contract=contract, gates=gates)).rows
        return [list(row) for row in rows if row[0].startswith("kernel consistency")]

    assert find((STEPS,)) == ([["kernel consistency", "-", "-", text]] if text else [])
    whole = text if contract.tensors else "; ".join(filter(None, ("no integer tensor to judge", text)))
    assert find(()) == [["kernel consistency, steps", "-", steps, whole]]


@pytest.mark.parametrize(
    ("gate", "name"), [("max_unfused", "unfused Q/DQ"), ("max_saturating", "integer kernels"), ("max_steps", "steps")]
)
@pytest.mark.parametrize("make", [to_markdown, to_junit])
def test_what_a_gate_says_is_no_measure_too(make, gate, name):
    said = {"unfused Q/DQ": ("| unfused Q/DQ", "unfused Q/DQ:"), "integer kernels": ("| integer", "integer kernels:")}
    texts = said.get(name, ("| kernel consistency, steps", "kernel consistency, steps:"))
    for gates, shown in (((DROP,), True), ((DROP, GateRecord(gate, True, "right")), False)):
        text = make(replace(VERDICT, gates=gates))
        assert any(each in text for each in texts) == shown


def test_markdown_says_the_outcome_and_every_gate_and_measure():
    text = to_markdown(VERDICT)
    assert text.startswith("## onnxcalib validate: FAILED\n\n`quantized.onnx` against `float.onnx` on 200 samples; ")
    assert "no accuracy gate" not in text
    assert "<details>" not in text
    rows = [row for row in Reader(text).rows if row]
    assert rows[:2] == [["max_drop", DROP.text, "FAIL"], ["max_steps", STEPS.text, "pass"]]
    assert rows[2:] == ROWS + OUTPUT_ROWS + SATURATED_ROWS
    assert to_markdown(replace(VERDICT, gates=(STEPS,))).startswith("## onnxcalib validate: PASSED\n")


@pytest.mark.parametrize("make", [to_markdown, to_junit])
def test_both_say_where_no_accuracy_gate_was_asked_for(make):
    said = "no accuracy gate was asked for: max_drop, min_agreement or min_sqnr"
    assert said in make(replace(VERDICT, gates=(STEPS,))).replace("\\", "")
    assert said not in make(VERDICT).replace("\\", "")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_markdown_shows_odd_names_as_they_are(name):
    shown = " ".join(name.split())
    read = Reader(
        to_markdown(
            replace(
                VERDICT,
                outputs=(OutputRecord(name, 30.0, 1.0, 0.5),),
                gates=(GateRecord("min_sqnr", False, f"30 dB of {name}, at least 35"),),
                scores=(ScoreRecord(name, 1.0, 1.0, 0.0),),
                warnings=(f"{name} is odd",),
                explanation=Explanation(8, (lose(name, "", "narrow"),)),
            )
        )
    )
    gate, score, *others = [row for row in read.rows if row]
    assert gate == ["min_sqnr", f"30 dB of {shown}, at least 35", "FAIL"]
    assert score == [shown, "1", "1", "drop 0"]
    assert [shown, "-", "30.00", "1.000000", "0.5"] in others
    assert [shown, "Conv", "W4A8", "20.00", "18.00", "nan"] in others
    assert read.items == [f"{shown} is odd", f"{shown}: narrow"]


def test_markdown_lists_warnings_and_unlike_pairs():
    contract = replace(VERDICT.contract, mismatched=("x_1", "y"))
    items = Reader(to_markdown(replace(VERDICT, warnings=("odd values",), contract=contract))).items
    assert items == ["odd values", "QuantizeLinear and DequantizeLinear have unlike scales or zero points on: x_1, y"]


def test_markdown_folds_the_explanation_away_and_keeps_its_toml_as_it_is():
    toml = '[layers."a```b"]\nexclude = true'
    layers = [lose("first", toml, "few channels hold the range", "long tail", remedy="keep it in float")]
    layers += [lose(f"layer{i}", f"[layers.layer{i}]\nactivation_bits = 8") for i in range(WORST_LAYERS)]
    text = to_markdown(replace(VERDICT, explanation=Explanation(8, tuple(layers), ("loop: inside a Loop",))))
    assert text.index("<details>") < text.index("few channels") < text.index("exclude") < text.index("</details>")
    read = Reader(text)
    names = [row[0] for row in read.rows if row[1:2] == ["Conv"]]
    assert names == ["first", *(f"layer{i}" for i in range(WORST_LAYERS - 1))]
    assert read.items == [
        "first: few channels hold the range; long tail; keep it in float",
        "not judged: loop: inside a Loop",
    ]
    (block,) = read.blocks
    assert toml in block
    assert len(tomllib.loads(block)["layers"]) == WORST_LAYERS


def test_toml_lines_of_all_layers_together_are_one_valid_file():
    lines = (
        "[layers.a]\nexclude = true\n",
        "first_last_bits = 8",
        "",
        "[layers.b]\nweight_bits = 8",
        "first_last_bits = 8",
    )
    verdict = replace(VERDICT, explanation=Explanation(8, tuple(lose(f"l{i}", text) for i, text in enumerate(lines))))
    expected = {"first_last_bits": 8, "layers": {"a": {"exclude": True}, "b": {"weight_bits": 8}}}
    assert tomllib.loads(gather_toml(verdict)) == expected
    assert gather_toml(VERDICT) == ""


@pytest.mark.parametrize(
    ("passed", "line"),
    [
        ("", "PASSED: no gate was asked for"),
        ("y", "PASSED: 1 of 1 gate holds"),
        ("yyy", "PASSED: 3 of 3 gates hold"),
        ("yny", "FAILED: 1 of 3 gates does not hold: g1"),
        ("nyn", "FAILED: 2 of 3 gates do not hold: g0, g2"),
    ],
)
def test_the_conclusion_counts_the_gates(passed, line):
    gates = tuple(GateRecord(f"g{i}", each == "y", "") for i, each in enumerate(passed))
    assert conclude(replace(VERDICT, gates=gates)) == line


@pytest.mark.parametrize("make", [to_markdown, to_junit])
def test_the_same_verdict_gives_the_same_text(make):
    assert make(VERDICT) == make(replace(VERDICT))
