"""Peak memory of quantize, plan and validate on few and on many samples, as arrays and as image files.

    python benchmarks/memory.py [--samples 64 4096] [--most 1.03] [--json FILE]

A small convolutional network is made, and so are its samples. Memory is the peak of the command's own process. Exits
with 1 where it grows by more than ``--most`` from the first number of samples to any other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from rich.console import Console
from rich.table import Table

SIZE, CHANNELS, CLASSES = 32, (3, 16, 16, 32), 10
RUN = "from onnxcalib.cli.main import main; raise SystemExit(main())"
COMMANDS = {
    "quantize": ("quantize", "net.onnx", "--calib", "{data}", "-o", "q.onnx", "--weight-bits", "4"),
    "quantize light": ("quantize", "net.onnx", "--calib", "{data}", "-o", "l.onnx", "--pipeline", "light"),
    "plan": ("plan", "net.onnx", "--calib", "{data}", "-o", "p.json", "--max-size", "0.4", "--jobs", "1"),
    "validate": ("validate", "net.onnx", "q.onnx", "--data", "{data}", "--json", "v.json"),
}


def make_model(path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for number, (given, made) in enumerate(pairwise(CHANNELS)):
        weight = rng.normal(size=(made, given, 3, 3)) / np.sqrt(9 * given)
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{number}"))
        conv = helper.make_node("Conv", [last, f"w{number}"], [f"c{number}"], f"conv{number}", pads=[1] * 4)
        nodes += [conv, helper.make_node("Relu", [f"c{number}"], [f"r{number}"], f"relu{number}")]
        last = f"r{number}"
    weights.append(numpy_helper.from_array(rng.normal(size=(CHANNELS[-1], CLASSES)).astype(np.float32), "head"))
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("MatMul", ["flat", "head"], ["y"], "classify"),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS[0], SIZE, SIZE])
    found = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])
    graph = helper.make_graph(nodes, "net", [given], [found], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def make_samples(folder: Path, count: int) -> dict[str, str]:
    """Kind of samples -> what the commands read."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, size=(count, SIZE, SIZE, 3), dtype=np.uint8)
    values = (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    np.save(folder / f"{count}.npy", values)
    np.savez_compressed(folder / f"{count}.npz", x=values)
    images = folder / f"images{count}"
    images.mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(images / f"{number:05}.png")
    return {"npy": f"{count}.npy", "npz": f"{count}.npz", "images": images.name}


def measure(folder: Path, arguments: tuple[str, ...]) -> float:
    """Peak memory of a command in MB."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments, "--quiet"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    shown = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 3):
        raise SystemExit(f"onnxcalib {' '.join(arguments)} failed: {shown}")
    return usage.ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 4096])
    parser.add_argument("--most", type=float, default=1.03)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "net.onnx")
        made = {count: make_samples(folder, count) for count in options.samples}
        for kind in ("npy", "npz", "images"):
            for command, arguments in COMMANDS.items():
                rows[command, kind] = [
                    measure(folder, tuple(each.format(data=made[count][kind]) for each in arguments))
                    for count in options.samples
                ]
    table = Table("command", "samples", *(f"{count}, MB" for count in options.samples), "growth")
    growths = []
    for (command, kind), found in rows.items():
        growths.append(max(found[1:], default=found[0]) / found[0])
        table.add_row(command, kind, *(f"{each:.0f}" for each in found), f"{100 * (growths[-1] - 1):+.1f}%")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps({" ".join(key): found for key, found in rows.items()}, indent=1))
    return int(max(growths) > options.most)


if __name__ == "__main__":
    raise SystemExit(main())
