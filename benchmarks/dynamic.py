"""Calibrated, dynamic and float activations of a sentence encoder side by side (STS-B), beside quantize_dynamic.

    python benchmarks/dynamic.py [--model FILE.onnx] [--data DIR] [--samples N] [--variants NAME,...] [--speed]

The data folder is that of benchmarks/text.py. A file that the folder --out has already is measured and not made again.

Columns: 100 x Spearman's correlation in batches of 1 and of 32; SQNR of the embeddings in dB in batches of 1, of 32,
and of 32 without graph optimizations; quantized bytes / float bytes. With --speed, of files that are made: the speed
against float at batch 1 and 32, on one thread.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from accuracy import LATENCY_BATCHES, ROOT, compare_speed, no_cache
from text import LENGTH, choose_texts, open_texts, read_pairs, score

VARIANTS = {
    "static W8A8": {},
    "static W4A8": {"weight_bits": 4},
    "dynamic W8A8": {"activations": "dynamic"},
    "dynamic W4A8": {"activations": "dynamic", "weight_bits": 4},
    "weights alone W8": {"activation_bits": 32},
    "weights alone W4": {"activation_bits": 32, "weight_bits": 4},
    "quantize_dynamic": None,
}
BATCHES = (1, 32)


def make(name: str, output: Path, arguments: argparse.Namespace) -> None:
    """Write the file of a variant."""
    settings = VARIANTS[name]
    if settings is None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(arguments.model, output, weight_type=QuantType.QInt8, per_channel=True)
        return
    import onnxcalib

    texts = choose_texts(arguments.data, arguments.samples)
    data = {"tokenizer": arguments.data / "text/tokenizer.json", "max_length": LENGTH}
    with no_cache():
        config = onnxcalib.QuantizeConfig(effort="fast", data=onnxcalib.DataConfig(**data), **settings)
        onnxcalib.quantize(arguments.model, texts, config, test=texts).save(output)


def embed(path: Path, samples, batch: int, *, plain: bool = False) -> np.ndarray:
    """First output of all samples, run in batches of this size; plain: without graph optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session, found = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]), None
    for part in samples.split(batch):
        values = session.run(None, samples.read(part))[0]
        found = np.empty((len(samples), values.shape[1])) if found is None else found
        found[part] = values
    return found


def measure_sqnr(wanted: np.ndarray, given: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - given).sum()))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("ONNXCALIB_DATA", ROOT.parent / "shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="folder with text/")
    parser.add_argument("--model", type=Path, help="default: models/text_minilm_l6.onnx of the data folder")
    parser.add_argument("--samples", type=int, default=64, help="sentences that calibrate")
    parser.add_argument("--pairs", type=int, help="so many pairs of sentences from all over; default: all")
    parser.add_argument("--variants", type=lambda text: text.split(","), default=list(VARIANTS))
    parser.add_argument("--speed", action="store_true", help="measure the speed alone, of files that are made")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder for quantized models")
    arguments = parser.parse_args(argv)
    arguments.model = arguments.model or arguments.data / "models/text_minilm_l6.onnx"
    from onnxcalib import DataConfig, QuantizeConfig

    arguments.out.mkdir(parents=True, exist_ok=True)
    pairs = read_pairs(arguments.data / "text/sts-dev.csv")
    chosen = np.linspace(0, len(pairs[0]) - 1, arguments.pairs or len(pairs[0])).astype(int)
    first, second, gold = ([each[row] for row in chosen] for each in pairs)
    tokenizer = DataConfig(tokenizer=arguments.data / "text/tokenizer.json", max_length=LENGTH)
    samples = open_texts(arguments.model, first + second, QuantizeConfig(data=tokenizer))
    if not arguments.speed:
        reference = embed(arguments.model, samples, BATCHES[-1])
        print(f"{'float':18}{score(reference, gold):9.2f}", flush=True)
    for name in arguments.variants:
        output = arguments.out / f"{arguments.model.stem}.{name.replace(' ', '-').lower()}.onnx"
        if not output.exists():
            make(name, output, arguments)
        if arguments.speed:
            times = (
                compare_speed(arguments.model, output, samples.read(samples.alike(batch))) for batch in LATENCY_BATCHES
            )
            print(f"{name:18}" + "".join(f"{speed:7.2f}" for speed in times), flush=True)
            continue
        given = [embed(output, samples, batch) for batch in BATCHES]
        plain = embed(output, samples, BATCHES[-1], plain=True)
        scores = "".join(f"{score(each, gold):9.2f}" for each in given)
        levels = "".join(f"{measure_sqnr(reference, each):7.1f}" for each in (*given, plain))
        print(f"{name:18}{scores}{levels}{output.stat().st_size / arguments.model.stat().st_size:9.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
