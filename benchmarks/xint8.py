"""Quantize networks for AMD's XINT8 and print them beside amd-quark's files, all judged by the same session and lint.

    python benchmarks/xint8.py [--data DIR] [--models a,b] [--target xint8] [--peers DIR] [--out DIR] [--json FILE]

Each network is quantized for --target on the 256 images of TASK/calib256, in a process of its own. amd-quark is no
dependency: --peers is a folder of its files, MODEL.METHOD.onnx, such as imagenet_mobilenetv2.adaround.onnx, made from
the same images with the same preprocessing. The data folder is that of benchmarks/accuracy.py. --own FILE.toml gives
more settings of onnxcalib; --keep judges the files that --out has already.

Columns: top1 % and agreement % with the float model on the test images; sqnr_db of the outputs, all three from
onnxruntime without graph optimizations, whose sums are exact; violations of the target's rules, as ``onnxcalib
validate --target`` counts them; seconds of onnxcalib's own runs. It exits with 1 where onnxcalib fails, breaks a rule,
or is behind a peer in agreement or SQNR.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from accuracy import BATCH, SIZES, normalize, read_preprocessing, read_test
from jobs import open_parser, run_job

MODELS = ("cifar10_resnet20", "imagenet_mobilenetv2", "imagenet_efficientnet_lite0")
OWN = "onnxcalib"
COLUMNS = {"top1": ".1f", "agreement": ".1f", "sqnr_db": ".1f", "violations": "d", "seconds": ".0f"}


def quantize(job: dict[str, Any]) -> None:
    """One quantization by onnxcalib, in a process of its own."""
    import onnxcalib
    from onnxcalib.config import load_config

    data, model = Path(job["data"]), Path(job["model"])
    task = model.name.split("_")[0]
    mean, std = (tuple((values / 255).tolist()) for values in read_preprocessing(data, model.name))
    options = {"target": job["target"], "crop": SIZES[task], "mean": mean, "std": std}
    samples = data / task / "calib256"
    config = load_config(job["own"], options)
    began = time.perf_counter()
    result = onnxcalib.quantize(model, samples, config, test=samples)  # as peers are given: none is held out
    result.save(job["output"])
    print(json.dumps({"seconds": time.perf_counter() - began}))


class Judge:
    """The test images of one network, and what the float model makes of them."""

    def __init__(self, model: Path, data: Path) -> None:
        self.images, self.labels = read_test(data, model.name.split("_")[0])
        self.scaling = read_preprocessing(data, model.name)
        self.reference = self.run(model)

    def run(self, path: Path) -> np.ndarray:
        """First output of all test images, (images, classes), float64."""
        from onnxcalib.runtime.session import Session

        session = Session(onnx.load(path), name=path.name, optimize=False)
        name, made = session.inputs[0], []
        for start in range(0, len(self.images), BATCH):
            feeds = {name: normalize(self.images[start : start + BATCH], *self.scaling)}
            made.append(session.run(feeds)[session.outputs[0]])
        found = np.concatenate(made).astype(np.float64)
        return found.reshape(len(found), -1)

    def score(self, outputs: np.ndarray) -> dict[str, float]:
        """Top-1, agreement with the float model and SQNR."""
        top, error = outputs.argmax(1), np.square(self.reference - outputs).sum()
        return {
            "top1": 100 * float((top == self.labels).mean()),
            "agreement": 100 * float((top == self.reference.argmax(1)).mean()),
            "sqnr_db": float(10 * np.log10(np.square(self.reference).sum() / error)) if error else float("inf"),
        }


def measure(path: Path, judge: Judge, target: str) -> dict[str, Any]:
    """The row of a file; one that fails says why under ``failed``."""
    import onnxcalib

    try:
        found = judge.score(judge.run(path))
        return found | {"violations": len(onnxcalib.check_target(path, target).violations)}
    except onnxcalib.OnnxCalibError as error:
        return {"failed": str(error)}


def make(model: Path, arguments: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The file of onnxcalib, and what is known of it."""
    output = arguments.out / f"{model.stem}.{OWN}.onnx"
    if arguments.keep and output.exists():
        return output, {}
    job = {"model": str(model), "data": str(arguments.data), "target": arguments.target, "output": str(output)}
    job |= {"own": arguments.own and str(arguments.own)}
    return output, run_job(__file__, job)


def render(row: dict[str, Any]) -> str:
    cells = [format(row[key], form) if key in row else "" for key, form in COLUMNS.items()]
    if "failed" in row:
        cells = [f"failed: {row['failed']}"]
    return f"| {' | '.join([row['model'], row['method'], *cells])} |"


def find_behind(rows: list[dict[str, Any]]) -> list[str]:
    """Where onnxcalib fails, breaks a rule, or is behind a peer, in words."""
    behind = []
    for own in (row for row in rows if row["method"] == OWN):
        if "failed" in own or own["violations"]:
            behind.append(f"{own['model']}: {own.get('failed') or 'violations'}")
            continue
        others = [row for row in rows if row["model"] == own["model"] and row["method"] not in (OWN, "float")]
        for row in (row for row in others if "failed" not in row):
            lost = [key for key in ("agreement", "sqnr_db") if own[key] < row[key]]
            behind += [f"{own['model']}: {key} of {row['method']}" for key in lost]
    return behind


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = open_parser(__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), default=MODELS, help="names without .onnx")
    parser.add_argument("--target", default="xint8", help="name, or path of a TOML file; default: xint8")
    parser.add_argument("--peers", type=Path, help="folder of files of other quantizers, MODEL.METHOD.onnx")
    parser.add_argument("--own", type=Path, help="TOML file with more settings of onnxcalib")
    return parser.parse_args(arguments)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.job:
        quantize(arguments.job)
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"| network | method | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 2)}", flush=True)
    rows: list[dict[str, Any]] = []

    def add(model: Path, method: str, found: dict[str, Any]) -> None:
        rows.append({"model": model.stem, "method": method, **found})
        print(render(rows[-1]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=2))

    for name in arguments.models:
        model = arguments.data / f"models/{name}.onnx"
        judge = Judge(model, arguments.data)
        add(model, "float", judge.score(judge.reference))
        for path in sorted(arguments.peers.glob(f"{name}.*.onnx")) if arguments.peers else ():
            add(model, path.stem.removeprefix(f"{name}."), measure(path, judge, arguments.target))
        output, found = make(model, arguments)
        add(model, OWN, found if "failed" in found else found | measure(output, judge, arguments.target))
    behind = find_behind(rows)
    print("\n".join(f"behind: {line}" for line in behind))
    return int(bool(behind))


if __name__ == "__main__":
    sys.exit(main())
