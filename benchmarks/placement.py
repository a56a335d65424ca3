"""Print the speed of W8A8 files with --placement all and cost, as multiples of the float model's.

    python benchmarks/placement.py MODEL[=CHANNELSxHEIGHTxWIDTH] ... [--batches 1,8] [--seconds 2] [--json FILE]

A size is given for models whose inputs fix none. Weights are rounded, and samples are smooth noise: neither changes the
time. The three models run in turn on one thread; times are those of the thread, and the table has the median of the
ratios. bytes: of the file of placement cost over that of all. float: nodes that placement leaves in float.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto

import onnxcalib
from onnxcalib import QuantizeConfig

SAMPLES, BLOCK, TEXT_LENGTH = 8, 8, 64
PLACEMENTS = ("all", "cost")
LEAST_ROUNDS = 7


def open_session(model: str | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def draw(session: ort.InferenceSession, size: tuple[int, ...], count: int) -> dict[str, np.ndarray]:
    """Smooth noise for images, ones for masks, token numbers for other integers, noise for the rest."""
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in session.get_inputs():
        dims = [d if isinstance(d, int) else count if axis == 0 else TEXT_LENGTH for axis, d in enumerate(spec.shape)]
        dims = [dims[0], *size] if size else dims
        if "int64" in spec.type:
            ids = rng.integers(1000, 2000, dims) if spec.name.endswith("input_ids") else np.zeros(dims, np.int64)
            feeds[spec.name] = np.ones(dims, np.int64) if "mask" in spec.name else ids
            continue
        values = rng.normal(size=dims)
        if len(dims) == 4:
            coarse = rng.normal(size=(*dims[:2], *(-(-d // BLOCK) for d in dims[2:])))
            values = 0.3 * values + coarse.repeat(BLOCK, 2).repeat(BLOCK, 3)[:, :, : dims[2], : dims[3]]
        feeds[spec.name] = values.astype(np.float32)
    return feeds


def quantize(path: Path, samples: dict[str, np.ndarray], placement: str) -> tuple[ModelProto, int]:
    """The file with rounded weights, and the number of nodes that are left in float."""
    settings: dict[str, Any] = {"placement": placement, "reconstruct": False, "threads": 1}
    prepared = onnxcalib.prepare(path, samples, QuantizeConfig(**settings))
    return onnxcalib.emit(prepared, onnxcalib.reconstruct(prepared)), len(prepared.in_float)


def compare(sessions: list[ort.InferenceSession], feeds: dict[str, np.ndarray], seconds: float) -> list[float]:
    """The first session's time over that of each other: medians over rounds of one run of each."""
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < LEAST_ROUNDS or time.perf_counter() < end:
        times = []
        for session in sessions:
            start = time.thread_time()
            session.run(None, feeds)
            times.append(time.thread_time() - start)
        rounds.append(times)
    table = np.array(rounds[1:])
    return [float(np.median(table[:, 0] / table[:, number])) for number in range(1, len(sessions))]


def measure(path: Path, size: tuple[int, ...], batches: list[int], seconds: float) -> dict[str, Any]:
    reference = open_session(str(path))
    files = [quantize(path, draw(reference, size, SAMPLES), placement) for placement in PLACEMENTS]
    sessions = [reference, *(open_session(model.SerializeToString()) for model, _ in files)]
    (every, _), (chosen, left) = files
    row: dict[str, Any] = {"model": path.stem, "float": left, "bytes": chosen.ByteSize() / every.ByteSize()}
    for batch in batches:
        found = compare(sessions, draw(reference, size, batch), seconds)
        row |= {f"{placement} {batch}": ratio for placement, ratio in zip(PLACEMENTS, found, strict=True)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    ort.set_default_logger_severity(4)
    batches, rows = [int(each) for each in args.batches.split(",")], []
    names = [f"{placement} {batch}" for batch in batches for placement in PLACEMENTS]
    print(" | ".join(["model".ljust(30), *names, "float", "bytes"]))
    for given in args.models:
        path, _, size = given.partition("=")
        try:
            row = measure(Path(path), tuple(int(n) for n in size.split("x") if n), batches, args.seconds)
        except Exception as error:  # one model that does not fit its noise leaves the others
            print(f"{Path(path).stem}: {error}")
            continue
        rows.append(row)
        shown = [f"{row[name]:.2f}".rjust(len(name)) for name in names]
        print(" | ".join([row["model"][:30].ljust(30), *shown, f"{row['float']:5}", f"{row['bytes']:.3f}"]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
