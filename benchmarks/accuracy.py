"""Quantize real networks and print how accurate, small and fast the results are, beside the bars that they must reach.

    python benchmarks/accuracy.py [--data DIR] [--models a,b] [--bits W8A8,W4A4] [--effort fast] [--latency] [--json F]

The data folder (--data, else $ONNXCALIB_DATA, else ../shared/data beside the repository) holds models/TASK_*.onnx,
preprocess.json (mean and std by file-name prefix, in units of 0..255), TASK/calib256/ (unlabelled images) and labelled
test sets: cifar10/test_jpeg.npz, imagenet/eval/ with labels.json. Each quantization runs in a process of its own.

Columns: agreement = % of test images whose top-1 is the float model's; sqnr_db of the outputs; top-1 % of both, and the
loss; file = quantized bytes / float bytes; unfused = Q/DQ left by onnxruntime; time = quantize and save, in passes of
the float model over the same images; memory_gb = peak; with --latency the speed on one thread at batch 1 and 32,
of W8A8 against float, of the others against W8A8. The bar follows in brackets; '!' marks a value that misses it.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime as ort
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"cifar10": 32, "imagenet": 224}
BATCH, FLOAT_PASSES = 50, 3
LATENCY_BATCHES, LATENCY_RUNS = (1, 32), 15
DEFAULT_BITS = ("W8A8", "W4A8", "W4A4")
FEW_BITS = {"speed_1": 0.9, "speed_32": 0.9}
# Bars by the model's name without the suffix of its export; UPPER names those that are upper bounds.
BARS: dict[str, dict[str, dict[str, float]]] = {
    "cifar10_resnet20": {"W8A8": {"speed_1": 1.7, "speed_32": 1.7}, "W4A8": FEW_BITS, "W4A4": FEW_BITS},
    "cifar10_resnet56": {
        "W8A8": {"agreement": 98.0, "sqnr_db": 26.5, "time": 15},
        "W4A8": {"file": 0.20, **FEW_BITS},
        "W4A4": FEW_BITS,
    },
    "imagenet_mobilenetv2": {
        "W8A8": {"speed_1": 1.6, "speed_32": 1.6, "memory_gb": 2.5},
        "W4A8": {"file": 0.22, "memory_gb": 2.5, **FEW_BITS},
        "W4A4": {"memory_gb": 2.5, **FEW_BITS},
    },
    "imagenet_squeezenet1.1": {"W8A8": {"loss": 1.5}},
}
# More bars by effort, from 256 samples; "balanced" must be as accurate as "fast" in the time of "best".
EFFORT_KEYS = ("agreement", "sqnr_db", "loss", "time")
EFFORT_BARS: dict[str, dict[tuple[str, str], tuple[float | None, ...]]] = {
    "fast": {
        ("cifar10_resnet20", "W8A8"): (98.2, 28.5, None, 25),
        ("cifar10_resnet20", "W4A8"): (96.4, 22.0, None, 35),
        ("cifar10_resnet20", "W4A4"): (92.0, 14.5, None, 120),
        ("cifar10_resnet56", "W4A8"): (97.0, 23.3, None, 35),
        ("cifar10_resnet56", "W4A4"): (89.5, 11.5, None, 100),
        ("imagenet_mobilenetv2", "W8A8"): (94.3, 14.0, None, 15),
        ("imagenet_mobilenetv2", "W4A8"): (88.5, None, 3, 35),
        ("imagenet_mobilenetv2", "W4A4"): (58.0, None, None, 120),
    },
    "best": {
        ("cifar10_resnet20", "W8A8"): (98.7, 29.5, None, 25),
        ("cifar10_resnet20", "W4A8"): (97.0, 23.0, None, 600),
        ("cifar10_resnet20", "W4A4"): (93.5, 15.8, None, 600),
        ("cifar10_resnet56", "W4A8"): (97.5, 24.3, None, 600),
        ("cifar10_resnet56", "W4A4"): (92.0, 13.5, None, 600),
        ("imagenet_mobilenetv2", "W8A8"): (95.5, 15.5, None, 15),
        ("imagenet_mobilenetv2", "W4A8"): (91.5, None, 2, 500),
        ("imagenet_mobilenetv2", "W4A4"): (68.0, None, None, 500),
    },
}
EFFORT_BARS["balanced"] = {k: (*bars[:3], EFFORT_BARS["best"][k][3]) for k, bars in EFFORT_BARS["fast"].items()}
UPPER = ("loss", "file", "time", "memory_gb")
COLUMNS = (
    "agreement:.1f sqnr_db:.1f float_top1:.1f top1:.1f loss:.1f file:.3f unfused:d time:.0f memory_gb:.2f speed_1:.2f"
)
FORMATS = dict(column.split(":") for column in f"{COLUMNS} speed_32:.2f".split())


def read_preprocessing(data: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """mean and std, in units of 0..255, of the longest prefix that fits the model's name."""
    table = json.loads((data / "preprocess.json").read_text())
    key = max((prefix for prefix in table if name.startswith(prefix)), key=len, default=None)
    if key is None:
        raise KeyError(f"{name}: preprocess.json has no prefix of it, only {', '.join(table)}")
    return np.float32(table[key]["mean"]), np.float32(table[key]["std"])


def read_photographs(paths: list[Path], size: int) -> np.ndarray:
    """Centres of the images, as uint8 (N, size, size, 3)."""
    images = np.empty((len(paths), size, size, 3), np.uint8)
    for i, path in enumerate(paths):
        with Image.open(path) as image:
            left, top = (image.width - size) // 2, (image.height - size) // 2
            images[i] = image.convert("RGB").crop((left, top, left + size, top + size))
    return images


def read_test(data: Path, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W, C) and labels of the test set."""
    if task == "cifar10":
        archive = np.load(data / "cifar10/test_jpeg.npz")
        return archive["images"], archive["labels"]
    labels = json.loads((data / task / "labels.json").read_text())
    names = sorted(labels)
    images = read_photographs([data / task / "eval" / name for name in names], SIZES[task])
    return images, np.array([labels[name] for name in names])


def normalize(images: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(((images.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2))


def open_session(path: Path, threads: int = 0, write: Path | None = None) -> ort.InferenceSession:
    """``write`` is where onnxruntime leaves the graph that it runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 4 if write else 3  # it warns that such a file fits this machine only
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if write:
        options.optimized_model_filepath = str(write)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, images: np.ndarray, scaling: tuple) -> tuple[np.ndarray, float]:
    """First output of all images, (N, classes), and the seconds spent in onnxruntime; a fixed batch drops the rest."""
    info = session.get_inputs()[0]
    fixed = isinstance(info.shape[0], int)
    batch = info.shape[0] if fixed else BATCH
    outputs, seconds = [], 0.0
    for start in range(0, len(images) - len(images) % batch if fixed else len(images), batch):
        feed = {info.name: normalize(images[start : start + batch], *scaling)}
        began = time.perf_counter()
        outputs.append(session.run(None, feed)[0])
        seconds += time.perf_counter() - began
    logits = np.concatenate(outputs)
    return logits.reshape(len(logits), -1), seconds


def read_peak_gb() -> float:
    """Peak resident memory of this process on Linux; ru_maxrss would count the parent's too, handed on at exec."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9


@contextmanager
def no_cache() -> Iterator[None]:
    """Let a run measure all by itself: what earlier ones have kept would shorten its time."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, XDG_CACHE_HOME=folder):
        yield


def quantize(job: dict[str, Any]) -> dict[str, Any]:
    """One quantization, in a process of its own; imports come first, so that they are not timed."""
    import onnxcalib
    import onnxcalib.pipeline  # loads torch and onnxruntime
    from onnxcalib.config import load_config

    data, model = Path(job["data"]), Path(job["model"])
    task = model.name.split("_")[0]
    mean, std = read_preprocessing(data, model.name)
    options = dict(zip(("weight_bits", "activation_bits"), map(int, re.findall(r"\d+", job["bits"])), strict=True))
    options |= {"samples": job["samples"], "effort": job["effort"], "crop": SIZES[task]}
    scaling = {key: tuple((values / 255).tolist()) for key, values in (("mean", mean), ("std", std))}
    config = load_config(job["config"], options | scaling)

    images = read_photographs(sorted((data / task / "calib256").glob("*.*"))[: config.samples], SIZES[task])
    session = open_session(model, config.threads or 0)
    run(session, images[:BATCH], (mean, std))  # the first run allocates
    float_seconds = statistics.median(run(session, images, (mean, std))[1] for _ in range(FLOAT_PASSES))
    del session, images

    began = time.perf_counter()
    samples = data / task / "calib256"
    with no_cache():
        result = onnxcalib.quantize(model, samples, config, test=samples)  # as peers are given: none is held out
    result.save(job["output"])
    seconds = time.perf_counter() - began
    row = {"time": seconds / float_seconds, "seconds": seconds, "float_seconds": float_seconds}
    row |= {"memory_gb": read_peak_gb(), "warnings": list(result.report.warnings)}
    return row | {"reported_unfused": [f"{left.op} {left.tensor}: {left.reason}" for left in result.report.unfused]}


def count_unfused(path: Path) -> int:
    """QuantizeLinear and DequantizeLinear nodes left in the graph that onnxruntime runs."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(path, write=optimized)
        graph = onnx.load(optimized).graph
    return sum(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node)


def compare_speed(slow: Path, fast: Path, feeds: np.ndarray | dict[str, np.ndarray]) -> float:
    """Time of ``slow`` over that of ``fast``, one thread, interleaved medians; an array is for the first input."""
    pair = [open_session(path, threads=1) for path in (slow, fast)]
    feeds = feeds if isinstance(feeds, dict) else {pair[0].get_inputs()[0].name: feeds}
    times: list[list[float]] = [[], []]
    for turn in range(LATENCY_RUNS + 2):
        for session, record in zip(pair, times, strict=True):
            began = time.perf_counter()
            session.run(None, feeds)
            if turn >= 2:
                record.append(time.perf_counter() - began)
    return statistics.median(times[0]) / statistics.median(times[1])


def evaluate(model: Path, quantized: Path, reference: np.ndarray, test: tuple, scaling: tuple) -> dict[str, Any]:
    """Quality of the quantized file on the test images, and its size."""
    images, labels = test
    logits, _ = run(open_session(quantized), images, scaling)
    labels = labels[: len(logits)]
    top, float_top = logits.argmax(1), reference.argmax(1)
    power, error = (np.square(values).sum() for values in (reference.astype(np.float64), reference - logits))
    float_top1, top1 = (100 * float((found == labels).mean()) for found in (float_top, top))
    return {
        "agreement": 100 * float((top == float_top).mean()),
        "sqnr_db": float(10 * np.log10(power / error)) if error else float("inf"),
        "float_top1": float_top1,
        "top1": top1,
        "loss": float_top1 - top1,
        "file": quantized.stat().st_size / model.stat().st_size,
        "unfused": count_unfused(quantized),
    }


def measure(model: Path, bits: str, arguments: argparse.Namespace, test: tuple, cache: dict) -> dict[str, Any]:
    """One row; ``cache`` keeps the float outputs of the last model. A row that fails says why under ``failed``."""
    output = arguments.out / f"{model.stem}.{bits.lower()}.onnx"
    output.unlink(missing_ok=True)
    job = {"data": str(arguments.data), "model": str(model), "bits": bits, "output": str(output)}
    row: dict[str, Any] = {"model": model.stem, "bits": bits, "effort": arguments.effort}
    job |= {"samples": arguments.samples, "effort": arguments.effort}
    job |= {"config": arguments.config and str(arguments.config)}
    command = [sys.executable, str(Path(__file__).resolve()), "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return row | {
            "failed": (done.stderr.strip() or f"process ended with status {done.returncode}").splitlines()[-1]
        }
    row |= json.loads(done.stdout.splitlines()[-1])
    scaling = read_preprocessing(arguments.data, model.name)
    try:
        if model not in cache:
            cache.clear()
            cache[model] = run(open_session(model), test[0], scaling)[0]
        row |= evaluate(model, output, cache[model], test, scaling)
        reference = model if bits == "W8A8" else arguments.out / f"{model.stem}.w8a8.onnx"
        if arguments.latency and reference.exists():
            for batch in LATENCY_BATCHES:
                row[f"speed_{batch}"] = compare_speed(reference, output, normalize(test[0][:batch], *scaling))
    except Exception as error:  # onnxruntime's exceptions have no common parent; the table must go on
        row["failed"] = f"{type(error).__name__}: {error}"
    return row


def find_entry(name: str) -> str:
    """The model's name without the suffix of its export."""
    return max((key for key in BARS if name == key or name.startswith(f"{key}_")), key=len, default=name)


def find_bars(row: dict[str, Any]) -> dict[str, float]:
    name, bits = find_entry(row["model"]), row["bits"]
    limits = EFFORT_BARS[row["effort"]].get((name, bits), (None,) * len(EFFORT_KEYS))
    stated = {key: limit for key, limit in zip(EFFORT_KEYS, limits, strict=True) if limit is not None}
    return BARS.get(name, {}).get(bits, {}) | stated


def find_misses(row: dict[str, Any]) -> list[str]:
    """The columns of a row that are on the wrong side of their bars; NaN is on the wrong side of any."""
    bars = find_bars(row)
    return [k for k, bar in bars.items() if k in row and not (row[k] <= bar if k in UPPER else row[k] >= bar)]


def render(row: dict[str, Any]) -> str:
    head = f"{row['model']:24} {row['bits']:5}"
    if "failed" in row:
        return f"{head} failed: {row['failed']}"
    bars, missed, cells = find_bars(row), find_misses(row), []
    for key, form in FORMATS.items():
        text = format(row[key], form) if key in row else "-"
        if key in row and key in bars:
            text += f"{'!' if key in missed else ''} ({bars[key]:g})"
        cells.append(f"{text:>12}")
    return head + "".join(cells)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("ONNXCALIB_DATA", ROOT.parent / "shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="folder with models and images")
    parser.add_argument("--models", type=lambda text: text.split(","), help="names without .onnx; default: all")
    parser.add_argument("--bits", type=lambda text: text.upper().split(","), help="such as W8A8,W4A4")
    parser.add_argument("--effort", choices=tuple(EFFORT_BARS), default="balanced", help="default: balanced")
    parser.add_argument("--samples", type=int, help="calibrate on the first so many images")
    parser.add_argument("--config", type=Path, help="TOML file with more settings of onnxcalib")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder for quantized models")
    parser.add_argument("--json", type=Path, help="write all rows there")
    parser.add_argument("--latency", action="store_true", help="measure speed too")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def list_models(arguments: argparse.Namespace) -> list[Path]:
    found = sorted(path for path in arguments.data.glob("models/*.onnx") if path.name.split("_")[0] in SIZES)
    return [path for path in found if arguments.models is None or path.stem in arguments.models]


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.job:
        print(json.dumps(quantize(arguments.job)))
        return 0
    models = list_models(arguments)
    if not models:
        print(f"No models to measure in {arguments.data}/models: name the data folder by --data or $ONNXCALIB_DATA.")
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"{'model':24} {'bits':5}{''.join(f'{key:>12}' for key in FORMATS)}", flush=True)
    rows, tests, cache = [], {}, {}
    for model in models:
        task = model.name.split("_")[0]
        if task not in tests:
            tests = {task: read_test(arguments.data, task)}
        chosen = arguments.bits or BARS.get(find_entry(model.stem)) or DEFAULT_BITS
        for bits in sorted(chosen, reverse=True):  # W8A8 first: the others are compared with it
            rows.append(measure(model, bits, arguments, tests[task], cache))
            print(render(rows[-1]), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=2))
    return int(any("failed" in row or find_misses(row) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
