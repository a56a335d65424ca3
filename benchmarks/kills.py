"""Kill runs at random moments, and count what is corrupt, does not belong together, or is left behind.

    python benchmarks/kills.py [--kills 100] [--seed N] [--json FILE]

A small model is quantized (as one file, and with its weights in a second one), planned with two workers, and validated.
Each run is ended by SIGKILL, SIGTERM or SIGINT somewhere in its time. Then the next run is started. Within 10 seconds
nothing of the killed one may be left: no process, no semaphore, no temporary file, no file aside; and the outputs are
those of before or those of the new run, whole, the report never older than the model. Exits with 1 where that fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
RUN = "from onnxcalib.cli.main import main; raise SystemExit(main())"
# The limit above which weights are a file of their own, lowered from 2 GB when signals are heard, as imports take long.
SPLIT = """
import onnxcalib.cli.main as main
watch = main.watch_signals
def watch_first():
    watch()
    from onnxcalib.graph import save
    save.MOST_BYTES = 1000
main.watch_signals = watch_first
raise SystemExit(main.main())
"""
MARK = "ONNXCALIB_KILL"  # variable of the environment by which processes of a run are found
PATIENCE = 10  # seconds from the start of the next run
STARTED = 0.2  # seconds in which Python itself starts, whose own tracebacks nothing can prevent
SAMPLES, WIDTH, LAYERS = 256, 64, 6


@dataclass(frozen=True)
class Job:
    """A command that is killed. outputs: the files that belong together, the model last."""

    name: str
    code: str
    arguments: tuple[str, ...]
    outputs: tuple[str, ...]


JOBS = (
    Job("quantize", RUN, ("quantize", "net.onnx", "--calib", "x.npy", "-o", "q.onnx", "--report", "q.json"),
        ("q.json", "q.onnx")),
    Job("quantize, two files", SPLIT,
        ("quantize", "net.onnx", "--calib", "x.npy", "-o", "big.onnx", "--report", "big.json"),
        ("big.json", "big.onnx")),
    Job("plan, two workers", RUN,
        ("plan", "net.onnx", "--calib", "x.npy", "--max-size", "0.26", "--jobs", "2", "--cache-dir", "cache",
         "-o", "plan.json"), ("plan.json",)),
    Job("validate", RUN,
        ("validate", "net.onnx", "old.onnx", "--data", "x.npy", "--json", "v.json", "--markdown", "v.md"),
        ("v.json", "v.md")),
)  # fmt: skip


def make_model(path: Path) -> None:
    """A chain of layers with some weights, so that a run takes a second or two."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for number in range(LAYERS):
        weights.append(numpy_helper.from_array(rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8, f"w{number}"))
        nodes += [helper.make_node("MatMul", [last, f"w{number}"], [f"m{number}"], f"layer{number}")]
        nodes += [helper.make_node("Relu", [f"m{number}"], [f"r{number}"], f"relu{number}")]
        last = f"r{number}"
    given, found = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in ("x", last))
    graph = helper.make_graph(nodes, "net", [given], [found], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    np.save(path.with_name("x.npy"), rng.normal(size=(SAMPLES, WIDTH)).astype(np.float32))


class Kills:
    """Runs in one folder, and what was found after each."""

    def __init__(self, folder: Path, generator: random.Random) -> None:
        self.folder, self.generator = folder, generator
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        make_model(folder / "net.onnx")
        self.shared = set(os.listdir("/dev/shm"))
        self.seconds = {job.name: self._measure(job) for job in JOBS}

    def _measure(self, job: Job) -> float:
        """Seconds that a whole run takes; what it writes is the state of before."""
        if job.name == "validate":
            self._finish(self._start(RUN, ("quantize", "net.onnx", "--calib", "x.npy", "-o", "old.onnx"), "old"))
        began = time.monotonic()
        self._finish(self._start(job.code, job.arguments, "first"))
        return time.monotonic() - began

    def _start(self, code: str, arguments: tuple[str, ...], mark: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "TMPDIR": str(self.temporary), MARK: mark}
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        )

    def _finish(self, process: subprocess.Popen[str]) -> str:
        shown = process.communicate()[1]
        if process.returncode:
            raise SystemExit(f"a run that was left alone failed: {shown}")
        return shown

    def kill(self, job: Job, number: signal.Signals, mark: str) -> list[str]:
        """Kill a run, start the next one, and return what is wrong."""
        bits = self.generator.choice(("8", "4"))
        own = ("--weight-bits", bits, "--pipeline", "light") if job.name.startswith("quantize") else ()
        process = self._start(job.code, (*job.arguments, *own), mark)
        time.sleep(self.generator.uniform(STARTED, 1.05 * self.seconds[job.name]))
        process.send_signal(number)
        shown = process.communicate()[1]
        faults = [f"traceback: {shown[-200:]}"] if "Traceback" in shown else []
        if number != signal.SIGKILL and process.returncode not in (0, 130, -number):
            faults.append(f"exit status {process.returncode}")
        faults += self._find_damage(job)
        began = time.monotonic()
        following = self._start(RUN, ("quantize", "net.onnx", "--calib", "x.npy", "-o", "next.onnx"), f"{mark} next")
        told = self._finish(following)
        time.sleep(max(0.0, min(1.0, began + PATIENCE - time.monotonic())))
        left = [*self._list_left(), *list_processes(mark), *self._list_semaphores()]
        faults += [f"left: {each}" for each in left]
        return faults + ([] if "Traceback" not in told else ["traceback of the next run"])

    def _find_damage(self, job: Job) -> Iterator[str]:
        files = [self.folder / name for name in job.outputs]
        for path in files:
            try:
                if path.suffix == ".json":
                    json.loads(path.read_text(encoding="utf-8"))
                elif path.suffix == ".onnx":
                    onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            except Exception as error:  # whatever it is, the file is broken
                yield f"corrupt: {path.name}: {error}"
        if files[-1].suffix == ".onnx":
            model = onnx.load(files[-1], load_external_data=False)
            settings = {entry.key: entry.value for entry in model.metadata_props}
            bits = json.loads(settings["onnxcalib.settings"])["weight_bits"]
            if json.loads(files[0].read_text(encoding="utf-8"))["settings"]["weight_bits"] != bits:
                yield f"mismatch: {files[0].name} is not of {files[-1].name}"

    def _list_left(self) -> Iterator[str]:
        yield from (f"temporary/{path.name}" for path in self.temporary.iterdir())
        yield from (path.name for path in self.folder.glob(".*"))
        used = {p.name for p in self.folder.glob("big.onnx.*.data")}
        if len(used) > 1:
            yield f"{len(used)} files of weights"

    def _list_semaphores(self) -> Iterator[str]:
        """New semaphores and shared memory that no process has in its memory: other programs' own are none."""
        new = {name for name in os.listdir("/dev/shm") if name.startswith(("sem.", "psm_"))} - self.shared
        for path in Path("/proc").glob("[0-9]*/maps") if new else ():
            try:
                mapped = path.read_text(encoding="utf-8", errors="replace")
            except OSError:  # it has ended, or belongs to another user
                continue
            new -= {name for name in new if f"/dev/shm/{name}" in mapped}
        yield from (f"semaphore {name}" for name in new)


def list_processes(mark: str) -> Iterator[str]:
    """Processes whose environment has the mark of a run that is over."""
    wanted = f"{MARK}={mark}\0".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes():
                yield f"process {path.parent.name}"
        except OSError:  # it has ended, or belongs to another user
            continue


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    counts: Counter[tuple[str, str]] = Counter()
    found: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as name:
        kills = Kills(Path(name), generator)
        for number in range(options.kills):
            job, sent = JOBS[number % len(JOBS)], generator.choice(SIGNALS)
            faults = kills.kill(job, sent, f"run {options.seed} {number}")
            counts[job.name, "kills"] += 1
            for fault in faults:
                kind = fault.partition(":")[0]
                counts[job.name, kind] += 1
                found.append({"job": job.name, "signal": sent.name, "fault": fault})
                print(f"{number} {job.name} {sent.name}: {fault}", file=sys.stderr)
    kinds = ("kills", "corrupt", "mismatch", "left", "traceback", "exit status")
    table = Table("command", *kinds)
    for job in JOBS:
        table.add_row(job.name, *(str(counts[job.name, kind]) for kind in kinds))
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
