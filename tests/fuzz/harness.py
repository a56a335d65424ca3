"""Run a case in a fork of this process, in a folder of its own, and measure how it ends.

``python -m tests.fuzz.harness FOLDER`` reads cases from standard input, a line of JSON each, and answers in the same
way: a process with one thread, in which everything is imported, so that a fork of it starts at once.
"""

from __future__ import annotations

import atexit
import gc
import hashlib
import importlib
import io
import json
import os
import pkgutil
import resource
import selectors
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import PIL.Image

import onnxcalib
import onnxcalib.cli
from tests.fuzz import bases
from tests.fuzz.case import AROUND, EDITS, Case, Outcome
from tests.fuzz.edits import spell

LIMIT = 60.0  # seconds
MOST_MEMORY = 10**9  # bytes above those of the process that is forked
ENOUGH = 4 * MOST_MEMORY  # a case that takes so much is stopped, as the machine has other work
TICK = 0.02  # seconds between looks at the memory of a case
KEPT = 10**6  # bytes of each stream
usual = [0]  # most bytes in memory of a run on good files, which make_bases measures
PROGRAM = "import sys; from onnxcalib.cli.main import main; sys.exit(main())"
FOREIGN = ("cvxpy", "matplotlib.pyplot", "onnxruntime", "scipy.stats", "tokenizers")
CPU = 90  # seconds, should nobody be left to stop it


def load_everything() -> None:
    """Import what any command does, and freeze it for forks, which do not undo what was imported when they end."""
    for name in FOREIGN:
        importlib.import_module(name)
    for package in (onnxcalib, onnxcalib.cli):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    PIL.Image.init()
    weakref.finalize._registry.clear()
    gc.collect()
    gc.freeze()


def run_case(case: Case, folder: Path) -> Outcome:
    """Write the files of a case into an empty folder, run it there, and remove the folder."""
    work, temporary, home = (folder / name for name in ("work", "tmp", "home"))
    for each in (work, temporary, home):
        each.mkdir(parents=True)
    try:
        base = bases.BASES[case.base]
        bases.copy_files(base, work)
        for change in case.edits:
            with suppress(Exception):  # what an earlier change has broken, this one may not find
                EDITS[change.kind](work / change.file, *change.values)
        before = take_stock(work)
        ended = _run([*base.command, *map(spell, case.options)], case, folder)
        after = take_stock(work)
        return Outcome(
            **ended,
            changed=tuple(sorted(name for name in before if after.get(name) != before[name])),
            appeared=tuple(sorted(after.keys() - before.keys())),
            left=tuple(sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*"))),
        )
    finally:
        for root, _, _ in os.walk(folder):
            os.chmod(root, 0o700)
        shutil.rmtree(folder, ignore_errors=True)


def take_stock(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Path -> kind, permissions and content of all that is in a folder; nothing but regular files is opened."""
    stock: dict[str, tuple[Any, ...]] = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            mode = os.lstat(path).st_mode
            content = os.readlink(path) if stat.S_ISLNK(mode) else ""
            if stat.S_ISREG(mode):
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "blake2b").hexdigest()
            stock[os.path.relpath(path, folder)] = (mode, content)
    return stock


def _run(arguments: Sequence[str], case: Case, folder: Path) -> dict[str, Any]:
    """Fork, run, and watch until the end: all fields of Outcome but those of files."""
    reads, writes = zip(*(os.pipe() for _ in range(2)), strict=True)
    start = time.monotonic()
    if (pid := os.fork()) == 0:
        _become(arguments, case, folder, writes)
    for descriptor in writes:
        os.close(descriptor)
    code, used, texts, hung = _watch(pid, reads, start)
    return {
        "status": os.waitstatus_to_exitcode(code) if os.WIFEXITED(code) else None,
        "signal": os.WTERMSIG(code) if os.WIFSIGNALED(code) and not hung else None,
        "hung": hung and time.monotonic() - start >= LIMIT,
        "seconds": time.monotonic() - start,
        "memory": max(used.ru_maxrss * 1024 - usual[0], 0),
        "stdout": texts[0].decode("utf-8", "surrogateescape"),
        "stderr": texts[1].decode("utf-8", "surrogateescape"),
    }


def _watch(pid: int, reads: Sequence[int], start: float) -> tuple[int, resource.struct_rusage, list[bytes], bool]:
    """Read both streams until the process has ended; stop it where it takes too long or too much."""
    texts = {descriptor: b"" for descriptor in reads}
    stopped, ended = False, None
    with selectors.DefaultSelector() as waiting:
        for descriptor in reads:
            waiting.register(descriptor, selectors.EVENT_READ)
        while ended is None or waiting.get_map():
            for key, _ in waiting.select(TICK) if waiting.get_map() else ():
                data = os.read(key.fd, 2**16)
                texts[key.fd] += data if len(texts[key.fd]) < KEPT else b""
                if not data:
                    waiting.unregister(key.fd)
            if ended is None:
                done, code, used = os.wait4(pid, 0 if not waiting.get_map() and stopped else os.WNOHANG)
                ended = (code, used) if done else None
                if ended is None and not waiting.get_map():
                    time.sleep(TICK / 4)
                over = time.monotonic() - start > LIMIT or (ended is None and _resident(pid) > usual[0] + ENOUGH)
            if ended is not None or over:
                stopped |= ended is None
                _kill_group(pid)  # workers that it left behind hold its streams open
    for descriptor in reads:
        os.close(descriptor)
    return *ended, [texts[descriptor] for descriptor in reads], stopped


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _resident(pid: int) -> int:
    """Bytes of a process in memory, 0 where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _become(arguments: Sequence[str], case: Case, folder: Path, writes: Sequence[int]) -> NoReturn:
    """In the fork: take on the surroundings of the case, run the command line, and end as the interpreter does."""
    status = 99
    try:
        os.setsid()
        for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), *writes)):
            os.dup2(descriptor, number)
        os.closerange(3, 256)
        os.chdir(folder / "work")
        os.environ.clear()
        os.environ.update(_make_environment(folder))
        tempfile.tempdir = None
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU))
        for name, *values in case.around:
            AROUND[name](*values)
        if case.fresh:
            os.execve(sys.executable, [sys.executable, "-c", PROGRAM, *arguments], dict(os.environ))
        status = _call_main(arguments)
    except BaseException:
        with suppress(OSError):
            os.write(2, traceback.format_exc().encode("utf-8", "surrogateescape"))
    finally:
        os._exit(status)


def _make_environment(folder: Path) -> Mapping[str, str]:
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return {
        **threads,
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "XDG_CACHE_HOME": str(folder / "home"),
        "MPLCONFIGDIR": str(folder / "home"),
    }


def _call_main(arguments: Sequence[str]) -> int:
    """The exit status of the command line in this process, with streams as the interpreter opens them."""
    from onnxcalib.cli.main import main

    sys.argv = ["onnxcalib", *arguments]
    sys.stdin, sys.stdout, sys.stderr = (_open_stream(number) for number in range(3))
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    try:
        status = main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        with suppress(OSError):  # where stderr cannot be written
            traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        status = 120  # what the interpreter ends with
        with suppress(OSError):
            os.write(2, f"Exception ignored in: <stdout>\n{error!r}\n".encode())
    return status


def _open_stream(number: int) -> Any:
    try:
        os.fstat(number)
    except OSError:
        return None  # as the interpreter does where a descriptor is closed
    errors = "backslashreplace" if number == 2 else "strict"
    file = io.FileIO(number, "r" if number == 0 else "w", closefd=False)
    buffer = io.BufferedReader(file) if number == 0 else io.BufferedWriter(file)
    return io.TextIOWrapper(buffer, encoding="utf-8", errors=errors, line_buffering=number == 2)


def serve(folder: Path) -> None:
    """Answer cases from standard input until it ends."""
    for name in ("models", "data", "surroundings"):  # they register the changes that cases name
        importlib.import_module(f"tests.fuzz.{name}")
    load_everything()
    make_bases(folder / "bases")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    for number, line in enumerate(sys.stdin):
        outcome = run_case(Case.from_json(line), folder / str(number))
        print(json.dumps(asdict(outcome)), file=answers, flush=True)


def make_bases(folder: Path) -> None:
    """The good files of all cases, those of the tool's own making too. Raises RuntimeError where it fails to."""
    for name in ("work", "tmp", "home"):
        (folder / name).mkdir(parents=True)
    bases.write_files(folder / "work")
    most = 0  # while usual is 0
    for arguments in bases.MADE_BY_TOOL:
        ended = _run(arguments, Case("bases", "mlp"), folder)
        if ended["status"] != 0:
            raise RuntimeError(f"onnxcalib {' '.join(arguments)} ended with {ended['status']}: {ended['stderr']}")
        most = max(most, ended["memory"])
    usual[0] = most
    bases.FOLDER = folder / "work"


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
