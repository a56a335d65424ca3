"""``onnxcalib quantize``: what it hands to the library, what it writes and prints, and how it fails."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import onnxcalib
from onnxcalib import errors, pipeline
from onnxcalib.cli.app import app
from onnxcalib.cli.console import open_console
from onnxcalib.cli.reasons import describe_in_float
from onnxcalib.cli.summary import print_summary
from onnxcalib.config import DataConfig, QuantizeConfig
from onnxcalib.layer_record import LayerRecord
from onnxcalib.pages import script
from onnxcalib.pages.page import draw_report
from onnxcalib.report import (
    BlockRecord,
    BoundRecord,
    ExpectedRecord,
    FloatRecord,
    MeasuredOn,
    OutputRecord,
    Report,
    SaturationRecord,
    UnfusedRecord,
)
from onnxcalib.stepwise import ClosedLoopRecord
from onnxcalib.targets import LintRecord, Violation

TEXTS = {"tokenizer": "t.json", "text_column": ("a", "b"), "pairs": True, "max_length": 64, "shape": ("1,3", "x=1,4")}

REPORT = Report(
    settings={},
    blocks=(
        BlockRecord("[stem]", ("stem",), "reconstructed", loss_before=0.5, loss_after=0.25),
        BlockRecord("head", ("head",), "rounded", reason="torch disagrees"),
    ),
    layers=tuple(LayerRecord(f"layer{i}", "Conv", 4, 8, sqnr_db=10.0 + i) for i in range(7)),
    outputs=(OutputRecord("scores", 31.25, 0.999, 0.5, 0.975, (30.0, 32.5), (0.8539, 0.9989)),),
    outputs_unoptimized=(OutputRecord("scores", 32.5, 0.999, 0.5),),
    saturation=SaturationRecord(
        7,
        (BoundRecord("stem", 41_000),),
        8,
        (OutputRecord("scores", 12.84, 0.95, 3.5, 0.5),),
        (OutputRecord("scores", 30.5, 0.998, 0.25, 0.75),),
    ),
    unfused=(UnfusedRecord("QuantizeLinear", "image", "entry of the graph"),),
    float_bytes=4000,
    quantized_bytes=1000,
    samples=16,
    seconds={"calibrate": 1.0, "reconstruct": 3.0},
    float_pass_seconds=0.02,
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command in an empty folder, with a library that does no work: call it with arguments."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").write_bytes(b"float")
    calls = []

    def quantize(model, calibration, config, *, plan, ranges, test, output, observer):
        calls.append((model, calibration, config, *(each for each in (plan, test) if each is not None)))
        observer.stage("calibrate")
        observer.note("folded 3")
        observer.warn("odd values")
        observer.blocks(2)
        for record in REPORT.blocks:
            observer.block(record)

        def save(path, report, html):
            path.write_bytes(b"quantized")
            if report:
                report.write_text(REPORT.to_json())
            if html:
                html.write_text("a page")

        return SimpleNamespace(report=REPORT, save=save)

    monkeypatch.setattr(pipeline, "quantize", quantize)

    def invoke(*arguments, fault: BaseException | None = None):
        if fault:
            monkeypatch.setattr(pipeline, "quantize", lambda *a, **k: (_ for _ in ()).throw(fault))
        return CliRunner().invoke(app, ["quantize", *arguments])

    invoke.calls = calls
    return invoke


def test_defaults_reach_the_library_and_the_output_is_named_after_the_model(run, tmp_path):
    result = run("net.onnx", "--calib", "data")
    assert result.exit_code == 0, result.stderr
    ((model, calibration, config),) = run.calls
    assert (str(model), str(calibration), config) == ("net.onnx", "data", QuantizeConfig())
    assert (tmp_path / "net.quantized.onnx").read_bytes() == b"quantized"
    assert (tmp_path / "net.onnx").read_bytes() == b"float"


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("--resize 64x32 --multiple-of 8", {"resize": (64, 32), "multiple_of": 8}),
        ("--interpolation opencv", {"interpolation": "opencv"}),
        ("--letterbox 64 --fill 0 --pixel-range 0..255", {"letterbox": (64, 64), "fill": 0, "pixel_range": "0..255"}),
    ],
)
def test_how_images_are_fitted_reaches_the_settings(run, text, settings):
    assert run("net.onnx", "--calib", "data", *text.split()).exit_code == 0
    assert run.calls[0][2].data == DataConfig(**settings)


BROKEN = Violation("opset", "file", "opset 9", "opset 13 or later", "the manual")
LINT = LintRecord("chip", "g", ("opset", "pairs"), (BROKEN,), 4)


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_a_file_that_breaks_rules_of_its_target_is_written_and_the_exit_status_says_so(
    run, tmp_path, monkeypatch, quiet
):
    monkeypatch.setattr(sys.modules[__name__], "REPORT", replace(REPORT, lint=LINT))
    result = run("net.onnx", "--calib", "data", "--target", "chip.toml", *quiet)
    assert result.exit_code == 3 and (tmp_path / "net.quantized.onnx").exists()
    assert [line.strip() for line in result.stdout.splitlines()[-2:]] == [
        "refused: file: opset: found opset 9; allowed: opset 13 or later (the manual)",
        "FAILED: net.quantized.onnx: 1 violation of 1 of the 2 rules of target chip: opset; the file was read, and the"
        " device was not run",
    ]


def test_a_file_that_keeps_the_rules_of_its_target_is_told_so_last(run, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "REPORT", replace(REPORT, lint=replace(LINT, violations=())))
    result = run("net.onnx", "--calib", "data", "--target", "chip.toml")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("PASSED: net.quantized.onnx: all 2 rules of target chip hold; the")
    assert run("net.onnx", "--calib", "data", "--target", "chip.toml", "--quiet").stdout == ""


def test_the_file_of_a_target_is_never_the_output(run):
    result = run("net.onnx", "--calib", "data", "--target", "chip.toml", "-o", "chip.toml")
    assert result.exit_code == 1 and "chip.toml" in result.stderr


def test_every_option_reaches_its_setting(run):
    text = (
        "--weight-bits 4 --activation-bits 4 --first-last-bits 4 --range entropy --percentile 99.5 --encoding standard "
        "--weight-range full --pipeline light --no-reconstruct --statistics --no-biases --effort best --steps 7 "
        "--views 2 --samples 9 --seed 3 --threads 2 --device cpu "
        "--mean 0.1,0.2,0.3 --std 0.5 --resize 40 --crop 32x30 --layout nhwc --channels bgr "
        "--tokenizer t.json --text-column a,b --pairs --max-length 64 --shape 1,3 --shape x=1,4"
    )
    assert run("net.onnx", "--calib", "data", *text.split()).exit_code == 0
    data = DataConfig(mean=(0.1, 0.2, 0.3), std=0.5, resize=40, crop=(32, 30), layout="nhwc", channels="bgr", **TEXTS)
    expected = QuantizeConfig(
        weight_bits=4,
        activation_bits=4,
        first_last_bits=4,
        range="entropy",
        percentile=99.5,
        encoding="standard",
        weight_range="full",
        pipeline="light",
        reconstruct=False,
        statistics=True,
        biases=False,
        steps=7,
        views=2,
        samples=9,
        seed=3,
        effort="best",
        threads=2,
        device="cpu",
        data=data,
    )
    assert run.calls[0][2] == expected


def test_options_win_over_the_configuration_file(run, tmp_path):
    (tmp_path / "run.toml").write_text("steps = 7\nreconstruct = false\n[data]\nresize = 40\n")
    assert run("net.onnx", "--calib", "data", "--config", "run.toml", "--steps", "9", "--reconstruct").exit_code == 0
    assert run.calls[0][2] == QuantizeConfig(steps=9, reconstruct=True, data=DataConfig(resize=40))


@pytest.mark.parametrize(("median", "shown"), [(30.0, False), (20.0, True), (None, False)])
def test_a_median_far_from_the_sum_has_a_column(capsys, median, shown):
    print_summary(
        replace(REPORT, outputs=(replace(REPORT.outputs[0], median_db=median),)), Path("out.onnx"), open_console()
    )
    assert ("median dB" in capsys.readouterr().out) == shown


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("held out", "result, on 5 samples held out; it was made from the other 16"),
        ("test", "result, on the 5 samples of --test; it was made from 16 others"),
        (
            "calibration",
            "result, on the 5 samples that it was made from; on others SQNR was lower by 1 to 8 dB at 4 bits",
        ),
    ],
)
def test_the_table_says_what_it_was_measured_on(capsys, source, line):
    print_summary(replace(REPORT, measured_on=MeasuredOn(source, 5)), Path("out.onnx"), open_console())
    assert any(each.startswith(line) for each in capsys.readouterr().out.splitlines())


def test_what_holds_steps_of_sequences_out_is_said_of_sequences(capsys):
    loop = ClosedLoopRecord(("hn:h",), 1, 70, ())
    report = replace(REPORT, measured_on=MeasuredOn("calibration", 70), closed_loop=loop)
    print_summary(report, Path("out.onnx"), open_console())
    shown = capsys.readouterr().out
    assert "or four sequences of 64 steps together, of which a quarter is held out" in shown
    assert "closed loop: 1 sequence of 70 steps in all; each model reads its own states (hn:h)" in shown


def test_what_to_expect_of_others_stands_above_what_was_measured(capsys):
    output = replace(REPORT.outputs[0], expected=ExpectedRecord(30.125, (29.0, 31.5), 0.9876, (0.971, 0.996)))
    report = replace(REPORT, outputs=(output,), measured_on=MeasuredOn("held out", 64))
    print_summary(report, Path("out.onnx"), open_console())
    lines = capsys.readouterr().out.splitlines()
    assert (
        "result, on 64 samples held out; it was made from the other 16; expected: estimates for others like them"
        in (lines)
    )
    rows = [line.split() for line in lines if line.startswith("scores")]
    assert rows[0] == "scores expected 98.76 (97.1 to 99.6) 30.12 (29.0 to 31.5)".split()
    assert rows[1][:3] == ["scores", "optimized", "97.50"]


def test_the_table_goes_to_stdout_and_progress_to_stderr(run):
    result = run("net.onnx", "--calib", "data", "-o", "out.onnx")
    rows = [line.split() for line in result.stdout.splitlines()]
    for row in (
        "scores optimized 97.50 (85.4 to 99.9) 31.25 (30.0 to 32.5) 0.999000 0.5",
        "scores unoptimized - 32.50 0.999000 0.5",
        "scores exact sums (8 samples) 75.00 30.50 0.998000 0.25",
        "scores without VNNI (8 samples) 50.00 12.84 0.950000 3.5",
    ):
        assert row.split() in rows
    assert [row for row in rows if row and row[0].startswith("layer")] == [
        [f"layer{i}", "Conv", "W4A8", f"{10 + i}.00"] for i in range(5)
    ]
    for line in (
        "blocks: 1 reconstructed, 1 rounded",
        "  rounded: torch disagrees: head",
        "unfused Q/DQ: 1",
        "  QuantizeLinear: entry of the graph: image",
        "integer kernels: 7, 1 can saturate on x86 without VNNI (worst stem: sums of two products reach 41,000, int16"
        " ends at 32,767): there the outputs have 12.8 dB, 50.0% agreement, with exact sums 30.5 dB, 75.0% agreement"
        " (8 samples)",
        "size: 4,000 -> 1,000 bytes, 0.250 of float",
        "time: 4.0 s (calibrate 1.0, reconstruct 3.0), 200 float passes, 16 samples",
        "in short: 97.5% of the answers are the float model's (85.3 to 99.9% at 95% confidence); the file is 0.25 of"
        " its size",
        "wrote out.onnx",
    ):
        assert line in result.stdout.splitlines()
    assert result.stderr.splitlines() == [
        "calibrate ...",
        "  folded 3",
        "warning: odd values",
    ]


def test_the_table_has_a_row_for_each_part_of_an_output(capsys):
    parts = OutputRecord("y[:, 0:4]", 30.0, 1.0, 0.5), OutputRecord("y[:, 4:84]", 9.0, 0.9, 0.5)
    print_summary(
        Report(settings={}, outputs=(OutputRecord("y", 29.0, 1.0, 0.5, parts=parts),)), Path("q.onnx"), open_console()
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("y")]
    assert [row[-5:-2] for row in rows] == [["optimized", "-", sqnr] for sqnr in ("29.00", "30.00", "9.00")]


def test_quiet_prints_warnings_only(run):
    result = run("net.onnx", "--calib", "data", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "warning: odd values\n")


def test_the_report_and_its_page_are_written_whole(run, tmp_path, monkeypatch):
    assert run("net.onnx", "--calib", "data", "--report", "run.json").exit_code == 0
    assert json.loads((tmp_path / "run.json").read_text()) == json.loads(REPORT.to_json())
    result = run("net.onnx", "--calib", "data", "--report", "-")
    assert (result.exit_code, result.stdout) == (0, REPORT.to_json() + "\n")
    assert result.stderr.splitlines()[-1] == "wrote net.quantized.onnx"
    monkeypatch.setattr(script, "NEEDED", {})
    assert run("net.onnx", "--calib", "data", "--html", "run.html").exit_code == 0
    assert (tmp_path / "run.html").read_text() == "a page"
    monkeypatch.setattr("onnxcalib.pages.page.draw_report", lambda text: f"of {text}")
    assert run("net.onnx", "--calib", "data", "--html", "-").stdout == f"of {REPORT.to_json()}"
    result = run("net.onnx", "--calib", "data", "--html", "-", "--report", "-")
    assert result.exit_code == 1 and "-: is standard output for both --report and --html" in result.stderr
    monkeypatch.setattr(script, "NEEDED", {"absent_module": "absent"})
    run.calls.clear()
    result = run("net.onnx", "--calib", "data", "--html", "other.html")
    assert (result.exit_code, run.calls) == (2, []) and "html: found no absent" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "net.onnx",
        "net.quantized.onnx",
        "run.html",
        "run.json",
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("-o", "net.onnx"), "net.onnx: is read by this run"),
        (("-o", "absent/out.onnx"), "the folder absent does not exist"),
        (("--report", "absent/run.json"), "the folder absent does not exist"),
        (("--report", "net.onnx"), "net.onnx: is read by this run"),
        (("-o", "-"), "-: is no name of a file here; results are not written to standard output"),
        (("--html", "net.onnx"), "net.onnx: is read by this run"),
        (("--report", "out.onnx", "-o", "out.onnx"), "out.onnx: is the file of both --output and --report"),
    ],
)
def test_bad_output_paths_are_refused_before_any_work(run, arguments, text):
    result = run("net.onnx", "--calib", "data", *arguments)
    assert (result.exit_code, run.calls) == (1, [])
    assert result.stderr.startswith("error: ")
    assert text in result.stderr


@pytest.mark.parametrize(
    ("fault", "status", "line"),
    [
        (errors.DataError("a.png: not\n readable"), 1, "error: a.png: not readable"),
        (errors.ModelError("net.onnx: corrupt"), 1, "error: net.onnx: corrupt"),
        (errors.OutputError("out.onnx: disk full"), 1, "error: out.onnx: disk full"),
        (errors.ConfigError("steps: found 0"), 2, "error: steps: found 0"),
        (KeyboardInterrupt(), 130, "interrupted: nothing half-written is left"),
        (
            ZeroDivisionError("by\nzero"),
            1,
            "error: unexpected ZeroDivisionError: by zero; please report this with the traceback that --verbose shows",
        ),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            1,
            "error: found no package torch; validate, inspect and targets alone do without some of the packages;"
            " install onnxcalib with all of them: without --no-deps",
        ),
    ],
)
def test_a_fault_is_one_line_and_an_exit_status(run, tmp_path, fault, status, line):
    result = run("net.onnx", "--calib", "data", fault=fault)
    assert (result.exit_code, result.stdout, result.stderr) == (status, "", line + "\n")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_verbose_shows_the_traceback_of_a_fault(run):
    result = run("net.onnx", "--calib", "data", "--verbose", fault=ZeroDivisionError("by zero"))
    assert "Traceback (most recent call last)" in result.stderr
    assert "please report this with the traceback above" in result.stderr


def test_a_bad_setting_is_refused_before_any_work(run, tmp_path):
    (tmp_path / "run.toml").write_text("weight-bitz = 4")
    result = run("net.onnx", "--calib", "data", "--config", "run.toml")
    assert (result.exit_code, run.calls) == (2, [])
    assert result.stderr == "error: run.toml: weight-bitz: unknown setting; did you mean 'weight_bits'?\n"


def test_a_real_run_writes_a_model_that_onnx_accepts_and_a_page_of_its_report(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    weight = onnx.numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "w")
    graph = onnx.parser.parse_graph("net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { y = Conv(x, w) }")
    graph.initializer.append(weight)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", rng.standard_normal((16, 3, 8, 8)).astype(np.float32))
    arguments = ["quantize", str(tmp_path / "net.onnx"), "--calib", str(tmp_path / "x.npy"), "--steps", "2"]
    monkeypatch.setattr(script, "NEEDED", {})
    monkeypatch.setattr("onnxcalib.pages.page.load_script", lambda: "")
    reports = ["--report", str(tmp_path / "run.json"), "--html", str(tmp_path / "run.html")]
    result = CliRunner().invoke(app, [*arguments, *reports])
    assert result.exit_code == 0, result.stderr
    onnx.checker.check_model(onnx.load(tmp_path / "net.quantized.onnx"), full_check=True)
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["outputs"][0]["sqnr_db"] > 20
    assert (tmp_path / "run.html").read_text() == draw_report(json.dumps(found))
    (layer,), (place,) = found["layers"], found["places"]
    assert place == {"name": layer["name"], "after": [], "layers": [layer["name"]]}
    assert sum(layer["weight"]["counts"]) == weight.dims[0] * 27 and len(layer["weight"]["counts"]) == 64
    low, high = layer["weight"]["low"], layer["weight"]["high"]
    ends = onnx.numpy_helper.to_array(weight)
    assert (low, high) == (pytest.approx(ends.min()), pytest.approx(ends.max()))
    assert layer["weight"]["grid"][0] < 0 < layer["weight"]["grid"][1]
    assert sum(layer["input"]["counts"]) == 16 * 3 * 64  # none held out: few samples
    assert layer["input"]["grid"][0] < -2 and layer["input"]["grid"][1] > 2
    assert found["environment"]["onnxruntime"] and found["environment"]["processor"]


def test_types_and_subgraphs_have_bits_of_their_own_or_stay_in_float(tmp_path):
    rng = np.random.default_rng(0)
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 8] x) => (float[N, 8] y) {
        [first] a = MatMul (x, w)  [relu] b = Relu (a)  [second] c = MatMul (b, w)  [third] d = MatMul (c, w)
        [prob] e = Softmax (d)  [last] y = Gemm (e, w)
    }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=(8, 8)).astype(np.float32), "w"))
    onnx.save(model, tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", rng.normal(size=(16, 8)).astype(np.float32))
    (tmp_path / "run.toml").write_text('[layers."between:b -> d"]\nweight_bits = 4\n')
    arguments = ["quantize", str(tmp_path / "net.onnx"), "--calib", str(tmp_path / "x.npy"), "--exclude", "op:Gemm"]
    result = CliRunner().invoke(app, [*arguments, "--exclude", "op:Softmax", "--config", str(tmp_path / "run.toml")])
    assert result.exit_code == 0, result.stderr
    quantized = onnx.load(tmp_path / "net.quantized.onnx")
    (bits,) = [entry.value for entry in quantized.metadata_props if entry.key == "onnxcalib.bits"]
    assert json.loads(bits) == {"first": "W8A8", "second": "W4A8", "third": "W4A8"}
    (entry,) = [entry.value for entry in quantized.metadata_props if entry.key == "onnxcalib.version"]
    assert entry == onnxcalib.__version__


def test_many_reasons_for_float_are_cut_short():
    records = [FloatRecord(f"layer{number}", "Conv", f"it would have {number} dB") for number in range(10)]
    lines = describe_in_float([*records, FloatRecord("last", "Conv", "it would have 0 dB")])
    assert len(lines) == 10 and lines[:2] == ["left in float: 11", "  it would have 0 dB: layer0, last"]
    assert lines[-1] == "  and 2 other reasons, in the report under in_float"
    assert describe_in_float(records[:8])[-1] == "  it would have 7 dB: layer7"


def test_long_names_are_shortened_in_the_middle_and_numbers_are_whole(capsys):
    name = "save_infer_model/scale_0.tmp_1/of/a/network/with/long/names"
    record = OutputRecord(name, 28.64, 0.999, 0.1, 0.99, (22.2, 35.1), (0.89, 1.0))
    print_summary(replace(REPORT, outputs=(record,)), Path("out.onnx"), open_console())
    row, *_ = (line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("save"))
    assert row[0].endswith("names") and "…" in row[0]
    assert row[1:] == "optimized 99.00 (89.0 to 100.0) 28.64 (22.2 to 35.1)".split()
