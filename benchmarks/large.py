"""Quantize a generated model above protobuf's 2 GB, from and to external data, and print time and memory.

    python benchmarks/large.py [--gigabytes 2.5] [--width 2048] [--samples 16] [--pipeline light] [--weight-bits 8 4]

The model looks rows up in tables and sums them; residual feed-forward layers with random weights follow, which have
half of the bytes, or are ``--pairs`` pairs. Memory is the peak of the process of ``onnxcalib quantize``, and its ratio
to the size of the float model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

TOKENS = 16
GIGABYTE = 1e9
TABLE_BYTES = 1.25e9
COMMAND = "from onnxcalib.cli.main import main; raise SystemExit(main())"
HEADER = ("pipeline", "bits", "float GB", "quantized GB", "SQNR dB", "seconds", "float passes", "memory GB", "of float")


def build(folder: Path, gigabytes: float, width: int, pairs: int | None = None) -> Path:
    """Write the model with its weights in one file beside it, a tensor at a time."""
    pair_bytes = 2 * 4 * width**2
    pairs = pairs or max(1, int(gigabytes * GIGABYTE / 2 / pair_bytes))
    left = gigabytes * GIGABYTE - pairs * pair_bytes
    tables = max(1, round(left / TABLE_BYTES))
    rows = int(left / tables / 4 / width)
    parts = [f"part{number}" for number in range(tables)]
    generator = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            *(helper.make_node("Gather", [f"table_{part}", "ids"], [part], name=f"lookup_{part}") for part in parts),
            helper.make_node("Sum", parts, ["x0"], name="sum"),
        ],
        "large",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", TOKENS])],
        [helper.make_tensor_value_info(f"x{pairs}", TensorProto.FLOAT, ["N", TOKENS, width])],
    )
    with (folder / "large.data").open("wb") as data:
        for part in parts:
            _add_weight(graph, data, f"table_{part}", generator.standard_normal((rows, width), np.float32))
        for number in range(pairs):
            # These gains keep the values' size through a layer, and let it grow by at most e through all layers.
            for name, gain in ((f"up{number}", 2), (f"down{number}", 1 / pairs)):
                weight = generator.standard_normal((width, width), np.float32)
                _add_weight(graph, data, name, weight * np.float32((gain / width) ** 0.5))
            graph.node.extend(
                [
                    helper.make_node("MatMul", [f"x{number}", f"up{number}"], [f"h{number}"], name=f"up{number}"),
                    helper.make_node("Relu", [f"h{number}"], [f"r{number}"], name=f"relu{number}"),
                    helper.make_node("MatMul", [f"r{number}", f"down{number}"], [f"y{number}"], name=f"down{number}"),
                    helper.make_node("Add", [f"x{number}", f"y{number}"], [f"x{number + 1}"], name=f"add{number}"),
                ]
            )
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "large.onnx")
    np.save(folder / "ids.npy", generator.integers(0, rows, (64, TOKENS)))
    return folder / "large.onnx"


def _add_weight(graph, data, name: str, value: np.ndarray) -> None:
    tensor = graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=value.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in (("location", "large.data"), ("offset", data.tell()), ("length", value.nbytes)):
        tensor.external_data.add(key=key, value=str(entry))
    data.write(value.tobytes())


def measure(folder: Path, model: Path, bits: int, options: dict[str, object]) -> list[str] | None:
    """Quantize in a process of its own; the row of the table, None where that failed."""
    options = options | {
        "--calib": folder / "ids.npy",
        "--weight-bits": bits,
        "--report": folder / "report.json",
        "--output": folder / "quantized.onnx",
    }
    words = [str(word) for pair in options.items() for word in pair]
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", COMMAND, "quantize", str(model), *words])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        return None
    report = json.loads((folder / "report.json").read_text())
    sizes = [report[key] / GIGABYTE for key in ("float_bytes", "quantized_bytes")]
    peak = usage.ru_maxrss * 1024 / GIGABYTE
    return [
        str(options["--pipeline"]),
        f"W{bits}A8",
        *(f"{size:.2f}" for size in sizes),
        f"{report['outputs'][0]['sqnr_db']:.1f}",
        f"{seconds:.0f}",
        f"{seconds / report['float_pass_seconds']:.0f}",
        f"{peak:.1f}",
        f"{peak / sizes[0]:.1f}",
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.5)
    parser.add_argument("--width", type=int, default=2048, help="channels of the layers and of the table")
    parser.add_argument("--pairs", type=int, help="of layers; by default half of the bytes")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--pipeline", default="light")
    parser.add_argument("--weight-bits", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--effort", default="fast")
    arguments = parser.parse_args(argv)
    options = {f"--{name}": getattr(arguments, name) for name in ("samples", "pipeline", "effort")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build(folder, arguments.gigabytes, arguments.width, arguments.pairs)
        rows = []
        for bits in arguments.weight_bits:
            rows.append(measure(folder, model, bits, options))
            for row in (HEADER, ["---"] * len(HEADER), *filter(None, rows)):
                print(f"| {' | '.join(row)} |", flush=True)
    return int(None in rows)


if __name__ == "__main__":
    sys.exit(main())
