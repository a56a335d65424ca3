"""SQNR through a network, on the images that it was quantized from and on others.

    python benchmarks/depth.py [--data DIR] [--model NAME] [--bits W4A4] [--effort fast] [--samples 256] [--images 48]

The data folder is that of accuracy.py. A row for every block that was reconstructed: dB of its output about the mean of
each channel, slope of the quantized values on the float ones, and the ratio of their standard deviations, on so many of
the calibration images and of the test images. An output that least squares has shrunk has a slope below 1.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from accuracy import ROOT, SIZES, no_cache, normalize, read_photographs, read_preprocessing, read_test

BATCH = 16


def quantize(arguments: argparse.Namespace, model: Path, scaling: tuple) -> tuple[Any, Any]:
    """The prepared model, and what was reconstructed of it."""
    from onnxcalib import DataConfig, QuantizeConfig, pipeline

    task = model.name.split("_")[0]
    mean, std = (tuple((values / 255).tolist()) for values in scaling)
    bits = dict(zip(("weight_bits", "activation_bits"), map(int, re.findall(r"\d+", arguments.bits)), strict=True))
    images = DataConfig(mean=mean, std=std, crop=SIZES[task])
    config = QuantizeConfig(data=images, samples=arguments.samples, effort=arguments.effort, **bits)
    samples = arguments.data / task / "calib256"
    with no_cache(), patch.object(pipeline, "emit_model", wraps=pipeline.emit_model) as emit:
        pipeline.quantize(model, samples, config, test=samples)
    return emit.call_args.args


def compare(sessions: list[Any], names: list[str], images: np.ndarray) -> np.ndarray:
    """(outputs, 3): dB, slope and ratio of deviations of each tensor."""
    sums = np.zeros((len(names), 3))
    for start in range(0, len(images), BATCH):
        feeds = {sessions[0].inputs[0]: images[start : start + BATCH]}
        pair = [session.run(feeds, names) for session in sessions]
        for row, name in zip(sums, names, strict=True):
            own = [values[name].astype(np.float64) for values in pair]
            axes = tuple(axis for axis in range(own[0].ndim) if axis != 1)
            y, z = (values - values.mean(axes, keepdims=True) for values in own)
            row += (y * y).sum(), (y * z).sum(), (z * z).sum()
    power, both, other = sums.T
    return np.stack([10 * np.log10(power / (power - 2 * both + other)), both / power, np.sqrt(other / power)], 1)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("ONNXCALIB_DATA", ROOT.parent / "shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="folder with models and images")
    parser.add_argument("--model", default="imagenet_mobilenetv2", help="its name without .onnx")
    parser.add_argument("--bits", default="W4A4")
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--samples", type=int, default=256, help="calibrate on the first so many images")
    parser.add_argument("--images", type=int, default=48, help="images of each kind that are compared")
    arguments = parser.parse_args(argv)
    model = arguments.data / "models" / f"{arguments.model}.onnx"
    if not model.exists():
        print(f"{model} does not exist: name the data folder by --data or $ONNXCALIB_DATA.")
        return 0
    from onnxcalib.graph.blocks import find_blocks
    from onnxcalib.graph.emit import emit_qdq
    from onnxcalib.runtime.session import Session

    task, scaling = model.name.split("_")[0], read_preprocessing(arguments.data, model.name)
    prepared, found = quantize(arguments, model, scaling)
    blocks = [block for block in find_blocks(prepared.model, found.scheme) if block.layers]
    names = list(dict.fromkeys(tensor for block in blocks for tensor in block.outputs))
    quantized = emit_qdq(prepared.model, found.scheme, found.grids, found.layers)
    sessions = [Session(each, also=names) for each in (prepared.model, quantized)]
    files = sorted((arguments.data / task / "calib256").glob("*.*"))[: arguments.images]
    seen = read_photographs(files, SIZES[task])
    others = read_test(arguments.data, task)[0][: arguments.images]
    tables = [compare(sessions, names, normalize(images, *scaling)) for images in (seen, others)]
    print(f"{'':32}{'seen: dB':>10}{'slope':>7}{'ratio':>7}{'test: dB':>10}{'slope':>7}{'ratio':>7}")
    for name, *rows in zip(names, *tables, strict=True):
        print(f"{name[-32:]:32}" + "".join("{:10.2f}{:7.2f}{:7.2f}".format(*row) for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
