"""Quantize real networks with each stage alone and with all together, from few samples and many.

    python benchmarks/ablation.py [--data DIR] [--models a,b] [--bits W4A8,W4A4] [--samples 16,64,256,1024] [--seeds 3]

The data folder is that of ``accuracy.py``. A seed draws all random choices, and the calibration images where there are
more than are asked for (CIFAR-10: 1,024 in cifar10/calib.npz). Cells are agreement % on the test images, as a mean over
seeds with its standard deviation in brackets, and SQNR in dB; passes is the time in passes of the float model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import (
    ROOT,
    SIZES,
    evaluate,
    no_cache,
    normalize,
    open_session,
    read_photographs,
    read_preprocessing,
    read_test,
    run,
)

DEFAULT_MODELS = "cifar10_resnet20,cifar10_resnet56,imagenet_mobilenetv2"
VARIANTS: dict[str, dict[str, Any]] = {
    "round": {"reconstruct": False},
    "round + statistics (light)": {"pipeline": "light"},
    "round + biases": {"reconstruct": False, "biases": True},
    "reconstruct": {},
    "reconstruct + statistics": {"statistics": True},
    "reconstruct + biases": {"biases": True},
    "all (advanced)": {"pipeline": "advanced"},
    "best": {"effort": "best", "views": 2},
    "best + distill": {"effort": "best", "views": 2, "distill": True},
}


def read_calibration(data: Path, task: str) -> np.ndarray:
    """All calibration images, uint8 (N, H, W, C)."""
    if task == "cifar10":
        return np.load(data / "cifar10/calib.npz")["images"]
    return read_photographs(sorted((data / task / "calib256").glob("*.*")), SIZES[task])


def measure(model: Path, bits: str, settings: dict[str, Any], samples: np.ndarray, test: tuple) -> dict[str, float]:
    """Agreement, SQNR, and passes of one quantization; test: images with labels, float outputs, scaling."""
    from onnxcalib import QuantizeConfig, quantize  # starts torch, which is no part of a quantization

    images, reference, scaling = test
    config = QuantizeConfig(weight_bits=int(bits[1]), activation_bits=int(bits[3]), **settings)
    began = time.perf_counter()
    given = normalize(samples, *scaling)
    with no_cache():
        result = quantize(model, given, config, test=given)  # so many, and none held out
    seconds = time.perf_counter() - began
    path = ROOT / f"benchmarks/results/ablation.{os.getpid()}.onnx"
    result.save(path)
    found = evaluate(model, path, reference, images, scaling)
    path.unlink()
    passes = seconds / result.report.float_pass_seconds
    return {"agreement": found["agreement"], "sqnr_db": found["sqnr_db"], "passes": passes}


def _read_variants(text: str) -> list[str]:
    unknown = [name for name in text.split(",") if name not in VARIANTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(VARIANTS)}")
    return text.split(",")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("ONNXCALIB_DATA", ROOT.parent / "shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="folder with models and images")
    parser.add_argument("--models", type=lambda text: text.split(","), default=DEFAULT_MODELS.split(","))
    parser.add_argument("--bits", type=lambda text: text.split(","), default=["W4A8", "W4A4"])
    parser.add_argument("--samples", type=lambda text: [int(n) for n in text.split(",")], default=[16, 64, 256, 1024])
    parser.add_argument("--variants", type=_read_variants, default=list(VARIANTS), help=", ".join(VARIANTS))
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all numbers there")
    arguments = parser.parse_args(argv)
    (ROOT / "benchmarks/results").mkdir(exist_ok=True)
    rows = []
    for name in arguments.models:
        model, task = arguments.data / f"models/{name}.onnx", name.split("_")[0]
        if not model.is_file():
            print(f"{model}: none; name the data folder by --data or $ONNXCALIB_DATA")
            continue
        images, scaling = read_calibration(arguments.data, task), read_preprocessing(arguments.data, model.name)
        test = read_test(arguments.data, task)
        evaluation = (test, run(open_session(model), test[0], scaling)[0], scaling)
        for bits in arguments.bits:
            for count in [count for count in arguments.samples if count <= len(images)]:
                for variant in arguments.variants:
                    found = []
                    for seed in range(arguments.seeds):
                        chosen = np.random.default_rng(seed).permutation(len(images))[:count]
                        settings = {"effort": arguments.effort, "seed": seed, **VARIANTS[variant]}
                        found.append(measure(model, bits, settings, images[np.sort(chosen)], evaluation))
                    rows.append({"model": name, "bits": bits, "samples": count, "variant": variant, "seeds": found})
                    print(render(rows[-1]), flush=True)
                    if arguments.json:
                        arguments.json.write_text(json.dumps(rows, indent=2))
    return 0


def render(row: dict[str, Any]) -> str:
    columns = {key: [each[key] for each in row["seeds"]] for key in row["seeds"][0]}
    mean = {key: statistics.fmean(values) for key, values in columns.items()}
    spread = statistics.stdev(columns["agreement"]) if len(row["seeds"]) > 1 else 0.0
    head = f"{row['model']:22} {row['bits']} {row['samples']:5} {row['variant']:28}"
    return f"{head} {mean['agreement']:5.1f} ({spread:3.1f}) {mean['sqnr_db']:6.2f} dB {mean['passes']:5.0f} passes"


if __name__ == "__main__":
    sys.exit(main())
