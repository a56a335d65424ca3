"""Quantize made models above protobuf's 2 GB, from and to external data, and print time and memory beside the bars.

    python benchmarks/large.py [--gigabytes 2.5] [--width 2048] [--samples 16 64] [--pipeline light] [--weight-bits 8 4]
    python benchmarks/large.py --gigabytes 8 --pairs 12 --alike --samples 16 --most 4
    python benchmarks/large.py --data DIR [--minilm FILE] --pipeline default   # small models, 256 samples

The model looks rows up in tables and sums them; residual feed-forward layers with random weights follow, which have
half of the bytes, or are ``--pairs`` pairs; with ``--alike`` there is no table, and the pairs have all bytes. Memory is
the peak of the process of ``onnxcalib quantize``. Beside it stands the floor that the run reports: what Python and its
packages take, three times the largest segment's weights, and the activations of a sample. Exits with 1 where a run
takes more than ``--most``, where it grows with the samples by more than ``--growth``, and where one fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

TOKENS = 16
GIGABYTE = 1e9
TABLE_BYTES = 1.25e9
PIECE_BYTES = 2**26  # of a weight that is made at once
COMMAND = "from onnxcalib.cli.main import main; raise SystemExit(main())"
HEADER = ("model", "pipeline", "bits", "samples", "float GB", "quantized GB", "SQNR dB", "seconds", "float passes")
HEADER += ("memory GB", "floor GB", "at most GB")
IMAGES = ("--pixel-range", "0..255", "--mean", "127.5,127.5,127.5", "--std", "127.5,127.5,127.5")
IMAGES += ("--resize", "256", "--crop", "224", "--shape", "1,3,224,224", "--samples", "256")
# The bars of memory in GB of the small models.
SENTENCES_GB, IMAGES_GB = 0.7, 0.9


def build(folder: Path, gigabytes: float, width: int, pairs: int | None = None, *, alike: bool = False) -> Path:
    """Write the model with its weights in one file beside it, a piece at a time."""
    if alike:
        assert pairs, "--alike needs --pairs"
        width = int((gigabytes * GIGABYTE / pairs / 8) ** 0.5) // 64 * 64
    pair_bytes = 2 * 4 * width**2
    pairs = pairs or max(1, int(gigabytes * GIGABYTE / 2 / pair_bytes))
    left = max(0.0, gigabytes * GIGABYTE - pairs * pair_bytes)
    tables = 1 if alike else max(1, round(left / TABLE_BYTES))
    rows = 1000 if alike else int(left / tables / 4 / width)
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
            _add_weight(graph, data, f"table_{part}", (rows, width), generator, 1.0)
        for number in range(pairs):
            # These gains keep the values' size through a layer, and let it grow by at most e through all layers.
            for name, gain in ((f"up{number}", 2), (f"down{number}", 1 / pairs)):
                _add_weight(graph, data, name, (width, width), generator, (gain / width) ** 0.5)
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
    np.save(folder / "ids.npy", generator.integers(0, rows, (256, TOKENS)))
    return folder / "large.onnx"


def _add_weight(graph, data, name: str, shape: tuple[int, int], generator: np.random.Generator, size: float) -> None:
    tensor = graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in (("location", "large.data"), ("offset", data.tell()), ("length", 4 * shape[0] * shape[1])):
        tensor.external_data.add(key=key, value=str(entry))
    at_once = max(1, PIECE_BYTES // (4 * shape[1]))
    for start in range(0, shape[0], at_once):
        piece = generator.standard_normal((min(at_once, shape[0] - start), shape[1]), np.float32)
        data.write((piece * np.float32(size)).tobytes())


def measure(name: str, model: Path, options: dict[str, object], most: float | None) -> tuple[list[str], float] | None:
    """Quantize in a process of its own: the row of the table and the memory in GB, None where that failed."""
    with tempfile.TemporaryDirectory() as folder:
        report_path = Path(folder) / "report.json"
        files = {"--report": report_path, "--output": Path(folder) / "quantized.onnx"}
        words = [str(word) for pair in (options | files).items() for word in pair]
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", COMMAND, "quantize", str(model), *words])
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        if status:
            return None
        report = json.loads(report_path.read_text())
    memory = usage.ru_maxrss * 1024 / GIGABYTE
    row = [
        name,
        report["settings"]["pipeline"],
        f"W{report['settings']['weight_bits']}A8",
        str(report["samples"]),
        *(f"{report[key] / GIGABYTE:.2f}" for key in ("float_bytes", "quantized_bytes")),
        f"{report['outputs'][0]['sqnr_db']:.1f}",
        f"{seconds:.0f}",
        f"{seconds / report['float_pass_seconds']:.0f}",
        f"{memory:.2f}",
        f"{(report.get('memory') or {}).get('floor_bytes', 0) / GIGABYTE:.2f}",
        "" if most is None else f"{most:.2f}" + " **missed**" * (memory > most),
    ]
    return row, memory


def list_cases(arguments: argparse.Namespace, folder: Path) -> list[tuple[str, Path, dict[str, object], float | None]]:
    """Name, model, options and bar of each run."""
    common: dict[str, object] = {f"--{name}": getattr(arguments, name) for name in ("pipeline", "effort")}
    cases: list[tuple[str, Path, dict[str, object], float | None]] = []
    if arguments.data is None:
        model = build(folder, arguments.gigabytes, arguments.width, arguments.pairs, alike=arguments.alike)
        for bits in arguments.weight_bits:
            for samples in arguments.samples:
                options = common | {"--calib": folder / "ids.npy", "--weight-bits": bits, "--samples": samples}
                cases.append((f"{arguments.gigabytes:g} GB", model, options, arguments.most))
        return cases
    data, found = arguments.data, []
    network = data / "models" / "imagenet_mobilenetv2.onnx"
    if network.exists():
        images = {"--calib": data / "imagenet" / "calib256", **dict(zip(IMAGES[::2], IMAGES[1::2], strict=True))}
        found.append(("MobileNetV2", network, images, IMAGES_GB))
    if arguments.minilm is not None:
        rows = (data / "text" / "sts-train.csv").read_text(encoding="utf-8").splitlines()[:256]
        (folder / "texts.txt").write_text("".join(f"{row.split(chr(9))[5]}\n" for row in rows), encoding="utf-8")
        texts = {"--calib": folder / "texts.txt", "--tokenizer": data / "text" / "tokenizer.json", "--max-length": 128}
        found.append(("MiniLM", arguments.minilm, texts, SENTENCES_GB))
    return [
        (name, model, common | own | {"--weight-bits": bits}, most)
        for name, model, own, most in found
        for bits in arguments.weight_bits
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.5)
    parser.add_argument("--width", type=int, default=2048, help="channels of the layers and of the table")
    parser.add_argument("--pairs", type=int, help="of layers; by default half of the bytes")
    parser.add_argument("--alike", action="store_true", help="pairs have all bytes, and their width follows")
    parser.add_argument("--samples", type=int, nargs="+", default=[16])
    parser.add_argument("--pipeline", default="light")
    parser.add_argument("--weight-bits", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--most", type=float, default=3.0, help="GB of memory that a run of the made model may take")
    parser.add_argument("--growth", type=float, default=0.1, help="GB by which memory may grow with the samples")
    parser.add_argument("--data", type=Path, help="data folder, for MobileNetV2 in place of the made model")
    parser.add_argument("--minilm", type=Path, help="the sentence encoder, beside it")
    parser.add_argument("--memory", help="of onnxcalib quantize")
    arguments = parser.parse_args(argv)
    rows: list[list[str]] = []
    taken: dict[tuple[object, ...], list[float]] = {}
    fine = True
    with tempfile.TemporaryDirectory() as folder:
        for name, model, options, most in list_cases(arguments, Path(folder)):
            found = measure(name, model, options | ({"--memory": arguments.memory} if arguments.memory else {}), most)
            fine = fine and found is not None and (most is None or found[1] <= most)
            if found is not None:
                rows.append(found[0])
                taken.setdefault((name, options["--weight-bits"]), []).append(found[1])
            for row in (HEADER, ["---"] * len(HEADER), *rows):
                print(f"| {' | '.join(row)} |", flush=True)
    return int(not fine or any(max(each) - each[0] > arguments.growth for each in taken.values()))


if __name__ == "__main__":
    sys.exit(main())
