"""Measure ``onnxcalib validate``: whether its latencies repeat, what --explain recovers, and its memory.

    python benchmarks/validation.py [latency] [explain] [memory] [--data DIR] [--model NAME] [--json FILE]

The data folder is that of benchmarks/accuracy.py. Each part prints a table; without a name all three are measured.

latency: ``onnxcalib validate`` five times on a W8A8 model, at batch 1 and 32: milliseconds and speed-up each time, how
far they differ, and the speed-up by benchmarks/accuracy.py's own clock.
explain: --explain on a W4A4 model that was rounded without reconstruction; its cost, in passes of the float model over
the samples. What it proposes for the five worst layers, and for all layers that it names, is given to ``quantize``,
without reconstruction and with it; ``recovered`` is the share of the dB that W4A4 lost against W8A8.
memory: peak of the process on a quarter of the samples and on all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import ROOT, SIZES, compare_speed, normalize, open_session, read_preprocessing, read_test, run

PARTS = ("latency", "explain", "memory")
RUNS, BATCHES = 5, (1, 32)
WORST = 5
MOST_SPREAD, MOST_APART, MOST_PASSES, LEAST_RECOVERED = 0.10, 0.15, 30, 0.5
PLAIN = ("--no-reconstruct",)
W4A4 = ("--weight-bits", "4", "--activation-bits", "4")


class Bench:
    """One model, its calibration and test data, and a folder for the files that are made from it."""

    def __init__(self, data: Path, model: str, folder: Path):
        self.model, self.folder = data / f"models/{model}.onnx", folder
        task = model.split("_")[0]
        self.scaling = read_preprocessing(data, model)
        self.calibration = data / task / "calib256"
        self.images, labels = read_test(data, task)
        self.samples = folder / "samples.npz"
        spec = open_session(self.model).get_inputs()[0]
        np.savez(self.samples, **{spec.name: normalize(self.images, *self.scaling), "labels": labels})
        self.size = SIZES[task]

    def quantize(self, name: str, *options: str) -> Path:
        output = self.folder / f"{name}.onnx"
        scaling = {k: ",".join(map(str, v / 255)) for k, v in zip(("--mean", "--std"), self.scaling, strict=True)}
        form = [text for pair in scaling.items() for text in pair] + ["--crop", str(self.size)]
        call("quantize", self.model, "--calib", self.calibration, "-o", output, *form, *options)
        return output

    def validate(self, quantized: Path, *options: str) -> dict[str, Any]:
        report = self.folder / "report.json"
        seconds, peak = call("validate", self.model, quantized, "--data", self.samples, "--json", report, *options)
        return json.loads(report.read_text()) | {"seconds": seconds, "peak_gb": peak}


def call(command: str, *arguments: object) -> tuple[float, float]:
    """Run the command line in a process of its own: seconds, and peak memory in GB."""
    code = (
        "import re, sys\nfrom onnxcalib.cli.main import main\nstatus = main(sys.argv[1:])\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\nsys.exit(status)"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, command, *map(str, arguments), "--quiet"], capture_output=True, text=True
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"onnxcalib {command}: {done.stderr.strip() or done.stdout.strip()}")
    return seconds, int(re.findall(r"\d+", done.stdout)[-1]) * 1024 / 1e9


def measure_latency(bench: Bench) -> list[dict[str, Any]]:
    quantized = bench.quantize("w8a8")
    rows = []
    for batch in BATCHES:
        found = [bench.validate(quantized, "--batch", str(batch), "--samples", "64")["latency"] for _ in range(RUNS)]
        row: dict[str, Any] = {"batch": batch}
        for key in ("float_ms", "quantized_ms", "speedup"):
            values = [latency[key] for latency in found]
            row[key] = " ".join(f"{value:.4g}" for value in values)
            row[f"{key}_spread"] = max(values) / min(values) - 1
        feed = normalize(bench.images[:batch], *bench.scaling)
        row["by_accuracy.py"] = compare_speed(bench.model, quantized, feed)
        middle = statistics.median(latency["speedup"] for latency in found)
        row["apart"] = abs(middle / row["by_accuracy.py"] - 1)
        spreads = [row[f"{key}_spread"] for key in ("float_ms", "quantized_ms", "speedup")]
        row["holds"] = max(spreads) <= MOST_SPREAD and row["apart"] <= MOST_APART
        rows.append(row)
    return rows


def measure_explanation(bench: Bench) -> list[dict[str, Any]]:
    quantized = bench.quantize("w4a4", *W4A4, *PLAIN)
    session = open_session(bench.model)
    run(session, bench.images[:64], bench.scaling)
    passes = [run(session, bench.images, bench.scaling)[1] for _ in range(3)]
    without, explained = bench.validate(quantized), bench.validate(quantized, "--explain")
    cost = (explained["seconds"] - without["seconds"]) / statistics.median(passes)
    layers = explained["explanation"]["layers"]
    best = bench.validate(bench.quantize("w8a8_plain", *PLAIN))["outputs"][0]["sqnr_db"]
    start = without["outputs"][0]["sqnr_db"]
    rows = [{"model": "W8A8, rounded", "sqnr_db": best}, {"model": "W4A4, rounded", "sqnr_db": start}]
    rows[1] |= {"explain_passes": cost, "holds": cost <= MOST_PASSES}
    for count in (WORST, len(layers)):
        config = bench.folder / f"worst{count}.toml"
        config.write_text("\n".join(layer["toml"] for layer in layers[:count]))
        for how, options in (("rounded", PLAIN), ("reconstructed", ())):
            repaired = bench.quantize(f"worst{count}_{how}", *W4A4, *options, "--config", str(config))
            sqnr = bench.validate(repaired)["outputs"][0]["sqnr_db"]
            recovered = (sqnr - start) / (best - start)
            rows.append({"model": f"W4A4, worst {count} at 8 bits, {how}", "sqnr_db": sqnr, "recovered": recovered})
            rows[-1]["holds"] = recovered >= LEAST_RECOVERED
    return rows


def measure_memory(bench: Bench) -> list[dict[str, Any]]:
    quantized = bench.quantize("w8a8_plain", *PLAIN)
    rows = []
    for share in (4, 1):
        count = len(bench.images) // share
        peak = bench.validate(quantized, "--samples", str(count), "--explain")["peak_gb"]
        rows.append({"samples": count, "peak_gb": peak})
    rows[1]["holds"] = rows[1]["peak_gb"] < 1.05 * rows[0]["peak_gb"]
    return rows


def render(title: str, rows: list[dict[str, Any]]) -> str:
    headers = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_spell(row.get(key)) for key in headers] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    lines = [
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in (headers, *cells)
    ]
    return "\n".join([title, *lines, ""])


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("ONNXCALIB_DATA", ROOT.parent / "shared/data"))
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--data", type=Path, default=default, help="folder with models and images")
    parser.add_argument("--model", default="imagenet_mobilenetv2", help="name without .onnx")
    parser.add_argument("--json", type=Path, help="write all rows there")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: no such part; there are {', '.join(PARTS)}")
    if not (arguments.data / f"models/{arguments.model}.onnx").is_file():
        print(f"No {arguments.model} in {arguments.data}/models: name the data folder by --data or $ONNXCALIB_DATA.")
        return 0
    measures = dict(zip(PARTS, (measure_latency, measure_explanation, measure_memory), strict=True))
    rows: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.data, arguments.model, Path(folder))
        for part in arguments.parts or PARTS:
            rows[part] = measures[part](bench)
            print(render(part, rows[part]), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=2))
    return int(not all(row.get("holds", True) for part in rows.values() for row in part))


if __name__ == "__main__":
    sys.exit(main())
