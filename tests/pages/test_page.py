"""Pages: all that a record has is on them, they load nothing, and no name of a model becomes markup."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from onnxcalib.layer_record import LayerRecord
from onnxcalib.pages import script
from onnxcalib.pages.content import Scale, spell_bytes, spell_grid
from onnxcalib.pages.page import draw_verdict
from onnxcalib.report import OutputRecord, UnfusedRecord
from onnxcalib.targets import LintRecord, Violation
from onnxcalib.validation import render_lint
from onnxcalib.verdict import (
    ContractRecord,
    Explanation,
    GateRecord,
    LatencyRecord,
    LayerLoss,
    ScoreRecord,
    StepsRecord,
    Verdict,
)

from .reading import Read

ODD = "<b>&\"' </script><!--\x1b"
TOML = '[layers."stem"]\nexclude = true'
VERDICT = Verdict(
    float_model="float.onnx",
    quantized_model=f"{ODD}.onnx",
    settings={"min_sqnr": 30.0, "data": {"resize": 40}, "metric": None},
    samples=1200,
    scores=(ScoreRecord("top-1", 71.25, 68.25, 3.0, (1.0, 5.0)),),
    outputs=(OutputRecord(f"scores {ODD}", 31.25, 0.999, 0.5, 0.975, (30.0, 32.5), (0.95, 1.0)),),
    float_bytes=4_000_000,
    quantized_bytes=1_000_000,
    latency=LatencyRecord(4, 51, 12.5, 5.0, 0.03, 0.06, 2.5, (2.25, 2.75)),
    unfused=(UnfusedRecord("QuantizeLinear", "image", "follows Resize"),),
    contract=ContractRecord(16, (StepsRecord("a", "Conv", 1, 0.01),), (), 39.84),
    gates=(
        GateRecord("min_sqnr", True, "31.25 dB, at least 30 dB", 30.0, 31.25, (30.0, 32.5), "dB"),
        GateRecord("max_drop", False, f"3.00 points of {ODD}", 2.0, 3.0, (1.0, 5.0), "points"),
        GateRecord("target", True, "all rules hold"),
    ),
    explanation=Explanation(
        16,
        (LayerLoss("stem", "Conv", 4, 8, 12.5, 11.5, 10.5, ("narrow",), "leave it in float", TOML),),
        notes=("note",),
        others=(LayerLoss(ODD, "MatMul", 8, 32, 30.0, 21.5, 20.5),),
    ),
    warnings=(f"odd {ODD}",),
    layers=(
        LayerRecord("stem", "Conv", 4, 8, bytes=1000, on_integers=True),
        LayerRecord(ODD, "MatMul", 8, 32, bytes=3000, on_integers=False, reason="reads float"),
    ),
)


@pytest.fixture(autouse=True)
def _without_library(monkeypatch):
    monkeypatch.setattr("onnxcalib.pages.page.load_script", lambda: "window.vegaEmbed = '</script>';")


def test_all_that_a_verdict_has_is_on_its_page():
    page = Read(draw_verdict(VERDICT.to_json()))
    assert page.open == []
    assert "".join(page.headings[:2]) == "FAILED1 of 3 gates does not hold: max_drop"
    shown = ODD.replace("\x1b", "\\x1b")
    for text in (
        f"{shown}.onnx against float.onnx, 1,200 samples",
        "68.25 %",
        "3.00 points less than float (71.25)",
        "97.5 %",
        "0.250 of float",
        "2.50 × float",
        "31.25 dB, at least 30 dB",
        f"3.00 points of {shown}",
        f"warning: odd {shown}",
        "2 layers, of which 1 run on integers here.",
        TOML.replace("\n", " "),
        "narrow; leave it in float",
    ):
        assert " ".join(text.split()) in page.text
    rows = [row for table in page.tables for row in table]
    assert ["stem", "Conv", "W4A8", "11.5", "1 kB", "0.1%", "90.9%", "integers", ""] in rows
    assert [shown, "MatMul", "W8A32", "21.5", "3 kB", "0.3%", "9.1%", "float", "reads float"] in rows
    assert ["image", "QuantizeLinear", "follows Resize"] in rows
    assert ["a", "Conv", "1", "1"] in rows
    assert "data.resize 40" in page.text and "min_sqnr 30.0" in page.text
    assert {"accuracy", "layers", "path", "explanation", "kernels", "conditions"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_a_page_loads_nothing_and_no_name_becomes_markup():
    text = draw_verdict(VERDICT.to_json())
    page = Read(text)
    assert page.loads == []
    assert "<b>&" not in text and text.count("</script>") == 3
    policy = next(found["content"] for tag, found in page.attributes if "http-equiv" in found)
    assert policy.startswith("default-src 'none'; ")
    assert ("html", {"lang": "en"}) in page.attributes
    assert "http:" not in text.replace("http-equiv", "") and "https:" not in text


def test_plots_have_their_data_and_their_specification():
    page = Read(draw_verdict(VERDICT.to_json()))
    charts = [found["data-chart"] for _, found in page.attributes if "data-chart" in found]
    assert charts == ["path"] == list(page.data["charts"])
    rows = page.data["charts"]["path"]["rows"]
    assert [row["layer"] for row in rows] == ["stem"] * 3 + [ODD] * 3
    assert [(row["layer"], row["kind"], row["dB"]) for row in rows[:3]] == [
        ("stem", "alone", 12.5),
        ("stem", "with all before", 11.5),
        ("stem", "at the output", 10.5),
    ]
    assert set(page.data["specs"]) == {"path"}


def test_a_page_without_plots_is_small_and_needs_no_library(monkeypatch):
    monkeypatch.setattr("onnxcalib.pages.page.load_script", lambda: 1 / 0)
    text = draw_verdict(replace(VERDICT, explanation=None).to_json())
    assert len(text) < 40_000
    assert "PASSED" in draw_verdict(replace(VERDICT, gates=(), explanation=None).to_json())


def test_a_page_made_without_the_library_of_plots_says_so_in_their_place(monkeypatch):
    monkeypatch.setattr("onnxcalib.pages.page.load_script", lambda: None)
    page = Read(draw_verdict(VERDICT.to_json()))
    assert "SQNR in dB of the layers, from the first to the last: not drawn, as vl-convert-python is not" in page.text
    assert page.data["charts"] == {} and not any("data-chart" in found for _, found in page.attributes)
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert script.load_script() is None


def test_the_page_of_rules_alone_says_what_breaks():
    where = Violation("opset", ODD, "12", "13", "the manual")
    page = Read(draw_verdict(render_lint.to_json(LintRecord("qnn", "q.onnx", ("opset", "types"), (where,), 7))))
    assert "".join(page.headings[:2]) == "FAILED1 place of 7 operators break rules"
    assert ["refused", ODD.replace("\x1b", "\\x1b"), "opset", "12", "13", "the manual"] in page.tables[0]


@pytest.mark.parametrize(
    ("name", "numbers", "expected"),
    [
        ("min_sqnr", (20.0, 30.0, (25.0, 35.0)), Scale(8.25, 63.66 - 8.25, (35.92, 91.75), True)),
        ("max_steps", (1, 1, None), Scale(50.0, 50.0, None, False)),
    ],
)
def test_a_gate_is_drawn_to_scale(name, numbers, expected):
    gate = dict(zip(("limit", "measured", "interval"), numbers, strict=True), name=name)
    found = Scale.of_gate(gate)
    assert (found.limit, found.least) == (pytest.approx(expected.limit, abs=1.5), expected.least)
    if numbers[2]:
        assert found.limit < found.interval[0] < found.measured < found.interval[1] <= 100
        assert found.measured - found.limit == pytest.approx(found.interval[1] - found.interval[0])
    assert Scale.of_gate({**gate, "limit": None}) is None


def test_the_library_is_put_together_once_and_a_broken_copy_is_not_used(monkeypatch, tmp_path):
    pytest.importorskip("vl_convert")
    calls = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda snippet: calls.append(snippet) or "made")
    assert [script.load_script(), script.load_script()] == ["made", "made"] and len(calls) == 1
    (kept,) = (tmp_path / "onnxcalib").iterdir()
    kept.write_text(kept.read_text() + "x")
    assert script.load_script() == "made" and len(calls) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))  # a file, in which nothing can be kept
    assert script.load_script() == "made" and len(calls) == 3


def test_a_layer_whose_error_has_any_size_has_all_of_the_loss():
    layers = (LayerLoss("stem", "Conv", 4, 8, -9e9, -9e9, -9e9),)
    found = replace(VERDICT, explanation=replace(VERDICT.explanation, layers=layers))
    rows = [row for table in Read(draw_verdict(found.to_json())).tables for row in table]
    assert "100.0%" in next(row for row in rows if row[:2] == ["stem", "Conv"])


def test_a_verdict_with_numbers_that_json_cannot_hold_has_a_page():
    found = replace(VERDICT, outputs=(OutputRecord("y", float("nan"), None, float("inf"), 0.5),))
    assert json.loads(found.to_json())["outputs"][0]["sqnr_db"] is None
    assert "50.0 %" in Read(draw_verdict(found.to_json())).text


def test_sizes_keep_three_digits_in_the_unit_that_they_come_nearest_to():
    counts = (0, 999, 999_499, 999_500, 1_234_567, 999.6e6, 2e12)
    assert [spell_bytes(count) for count in counts] == ["0 B", "999 B", "999 kB", "1 MB", "1.23 MB", "1 GB", "2,000 GB"]


def test_a_grid_is_spelled_with_its_bits_where_the_type_does_not_say_them():
    grid = {"type": "com.peer.uint8", "bits": 4, "symmetric": False, "scales": "block of 32"}
    assert spell_grid(grid) == "uint8 (4 bits) asymmetric, a scale each block of 32" and spell_grid(None) == "float"
    assert spell_grid({**grid, "bits": 8, "symmetric": None, "scales": "run"}) == "uint8, scale found in each run"
