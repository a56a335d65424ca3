"""``onnxcalib validate``: what it hands to the library, what it writes and prints, and its exit statuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from typer.testing import CliRunner

from onnxcalib import errors
from onnxcalib.cli.app import app
from onnxcalib.cli.main import main
from onnxcalib.config import DataConfig, ValidateConfig
from onnxcalib.pages import script
from onnxcalib.pages.page import draw_verdict
from onnxcalib.report import OutputRecord
from onnxcalib.validation import render as formats
from onnxcalib.validation import run as validation
from onnxcalib.verdict import ContractRecord, GateRecord, LatencyRecord, Verdict

TEXTS = {"tokenizer": "t.json", "text_column": ("a", "b"), "pairs": True, "max_length": 64, "shape": ("1,3", "x=1,4")}

PASS = GateRecord("min_sqnr", True, "20.00 dB on y, at least 15 dB")
FAIL = GateRecord("min_agreement", False, "80.00% on y, at least 90%")
VERDICT = Verdict(
    float_model="f.onnx",
    quantized_model="q.onnx",
    settings={},
    samples=100,
    scores=(),
    outputs=(OutputRecord("y", 20.0, 0.99, 0.5, 0.8),),
    float_bytes=4000,
    quantized_bytes=1000,
    latency=LatencyRecord(1, 25, 4.0, 2.0, 0.01, 0.01, 2.0, (1.5, 2.5)),
    unfused=(),
    contract=ContractRecord(8, ()),
    gates=(PASS,),
)
BASE = ("f.onnx", "q.onnx", "--data", "samples")
REPORTS = ("--json", "a.json", "--junit", "a.xml", "--markdown", "a.md", "--html", "a.html")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command in a folder of inputs, with a library that does no work: call it with arguments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "NEEDED", {})  # pages without plots need no library for them
    for name in ("f.onnx", "q.onnx", "labels.csv"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "run.toml").write_text("")
    (tmp_path / "samples").mkdir()
    calls = []

    def invoke(*arguments, gates=(PASS,), fault: BaseException | None = None):
        def validate(*models_and_data, observer, **more):
            calls.append((models_and_data, more))
            observer.stage("compare")
            observer.warn("odd values")
            if fault:
                raise fault
            return replace(VERDICT, gates=gates)

        monkeypatch.setattr(validation, "validate", validate)
        return CliRunner().invoke(app, ["validate", *arguments])

    invoke.calls = calls
    return invoke


def files(folder):
    return {path.name for path in folder.iterdir()} - {"f.onnx", "q.onnx", "labels.csv", "run.toml", "samples"}


def test_defaults_reach_the_library(run, tmp_path):
    result = run(*BASE)
    assert result.exit_code == 0, result.stderr
    (((original, quantized, data, config), more),) = run.calls
    assert (original, quantized, data) == (Path("f.onnx"), Path("q.onnx"), Path("samples"))
    assert (config, more) == (ValidateConfig(), {"labels": None, "explain": False})
    assert files(tmp_path) == set()


def test_every_option_reaches_its_setting(run):
    text = (
        "--labels labels.csv --max-drop 1.5 --min-agreement 95 --min-sqnr 15.5 --max-size-ratio 0.5 --min-speedup 1.2 "
        "--max-unfused 7 --max-steps 3 --max-saturating 2 --confident --metric own.module:score --samples 9 --batch 4 "
        "--threads 2 --mean 0.1,0.2,0.3 --std 0.5 --resize 40 --crop 32x30 --layout nhwc --channels bgr "
        "--tokenizer t.json --text-column a,b --pairs --max-length 64 --shape 1,3 --shape x=1,4 --explain "
        "--class-axis 1 --class-axis y=2 --reference 3 --min-reference-sqnr 30 --target qnn --min-placed 97.5% "
        "--device-timeout 30"
    )
    assert run(*BASE, *text.split()).exit_code == 0
    data = DataConfig(mean=(0.1, 0.2, 0.3), std=0.5, resize=40, crop=(32, 30), layout="nhwc", channels="bgr", **TEXTS)
    expected = ValidateConfig(
        max_drop=1.5,
        min_agreement=95,
        min_sqnr=15.5,
        max_size_ratio=0.5,
        min_speedup=1.2,
        max_unfused=7,
        max_steps=3,
        max_saturating=2,
        min_reference_sqnr=30,
        reference=3,
        confident=True,
        metric="own.module:score",
        samples=9,
        batch=4,
        class_axis=("1", "y=2"),
        target="qnn",
        min_placed=97.5,
        device_timeout=30,
        threads=2,
        data=data,
    )
    (((*_, config), more),) = run.calls
    assert config == expected
    assert more == {"labels": Path("labels.csv"), "explain": True}
    assert not [
        name for name in ValidateConfig.model_fields if getattr(config, name) == getattr(ValidateConfig(), name)
    ]


def test_gates_are_read_from_the_table_of_the_configuration_and_options_win(run, tmp_path):
    text = "weight-bits = 4\n[validate]\nmin-sqnr = 15\nmax_drop = 2\nconfident = true\n[data]\nresize = 40\n"
    (tmp_path / "run.toml").write_text(text)
    assert run(*BASE, "--config", "run.toml", "--max-drop", "1", "--no-confident").exit_code == 0
    assert run.calls[0][0][3] == ValidateConfig(min_sqnr=15, max_drop=1, data=DataConfig(resize=40))


def test_a_negative_drop_can_be_asked_for(run):
    assert run(*BASE, "--max-drop", "-0.5").exit_code == 0
    assert run.calls[0][0][3].max_drop == -0.5


# Exit status and reports


@pytest.mark.parametrize(("gates", "status", "last"), [((PASS,), 0, "PASSED: "), ((PASS, FAIL), 3, "FAILED: ")])
def test_all_reports_are_written_whatever_the_verdict(run, tmp_path, gates, status, last):
    result = run(*BASE, *REPORTS, gates=gates)
    assert result.exit_code == status
    verdict = replace(VERDICT, gates=gates)
    assert (tmp_path / "a.json").read_text() == verdict.to_json() + "\n"
    assert (tmp_path / "a.xml").read_text() == formats.to_junit(verdict)
    assert (tmp_path / "a.md").read_text() == formats.to_markdown(verdict)
    assert (tmp_path / "a.html").read_text() == draw_verdict(verdict.to_json())
    assert files(tmp_path) == {"a.json", "a.xml", "a.md", "a.html"}
    assert json.loads((tmp_path / "a.json").read_text())["passed"] is (status == 0)
    suite = ElementTree.parse(tmp_path / "a.xml").find("testsuite")
    assert suite.get("failures") == str(len(gates) - 1)
    assert result.stdout.splitlines()[-1].startswith(last)


@pytest.mark.parametrize("option", [0, 2, 4, 6])
def test_a_report_is_written_alone(run, tmp_path, option):
    assert run(*BASE, *REPORTS[option : option + 2]).exit_code == 0
    assert files(tmp_path) == {REPORTS[option + 1]}
    result = run(*BASE, REPORTS[option], "-", gates=(PASS, FAIL))
    assert (result.exit_code, files(tmp_path)) == (3, {REPORTS[option + 1]})
    verdict = replace(VERDICT, gates=(PASS, FAIL))
    texts = [verdict.to_json() + "\n", formats.to_junit(verdict), formats.to_markdown(verdict)]
    texts.append(draw_verdict(verdict.to_json()))
    assert result.stdout == texts[option // 2]
    assert result.stderr.splitlines()[-1].startswith("FAILED: ")


@pytest.mark.parametrize(
    ("fault", "status", "line"),
    [
        (errors.DataError("a.png: not\n readable"), 1, "error: a.png: not readable"),
        (errors.ModelError("q.onnx: corrupt"), 1, "error: q.onnx: corrupt"),
        (errors.ConfigError("max_drop: found no labels"), 2, "error: max_drop: found no labels"),
        (KeyboardInterrupt(), 130, "interrupted: nothing half-written is left"),
        (
            ZeroDivisionError("by\nzero"),
            1,
            "error: unexpected ZeroDivisionError: by zero; please report this with the traceback that --verbose shows",
        ),
    ],
)
def test_a_fault_is_one_line_and_an_exit_status_without_any_report(run, tmp_path, fault, status, line):
    result = run(*BASE, *REPORTS, "--quiet", fault=fault)
    assert (result.exit_code, result.stdout, result.stderr) == (status, "", f"warning: odd values\n{line}\n")
    assert files(tmp_path) == set()


def test_a_report_that_cannot_be_rendered_leaves_none(run, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "to_markdown", lambda verdict: 1 / 0)
    assert run(*BASE, *REPORTS).exit_code == 1
    assert files(tmp_path) == set()


def test_pages_are_refused_before_any_work_where_what_makes_them_is_not_installed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "NEEDED", {"absent_module": "absent-package", "jinja2": "jinja2"})
    result = run(*BASE, "--html", "a.html")
    assert (result.exit_code, run.calls, files(tmp_path)) == (2, [], set())
    assert result.stderr.startswith("error: html: found no absent-package; ")
    assert run(*BASE, "--markdown", "a.md").exit_code == 0


def test_old_reports_stay_where_a_run_fails(run, tmp_path):
    (tmp_path / "a.json").write_text("old")
    assert run(*BASE, *REPORTS, fault=errors.ModelError("no")).exit_code == 1
    assert (tmp_path / "a.json").read_text() == "old"


def test_verbose_shows_the_traceback_of_a_fault(run):
    assert "Traceback (most recent call last)" in run(*BASE, "--verbose", fault=errors.ModelError("no")).stderr
    assert "Traceback" not in run(*BASE, fault=errors.ModelError("no")).stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--min-sqnr", "nan"), "error: --min-sqnr: found "),
        (("--min-agreement", "0.95"), "error: --min-agreement: found 0.95; is in %, above 1 and at most 100"),
        (("--max-steps", "-1"), "error: --max-steps: found -1"),
        (("--metric", "nocolon"), "error: --metric: found 'nocolon'"),
        (("--batch", "0"), "error: --batch: found 0"),
        (("--config", "absent.toml"), "error: absent.toml: no such file"),
        (("--min-sqnr", "much"), "error: Invalid value for '--min-sqnr'"),
        (("--weight-bits", "4"), "error: No such option: --weight-bits"),
        (("extra",), "error: Got extra argument(s) (extra)"),
    ],
)
def test_a_bad_setting_is_refused_before_any_work(run, capsys, arguments, text):
    assert run(*BASE).exit_code == 0  # the library does no work from here on
    run.calls.clear()
    assert main(["validate", *BASE, *arguments]) == 2
    assert run.calls == []
    assert capsys.readouterr().err.startswith(text)


def test_a_gate_of_the_configuration_that_is_unknown_is_refused(run, tmp_path):
    (tmp_path / "run.toml").write_text("[validate]\nmin-sqnrr = 4")
    result = run(*BASE, "--config", "run.toml")
    assert (result.exit_code, run.calls) == (2, [])
    assert result.stderr == "error: run.toml: min-sqnrr: unknown setting; did you mean 'min_sqnr'?\n"


@pytest.mark.parametrize("option", ["--json", "--junit", "--markdown", "--html"])
@pytest.mark.parametrize("source", ["f.onnx", "q.onnx", "labels.csv", "run.toml", "samples"])
def test_what_is_read_is_never_overwritten(run, tmp_path, option, source):
    result = run(*BASE, "--labels", "labels.csv", "--config", "run.toml", option, source)
    assert (result.exit_code, run.calls) == (1, [])
    assert result.stderr.startswith(f"error: {source}: is read by this run")
    assert (tmp_path / "f.onnx").read_bytes() == b"f.onnx"


def test_two_reports_in_one_place_and_missing_folders_are_refused(run, tmp_path):
    result = run(*BASE, "--json", "a", "--markdown", "a")
    assert result.stderr.startswith("error: a: is the file of both --json and --markdown")
    result = run(*BASE, "--json", "-", "--junit", "-")
    assert result.stderr.startswith("error: -: is standard output for both --json and --junit, which takes one of them")
    result = run(*BASE, "--json", "absent/a")
    assert "the folder absent does not exist" in result.stderr
    assert run.calls == [] and files(tmp_path) == set()


@pytest.mark.parametrize(
    ("option", "source"), [("-o", "samples.npy"), ("--report", "run.toml"), ("--report", "samples.npy")]
)
def test_quantize_never_overwrites_what_it_reads_either(run, tmp_path, option, source):
    (tmp_path / "samples.npy").write_bytes(b"samples")
    arguments = ["f.onnx", "--calib", "samples.npy", "--config", "run.toml", option, source]
    result = CliRunner().invoke(app, ["quantize", *arguments])
    assert result.exit_code == 1 and result.stderr.startswith(f"error: {source}: is read by this run")
    assert (tmp_path / "samples.npy").read_bytes() == b"samples"


# What is printed


def test_the_verdict_goes_to_stdout_and_progress_to_stderr(run):
    result = run(*BASE, gates=(PASS, FAIL))
    assert result.stdout.splitlines()[0] == "q.onnx against f.onnx on 100 samples"
    assert "FAIL  min_agreement: 80.00% on y, at least 90%" in result.stdout.splitlines()
    assert result.stderr.splitlines() == ["warning: odd values"]


def test_quiet_prints_nothing_but_warnings_where_all_gates_hold(run):
    result = run(*BASE, "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "warning: odd values\n")


def test_quiet_prints_the_gates_that_do_not_hold_and_the_outcome_alone(run):
    result = run(*BASE, "--quiet", gates=(PASS, FAIL))
    line = "FAIL  min_agreement: 80.00% on y, at least 90%"
    assert result.exit_code == 3
    assert result.stdout.splitlines() == [line, "FAILED: 1 of 2 gates does not hold: min_agreement"]
    assert result.stderr == "warning: odd values\n"


# All of it


@pytest.fixture
def real(tmp_path, monkeypatch):
    """Runs the command on files of its own, with the library."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 6] x) => (float[N, 7] y) { [a] y = MatMul (x, w) }'
    model = parser.parse_model(text)
    weight = rng.normal(size=(6, 7)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(model, "f.onnx")
    data = rng.normal(size=(40, 6)).astype(np.float32)
    np.save("x.npy", data)
    np.save("labels.npy", (data @ weight).argmax(axis=1))
    runner = CliRunner()
    result = runner.invoke(app, ["quantize", "f.onnx", "--calib", "x.npy", "-o", "q.onnx", "--no-reconstruct"])
    assert result.exit_code == 0, result.stderr
    return lambda *arguments: runner.invoke(app, ["validate", *arguments])


def test_a_real_run_passes_and_fails_by_its_gates(real, tmp_path):
    base = ("f.onnx", "q.onnx", "--data", "x.npy", "--labels", "labels.npy", *REPORTS)
    gates = ("--max-drop", "10", "--min-agreement", "90", "--min-sqnr", "25")
    result = real(*base, *gates)
    assert result.exit_code == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["passed"] and [score["name"] for score in found["scores"]] == ["top-1", "top-5"]
    result = real(*base, *gates, "--min-sqnr", "99", "--explain")
    assert result.exit_code == 3
    assert json.loads((tmp_path / "a.json").read_text())["explanation"]["layers"][0]["name"] == "a"
    assert (tmp_path / "a.md").read_text().startswith("## onnxcalib validate: FAILED\n")


def test_the_rules_of_a_target_are_a_gate_beside_the_others(real, tmp_path):
    base = ("f.onnx", "q.onnx", "--data", "x.npy", *REPORTS)
    assert real(*base, "--target", "onnxruntime").exit_code == 0
    assert json.loads((tmp_path / "a.json").read_text())["lint"]["violations"] == []
    result = real(*base, "--target", "tensorrt", "--min-sqnr", "1")
    assert result.exit_code == 3 and "FAIL  target: " in result.stdout
    found = json.loads((tmp_path / "a.json").read_text())
    first = found["lint"]["violations"][0]
    line = "{level}: {where}: {rule}: found {found}; allowed: {allowed} ({source})".format(**first)
    assert not found["passed"] and f"  {line}" in result.stdout.splitlines()
    cases = {case.get("name"): case for case in ElementTree.parse(tmp_path / "a.xml").iter("testcase")}
    assert cases["min_sqnr"].find("failure") is None and line in cases["target"].find("failure").text.splitlines()
    assert f"`{first['rule']}`" in (tmp_path / "a.md").read_text()


def test_a_file_alone_is_held_to_a_target(real, tmp_path):
    result = real("q.onnx", "--target", "onnxruntime")
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 1
    assert result.stdout.startswith(
        "PASSED: q.onnx: all 12 rules of target onnxruntime hold; the file was read, and the"
    )
    assert real("q.onnx", "--target", "onnxruntime", "--quiet").stdout == ""
    result = real("q.onnx", "--target", "xint8", *REPORTS, "--quiet")
    *lines, last = result.stdout.splitlines()
    found = json.loads((tmp_path / "a.json").read_text())
    assert result.exit_code == 3 and not found["passed"] and len(lines) == len(found["lint"]["violations"]) > 3
    assert last.startswith("FAILED: q.onnx: ") and last.endswith("; the file was read, and the device was not run")
    failure = ElementTree.parse(tmp_path / "a.xml").find("testsuite/testcase/failure")
    assert [line.strip() for line in lines] == failure.text.splitlines()[1:]
    assert (tmp_path / "a.md").read_text().startswith("## onnxcalib validate: FAILED\n")


def test_a_float_model_is_held_to_no_target(real):
    result = real("f.onnx", "--target", "qnn")
    assert result.exit_code == 1 and "found no quantized operator; a quantized model is needed" in result.stderr
    result = real("f.onnx", "f.onnx", "--data", "x.npy", "--target", "qnn")
    assert result.exit_code == 3
    assert "FAIL  target: no rule of target qnn was judged, as nothing is quantized; the file" in result.stdout


def test_a_target_of_ones_own_is_read_from_its_file(real, tmp_path):
    text = 'name = "chip"\n[rules.activation_types]\ntypes = ["int16"]\nsource = "its manual, page 7"\n'
    (tmp_path / "chip.toml").write_text(text)
    result = real("q.onnx", "--target", "chip.toml")
    assert (
        result.exit_code == 3 and "activation_types: found uint8; allowed: int16 (its manual, page 7)" in result.stdout
    )
    result = real("q.onnx", "--target", "chip.toml", "--json", "chip.toml")
    assert result.stderr.startswith("error: chip.toml: is read by this run")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "chip").write_text(text)
    result = real("q.onnx", "--target", "bare/chip", "--json", "bare/chip")
    assert result.stderr.startswith("error: bare/chip: is read by this run")
    (tmp_path / "own.toml").write_text('[validate]\ntarget = "chip.toml"\nsamples = 3\n')
    assert real("q.onnx", "--config", "own.toml").exit_code == 3


def test_a_lint_is_told_in_lines_whatever_the_target_is_called(real, tmp_path):
    text = 'name = "two\\nlines"\n[rules.activation_types]\ntypes = ["int16"]\nsource = "its manual, page 7"\n'
    (tmp_path / "chip.toml").write_text(text)
    last = real("q.onnx", "--target", "chip.toml").stdout.splitlines()[-1]
    assert last.startswith("FAILED: q.onnx: ") and " of the one rule of target two lines: activation_types; " in last
    (tmp_path / "chip.toml").write_text(text.replace("int16", "uint8"))
    assert real("q.onnx", "--target", "chip.toml").stdout.startswith(
        "PASSED: q.onnx: the one rule of target two lines holds; "
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("q.onnx",), "QUANTIZED: missing; FLOAT, QUANTIZED and --data are needed, or one file and --target"),
        (("f.onnx", "q.onnx"), "--data: missing; FLOAT, QUANTIZED and --data are needed, or one file and --target"),
        (("f.onnx", "q.onnx", "--target", "qnn"), "--data: missing"),
        (
            ("q.onnx", "--target", "qnn", "--min-sqnr", "9"),
            "--min-sqnr: found one model and no --data; only --target can",
        ),
        (("q.onnx", "--target", "qnn", "--reference", "2"), "--reference: found one model and no --data"),
        (("q.onnx", "--target", "qnn", "--samples", "2"), "--samples: found one model and no --data"),
        (("q.onnx", "--target", "qnn", "--explain"), "--explain: found one model and no --data"),
        (("q.onnx", "--target", "qnn", "--labels", "labels.csv"), "--labels: found one model and no --data"),
        (
            ("q.onnx", "--target", "qmn"),
            "target: found 'qmn'; onnxruntime, openvino, qnn, symmetric, tensorrt, xint8, or",
        ),
        (
            ("q.onnx", "--target", "absent.toml"),
            "absent.toml: no such file; the name of a target, or the path of a TOML",
        ),
    ],
)
def test_wrong_usage_of_a_target_is_one_line(real, arguments, text):
    result = real(*arguments)
    assert result.exit_code == 2 and result.stderr.startswith(f"error: {text}"), result.stderr


def test_real_faults_have_their_exit_statuses(real, tmp_path):
    assert real("q.onnx", "f.onnx", "--data", "x.npy").exit_code == 1
    assert real("f.onnx", "absent.onnx", "--data", "x.npy").exit_code == 1
    assert real("f.onnx", "q.onnx", "--data", "absent").exit_code == 1
    assert real("f.onnx", "q.onnx", "--data", "x.npy", "--max-drop", "1").exit_code == 1
    (tmp_path / "own_leaving.py").write_text("import sys\nsys.exit(0)\n")
    result = real("f.onnx", "q.onnx", "--data", "x.npy", "--metric", "own_leaving:f")
    assert result.exit_code == 1 and "cannot be loaded (SystemExit: 0)" in result.stderr
