"""The command as a whole: help, version, wrong usage, and what it loads."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

import onnxcalib
from onnxcalib.cli import main as cli
from onnxcalib.cli.exitstatus import ExitStatus
from onnxcalib.config import QuantizeConfig, ValidateConfig, list_settings


def test_version_is_printed(capsys):
    assert cli.main(["--version"]) == ExitStatus.OK
    assert capsys.readouterr().out == f"onnxcalib {onnxcalib.__version__}\n"


def test_no_command_prints_the_help_and_counts_as_wrong_usage(capsys):
    assert cli.main([]) == ExitStatus.USAGE
    shown = capsys.readouterr()
    assert "quantize" in shown.out
    needed = "quantize, calibrate, plan, validate, inspect or targets is needed; see the help"
    assert shown.err == f"error: no command found; {needed}\n"


def test_help_shows_the_defaults_of_the_settings(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["quantize", "--help"]) == ExitStatus.OK
    shown = capsys.readouterr().out
    for text in (
        "[default: squared-error]",
        "[default: 99.99]",
        "[default: balanced]",
        "[default: MODEL with .quantized",
    ):
        assert text in shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("quantize", "net.onnx", "--calib", "d", "--percentil", "99"),
            "error: No such option: --percentil (Possible options: --percentile, --placement)"
            " (see 'onnxcalib quantize --help')",
        ),
        (("quantise",), "error: No such command 'quantise'. Did you mean 'quantize'? (see 'onnxcalib --help')"),
        (("quantize", "net.onnx"), "error: Missing option '--calib' (see 'onnxcalib quantize --help')"),
        (("quantize", "--calib", "d"), "error: Missing argument 'MODEL' (see 'onnxcalib quantize --help')"),
        (
            ("quantize", "net.onnx", "--calib", "d", "--weight-bits", "5"),
            "error: --weight-bits: found 5; allowed: 8, 4, 3 or 2",
        ),
    ],
)
def test_wrong_usage_is_one_line_with_the_nearest_match(capsys, arguments, line):
    assert cli.main(arguments) == ExitStatus.USAGE
    assert capsys.readouterr() == ("", line + "\n")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (
            ("validate", "f", "q", "--data", "d", "--weight-bits", "4"),
            "--weight-bits; it belongs to onnxcalib quantize",
        ),
        (("plan", "f", "--calib", "d", "--no-biases"), "--no-biases; it belongs to onnxcalib quantize"),
        (("quantize", "f", "--calib", "d", "--confident"), "--confident; it belongs to onnxcalib validate"),
        (
            ("validate", "f", "q", "--data", "d", "--max-disagreement", "4"),
            "--max-disagreement; it belongs to onnxcalib quantize and plan; max_drop, a gate of validate, limits",
        ),
        (
            ("quantize", "f", "--calib", "d", "--max-drop", "4"),
            "--max-drop; it belongs to onnxcalib validate; max_drop, a gate of validate, limits the accuracy lost, in"
            " points; max_disagreement, a budget of bit plans, limits the samples whose top class changes, in % (see",
        ),
    ],
)
def test_an_option_of_another_command_is_refused_with_the_command(capsys, arguments, hint):
    assert cli.main(arguments) == ExitStatus.USAGE
    assert capsys.readouterr().err.startswith(f"error: No such option: {hint}")


def test_an_option_that_is_no_number_is_refused(capsys):
    assert cli.main(["quantize", "net.onnx", "--calib", "d", "--steps", "many"]) == ExitStatus.USAGE
    assert "Invalid value for '--steps'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--steps", "--percentile"])
@pytest.mark.parametrize("value", ["\u0665\u0665", "6_0", "0x40", "", "9" * 5000])
def test_numbers_have_the_digits_0_to_9(capsys, option, value):
    assert cli.main(["quantize", "net.onnx", "--calib", "d", option, value]) == ExitStatus.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"error: Invalid value for '{option}': found .* number is needed, in the digits 0 to 9", line)


def test_a_whole_number_has_no_point(capsys):
    assert cli.main(["quantize", "net.onnx", "--calib", "d", "--steps", "8.0"]) == ExitStatus.USAGE
    assert "'--steps': found '8.0'; a whole number is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "option", "value", "text"),
    [
        (
            "quantize",
            "--steps",
            "99999999999999999999",
            "--steps: found 99999999999999999999; input should be less than",
        ),
        ("quantize", "--threads", "100000", "--threads: found 100000; input should be less than or equal to 1024"),
        ("quantize", "--percentile", "1e400", "--percentile: found inf; input should be"),
        ("quantize", "--exclude", "", "--exclude: found ''; must name something"),
        ("plan", "--max-size", "1e400", "--max-size: found '1e400'; must be a share of at most"),
        ("plan", "--jobs", "0", "--jobs: found 0; input should be greater than or equal to 1"),
        ("plan", "--max-loss", "nan", "--max-loss: found nan; input should be"),
    ],
)
def test_a_number_beyond_its_bounds_is_refused_in_one_line(capsys, command, option, value, text):
    assert cli.main([command, "net.onnx", "--calib", "d", option, value]) == ExitStatus.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {text}")


@pytest.mark.parametrize(("option", "value"), [("--max-drop", "nan"), ("--max-drop", "1e400"), ("--metric", "")])
def test_a_gate_that_is_no_finite_number_or_empty_is_refused_in_one_line(capsys, option, value):
    assert cli.main(["validate", "a.onnx", "b.onnx", "--data", "d", option, value]) == ExitStatus.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {option}: found ")


def test_the_help_states_the_bounds_of_numbers(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["quantize", "--help"]) == ExitStatus.OK
    shown = capsys.readouterr().out
    for text in ("at least 1, at most 1,024", "each from 1 to 16,384", "from 1KB to 1000GB", "or at most 1e6s"):
        assert f"{text}]" in shown


@pytest.mark.parametrize("command", ["quantize", "plan", "validate"])
def test_the_help_has_what_most_need_first_and_expert_settings_last_and_an_example(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main([command, "--help"]) == ExitStatus.OK
    shown = capsys.readouterr().out
    panels = re.findall(r"^╭─ ([\w ]+) ─", shown, flags=re.MULTILINE)
    first = {"quantize": "Bits", "plan": "Bit plan", "validate": "Gates"}[command]
    assert panels[:3] == ["Arguments", "Options", first] and panels[-1] == "Expert settings"
    assert len(set(panels)) == len(panels)
    (example,) = re.findall(r"Example: (onnxcalib .*?) *$", shown, flags=re.MULTILINE)
    options = {word for word in example.split() if word.startswith("-")}
    assert example.split()[1] == command and options and all(f" {option} " in shown for option in options)


@pytest.mark.parametrize(
    ("command", "kind", "absent"),
    [
        ("quantize", QuantizeConfig, {"layers", "tensors"}),
        (
            "plan",
            QuantizeConfig,
            {
                "layers", "tensors", "weight_bits", "block_size", "pipeline",
                "reconstruct", "distill", "statistics", "biases", "steps", "views", "work_dir", "resume",
            },
        ),
        ("validate", ValidateConfig, set()),
    ],
)  # fmt: skip
def test_every_setting_is_an_option_with_the_sentence_of_its_field(capsys, monkeypatch, command, kind, absent):
    monkeypatch.setenv("COLUMNS", "400")
    assert cli.main([command, "--help"]) == ExitStatus.OK
    shown = capsys.readouterr().out
    for setting in list_settings(kind):
        line = next((line for line in shown.splitlines() if f"│ {setting.flag.split('/')[0]} " in line), None)
        assert (line is None) == (setting.name in absent), setting.name
        assert line is None or setting.text in line


def test_help_and_version_load_only_what_they_need():
    code = (
        "import sys\nfrom onnxcalib.cli.main import main\nmain(['--help'])\nmain(['--version'])\n"
        "print([name for name in ('numpy', 'onnx', 'torch', 'matplotlib') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout.splitlines()[-1] == "[]", found.stderr


@pytest.mark.parametrize(("given", "kept"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_do_not_spin_unless_asked_to(given, kept):
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    if given:
        environment["OMP_WAIT_POLICY"] = given
    code = "import onnxcalib, os; print(os.environ['OMP_WAIT_POLICY'])"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == kept


def test_control_characters_in_names_are_shown_as_escapes(capsys, tmp_path):
    assert cli.main(["quantize", str(tmp_path / "a\x1b[31m\u202e.onnx"), "--calib", "d"]) == ExitStatus.ERROR
    shown = capsys.readouterr().err
    assert r"a\x1b[31m\u202e.onnx: no such file" in shown and "\x1b" not in shown


def test_the_signal_handler_of_the_caller_is_put_back(capsys):
    before = signal.getsignal(signal.SIGTERM)
    cli.main(["--version"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_public_names_are_loaded_on_first_use():
    code = (
        "import sys, onnxcalib\nassert 'pydantic' not in sys.modules\n"
        "from onnxcalib import QuantizeConfig, DataConfig, Report, OnnxCalibError, ConfigError\n"
        "print([name for name in ('torch', 'onnxruntime', 'onnx') if name in sys.modules])\n"
        "print(set(onnxcalib.__all__) <= set(dir(onnxcalib)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout == "[]\nTrue\n", found.stderr


def test_every_public_name_exists():
    for name in onnxcalib.__all__:
        assert getattr(onnxcalib, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No onnxcalib attribute quantise"):
        onnxcalib.quantise  # noqa: B018


@pytest.mark.parametrize("command", ["", "quantize", "calibrate", "plan", "validate"])
def test_the_help_of_a_terminal_shows_flags_without_a_type_and_cuts_nothing(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    cli.main([command, "--help"] if command else ["--help"])
    shown = capsys.readouterr().out
    assert "--help" in shown and "<bool>" not in shown and "…" not in shown
    words = re.findall(r"[\w-]+", shown)
    assert command in ("", "validate") or {"min-max", "percentile", "squared-error", "entropy"} <= set(words)
