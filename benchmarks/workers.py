"""Quantize in one process and on two workers, and print what that saves.

    python benchmarks/workers.py [--data DIR] [--model NAME] [--bits W4A8] [--effort NAME] [--samples N] [--json FILE]
    python benchmarks/workers.py --pipeline default --bits W8A8 --samples 256

--pipeline: parallel, which shares out blocks, or default, which shares out 192 samples or more where no block is
learned.

The data folder is that of accuracy.py. Rows: one process; two worker processes of the command (--jobs 2, imports
included); two workers of a Dask cluster on this machine, which have imported the library; the same with one worker
killed by its pid after the third block. Needs onnxcalib[dask].

Columns: seconds = quantize and save; stage = those of the stage reconstruct, which is what workers share; cpu =
processor time of the run's process, and of each worker; faster = seconds of one process over those of the row, of the
stage and of all; path = the same by processor time, that of the busiest worker for all of them: what a machine with a
free core for each would give; same = whether the file has the bytes of one process. Exits with 1 where a file differs,
or where the stage of the pipeline parallel is less than 1.6 times as fast on two workers of the cluster.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

from accuracy import SIZES, read_preprocessing
from jobs import open_parser, run_job

BAR = 1.6
WORKERS = 2
KILLED_AFTER = 3  # blocks
ROWS = ("one process", "two processes", "two of a cluster", "one of them killed")


def quantize(job: dict[str, Any]) -> dict[str, Any]:
    """One run in a process of its own, which has imported the library: seconds and processor time."""
    import onnxcalib
    import onnxcalib.pipeline  # loads torch and onnxruntime

    model, data = Path(job["model"]), Path(job["data"])
    task = model.name.split("_")[0]
    mean, std = read_preprocessing(data, model.name)
    bits = dict(zip(("weight_bits", "activation_bits"), map(int, re.findall(r"\d+", job["bits"])), strict=True))
    images = {"crop": SIZES[task], "mean": tuple((mean / 255).tolist()), "std": tuple((std / 255).tolist())}
    places = {"jobs": job.get("jobs", 1), "scheduler": job.get("scheduler")}
    settings = {name: job[name] for name in ("pipeline", "effort", "samples")}
    config = onnxcalib.QuantizeConfig(threads=1, data=images, **settings, **bits, **places)

    class Listener(onnxcalib.Observer):
        heard, kill = 0, job.get("kill")
        marks: ClassVar[list[tuple[str, float]]] = []

        def stage(self, name):
            self.marks.append((name, time.process_time()))

        def block(self, record):
            self.heard += 1
            if self.kill and self.heard == KILLED_AFTER:
                os.kill(self.kill, signal.SIGKILL)

    began, cpu = time.perf_counter(), time.process_time()
    samples = data / task / "calib256"
    result = onnxcalib.quantize(model, samples, config, test=samples, observer=Listener())
    result.save(job["output"])
    at = next(number for number, (name, _) in enumerate(Listener.marks) if name == "reconstruct")
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": time.perf_counter() - began,
        "stage": result.report.seconds["reconstruct"],
        "cpu": time.process_time() - cpu,
        "stage_cpu": Listener.marks[at + 1][1] - Listener.marks[at][1],
        "children": children.ru_utime + children.ru_stime,
        "warnings": list(result.report.warnings),
        "digest": hashlib.sha256(Path(job["output"]).read_bytes()).hexdigest(),
    }


def import_library() -> None:
    import onnxcalib.pipeline  # noqa: F401


def measure(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """One row, with the processor time of each worker."""
    if name == ROWS[0]:
        return run_job(__file__, job) | {"workers": []}
    if name == ROWS[1]:
        found = run_job(__file__, {**job, "jobs": WORKERS})
        return found | {"workers": [found.get("children", 0.0) / WORKERS] * WORKERS}  # known together alone
    from distributed import Client, LocalCluster

    options = {
        "n_workers": WORKERS,
        "threads_per_worker": 1,
        "dashboard_address": None,
        "memory_limit": 0,
        "silence_logs": "CRITICAL",
    }
    with LocalCluster(**options) as cluster, Client(cluster, set_as_default=False) as client:
        client.run(import_library)
        pids, before = client.run(os.getpid), client.run(time.process_time)
        kill = next(iter(pids.values())) if name == ROWS[3] else None
        found = run_job(__file__, {**job, "scheduler": cluster.scheduler_address, "kill": kill})
        after = client.run(time.process_time)
        return found | {"workers": [after[each] - before.get(each, 0.0) for each in after]}


def path_of(row: dict[str, Any], key: str) -> float:
    """Processor time of the stage, or of all, as if the workers had worked at the same time."""
    return row[key] + max(row["workers"], default=0.0)


def render(name: str, row: dict[str, Any], one: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{name:20} failed: {row['failed']}"
    workers = " + ".join(f"{each:.1f}" for each in row["workers"])
    faster = f"{one['stage'] / row['stage']:.2f} {one['seconds'] / row['seconds']:.2f}"
    cells = f"{row['seconds']:9.1f}{row['stage']:9.1f}   {row['cpu']:6.1f} {f'+ {workers}' if workers else '':22}"
    path = " ".join(f"{path_of(one, key) / path_of(row, key):.2f}" for key in ("stage_cpu", "cpu"))
    return f"{name:20}{cells}{faster:>12}{path:>12}   {row['digest'] == one['digest']}"


def main(argv: list[str] | None = None) -> int:
    parser = open_parser(__doc__)
    parser.add_argument("--model", default="imagenet_mobilenetv2", help="name without .onnx")
    parser.add_argument("--bits", default="W4A8", help="default: W4A8")
    parser.add_argument("--pipeline", default="parallel", choices=("parallel", "default"))
    parser.add_argument("--effort", default="balanced", choices=("fast", "balanced", "best"), help="default: balanced")
    parser.add_argument("--samples", type=int, default=16, help="images to calibrate on; default: 16")
    arguments = parser.parse_args(argv)
    if arguments.job:
        print(json.dumps(quantize(arguments.job)))
        return 0
    model = arguments.data / f"models/{arguments.model}.onnx"
    if not model.is_file():
        print(f"No model to measure with, {model}: name the data folder by --data or $ONNXCALIB_DATA.")
        return 0
    rows: dict[str, dict[str, Any]] = {}
    print(f"{'':20}{'seconds':>9}{'stage':>9}   {'cpu':29}{'faster':>12}{'path':>12}   same", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        common = {"model": str(model), "data": str(arguments.data), "bits": arguments.bits}
        common |= {"pipeline": arguments.pipeline, "effort": arguments.effort}
        for name in ROWS:
            job = {**common, "samples": arguments.samples, "output": str(Path(folder) / "q.onnx")}
            rows[name] = measure(name, job)
            print(render(name, rows[name], rows[ROWS[0]]), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=2))
    failed = [name for name, row in rows.items() if row.get("digest") != rows[ROWS[0]].get("digest", "")]
    speed = rows[ROWS[0]]["stage"] / rows[ROWS[2]]["stage"] if not failed else 0.0
    return int(bool(failed) or (arguments.pipeline == "parallel" and speed < BAR))


if __name__ == "__main__":
    sys.exit(main())
