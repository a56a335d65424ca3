"""Whether the result that ``quantize`` prints is the result on other data, and what holding samples out costs.

    python benchmarks/honest.py [--data DIR] [--models a,b] [--bits W4A8,W4A4] [--samples 64] [--effort fast] [--json F]

The data folder is that of accuracy.py; MiniLM also needs --minilm, its ONNX file.

Columns, each SQNR in dB / agreement in %: seen = on the samples that the model was made from; held out = on those held
out; printed = what the table says is to be expected of others, with 95% intervals; others = on more samples of the
calibration data, where there are more; test = on images or sentences that the network was not trained on either:
lossless test images of CIFAR-10 (JPEG would move them further away), evaluation images of ImageNet, the dev set of
STS-B; all = a file made from all samples, on test. A '!' marks a printed number whose interval does not hold that of
"others" (of "test" where there are no others), '~' one that is over 1 dB or 1 point off it: the difference follows with
its standard error, as both numbers are of samples.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import ROOT, SIZES, normalize, read_photographs, read_preprocessing, read_test
from rich.console import Console
from rich.table import Table
from text import choose_texts, read_pairs

NETWORKS = (
    "cifar10_resnet20",
    "cifar10_resnet56",
    "imagenet_mobilenetv2",
    "imagenet_squeezenet1.1",
    "imagenet_efficientnet_lite0",
    "text_minilm_l6",
)
BITS, SAMPLES = "W8A8,W4A8,W4A4", "64,256"
COLUMNS = ("seen", "held out", "printed", "others", "test", "all")
TEXTS = 512  # of the dev set
LENGTH = 128
Z = 1.96


def describe(data: Path, model: Path, bits: str, count: int, effort: str) -> tuple[Any, Any, dict[str, Any]]:
    """Calibration data and settings of one quantization, and the sets to judge it by."""
    from onnxcalib import QuantizeConfig, open_calibration
    from onnxcalib.config import DataConfig

    weight_bits, activation_bits = map(int, re.findall(r"\d+", bits))
    common: dict[str, Any] = {"weight_bits": weight_bits, "activation_bits": activation_bits, "effort": effort}
    task = model.name.split("_")[0]
    if task == "text":
        texts = DataConfig(tokenizer=str(data / "text/tokenizer.json"), max_length=LENGTH)
        given = choose_texts(data, count)
        others = sorted(set(choose_texts(data, 4 * TEXTS)) - set(given))[::2]
        sets = {"others": others, "test": read_pairs(data / "text/sts-dev.csv")[0][:TEXTS]}
        opened = {name: open_calibration(each, model, texts) for name, each in sets.items()}
        return given, QuantizeConfig(data=texts, **common), opened
    mean, std = read_preprocessing(data, model.name)
    if task == "cifar10":
        pixels = np.load(data / "cifar10/calib.npz")["images"][count:]
        pictures = {"others": pixels, "test": np.load(data / "cifar10/test.npz")["images"]}
    else:
        files = sorted((data / task / "calib256").glob("*.*"))[count:]
        pictures = {"others": read_photographs(files, SIZES[task]), "test": read_test(data, task)[0]}
    images = DataConfig(mean=tuple(mean / 255), std=tuple(std / 255), crop=SIZES[task])
    opened = {n: open_calibration(normalize(each, mean, std), model) for n, each in pictures.items() if len(each)}
    return data / task / "calib256", QuantizeConfig(data=images, samples=count, **common), opened


def measure(data: Path, model: Path, bits: str, count: int, *, effort: str, with_all: bool = True) -> dict[str, Any]:
    """SQNR and agreement of one network: seen, printed, on the other sets, and of a file made from all samples."""
    import onnxcalib
    from onnxcalib.report import MeasuredOn

    calibration, config, others = describe(data, model, bits, count, effort)
    prepared = onnxcalib.prepare(model, calibration, config)
    found = onnxcalib.reconstruct(prepared)
    quantized = onnxcalib.emit(prepared, found)
    row: dict[str, Any] = {"model": model.stem, "bits": bits, "samples": count, "held_out": len(prepared.test)}
    output = onnxcalib.verify(prepared, found, quantized).outputs[0]
    row["held out"], row["printed"] = list_numbers(output), list_numbers(output.expected or output)
    for name, samples in {"seen": prepared.samples, **others}.items():
        judged = replace(prepared, test=samples, measured_on=MeasuredOn("test", len(samples)))
        row[name] = list_numbers(onnxcalib.verify(judged, found, quantized).outputs[0])
    if with_all:
        row["all"] = list_numbers(onnxcalib.quantize(model, calibration, config, test=others["test"]).report.outputs[0])
    return row


def list_numbers(output: Any) -> dict[str, Any]:
    intervals = {"db_interval": output.sqnr_interval, "agreement_interval": output.agreement_interval}
    return {"db": output.sqnr_db, "agreement": output.agreement, **intervals}


def spell_cell(found: dict[str, Any] | None, true: dict[str, Any] | None = None) -> str:
    """``23.1 / 94.4``, with intervals and marks where ``true`` is given."""
    parts: list[str] = []
    if found is None:
        return "-"
    for key, scale, unit in (("db", 1, 1.0), ("agreement", 100, 0.01)):
        value, ends = found[key], found[f"{key}_interval"]
        if value is None:
            continue
        text = f"{scale * value:.1f}"
        if true is not None:
            inside = ends is not None and ends[0] <= true[key] <= ends[1]
            marks = "" if inside else "!"
            if abs(value - true[key]) > unit:
                error = math.hypot(*(spread(each[f"{key}_interval"]) for each in (found, true)))
                marks += f"~{scale * (value - true[key]):+.1f} +- {scale * error:.1f}"
            text += f" ({scale * ends[0]:.1f} to {scale * ends[1]:.1f}){marks}" if ends else marks
        parts.append(text)
    return " / ".join(parts)


def spread(interval: Any) -> float:
    """The standard error that a 95% interval tells."""
    return math.nan if interval is None else (interval[1] - interval[0]) / (2 * Z)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("ONNXCALIB_DATA", ROOT.parent / "shared/data"))
    )
    parser.add_argument("--minilm", type=Path, help="text_minilm_l6.onnx")
    parser.add_argument("--models", default=",".join(NETWORKS))
    parser.add_argument("--bits", default=BITS)
    parser.add_argument("--samples", default=SAMPLES)
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-all", action="store_true", help="without the column all, in half the time")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    table = Table("model", "bits", "samples", *COLUMNS, box=None)
    for name in given.models.split(","):
        model = given.minilm if name == "text_minilm_l6" else given.data / f"models/{name}.onnx"
        if model is None:
            continue
        for count in map(int, given.samples.split(",")):
            for bits in given.bits.split(","):
                row = measure(given.data, model, bits, count, effort=given.effort, with_all=not given.no_all)
                rows.append(row)
                true = row.get("others", row["test"])
                cells = [spell_cell(row.get(each), true if each == "printed" else None) for each in COLUMNS]
                print(name, bits, count, row["held_out"], *cells, sep=" | ", flush=True)
                table.add_row(name, bits, f"{count} ({row['held_out']} held out)", *cells)
                if given.json:
                    given.json.write_text(json.dumps(rows, indent=1))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
