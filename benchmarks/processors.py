"""Print what integers that cannot saturate cost, and their speed beside that of onnxruntime's own quantization.

    python benchmarks/processors.py [--data DIR] [--models a,b] [--bits W8A8,W4A8] [--speed] [--json FILE]

Each model is quantized twice, with --weight-range full and bounded, at the default effort from 256 samples, each in a
process of its own. The data folder is that of accuracy.py and, for models named text_*, of text.py.

Columns: at_risk = integer kernels that can saturate on x86 without VNNI, of all; exact = agreement % with the float
model (for texts 100 x Spearman's correlation with people's scores of STS-B) / SQNR dB, with exact sums; deployed = the
same in a default session on this processor, whose kind is printed first; cost = dB between both ranges with exact sums.
With --speed, at W8A8: time of the file of onnxruntime's own quantize_static (min-max, uint8 x int8, a scale for each
channel, after its preprocessing) over the time of the bounded file, at batch 1 and 32, on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from accuracy import (
    LATENCY_BATCHES,
    ROOT,
    SIZES,
    compare_speed,
    normalize,
    read_photographs,
    read_preprocessing,
    read_test,
)
from text import BATCH, LENGTH, choose_texts, open_texts, read_pairs, score

SAMPLES, STATIC_BATCH = 256, 8
RANGES = ("full", "bounded")


class Task:
    """A model's calibration data, settings, and test samples as feeds for onnxruntime."""

    def __init__(self, model: Path, data: Path) -> None:
        from onnxcalib import DataConfig, QuantizeConfig

        self.model, self.text = model, model.name.startswith("text_")
        self.input = onnx.load(model, load_external_data=False).graph.input[0].name
        if self.text:
            self.config = QuantizeConfig(data=DataConfig(tokenizer=data / "text/tokenizer.json", max_length=LENGTH))
            first, second, self.gold = read_pairs(data / "text/sts-dev.csv")
            self.calibration: Any = choose_texts(data, SAMPLES)
            self.test = open_texts(model, first + second, self.config)
            self.order = np.argsort(np.concatenate(self.test.split(BATCH)))
            return
        task = model.name.split("_")[0]
        self.scaling = read_preprocessing(data, model.name)
        mean, std = (tuple((values / 255).tolist()) for values in self.scaling)
        self.config = QuantizeConfig(data=DataConfig(mean=mean, std=std, crop=SIZES[task]), samples=SAMPLES)
        self.calibration, self.size = data / task / "calib256", SIZES[task]
        self.test = read_test(data, task)[0]
        self.order = np.arange(len(self.test))

    def feeds(self):
        """The test samples, batch by batch; ``order`` brings their outputs back into the samples' own."""
        if self.text:
            for part in self.test.split(BATCH):
                yield self.test.read(part)
        else:
            for start in range(0, len(self.test), BATCH):
                yield {self.input: normalize(self.test[start : start + BATCH], *self.scaling)}

    def one_batch(self, size: int) -> dict[str, np.ndarray]:
        if self.text:
            return self.test.read(self.test.alike(size))
        return {self.input: normalize(self.test[:size], *self.scaling)}

    def calibration_feeds(self):
        """The calibration samples as onnxruntime's own quantization reads them."""
        if self.text:
            samples = open_texts(self.model, self.calibration, self.config)
            yield from samples.batches(STATIC_BATCH)
        else:
            images = read_photographs(sorted(self.calibration.glob("*.*"))[:SAMPLES], self.size)
            for start in range(0, len(images), STATIC_BATCH):
                yield {self.input: normalize(images[start : start + STATIC_BATCH], *self.scaling)}


def run(path: Path, task: Task, **how) -> np.ndarray:
    """First output of all test samples, float64 (samples, values)."""
    from onnxcalib.runtime.session import Session

    session = Session(onnx.load(path), **how)
    name = session.outputs[0]
    values = [session.run(feeds, [name])[name] for feeds in task.feeds()]
    return np.concatenate([value.reshape(len(value), -1) for value in values]).astype(np.float64)[task.order]


def compare(task: Task, reference: np.ndarray, given: np.ndarray) -> dict[str, float]:
    quality = score(given, task.gold) if task.text else 100 * float((reference.argmax(1) == given.argmax(1)).mean())
    error = np.square(reference - given).sum()
    return {"quality": quality, "sqnr_db": float(10 * np.log10(np.square(reference).sum() / error))}


def quantize(job: dict[str, str]) -> None:
    """One quantization, in a process of its own, which prints how many kernels there are and can saturate."""
    import onnxcalib

    task = Task(Path(job["model"]), Path(job["data"]))
    bits = dict(zip(("weight_bits", "activation_bits"), map(int, re.findall(r"\d+", job["bits"])), strict=True))
    config = task.config.model_copy(update={**bits, "weight_range": job["range"]})
    result = onnxcalib.quantize(task.model, task.calibration, config, test=task.calibration)
    result.save(job["output"])
    found = result.report.saturation
    print(json.dumps({"at_risk": len(found.layers), "kernels": found.kernels}))


def measure(task: Task, bits: str, arguments: argparse.Namespace, reference: np.ndarray) -> list[dict[str, Any]]:
    """A row for each range."""
    rows = []
    for chosen in RANGES:
        output = arguments.out / f"{task.model.stem}.{bits.lower()}.{chosen}.onnx"
        job = {"model": str(task.model), "data": str(arguments.data), "bits": bits, "range": chosen}
        command = [sys.executable, str(Path(__file__).resolve()), "--job", json.dumps(job | {"output": str(output)})]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row: dict[str, Any] = {"model": task.model.stem, "bits": bits, "range": chosen}
        row |= json.loads(done.stdout.splitlines()[-1])
        row["exact"] = compare(task, reference, run(output, task))
        row["deployed"] = compare(task, reference, run(output, task, deployed=True))
        rows.append(row)
    rows[1]["cost"] = rows[0]["exact"]["sqnr_db"] - rows[1]["exact"]["sqnr_db"]
    if arguments.speed and bits == "W8A8":
        static = quantize_static(task, arguments.out)
        for size in LATENCY_BATCHES:
            rows[1][f"speed_{size}"] = compare_speed(static, output, task.one_batch(size))
    return rows


def quantize_static(task: Task, folder: Path) -> Path:
    """The file that onnxruntime's own quantization makes."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize_by_onnxruntime
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        feeds = task.calibration_feeds()

        def get_next(self):
            return next(self.feeds, None)

    output = folder / f"{task.model.stem}.static.onnx"
    with tempfile.TemporaryDirectory() as aside:
        prepared = str(Path(aside) / "prepared.onnx")
        quant_pre_process(str(task.model), prepared, skip_symbolic_shape=True)
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_by_onnxruntime(
            prepared, str(output), Reader(), quant_format=QuantFormat.QDQ, per_channel=True, **kinds
        )
    return output


def render(row: dict[str, Any]) -> str:
    quality = "".join("{quality:9.1f} / {sqnr_db:5.2f}".format(**row[key]) for key in ("exact", "deployed"))
    rest = "".join(f"{row[key]:9.2f}" for key in ("cost", *(f"speed_{size}" for size in LATENCY_BATCHES)) if key in row)
    return f"{row['model']:28} {row['bits']} {row['range']:8}{row['at_risk']:4} of {row['kernels']:3}{quality}{rest}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("ONNXCALIB_DATA", ROOT.parent / "shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="folder with models and samples")
    parser.add_argument("--models", type=lambda text: text.split(","), help="names without .onnx; default: all")
    parser.add_argument("--bits", type=lambda text: text.upper().split(","), default=["W8A8", "W4A8"])
    parser.add_argument("--speed", action="store_true", help="measure speed beside onnxruntime's own quantization")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder for quantized models")
    parser.add_argument("--json", type=Path, help="write all rows there")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.job:
        quantize(arguments.job)
        return 0
    models = sorted(arguments.data.glob("models/*.onnx"))
    models = [model for model in models if arguments.models is None or model.stem in arguments.models]
    if not models:
        print(f"No models to measure in {arguments.data}/models: name the data folder by --data or $ONNXCALIB_DATA.")
        return 0
    from onnxcalib.runtime.session import saturates

    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"integer sums of default sessions on this processor: {'saturating' if saturates() else 'exact'}")
    print("model, bits, range, at_risk, exact, deployed, cost, speed at batch 1 and 32", flush=True)
    rows = []
    for model in models:
        task = Task(model, arguments.data)
        reference = run(model, task)
        for bits in arguments.bits:
            for row in measure(task, bits, arguments, reference):
                rows.append(row)
                print(render(row), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
