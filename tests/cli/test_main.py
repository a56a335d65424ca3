"""The command as a process: signals, and standard streams that take no text."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import onnx
import pytest

# A shell that starts the tests in the background has them, and so these processes, ignore Ctrl-C.
BEGIN = "import os, signal, sys, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
# In place of the library, which takes seconds to import.
LIBRARY = """
import types
import onnxcalib
pipeline = types.ModuleType("onnxcalib.pipeline")
sys.modules["onnxcalib.pipeline"] = onnxcalib.pipeline = pipeline
"""
WAITING = f"""{BEGIN}{LIBRARY}
from onnxcalib.cli.main import main
from onnxcalib.files.scratch import Scratch
from onnxcalib.files.writing import replacing

def wait(*given, **options):
    with Scratch() as folder, replacing() as files:
        files.write(folder.parent.parent / "out", "text")
        print("ready", flush=True)
        time.sleep(60)

pipeline.quantize = wait
"""
WORKING = f"""{BEGIN}
from onnxcalib.cli.main import open_closed_streams

open_closed_streams()  # as the command does it, before anything opens files
{LIBRARY}
from onnxcalib.cli.main import main

class Result:
    report = types.SimpleNamespace(lint=None, to_json=str)
    def save(self, path, report, html):
        path.write_text("model")

pipeline.quantize = lambda *given, **options: Result()
summary = types.ModuleType("onnxcalib.cli.summary")
summary.print_summary = lambda *given: print("table")
sys.modules["onnxcalib.cli.summary"] = summary
"""
ARGUMENTS = ["quantize", "net.onnx", "--calib", "data"]
AS_PROCESS = f"sys.argv = ['onnxcalib', *{ARGUMENTS}]\nsys.exit(main())\n"
EMBEDDED = f"sys.exit(main({ARGUMENTS}))\n"
INTERRUPTED = "interrupted: nothing half-written is left\n"
FULL = "error: standard output: cannot be written (No space left on device); files are not concerned\n"


@pytest.fixture
def start(tmp_path, build, draw):
    """Starts Python code beside a model and a folder, with a temporary folder of its own."""
    model = build("g (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }", w=draw(4, 3))
    onnx.save(model, tmp_path / "net.onnx")
    for name in ("data", "temporary"):
        (tmp_path / name).mkdir()
    started = []

    def start_code(code, *arguments, **environment):
        (tmp_path / "run.py").write_text(code, encoding="utf-8")
        environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), **environment}
        started.append(
            subprocess.Popen(
                [sys.executable, "run.py", *arguments],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start_code
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_with_130_and_one_line_and_its_files_go_with_it(start, tmp_path, number):
    process = start(WAITING + AS_PROCESS)
    assert process.stdout.readline() == "ready\n"
    assert len(list(tmp_path.glob("*/onnxcalib-*"))) == 1 and len(list(tmp_path.glob(".onnxcalib-*"))) == 1
    process.send_signal(number)
    assert (process.communicate(timeout=60)[1], process.returncode) == (INTERRUPTED, 130)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data", "net.onnx", "run.py", "temporary"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_inside_another_program_a_signal_ends_the_command_alone(start, number):
    process = start(WAITING + EMBEDDED)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert (process.communicate(timeout=60)[1], process.returncode) == (INTERRUPTED, 130)


def test_a_signal_is_heard_while_the_main_thread_computes_in_a_library(start):
    blocked = WAITING.replace("time.sleep(60)", "signal.pthread_sigmask(signal.SIG_BLOCK, [2]); time.sleep(60)")
    process = start(blocked + AS_PROCESS)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


def test_a_signal_while_the_commands_are_imported_is_no_traceback(start):
    slow = """
class Slow:
    def find_spec(self, name, *_):
        if name == "typer":
            print("ready", flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Slow())
from onnxcalib.cli.main import main
"""
    process = start(BEGIN + slow + AS_PROCESS)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=60)[1], process.returncode) == (INTERRUPTED, 130)


def test_a_signal_that_the_caller_ignores_stays_ignored(start):
    code = WAITING.replace("default_int_handler", "SIG_IGN").replace("sleep(60)", "sleep(0.3); os._exit(7)")
    process = start(code + AS_PROCESS)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 7


@pytest.mark.parametrize(
    ("before", "complaint"),
    [
        ("os.close(1)", ""),
        ("os.close(2)", ""),
        ("os.close(0); os.close(1); os.close(2)", ""),
        ("os.dup2(os.open('/dev/full', os.O_WRONLY), 1)", FULL),
        ("os.dup2(os.open('/dev/full', os.O_WRONLY), 2)", ""),
        ("r, w = os.pipe(); os.close(r); os.dup2(w, 1)", ""),
        ("r, w = os.pipe(); os.close(r); os.dup2(w, 2)", ""),
    ],
)
def test_a_stream_that_takes_no_text_changes_neither_the_files_nor_the_exit_status(start, tmp_path, before, complaint):
    (tmp_path / "work.py").write_text(WORKING + AS_PROCESS)
    process = start(f"import os, sys\n{before}\nos.execv(sys.executable, [sys.executable, 'work.py'])")
    assert process.communicate(timeout=60)[1] == complaint
    assert process.returncode == 0 and (tmp_path / "net.quantized.onnx").read_text() == "model"


def test_a_record_that_standard_output_does_not_take_is_an_error(start, tmp_path):
    as_process = AS_PROCESS.replace("'data'", "'data', '--report', '-'")
    assert as_process != AS_PROCESS
    (tmp_path / "work.py").write_text(WORKING + as_process)
    before = "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
    process = start(f"import os, sys\n{before}\nos.execv(sys.executable, [sys.executable, 'work.py'])")
    assert process.communicate(timeout=60)[1].splitlines()[-1] + "\n" == FULL
    assert process.returncode == 1 and (tmp_path / "net.quantized.onnx").read_text() == "model"


def test_help_that_cannot_be_written_is_an_error(start):
    code = f"{BEGIN}os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\nfrom onnxcalib.cli.main import main\n"
    process = start(f"{code}sys.argv = ['onnxcalib', '--help']\nsys.exit(main())\n")
    assert (process.communicate(timeout=60)[1], process.returncode) == (FULL, 1)


def test_names_that_the_encoding_of_the_terminal_lacks_are_shown_as_escapes(start):
    code = f"{BEGIN}from onnxcalib.cli.main import main\nsys.exit(main())\n"
    arguments = ("quantize", "größe.onnx", "--calib", "data")
    process = start(code, *arguments, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="C")
    shown = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and shown.isascii() and "no such file; an ONNX file is needed" in shown


def test_what_a_signal_removes_is_no_fault_of_the_run(start):
    busy = """
        remove = shutil.rmtree
        shutil.rmtree = lambda *given, **options: (remove(*given, **options), time.sleep(0.5))
        while True:
            (folder / "file").write_text("text")
"""
    process = start("import shutil\n" + WAITING.replace("        time.sleep(60)\n", busy) + AS_PROCESS)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert (process.communicate(timeout=60)[1], process.returncode) == (INTERRUPTED, 130)
