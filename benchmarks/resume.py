"""Kill runs of quantize at random moments, give the same command again, and compare the file with an unbroken run's.

    python benchmarks/resume.py MODEL SAMPLES [--kills 30] [--seed N] [--json FILE] [-- OPTIONS OF QUANTIZE]

Each run is ended by SIGKILL somewhere between the start of its first stage and its end, and started again, until it
ends by itself. Then its file must have the bytes of the unbroken run, and nothing else may be left. A run that goes on
must have all blocks that the killed one had done, but the one whose checkpoint was being written. Exits with 1 where
that fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from kills import MARK, RUN, list_processes
from rich.console import Console
from rich.table import Table

FIRST = "prepare ..."  # the line with which the work begins
BLOCK = re.compile(r"block (\d+)/\d+ ")
GOES_ON = re.compile(r"it goes on (.*)")
BLOCKS = re.compile(r"after (\d+) of \d+ blocks")
COST = re.compile(r"checkpoints: ([\d,.]+) MB at most, ([\d.]+) s")


@dataclass
class Killed:
    """A run that was killed after so many seconds of work, with so many blocks done; and what the next one found."""

    seconds: float
    blocks: int
    found: str = ""


class Runs:
    """Runs of one command in one folder, and what is wrong with them."""

    def __init__(self, folder: Path, arguments: list[str], generator: random.Random) -> None:
        self.folder, self.arguments, self.generator = folder, arguments, generator
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        began = time.monotonic()
        lines = self._finish(self._start("unbroken"))
        self.whole, self.seconds = time.monotonic() - began, self._work_seconds
        self.cost = next((found.groups() for line in lines if (found := COST.search(line))), ("0", "0"))
        self.wanted = (folder / "q.onnx").read_bytes()
        self.killed: list[Killed] = []
        self.faults: list[str] = []
        self.ended = 0

    def _start(self, mark: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "TMPDIR": str(self.temporary), MARK: mark, "XDG_CACHE_HOME": str(self.folder)}
        command = [sys.executable, "-c", RUN, "quantize", *self.arguments, "-o", str(self.folder / "q.onnx")]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)

    def _wait_for_work(self, process: subprocess.Popen[str]) -> list[str]:
        lines = []
        for line in process.stderr:
            lines.append(line.rstrip())
            if line.startswith(FIRST):
                break
        return lines

    def _finish(self, process: subprocess.Popen[str]) -> list[str]:
        lines = self._wait_for_work(process)
        began = time.monotonic()
        lines += process.communicate()[1].splitlines()
        self._work_seconds = time.monotonic() - began
        if process.returncode:
            raise SystemExit(f"a run that was left alone failed: {lines[-1:]}")
        return lines

    def kill_until_it_ends(self, most: int) -> None:
        """Start the command again and again, and kill it at most so often."""
        (self.folder / "q.onnx").unlink(missing_ok=True)
        last: Killed | None = None
        while True:
            mark = f"{os.getpid()} {len(self.killed)}"
            process = self._start(mark)
            lines = self._wait_for_work(process)
            wait = self.generator.uniform(0, self.seconds)
            try:
                rest = process.communicate(timeout=wait if most else None)[1]
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                rest = process.communicate()[1]
            lines += rest.splitlines()
            self._compare(last, lines, killed=process.returncode == -signal.SIGKILL)
            if process.returncode == 0:
                break
            if process.returncode != -signal.SIGKILL:
                self.faults.append(f"a run ended with {process.returncode}: {lines[-1:]}")
                break
            most -= 1
            done = max((int(n) for line in lines for n in BLOCK.findall(line)), default=0)
            if last is not None and not last.found:  # killed before it told what it found
                done = last.blocks
            last = Killed(round(wait, 2), done)
            self.killed.append(last)
            print(last, file=sys.stderr, flush=True)
            if (self.folder / "q.onnx").exists():  # killed behind its end; what it left is for the next run
                last.found = "the file"
                self.faults += [] if self._is_same() else ["other bytes"]
                return
        self.ended += 1
        self.faults += self._check(mark)

    def _compare(self, last: Killed | None, lines: list[str], *, killed: bool) -> None:
        if last is None:
            return
        last.found = next((found[1] for line in lines if (found := GOES_ON.search(line))), "" if killed else "nothing")
        blocks = BLOCKS.search(last.found)
        if blocks and last.blocks - int(blocks[1]) > 1:
            self.faults.append(f"{last.blocks} blocks were done, and {blocks[1]} found")
        if not blocks and last.blocks > 1 and last.found in ("nothing", "from the start", "after calibrating"):
            self.faults.append(f"{last.blocks} blocks were done, and {last.found} found")

    def _is_same(self) -> bool:
        path = self.folder / "q.onnx"
        return path.exists() and path.read_bytes() == self.wanted

    def _check(self, mark: str) -> Iterator[str]:
        if not self._is_same():
            yield "other bytes"
        left = {path.name for path in self.folder.iterdir()} - {"q.onnx", "temporary", "onnxcalib"}
        yield from (f"left: {name}" for name in [*left, *os.listdir(self.temporary), *list_processes(mark)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    own, _, given = " ".join(sys.argv[1:]).partition(" -- ")
    options = parser.parse_args(own.split())
    with tempfile.TemporaryDirectory() as name:
        arguments = [str(options.model.absolute()), "--calib", str(options.samples.absolute()), *given.split()]
        runs = Runs(Path(name), arguments, random.Random(options.seed))
        size, seconds = runs.cost
        print(
            f"unbroken: {runs.whole:.1f} s, {runs.seconds:.1f} of work; checkpoints {size} MB, {seconds} s", flush=True
        )
        while len(runs.killed) < options.kills and not runs.faults:
            runs.kill_until_it_ends(options.kills - len(runs.killed))
    table = Table("killed after, s", "blocks done", "the next run found")
    for each in runs.killed:
        table.add_row(f"{each.seconds:.1f}", str(each.blocks), each.found)
    Console().print(table)
    print(f"{len(runs.killed)} kills, {runs.ended} runs ended, faults: {'; '.join(runs.faults) or 'none'}")
    if options.json:
        facts = {"killed": [asdict(each) for each in runs.killed], "ended": runs.ended, "faults": runs.faults}
        options.json.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return int(bool(runs.faults))


if __name__ == "__main__":
    raise SystemExit(main())
