"""Quantize a made model above the 2 GB of one protobuf message, from and to external data, and print time and memory.

    python benchmarks/large.py [--gigabytes 2.5] [--width 2048] [--samples 16] [--pipeline light] [--weight-bits 8]

A table of rows that are looked up by integers, then residual feed-forward layers of random weights; half of the bytes
each. Memory is the most that the process of ``onnxcalib quantize`` held, beside the size of the float model.
"""

from __future__ import annotations

import argparse
import json
import resource
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


def build(folder: Path, gigabytes: float, width: int) -> Path:
    """Write the model with its weights in one file beside it, a tensor at a time."""
    rows = int(gigabytes * GIGABYTE / 2 / 4 / width)
    pairs = max(1, int(gigabytes * GIGABYTE / 2 / 4 / width**2 / 2))
    generator = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["x0"], name="lookup")],
        "large",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", TOKENS])],
        [helper.make_tensor_value_info(f"x{pairs}", TensorProto.FLOAT, ["N", TOKENS, width])],
    )
    with (folder / "large.data").open("wb") as data:
        _add_weight(graph, data, "table", generator.standard_normal((rows, width), np.float32))
        for number in range(pairs):
            for name in (f"up{number}", f"down{number}"):
                weight = generator.standard_normal((width, width), np.float32)
                _add_weight(graph, data, name, weight * np.float32((2 / width) ** 0.5))
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.5)
    parser.add_argument("--width", type=int, default=2048, help="channels of the layers and of the table")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--pipeline", default="light")
    parser.add_argument("--weight-bits", type=int, default=8)
    parser.add_argument("--effort", default="fast")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build(folder, arguments.gigabytes, arguments.width)
        options = {
            "--calib": folder / "ids.npy",
            "--samples": arguments.samples,
            "--pipeline": arguments.pipeline,
            "--weight-bits": arguments.weight_bits,
            "--effort": arguments.effort,
            "--report": folder / "report.json",
            "--output": folder / "quantized.onnx",
        }
        words = [str(word) for pair in options.items() for word in pair]
        began = time.perf_counter()
        done = subprocess.run(
            [str(Path(sys.executable).with_name("onnxcalib")), "quantize", str(model), *words], check=False
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            return done.returncode
        report = json.loads((folder / "report.json").read_text())
        sizes = [report[key] / GIGABYTE for key in ("float_bytes", "quantized_bytes")]
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / GIGABYTE
        passes = seconds / report["float_pass_seconds"]
        print(
            f"float {sizes[0]:.2f} GB, quantized {sizes[1]:.2f} GB, {report['outputs'][0]['sqnr_db']:.1f} dB,"
            f" {seconds:.0f} s = {passes:.0f} passes, memory {peak:.1f} GB = {peak / sizes[0]:.1f} of the float model"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
