"""Quantize sentence encoders and print how well they still rank the similarity of sentences (STS-B).

    python benchmarks/text.py --models FILE.onnx[,...] [--data DIR] [--bits W8A8,W4A8] [--effort fast] [--json FILE]

The data folder (--data, else $ONNXCALIB_DATA, else ../shared/data beside the repository) holds text/tokenizer.json,
text/sts-train.csv, from all over which --samples sentences are taken for calibration, and text/sts-dev.csv, on which
models are evaluated. Each quantization is made in a process of its own.

Columns: float and score = 100 x Spearman's correlation of the embeddings' cosine with people's scores; sqnr_db of the
embeddings; layers = least and median SQNR of single layers; rest = layers that fell back or were rolled back;
time = quantize and save, in passes of the float model over the same sentences; memory_gb = peak; file = quantized bytes
/ float bytes; unfused = Q/DQ left by onnxruntime; speed against float at batch 1 and 32, one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from accuracy import (
    FLOAT_PASSES,
    LATENCY_BATCHES,
    ROOT,
    compare_speed,
    count_unfused,
    no_cache,
    open_session,
    read_peak_gb,
)
from jobs import render_row
from scipy.stats import spearmanr

LENGTH, BATCH = 128, 32
FORMATS = dict(
    float=".2f", score=".2f", sqnr_db=".1f", layers="", rest="d", time=".0f", memory_gb=".2f", file=".3f", unfused="d",
    speed_1=".2f", speed_32=".2f",
)  # fmt: skip


def read_pairs(path: Path) -> tuple[list[str], list[str], list[float]]:
    """Both sentences and the score of every row; some rows of STS-B have more columns behind."""
    rows = [line.rstrip("\n").split("\t") for line in path.open(encoding="utf8")]
    return [row[5] for row in rows], [row[6] for row in rows], [float(row[4]) for row in rows]


def choose_texts(data: Path, count: int) -> list[str]:
    """``count`` sentences from all over the training file, in which kinds of text come one after the other."""
    first, second, _ = read_pairs(data / "text/sts-train.csv")
    rows = np.linspace(0, len(first) - 1, -(-count // 2)).astype(int)
    return [text for row in rows for text in (first[row], second[row])][:count]


def open_texts(model: Path, texts: list[str], config):
    """The sentences as a calibration set."""
    from onnxcalib import open_calibration
    from onnxcalib.graph.load import inputs_of

    return open_calibration(texts, inputs_of(onnx.load(model)), config.data)


def quantize(job: dict[str, Any]) -> dict[str, Any]:
    """One quantization, in a process of its own; imports come first, so that they are not timed."""
    import onnxcalib
    import onnxcalib.pipeline  # loads torch and onnxruntime
    from onnxcalib.config import load_config

    data, model = Path(job["data"]), Path(job["model"])
    options = dict(zip(("weight_bits", "activation_bits"), map(int, re.findall(r"\d+", job["bits"])), strict=True))
    options |= {"effort": job["effort"], "tokenizer": str(data / "text/tokenizer.json"), "max_length": LENGTH}
    config = load_config(job["config"], options)
    texts = choose_texts(data, job["samples"])
    samples, session = open_texts(model, texts, config), open_session(model, config.threads or 0)
    seconds = []
    for _ in range(FLOAT_PASSES + 1):
        began = time.perf_counter()
        for feeds in samples.batches(BATCH):
            session.run(None, feeds)
        seconds.append(time.perf_counter() - began)
    float_seconds = statistics.median(seconds[1:])  # the first run allocates
    del session, samples

    began = time.perf_counter()
    with no_cache():
        result = onnxcalib.quantize(model, texts, config, test=texts)  # as peers are given: none is held out
    result.save(job["output"])
    spent = time.perf_counter() - began
    report = result.report
    layers = [layer.sqnr_db for layer in report.layers if layer.sqnr_db is not None]
    return {
        "time": spent / float_seconds,
        "seconds": report.seconds,
        "memory_gb": read_peak_gb(),
        "layers": f"{min(layers):.0f} / {statistics.median(layers):.0f}",
        "layers_db": {layer.name: layer.sqnr_db for layer in report.layers},
        "rest": sum(block.outcome not in ("solved", "reconstructed") for block in report.blocks),
        "blocks": {block.name: f"{block.outcome} {block.reason or ''}".strip() for block in report.blocks},
        "warnings": list(report.warnings),
    }


def embed(path: Path, samples) -> np.ndarray:
    """First output of all samples, float64 (samples, features), in their order."""
    session, found = open_session(path), None
    for part in samples.split(BATCH):
        values = session.run(None, samples.read(part))[0]
        found = np.empty((len(samples), values.shape[1])) if found is None else found
        found[part] = values
    return found


def score(embedded: np.ndarray, gold: list[float]) -> float:
    """The first half of the rows belongs to the second half, pair by pair."""
    unit = embedded / np.linalg.norm(embedded, axis=1, keepdims=True)
    return 100 * float(spearmanr((unit[: len(gold)] * unit[len(gold) :]).sum(1), gold).statistic)


def measure(model: Path, bits: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row; one that fails says why under ``failed``."""
    from onnxcalib import DataConfig, QuantizeConfig

    output = arguments.out / f"{model.stem}.{bits.lower()}.onnx"
    job = {"data": str(arguments.data), "model": str(model), "bits": bits, "output": str(output)}
    job |= {"samples": arguments.samples, "effort": arguments.effort}
    job |= {"config": arguments.config and str(arguments.config)}
    command = [sys.executable, str(Path(__file__).resolve()), "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    row: dict[str, Any] = {"model": model.stem, "bits": bits, "effort": arguments.effort}
    if done.returncode:
        return row | {"failed": (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]}
    row |= json.loads(done.stdout.splitlines()[-1])
    first, second, gold = read_pairs(arguments.data / "text/sts-dev.csv")
    tokenizer = DataConfig(tokenizer=arguments.data / "text/tokenizer.json", max_length=LENGTH)
    samples = open_texts(model, first + second, QuantizeConfig(data=tokenizer))
    reference, given = embed(model, samples), embed(output, samples)
    row |= {"float": score(reference, gold), "score": score(given, gold)}
    row["sqnr_db"] = float(10 * np.log10(np.square(reference).sum() / np.square(reference - given).sum()))
    row |= {"file": output.stat().st_size / model.stat().st_size, "unfused": count_unfused(output)}
    for batch in LATENCY_BATCHES:
        row[f"speed_{batch}"] = compare_speed(model, output, samples.read(samples.alike(batch)))
    return row


def render(row: dict[str, Any]) -> str:
    return render_row(f"{row['model']:20} {row['bits']:5}", row, FORMATS, 11)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("ONNXCALIB_DATA", ROOT.parent / "shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="folder with text/")
    parser.add_argument("--models", type=lambda text: [Path(each) for each in text.split(",")], help="files")
    parser.add_argument("--bits", type=lambda text: text.upper().split(","), default=["W8A8"], help="default: W8A8")
    parser.add_argument("--effort", choices=("fast", "balanced", "best"), default="fast", help="default: fast")
    parser.add_argument("--samples", type=int, default=256, help="sentences that calibrate")
    parser.add_argument("--config", type=Path, help="TOML file with more settings of onnxcalib")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder for quantized models")
    parser.add_argument("--json", type=Path, help="write all rows there")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.job:
        print(json.dumps(quantize(arguments.job)))
        return 0
    models = arguments.models or sorted((arguments.data / "models").glob("text_*.onnx"))
    if not models:
        print(f"No models to measure in {arguments.data}/models: name them by --models.")
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"{'model':20} {'bits':5}{''.join(f'{key:>11}' for key in FORMATS)}", flush=True)
    rows = []
    for model in models:
        for bits in arguments.bits:
            rows.append(measure(model, bits, arguments))
            print(render(rows[-1]), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=2))
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
