"""``onnxcalib plan``: what it hands to the library, what it writes and prints, and how it fails."""

import pytest
from typer.testing import CliRunner

from onnxcalib import errors, pipeline
from onnxcalib.bitplan import read_plan
from onnxcalib.cli.app import app
from onnxcalib.cli.exitstatus import ExitStatus
from onnxcalib.config import DataConfig, QuantizeConfig
from onnxcalib.pages import script
from onnxcalib.pages.page import draw_plan
from tests.test_bitplan import FRONTIER, PLAN

TEXTS = {"tokenizer": "t.json", "text_column": ("a", "b"), "pairs": True, "max_length": 64, "shape": ("1,3", "x=1,4")}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command in an empty folder, with a library that does no work: call it with arguments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "NEEDED", {})
    monkeypatch.setattr("onnxcalib.pages.page.load_script", lambda: "")
    (tmp_path / "net.onnx").write_bytes(b"float")
    calls = []

    def make(model, calibration, config, *, observer):
        calls.append((str(model), str(calibration), config))
        observer.stage("plan")
        observer.blocks(2)
        observer.planned("deep")
        return PLAN

    monkeypatch.setattr(pipeline, "plan", make)
    monkeypatch.setattr(pipeline, "frontier", lambda *arguments, **_: calls.append(arguments) or FRONTIER)

    def invoke(*arguments, fault=None):
        if fault:
            monkeypatch.setattr(pipeline, "plan", lambda *a, **k: (_ for _ in ()).throw(fault))
        return CliRunner().invoke(app, ["plan", *arguments])

    invoke.calls = calls
    return invoke


def test_the_plan_is_written_beside_the_model_and_printed(run, tmp_path):
    result = run("net.onnx", "--calib", "data", "--max-size", "0.2")
    assert result.exit_code == 0, result.stderr
    assert run.calls == [("net.onnx", "data", QuantizeConfig(max_size="0.2"))]
    assert read_plan(tmp_path / "net.plan.json") == PLAN
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["layer", "bits", "loss", "W4A8"] and lines[1].split() == ["deep", "W4A8", "5.00e-01"]
    assert "this plan: loss 6.25e-01 (predicted 5.00e-01), 100 bytes, 6.4e+03 bit operations" in result.stdout
    assert "left in float: 1\n  it would run slower on integers: loop\n" in result.stdout
    assert "onnxcalib quantize --plan net.plan.json uses it" in result.stdout


def test_a_plan_goes_to_standard_output_alone_but_not_beside_a_frontier(run, tmp_path):
    result = run("net.onnx", "--calib", "data", "--max-size", "0.2", "-o", "-")
    assert (result.exit_code, result.stdout) == (0, PLAN.to_json() + "\n")
    assert result.stderr.splitlines()[-1].startswith("in short: ")
    result = run("net.onnx", "--calib", "data", "--frontier", "-o", "-")
    assert result.exit_code == 1 and result.stderr.startswith("error: --output: found - beside --frontier")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_every_option_reaches_its_setting(run):
    text = (
        "--candidates w8a8,W4A4 --max-size 300KB --max-bops 0.5@8-bit --max-latency 5ms --max-loss 0.1 "
        "--max-disagreement 2 --latencies t.csv --jobs 2 --scheduler tcp://a:1 --cache-dir c --first-last-bits 4 "
        "--range entropy --percentile 99.5 --encoding standard --weight-range full --effort best --samples 9 --seed 3 "
        "--threads 2 --device cpu --exclude x --mean 0.1,0.2,0.3 --std 0.5 --resize 40 --crop 32x30 --layout nhwc "
        "--channels bgr --tokenizer t.json --text-column a,b --pairs --max-length 64 --shape 1,3 --shape x=1,4"
    )
    assert run("net.onnx", "--calib", "data", *text.split()).exit_code == 0
    data = DataConfig(mean=(0.1, 0.2, 0.3), std=0.5, resize=40, crop=(32, 30), layout="nhwc", channels="bgr", **TEXTS)
    budgets = {"candidates": ("W8A8", "W4A4"), "max_size": "300KB", "max_bops": "0.5@8-bit", "max_loss": 0.1}
    budgets |= {"max_latency": "5ms", "max_disagreement": 2.0, "latencies": "t.csv"}
    budgets |= {"jobs": 2, "scheduler": "tcp://a:1", "cache_dir": "c"}
    others = {"first_last_bits": 4, "range": "entropy", "percentile": 99.5, "encoding": "standard", "effort": "best"}
    others["weight_range"] = "full"
    rest = {"samples": 9, "seed": 3, "threads": 2, "device": "cpu", "exclude": ("x",), "data": data}
    assert run.calls[0][2] == QuantizeConfig(**budgets, **others, **rest)


def test_quiet_prints_nothing(run):
    result = run("net.onnx", "--calib", "data", "--max-size", "0.2", "--quiet")
    assert result.exit_code == 0 and result.stdout == "" and result.stderr == ""


def test_a_fault_is_one_line_and_leaves_no_file(run, tmp_path):
    result = run("net.onnx", "--calib", "data", "-o", "p.json", fault=errors.ConfigError("max_size: found 3 bytes"))
    assert result.exit_code == ExitStatus.USAGE and result.stderr.splitlines()[-1] == "error: max_size: found 3 bytes"
    assert not (tmp_path / "p.json").exists()


def test_a_budget_that_is_none_is_refused_before_anything_runs(run):
    result = run("net.onnx", "--calib", "data", "--max-size", "small")
    assert result.exit_code == ExitStatus.USAGE and not run.calls
    assert "--max-size: found 'small'; must be a share of the float model such as 0.15" in result.stderr


def test_what_is_read_is_never_written(run):
    result = run("net.onnx", "--calib", "data", "--max-size", "0.2", "-o", "net.onnx")
    assert result.exit_code and not run.calls and "net.onnx" in result.stderr


def test_a_frontier_is_written_printed_and_drawn_and_needs_no_budget(run, tmp_path):
    result = run("net.onnx", "--calib", "data", "--frontier")
    assert result.exit_code == 0, result.stderr
    assert not (tmp_path / "net.plan.json").exists() and len(run.calls) == 1
    assert "net.html" not in {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "net.frontier.json").read_text() == FRONTIER.to_json() + "\n"
    assert (tmp_path / "net.frontier.png").read_bytes().startswith(b"\x89PNG")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0][-2:] == ["predicted", "loss"]
    assert lines[1] == ["planned", "100", "0.100", "3.2e+03", "5.00e-01"]
    assert lines[3] == ["W8A8", "everywhere", "200", "0.200", "6.4e+03", "1.00e-03"]
    assert "onnxcalib plan --max-size BYTES makes the plan of one size" in result.stdout


def test_beside_a_budget_the_frontier_comes_on_top(run, tmp_path):
    output = ("-o", "small.json", "--html", "small.html")
    result = run("net.onnx", "--calib", "data", "--frontier", "--max-size", "0.2", *output)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "small.html").read_text() == draw_plan(PLAN.to_json(), FRONTIER.to_json())
    assert {"small.json", "small.frontier.json", "small.frontier.png"} <= {path.name for path in tmp_path.iterdir()}
    assert "this plan: " in result.stdout and "W8A8 everywhere" in result.stdout


def test_what_was_limited_is_printed(run, monkeypatch):
    totals = PLAN.totals.model_copy(update={"agreement": 98.5, "milliseconds": 1.25})
    monkeypatch.setattr(pipeline, "plan", lambda *_, **__: PLAN.model_copy(update={"totals": totals}))
    result = run("net.onnx", "--calib", "data", "--max-disagreement", "2")
    line = "this plan: loss 6.25e-01 (predicted 5.00e-01), agreement 98.5%, 100 bytes, 6.4e+03 bit operations, 1.25 ms"
    assert line in result.stdout


def test_a_table_of_times_is_read_and_so_never_written(run, tmp_path):
    (tmp_path / "t.csv").write_text("layer,configuration,milliseconds")
    result = run("net.onnx", "--calib", "data", "--max-latency", "1ms", "--latencies", "t.csv", "-o", "t.csv")
    assert result.exit_code and not run.calls and "t.csv: is read by this run" in result.stderr


def test_an_output_without_a_name_is_refused(run):
    result = run("net.onnx", "--calib", "data", "--output", "", "--frontier")
    assert result.exit_code == 1 and result.stderr.startswith("error: .: is ")
