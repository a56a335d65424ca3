"""Quantize on the CPU and on an NVIDIA GPU, and compare time and quality.

    python benchmarks/device.py [--data DIR] [--models a,b] [--bits W4A4,W4A8] [--config FILE.toml] [--json FILE]

The data folder and the way of measuring are those of benchmarks/accuracy.py: each quantization in a process of its own,
evaluated on the test images. Columns: seconds of quantize and save, the start of CUDA included; speed-up = seconds on
the CPU / on the GPU; agreement of the top class with the float model, in %; SQNR of the outputs, in dB. Both devices
draw the same random numbers but sum in different orders. A sum near the middle of two integers may then be rounded
differently, and the outputs differ; the tolerance is printed last. '!' marks a pair beyond it, and the program then
exits with 1. Without a GPU it says so and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from accuracy import ROOT, list_models, measure, read_test

DEVICES = ("cpu", "cuda")
DEFAULT_MODELS, DEFAULT_BITS = ["cifar10_resnet20", "imagenet_mobilenetv2"], ["W4A4"]
# By how much the order of sums may change results, in dB and in points of agreement. One and two threads of a CPU
# differ by up to 0.1 dB and 0.8 points (ResNet-20 of CIFAR-10, W4A4 and W4A8).
TOLERANCE = {"sqnr_db": 0.5, "agreement": 1.5}


def compare(model: Path, bits: str, arguments: argparse.Namespace, test: tuple, cache: dict) -> dict[str, Any]:
    """The rows of both devices, the speed-up, and what differs by more than the tolerance."""
    rows: dict[str, dict[str, Any]] = {}
    settings = arguments.config.read_text() if arguments.config else ""
    for device in DEVICES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "settings.toml"
            path.write_text(f'device = "{device}"\n{settings}')
            job = {"data": arguments.data, "out": Path(folder), "config": path}
            job |= {"effort": None, "samples": None, "latency": False}
            rows[device] = measure(model, bits, argparse.Namespace(**job), test, cache)
    found: dict[str, Any] = {"model": model.stem, "bits": bits, **rows}
    if faults := [row["failed"] for row in rows.values() if "failed" in row]:
        return found | {"failed": faults[0]}
    cpu, gpu = rows.values()
    found["speed_up"] = cpu["seconds"] / gpu["seconds"]
    return found | {"apart": [key for key, most in TOLERANCE.items() if not abs(cpu[key] - gpu[key]) <= most]}


def render(row: dict[str, Any]) -> str:
    head = f"{row['model']:24} {row['bits']:5}"
    if "failed" in row:
        return f"{head} failed: {row['failed']}"
    lines = [head]
    for device in DEVICES:
        found = row[device]
        lines.append(
            f"  {device:5}{found['seconds']:9.1f} s {found['agreement']:8.1f} % {found['sqnr_db']:8.2f} dB"
            f" {found['memory_gb']:7.2f} GB"
        )
    apart = f", apart in {', '.join(row['apart'])} !" if row["apart"] else ""
    return "\n".join([*lines, f"  speed-up {row['speed_up']:.2f}{apart}"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("ONNXCALIB_DATA", ROOT.parent / "shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="folder with models and images")
    parser.add_argument("--models", type=lambda text: text.split(","), default=DEFAULT_MODELS, help="names, no .onnx")
    parser.add_argument("--bits", type=lambda text: text.upper().split(","), default=DEFAULT_BITS)
    parser.add_argument("--config", type=Path, help="TOML file with more settings of onnxcalib")
    parser.add_argument("--json", type=Path, help="write all rows there")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device here: there is nothing to compare the CPU with.")
        return 0
    models = list_models(arguments)
    if not models:
        print(f"No models to measure in {arguments.data}/models: name the data folder by --data or $ONNXCALIB_DATA.")
        return 0
    print(torch.cuda.get_device_name(), f"and {os.cpu_count()} cores", flush=True)
    rows, cache = [], {}
    for model in models:
        test = read_test(arguments.data, model.name.split("_")[0])
        for bits in arguments.bits:
            rows.append(compare(model, bits, arguments, test, cache))
            print(render(rows[-1]), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=2))
    print(f"tolerance: {TOLERANCE['sqnr_db']} dB, {TOLERANCE['agreement']} points of agreement")
    return int(any("failed" in row or row["apart"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
