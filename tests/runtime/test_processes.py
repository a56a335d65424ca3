"""Worker processes end with their parent, leave nothing, run nothing that lies around, and tell what they raise."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from onnxcalib.errors import ConfigError, DataError, OutputError
from onnxcalib.runtime.processes import open_workers
from tests.runtime import tasks

ROOT = Path(__file__).resolve().parent.parent.parent
TWO = {"a": 1, "b": 2}


def run_two(function, common=None, given=TWO):
    with open_workers(common, 2) as workers:
        return dict(workers.run(function, given))


@pytest.mark.parametrize(
    ("fault", "kind", "text"),
    [
        ("of the user", DataError, "task: found nothing"),
        ("of the disk", OutputError, "/tmp: full"),
        ("with own constructor", ConfigError, "jobs: found 3"),
        ("not picklable", ValueError, "('a function', <function"),
        ("memory", MemoryError, "too much"),
        ("interrupt", KeyboardInterrupt, ""),
        ("exit", SystemExit, "5"),
        ("of a file", FileNotFoundError, "[Errno 2] No such file: 'x'"),
        ("assertion", AssertionError, "a: b"),
    ],
)
def test_what_a_task_raises_is_raised_here(fault, kind, text):
    with open_workers(None, 1) as workers, pytest.raises(kind) as found:
        dict(workers.run(tasks.fail, {"a": fault}))
    assert str(found.value).startswith(text)
    assert "in fail" in found.value.__notes__[0]  # where the worker raised it


def test_a_result_that_cannot_be_sent_is_a_fault_of_the_program():
    with pytest.raises(Exception, match=r"lambda"):
        run_two(tasks.give_what_cannot_be_sent)


def test_workers_share_the_cores_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr("onnxcalib.runtime.processes.count_cores", lambda: 7)
    assert run_two(tasks.tell_threads) == {"a": "3", "b": "3"}


def test_workers_may_be_started_from_any_thread():
    found = []
    thread = Thread(target=lambda: found.append(run_two(tasks.write_and_print)))
    thread.start()
    thread.join()
    assert found == [TWO]


WRITE = """
import sys
from onnxcalib.runtime.workers import run_tasks
from tests.runtime.tasks import multiply
found = [value for _, (value, _) in run_tasks(multiply, 10, {"a": 1, "b": 2}, jobs=2)]
open(sys.argv[1], "w").write(str(sorted(found)))
"""


def test_workers_answer_a_process_without_standard_streams(tmp_path):
    shell = 'exec "$0" -P -c "$1" "$2" <&- >&- 2>&-'
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["sh", "-c", shell, sys.executable, WRITE, tmp_path / "found"], env=env, timeout=60, check=True)
    assert (tmp_path / "found").read_text() == "[10, 20]"


def test_results_of_any_size_come_back():
    assert {len(result) for result in run_two(tasks.give_much, 2**24).values()} == {2**24}


def test_nothing_that_a_worker_prints_is_among_the_results(capfd):
    assert run_two(tasks.write_and_print) == TWO
    assert capfd.readouterr() == ("", "")


def test_workers_find_modules_where_this_process_does_and_nowhere_else(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "extra"), *sys.path])
    assert set(map(repr, run_two(tasks.tell_path).values())) == {repr((sys.path, str(tmp_path)))}


def test_processes_that_the_system_refuses_are_told(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(
        ConfigError, match=r"^jobs: no worker process can be started \(No such file.*\); take fewer, or"
    ):
        run_two(tasks.multiply, 1)


def test_a_disk_without_room_for_the_workers_is_told(limited_files):
    with limited_files(1000):
        with pytest.raises(OutputError, match=r"onnxcalib-\w+: temporary files cannot be kept here \(File too large\)"):
            run_two(tasks.multiply, bytes(5000))


RUN = """
import sys
from pathlib import Path
from onnxcalib.runtime.workers import run_tasks
from tests.runtime.tasks import wait_long
try:
    list(run_tasks(wait_long, Path(sys.argv[1]), {1: sys.argv[2], 2: sys.argv[2]}, jobs=2))
except KeyboardInterrupt:
    sys.exit(130)
"""


def list_children(pid):
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid):
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def start_run(tmp_path, what):
    """A run with two workers that are at work, their numbers, and the folder of its temporary files."""
    folders = [tmp_path / name for name in ("pids", "tmp")]
    for folder in folders:
        folder.mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folders[1])}
    command = [sys.executable, "-P", "-c", RUN, str(folders[0]), what]
    run = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    wait_for(lambda: len(list(folders[0].glob("*.pid"))) == 2)
    pids = [int(path.stem) for path in folders[0].glob("*.pid")]
    assert sorted(pids) == sorted(list_children(run.pid))  # and no other process
    return run, pids, folders[1]


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "has not come true"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("what", ["wait", "hold", "write"])
def test_workers_of_a_killed_process_end(tmp_path, what):
    run, pids, folder = start_run(tmp_path, what)
    shared = set(os.listdir("/dev/shm"))
    run.kill()
    assert run.communicate(timeout=30)[0] == b""
    wait_for(lambda: not any(map(is_alive, pids)), 10)
    assert not {name for name in set(os.listdir("/dev/shm")) - shared if name.startswith(("sem.", "psm_"))}
    code = "from onnxcalib.files.scratch import sweep; sweep()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "TMPDIR": str(folder)}, check=True)
    assert not os.listdir(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("whole", [False, True], ids=["process", "group"])
def test_an_interrupt_ends_workers_at_once_and_in_silence(tmp_path, whole):
    run, pids, folder = start_run(tmp_path, "wait")
    (os.killpg if whole else os.kill)(run.pid, signal.SIGINT)
    assert (run.communicate(timeout=30)[0], run.returncode) == (b"", 130)
    assert not any(map(is_alive, pids)) and not os.listdir(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_without_help_of_the_system_a_thread_ends_the_worker(tmp_path):
    code = (
        "import sys, time; sys.platform = 'other'\n"
        "from onnxcalib.runtime.worker import _end_with\n"
        "_end_with(int(sys.argv[1])); print('ready', flush=True); time.sleep(60)"
    )
    outer = subprocess.Popen(
        ["sh", "-c", '"$0" -c "$1" $$ & wait', sys.executable, code], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert outer.stdout.readline() == b"ready\n"
    (pid,) = list_children(outer.pid)
    outer.kill()
    outer.wait()
    wait_for(lambda: not is_alive(pid), 10)
    outer.stdout.close()
