"""The time and the memory that ``inspect`` estimates, beside those of the runs: each command in a process of its own.

    python benchmarks/estimates.py [--data DIR] [--models a,b] [--bits W8A8,W4A4] [--samples 64] [--json FILE]

The data folder is that of benchmarks/accuracy.py, and for minilm that of benchmarks/text.py; minilm's model, which
``unpack.py`` of that folder writes, is given with --minilm FILE. Columns: seconds of the whole command as estimated and
as measured, their ratio; the same of its peak memory in MB; what ``inspect`` itself took, in seconds. It exits with 1
where a ratio of times is outside of a factor of 2.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from accuracy import SIZES, read_preprocessing
from jobs import open_parser, render_row
from text import choose_texts

MODELS = ("cifar10_resnet20", "imagenet_mobilenetv2", "imagenet_squeezenet1.1", "minilm")
FACTOR = 2.0
FORMATS = {"estimate": ".1f", "seconds": ".1f", "ratio": ".2f", "estimate_mb": ".0f", "peak_mb": ".0f"}
FORMATS |= {"ratio_mb": ".2f", "inspect": ".2f"}
START = "import sys; from onnxcalib.cli.main import main; sys.exit(main())"


def call(*words: object) -> tuple[float, str]:
    """Seconds of a command, and what it prints on standard output."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", START, *map(str, words)], check=True, capture_output=True, text=True)
    return time.perf_counter() - began, done.stdout


def list_options(name: str, given: argparse.Namespace, folder: Path) -> list[object]:
    """What ``quantize`` is told of a model's samples."""
    if name == "minilm":
        texts = folder / "texts.txt"
        texts.write_text("\n".join(choose_texts(given.data, given.samples)), encoding="utf-8")
        return ["--calib", texts, "--tokenizer", given.data / "text/tokenizer.json"]
    task = name.split("_")[0]
    mean, std = (values / 255 for values in read_preprocessing(given.data, name))
    options: list[object] = ["--calib", given.data / task / "calib256", "--crop", SIZES[task]]
    for option, values in (("--mean", mean), ("--std", std)):
        options += [option, ",".join(f"{value:.6f}" for value in values)]
    return options


def measure(name: str, bits: str, given: argparse.Namespace) -> dict[str, Any]:
    model = given.minilm if name == "minilm" else given.data / f"models/{name}.onnx"
    inspected, text = call("inspect", model, "--json", "-")
    estimates = json.loads(text)["outlook"]["estimates"]
    found = next(each for each in estimates if (each["bits"], each["samples"]) == (bits, given.samples))
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        options = [*list_options(name, given, folder), "--samples", given.samples]
        for option, digit in (("--weight-bits", bits[1]), ("--activation-bits", bits[3])):
            options += [option, digit]
        outputs = ["-o", folder / "out.onnx", "--report", folder / "report.json", "--quiet"]
        seconds, _ = call("quantize", model, *options, *outputs)
        peak = json.loads((folder / "report.json").read_text())["memory"]["peak_bytes"] / 1e6
    memory = found["memory_bytes"] / 1e6
    return {
        **{"model": name, "bits": bits, "samples": given.samples, "inspect": inspected},
        **{"estimate": found["seconds"], "seconds": seconds, "ratio": found["seconds"] / seconds},
        **{"estimate_mb": memory, "peak_mb": peak, "ratio_mb": memory / peak},
    }


def main() -> int:
    parser = open_parser(__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), default=MODELS)
    parser.add_argument("--bits", type=lambda text: text.split(","), default=("W8A8", "W4A4"))
    parser.add_argument("--samples", type=int, choices=(64, 256, 1024), default=64)
    parser.add_argument("--minilm", type=Path, help="the sentence encoder, without which it is left out")
    given = parser.parse_args()
    names = [name for name in given.models if name != "minilm" or given.minilm is not None]
    print(f"{'model':<26}{'bits':<6}" + "".join(f"{key:>13}" for key in FORMATS))
    rows = []
    for name in names:
        for bits in given.bits:
            rows.append(measure(name, bits, given))
            print(render_row(f"{name:<26}{bits:<6}", rows[-1], FORMATS, 13), flush=True)
            if given.json:
                given.json.write_text(json.dumps(rows, indent=2))
    return int(any(not 1 / FACTOR <= row["ratio"] <= FACTOR for row in rows))


if __name__ == "__main__":
    sys.exit(main())
