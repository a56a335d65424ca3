"""Whether the time that ``quantize`` says is left is the time that was left, at --effort balanced.

    python benchmarks/remaining.py [--data DIR] [--models a,b] [--bits W8A8,W4A4] [--samples 256] [--minilm FILE]

The data folder is that of accuracy.py; MiniLM needs --minilm, its ONNX file. Columns, from a quarter of the run on:
least and most = what was told / what was left, but for the last second; within 2 = the share of that time in which it
was between half and twice; known = the share of the run after which there was an estimate; seconds = the run.
Other programs on the machine that come or go while a run lasts move all of these.
"""

from __future__ import annotations

import argparse
import os
import re
import threading
import time
from pathlib import Path

from accuracy import ROOT, SIZES, no_cache, read_preprocessing
from text import LENGTH, choose_texts

NETWORKS = "cifar10_resnet20,imagenet_mobilenetv2,text_minilm_l6"
EVERY = 0.05  # seconds between two looks
FROM, LAST = 0.25, 1.0  # of the run, and seconds before its end


def describe(data: Path, model: Path, bits: str, count: int):
    """Samples and settings of a run."""
    from onnxcalib import QuantizeConfig
    from onnxcalib.config import DataConfig

    weight_bits, activation_bits = map(int, re.findall(r"\d+", bits))
    task = model.name.split("_")[0]
    if task == "text":
        texts = DataConfig(tokenizer=str(data / "text/tokenizer.json"), max_length=LENGTH)
        config = QuantizeConfig(weight_bits=weight_bits, activation_bits=activation_bits, threads=1, data=texts)
        return choose_texts(data, count), config
    mean, std = read_preprocessing(data, model.name)
    scaling = DataConfig(mean=tuple((mean / 255).tolist()), std=tuple((std / 255).tolist()), crop=SIZES[task])
    config = QuantizeConfig(weight_bits=weight_bits, activation_bits=activation_bits, threads=1, data=scaling)
    return data / task / "calib256", config.model_copy(update={"samples": count})


def watch(model: Path, samples, config) -> tuple[float, list[tuple[float, float]]]:
    """Seconds of the run, and (time, seconds that were told to be left) while there was an estimate."""
    import onnxcalib.pipeline
    from onnxcalib.cli.progress import ProgressObserver

    observer, ended, told = ProgressObserver(quiet=True, config=config), threading.Event(), []
    start = time.monotonic()

    def look() -> None:
        while not ended.wait(EVERY):
            if (left := observer.left()) is not None:
                told.append((time.monotonic() - start, left))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        with no_cache():
            onnxcalib.pipeline.quantize(model, samples, config, observer=observer)
    finally:
        ended.set()
        thread.join()
    return time.monotonic() - start, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("ONNXCALIB_DATA", ROOT.parent / "shared/data"))
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--models", default=NETWORKS)
    parser.add_argument("--bits", default="W8A8,W4A4")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--minilm", type=Path)
    given = parser.parse_args()
    print(f"{'model':24} {'bits':5} {'least':>6} {'most':>6} {'within 2':>8} {'known':>6} {'seconds':>8}")
    for name in given.models.split(","):
        model = given.minilm if name.startswith("text_") else given.data / "models" / f"{name}.onnx"
        for bits in given.bits.split(",") if model else ():
            total, told = watch(model, *describe(given.data, model, bits, given.samples))
            ratios = [left / (total - at) for at, left in told if FROM * total <= at <= total - LAST]
            within = sum(0.5 <= ratio <= 2 for ratio in ratios) / len(ratios)
            numbers = f"{min(ratios):6.2f} {max(ratios):6.2f} {within:8.0%} {told[0][0] / total:6.0%} {total:8.1f}"
            print(f"{name:24} {bits:5} {numbers}", flush=True)


if __name__ == "__main__":
    main()
