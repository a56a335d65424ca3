"""What ``validate`` prints on stdout."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnxcalib.cli.console import WIDEST, open_console
from onnxcalib.cli.verdict import WORST_TENSORS, print_verdict
from onnxcalib.report import BoundRecord, OutputRecord, SaturationRecord, UnfusedRecord
from onnxcalib.validation.render import WORST_LAYERS
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

DROP = GateRecord("max_drop", True, "0.40 points (95%: -0.20 to 1.00), at most 1")
SQNR = GateRecord("min_sqnr", False, "12.10 dB of scores, at least 15")
STEPS = GateRecord("max_steps", True, "1 step, at most 1")
VERDICT = Verdict(
    float_model="float.onnx",
    quantized_model="quantized.onnx",
    settings={},
    samples=200,
    scores=(ScoreRecord("top-1", 71.25, 70.85, 0.4, (-0.2, 1.0)), ScoreRecord("mine:f1", 0.8125, 0.75, 0.0625)),
    outputs=(
        OutputRecord("scores", 12.1, 0.999, 0.5, 0.975, (11.0, 13.0), (0.95, 1.0)),
        OutputRecord("index", None, None, None, 0.99),
        OutputRecord("copy", float("inf"), 1.0, 0.0),
    ),
    float_bytes=4000,
    quantized_bytes=1000,
    latency=LatencyRecord(1, 51, 12.5, 5.0, 0.03, float("nan"), 2.5, (2.25, 2.75)),
    unfused=tuple(UnfusedRecord("QuantizeLinear", f"t{i}", "follows Resize") for i in range(4)),
    contract=ContractRecord(
        16, tuple(StepsRecord(f"tensor{i}", "Conv", 2 - i // 4, 0.05 if i < 6 else 0.0) for i in range(8)), ("x", "y")
    ),
    gates=(DROP, SQNR, STEPS),
)


@pytest.fixture
def printed(capsys):
    """The lines of a verdict, without rich's trailing blanks."""

    def show(verdict: Verdict) -> list[str]:
        print_verdict(verdict, open_console())
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return show


def split(lines: list[str]) -> list[list[str]]:
    return [line.split() for line in lines]


def test_the_gates_and_the_outcome_come_last(printed):
    assert printed(VERDICT)[-4:] == [
        "pass  max_drop: 0.40 points (95%: -0.20 to 1.00), at most 1",
        "FAIL  min_sqnr: 12.10 dB of scores, at least 15",
        "pass  max_steps: 1 step, at most 1",
        "FAILED: 1 of 3 gates does not hold: min_sqnr",
    ]
    assert printed(replace(VERDICT, gates=(DROP, STEPS)))[-1] == "PASSED: 2 of 2 gates hold"


def test_a_gate_is_one_line_whatever_names_it_holds(printed):
    name = "two\nlines" + 200 * "x"
    lines = printed(replace(VERDICT, gates=(replace(SQNR, text=f"12 dB of {name}, at least 15"),)))
    assert lines[-2] == f"FAIL  min_sqnr: 12 dB of two lines{200 * 'x'}, at least 15"


def test_a_run_without_an_accuracy_gate_says_so(printed):
    said = "no accuracy gate was asked for: max_drop, min_agreement or min_sqnr"
    assert printed(replace(VERDICT, gates=(STEPS,)))[-3:-1] == [said, "pass  max_steps: 1 step, at most 1"]
    assert said not in printed(VERDICT)


def test_scores_size_and_latency_are_shown_for_both_models(printed):
    lines = printed(VERDICT)
    assert lines[0] == "quantized.onnx against float.onnx on 200 samples"
    rows = split(lines)
    for row in (
        "top-1 % 71.25 70.85 drop 0.40 (95%: -0.20 to 1.00)",
        "mine:f1 0.8125 0.75 drop 0.0625",
        "file bytes 4,000 1,000 0.250 of float",
        "latency ms, batch 1 12.5 (spread 3%) 5 (spread nan%) speedup 2.50 (95%: 2.25 to 2.75)",
    ):
        assert row.split() in rows


def test_every_output_is_shown_and_what_was_not_measured_is_a_dash(printed):
    rows = split(printed(VERDICT))
    scores = "scores 97.50 (95.00 to 100.00) 12.10 (11.00 to 13.00) 0.999000 0.5"
    for row in (scores, "index 99.00 - - -", "copy - inf 1.000000 0"):
        assert row.split() in rows


def test_unfused_nodes_are_named_by_reason(printed):
    lines = printed(VERDICT)
    assert "unfused Q/DQ: 4" in lines
    assert "  QuantizeLinear: follows Resize: t0, t1, t2 and 1 more" in lines


def test_what_a_gate_says_is_no_fact_too(printed):
    gates = (
        GateRecord("max_unfused", True, "4 left, at most 4"),
        GateRecord("max_saturating", True, "none, at most 0"),
    )
    lines = printed(replace(VERDICT, gates=gates))
    assert lines[lines.index("unfused Q/DQ, by reason:") + 1].startswith("  QuantizeLinear: follows Resize: t0, ")
    assert not any(line.startswith(("unfused Q/DQ: ", "integer kernels")) for line in lines)
    lines = printed(replace(VERDICT, gates=gates, unfused=()))
    assert not any("unfused Q/DQ" in line for line in lines)


def test_no_fact_is_a_row_and_a_line(printed):
    for gates in (VERDICT.gates, ()):
        lines = printed(replace(VERDICT, gates=gates))
        for name in ("unfused Q/DQ", "integer kernels", "kernel consistency"):
            assert sum(line.startswith(name) for line in lines) == (not gates or name != "kernel consistency")


def test_what_can_saturate_is_said_with_the_outputs_there(printed):
    assert "integer kernels: none" in printed(VERDICT)
    saturation = SaturationRecord(
        5,
        (BoundRecord("stem", 41_000),),
        16,
        (OutputRecord("scores", 12.84, 0.95, 3.5, 0.9),),
        (OutputRecord("scores", 30.5, 0.998, 0.25, 0.96),),
    )
    lines = printed(replace(VERDICT, saturation=saturation))
    (line,) = [line for line in lines if line.startswith("integer kernels: ")]
    assert line.startswith("integer kernels: 5, 1 can saturate on x86 without VNNI (worst stem: ")
    both = "12.8 dB, 90.0% agreement, with exact sums 30.5 dB, 96.0% agreement (16 samples)"
    assert line.endswith(f": there the outputs have {both}")
    assert ["scores", "exact", "sums", "(16", "samples)", "96.00", "30.50", "0.998000", "0.25"] in split(lines)
    assert ["scores", "without", "VNNI", "(16", "samples)", "90.00", "12.84", "0.950000", "3.5"] in split(lines)


def test_kernel_consistency_names_the_worst_tensors_and_unlike_pairs(printed):
    lines = printed(replace(VERDICT, gates=()))
    assert "kernel consistency: at most 2 steps between graph optimizations off and on (16 samples)" in lines
    assert "unlike scales or zero points in a Q/DQ pair: x, y" in lines
    shown = [row for row in split(lines) if row and row[0].startswith("tensor") and row[0] != "tensors"]
    assert shown == [[f"tensor{i}", "Conv", str(2 - i // 4), "5"] for i in range(WORST_TENSORS)]
    equal = ContractRecord(16, (StepsRecord("tensor0", "Conv", 0, 0.0),), (), float("inf"))
    lines = printed(replace(VERDICT, contract=equal, gates=()))
    found = "at most 0 steps between graph optimizations off and on; outputs of the two sessions are equal"
    assert f"kernel consistency: {found} (16 samples)" in lines
    assert not any("tensors that differ" in line or "unlike" in line for line in lines)


def test_kernel_consistency_says_how_well_the_outputs_agree_and_no_more_where_a_gate_says_the_steps(printed):
    verdict = replace(VERDICT, contract=ContractRecord(32, (), (), 39.84))
    agree = "outputs of the two sessions agree to 39.8 dB (32 samples)"
    assert f"kernel consistency: {agree}" in printed(verdict)
    found = "no integer tensor to judge between graph optimizations off and on"
    assert f"kernel consistency: {found}; {agree}" in printed(replace(verdict, gates=()))


def test_an_explanation_ends_in_toml_that_can_be_copied(printed):
    toml = f'[layers."{200 * "x"}:cat:[b]"]\n\texclude = true'
    layers = (
        LayerLoss("worst", "Conv", 4, 8, 5.0, 4.0, float("inf"), ("few channels hold the range",), "keep it", toml),
        *(LayerLoss(f"layer{i}", "Gemm", 8, 8, 20.0, 18.0, 30.0) for i in range(WORST_LAYERS)),
    )
    lines = printed(replace(VERDICT, explanation=Explanation(8, layers, ("loop: inside a Loop",))))
    shown = [row for row in split(lines) if "W4A8" in row or "W8A8" in row]
    assert shown[0] == "worst Conv W4A8 5.00 4.00 inf".split()
    assert len(shown) == WORST_LAYERS
    assert "  worst: few channels hold the range; keep it" in lines
    assert lines[lines.index("not judged: 1") + 1] == "  loop: inside a Loop"
    start = lines.index("lines for onnxcalib.toml:") + 2
    assert "\n".join(lines[start : start + 2]) == toml
    assert not any("toml" in line for line in printed(VERDICT))


def test_names_are_neither_markup_nor_emoji_and_are_cut_with_a_mark_alone(printed):
    name = "[red]:cat:" + 150 * "n"
    lines = printed(replace(VERDICT, outputs=(OutputRecord(name, 30.0, 1.0, 0.5),), float_model=name))
    assert lines[0] == f"quantized.onnx against {name} on 200 samples"
    (shown,) = (line.split()[0] for line in lines if line.startswith("[red]"))
    front, back = shown.split("…")
    assert name.startswith(front) and name.endswith(back)
    assert max(map(len, lines[1:-5])) <= WIDEST


def test_the_reference_has_its_rows_and_a_line_of_steps(printed):
    row, steps = (OutputRecord("scores", 46.21, 1.0, 0.5),), (StepsRecord("t", "Conv", 1, 0.1),)
    found = ReferenceRecord(4, row, row, row, deployed_steps=steps, unoptimized_steps=steps)
    lines = printed(replace(VERDICT, reference=found))
    start = next(i for i, line in enumerate(lines) if line.startswith("reference (4 samples)"))
    assert [line.split()[1] for line in lines[start + 1 : start + 4]] == ["deployed", "unoptimized", "float"]
    moved = "deployed at most 1 (1 of 1 tensors moved), unoptimized at most 1 (1 of 1 tensors moved)"
    assert f"steps from the reference, from equal integers: {moved}" in lines
    assert not [line for line in printed(VERDICT) if "reference" in line]
