"""What onnxruntime needs to open files: CPU seconds and memory, of each file beside the first.

    python benchmarks/loading.py runtime.onnx matmulnbits.onnx [--runs 3] [--json FILE]

Files are opened in turn, each time in a process of its own, with one thread and all graph optimizations. The least
seconds and the least memory of all runs are shown: memory that is taken on top of what the process had before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

OPEN = """
import json, sys, time
import onnxruntime

def taken(what):
    line = next(line for line in open("/proc/self/status") if line.startswith(what))
    return int(line.split()[1]) / 1024

options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
before, began = taken("VmRSS"), time.process_time()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
seconds = time.process_time() - began
print(json.dumps({"seconds": seconds, "peak": taken("VmHWM") - before, "held": taken("VmRSS") - before}))
"""


def open_file(path: Path) -> dict[str, float]:
    """CPU seconds, and the most memory and that which is left, in MB."""
    done = subprocess.run([sys.executable, "-c", OPEN, path], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    runs = [[open_file(path) for path in given.files] for _ in range(given.runs)]
    found = [{key: min(run[at][key] for run in runs) for key in runs[0][at]} for at in range(len(given.files))]
    table = Table("file", "MB", "CPU seconds", "of the first", "peak MB", "of the first", "held MB")
    for path, each in zip(given.files, found, strict=True):
        shares = [f"{each[key] / found[0][key]:.2f}" for key in ("seconds", "peak")]
        size = f"{path.stat().st_size / 1e6:.1f}"
        numbers = [f"{each['seconds']:.2f}", shares[0], f"{each['peak']:.0f}", shares[1], f"{each['held']:.0f}"]
        table.add_row(path.name, size, *numbers)
    Console().print(table)
    if given.json:
        named = [{"file": path.name, **each} for path, each in zip(given.files, found, strict=True)]
        given.json.write_text(json.dumps(named, indent=2))


if __name__ == "__main__":
    main()
