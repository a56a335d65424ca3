"""Quantize networks for the targets and print what their devices make of the files, beside onnxruntime's exact sums.

    python benchmarks/targets.py [--data DIR] [--models a,b] [--targets qnn,openvino] [--bits W8A8,W4A8] [--json FILE]

Each file is made from the 256 images of TASK/calib256, in a process of its own, with static shapes; bits that a target
does not take are left out. The data folder is
that of benchmarks/accuracy.py. --own FILE.toml gives more settings of onnxcalib; --keep judges the files of --out.

Columns: agreement % with the float model and sqnr_db of the outputs on all test images, from onnxruntime without graph
optimizations; violations of the target's rules; of a target whose runtime is installed, on the first --device-samples
test images: placed of nodes, device agreement % with the float model and that of onnxruntime on the same images, and
device_db, the SQNR of the device against onnxruntime; seconds to quantize. It exits with 1 where something fails,
breaks a rule, is not placed, or agrees with the float model less than onnxruntime by more than half a point.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from accuracy import SIZES, normalize, read_preprocessing
from jobs import open_parser, run_job
from xint8 import Judge

MODELS = ("cifar10_resnet20", "imagenet_mobilenetv2", "imagenet_efficientnet_lite0", "imagenet_squeezenet1.1")
TARGETS = ("qnn", "openvino", "tensorrt", "symmetric")
COLUMNS = {
    "agreement": ".1f",
    "sqnr_db": ".1f",
    "violations": "d",
    "placed": "s",
    "device_agreement": ".1f",
    "onnxruntime_agreement": ".1f",
    "device_db": ".1f",
    "seconds": ".0f",
}
# Points of agreement that a device may lose against onnxruntime.
MOST_LOST = 0.5
# After which a device that does not answer is given up.
SECONDS = 300.0


def takes(target: str, bits: str) -> bool:
    """Whether files for a target may have these bits."""
    from onnxcalib.targets import load_target

    needs = load_target(target).requirements
    weight, activation = map(int, re.findall(r"\d+", bits))
    return weight in needs.weight_bits and activation in needs.activation_bits


def quantize(job: dict[str, Any]) -> None:
    """One quantization by onnxcalib, in a process of its own."""
    import onnxcalib
    from onnxcalib.config import load_config

    data, model = Path(job["data"]), Path(job["model"])
    task = model.name.split("_")[0]
    mean, std = (tuple((values / 255).tolist()) for values in read_preprocessing(data, model.name))
    bits = dict(zip(("weight_bits", "activation_bits"), map(int, re.findall(r"\d+", job["bits"])), strict=True))
    size = SIZES[task]
    options = {"target": job["target"], "crop": size, "mean": mean, "std": std, "shape": f"1,3,{size},{size}", **bits}
    samples = data / task / "calib256"
    began = time.perf_counter()
    result = onnxcalib.quantize(model, samples, load_config(job["own"], options), test=samples)
    result.save(job["output"])
    print(json.dumps({"seconds": time.perf_counter() - began}))


class DeviceJudge(Judge):
    """Judge for files of one sample a run, in onnxruntime and on devices."""

    def run(self, path: Path) -> np.ndarray:
        """First output of all test images, (images, classes), float64; from onnxruntime without optimizations."""
        from onnxcalib.runtime.session import Session

        model = onnx.load(path)
        session = Session(model, name=path.name, optimize=False)
        shape = model.graph.input[0].type.tensor_type.shape
        size = shape.dim[0].dim_value or 50
        name, made = session.inputs[0], []
        for start in range(0, len(self.images), size):
            feeds = {name: normalize(self.images[start : start + size], *self.scaling)}
            made.append(session.run(feeds)[session.outputs[0]])
        found = np.concatenate(made).astype(np.float64)
        return found.reshape(len(found), -1)

    def place(self, path: Path, package: str, exact: np.ndarray, count: int) -> dict[str, Any]:
        """What the runtime of a target makes of a file; exact: what onnxruntime gives."""
        from onnxcalib.runtime.foreign import open_foreign

        model = onnx.load(path)
        name, output = model.graph.input[0].name, model.graph.output[0].name
        feeds = [{name: normalize(self.images[i : i + 1], *self.scaling)} for i in range(count)]
        with open_foreign(package, model, feeds[0], 1, seconds=SECONDS) as device:
            placement = device.place()
            for off in placement.off:
                print(f"  off: {off.node} ({off.op}): {off.reason}", file=sys.stderr)
            given = np.concatenate([device.run(each)[output].reshape(1, -1) for each in feeds]).astype(np.float64)
        wanted, exact = self.reference[:count].argmax(1), exact[:count]
        error = np.square(given - exact).sum()
        return {
            "placed": f"{placement.total - len(placement.off)} of {placement.total}",
            "device_agreement": 100 * float((given.argmax(1) == wanted).mean()),
            "onnxruntime_agreement": 100 * float((exact.argmax(1) == wanted).mean()),
            "device_db": float(10 * np.log10(np.square(exact).sum() / error)) if error else float("inf"),
        }


def measure(path: Path, judge: DeviceJudge, target: str, count: int) -> dict[str, Any]:
    """The row of a file; one that fails says why under ``failed``."""
    import onnxcalib
    from onnxcalib.runtime.foreign import find_runtime

    found: dict[str, Any] = {}
    try:
        exact = judge.run(path)
        found |= {key: value for key, value in judge.score(exact).items() if key in COLUMNS}
        found["violations"] = len(onnxcalib.check_target(path, target).violations)
        package = onnxcalib.load_target(target).runtime
        if find_runtime(package)[0] is not None and count:
            found |= judge.place(path, str(package), exact, min(count, len(judge.images)))
    except onnxcalib.OnnxCalibError as error:
        found["failed"] = str(error)
    return found


def make(model: Path, target: str, bits: str, arguments: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The file of onnxcalib, and what is known of it."""
    output = arguments.out / f"{model.stem}.{Path(target).stem}.{bits.lower()}.onnx"
    if arguments.keep and output.exists():
        return output, {}
    job = {"model": str(model), "data": str(arguments.data), "target": target, "bits": bits, "output": str(output)}
    job |= {"own": arguments.own and str(arguments.own)}
    return output, run_job(__file__, job)


def render(row: dict[str, Any]) -> str:
    cells = [format(row[key], form) if key in row else "" for key, form in COLUMNS.items()]
    return f"| {' | '.join([row['target'], row['model'], row['bits'], *cells, row.get('failed', '')])} |"


def find_faults(row: dict[str, Any]) -> list[str]:
    """What a row misses, in words."""
    placed, total = map(int, row.get("placed", "0 of 0").split(" of "))
    lost = row.get("onnxruntime_agreement", 0.0) - row.get("device_agreement", 0.0)
    faults = {
        row.get("failed", ""): "failed" in row,
        f"{row.get('violations')} violations": row.get("violations", 0) > 0,
        f"{total - placed} not placed": placed < total,
        f"{lost:.1f} points of agreement lost on the device": lost > MOST_LOST,
    }
    return [f"{row['target']} {row['model']} {row['bits']}: {text}" for text, holds in faults.items() if holds]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = open_parser(__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), default=MODELS, help="names without .onnx")
    parser.add_argument("--targets", type=lambda text: text.split(","), default=TARGETS)
    parser.add_argument("--bits", type=lambda text: text.upper().split(","), default=("W8A8", "W4A8"))
    parser.add_argument("--device-samples", type=int, default=48, help="images that run on the device; default: 48")
    parser.add_argument("--own", type=Path, help="TOML file with more settings of onnxcalib")
    return parser.parse_args(arguments)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.job:
        quantize(arguments.job)
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"| target | network | bits | {' | '.join(COLUMNS)} | |\n|{'---|' * (len(COLUMNS) + 4)}", flush=True)
    rows: list[dict[str, Any]] = []
    for name in arguments.models:
        model = arguments.data / f"models/{name}.onnx"
        judge = DeviceJudge(model, arguments.data)
        for target in arguments.targets:
            for bits in [each for each in arguments.bits if takes(target, each)]:
                output, found = make(model, target, bits, arguments)
                if "failed" not in found:
                    found |= measure(output, judge, target, arguments.device_samples)
                rows.append({"target": target, "model": name, "bits": bits, **found})
                print(render(rows[-1]), flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps(rows, indent=2))
    faults = [fault for row in rows for fault in find_faults(row)]
    print("\n".join(f"missed: {fault}" for fault in faults))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
