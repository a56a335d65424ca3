"""Quantize the weights of language models alone, and print what each format loses.

    python benchmarks/language.py --models DIR/model.onnx --calib FOLDER --text FILE.txt --tokenizer tokenizer.json
        [--formats W4-128,W4-column,W3-64,W2-64,W4-128-asym] [--peers] [--tokens 4096] [--json FILE]

A model reads input_ids, and maybe attention_mask and position_ids, and gives logits. --calib is what ``onnxcalib
quantize`` takes. --text is another text, cut into windows of --length tokens, each of which is read by itself.

A format is W and the bits, and the inputs that share a scale; ``-asym`` has zero points. All layers have these bits,
the head too; tables stay in float, as peers leave them. --peers: onnxruntime's MatMulNBitsQuantizer beside each format
of 4 or 2 bits: rtn (its default, with zero points), rtn-sym, hqq; at 4 bits k-quant in blocks of 32, and gptq from the
same samples, which runs the whole model once for each layer and sample. It has no 3 bits, and hqq and gptq take
blocks of 128 where a format has a scale a column. Each quantization runs in a process of its own, on one thread.

Columns: lost = nats a token more than float; bits = bits a weight of the quantized layers, with scales and zero
points; seconds = CPU time of quantizing; memory_gb = its peak; tokens = tokens a second of CPU time over a window, and
of float's. Losses are of onnxruntime's kernels as they are loaded, which round activations to 8 bits in blocks, too.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from accuracy import ROOT, open_session, read_peak_gb
from jobs import render_row, run_job

FORMATS = dict(loss=".4f", lost=".4f", bits=".3f", seconds=".0f", memory_gb=".2f", tokens=".0f", float_tokens=".0f")
PEERS = {4: ("rtn", "rtn-sym", "hqq", "k-quant", "gptq"), 3: (), 2: ("rtn", "rtn-sym", "hqq"), 8: ("rtn", "rtn-sym")}
K_QUANT_BLOCK = 32  # the only one that it has
BYTES = {"FLOAT": 4, "FLOAT16": 2, "UINT8": 1, "INT8": 1, "UINT4": 0.5, "INT4": 0.5, "UINT2": 0.25, "INT2": 0.25}


def read_format(text: str) -> dict[str, Any]:
    """The settings of a format such as W4-128-asym."""
    bits, block, *rest = text.upper().removeprefix("W").split("-")
    size = "column" if block == "COLUMN" else int(block)
    symmetry = "asymmetric" if rest == ["ASYM"] else "symmetric"
    return {"weight_bits": int(bits), "block_size": size, "weight_symmetry": symmetry}


def quantize(job: dict[str, Any]) -> dict[str, Any]:
    """One quantization, in a process of its own."""
    model, output = Path(job["model"]), Path(job["output"])
    if job["peer"]:
        import torch  # which onnxruntime's HQQ uses, and is told to use one thread

        torch.set_num_threads(1)
        began = time.process_time()
        write_by_peer(job, read_format(job["format"]))
    else:
        import onnxcalib
        import onnxcalib.pipeline  # loads torch and onnxruntime
        from onnxcalib.config import QuantizeConfig

        began = time.process_time()
        given = read_format(job["format"])
        bits = {"first_last_bits": given["weight_bits"], "embedding_bits": 32, "activation_bits": 32}
        config = QuantizeConfig(**given, **bits, threads=1, **job["more"])
        onnxcalib.quantize(model, job["calib"], config).save(output)
    return {"seconds": time.process_time() - began, "memory_gb": read_peak_gb()}


def write_by_peer(job: dict[str, Any], given: dict[str, Any]) -> None:
    """Quantize by onnxruntime's own tool."""
    from onnxruntime.quantization import matmul_nbits_quantizer as peers

    bits, column = given["weight_bits"], given["block_size"] == "column"
    block = 128 if column else given["block_size"]
    kind = peers.QuantFormat.QDQ if column else peers.QuantFormat.QOperator  # a scale a column has no operator there
    config = {
        "rtn": lambda: peers.DefaultWeightOnlyQuantConfig(
            block_size=block, bits=bits, accuracy_level=4, channel_wised_quantize=column, quant_format=kind
        ),
        "rtn-sym": lambda: peers.DefaultWeightOnlyQuantConfig(
            block_size=block,
            bits=bits,
            accuracy_level=4,
            is_symmetric=True,
            channel_wised_quantize=column,
            quant_format=kind,
        ),
        "hqq": lambda: peers.HQQWeightOnlyQuantConfig(block_size=block, bits=bits),
        "k-quant": lambda: peers.KQuantWeightOnlyQuantConfig(),
        "gptq": lambda: peers.GPTQWeightOnlyQuantConfig(read_samples(Path(job["calib"])), mse=True),
    }[job["peer"]]()
    size = K_QUANT_BLOCK if job["peer"] == "k-quant" else block
    found = peers.MatMulNBitsQuantizer(job["model"], bits, size, accuracy_level=4, algo_config=config)
    found.process()
    found.model.save_model_to_file(job["output"], use_external_data_format=False)


def read_samples(folder: Path) -> list[dict[str, np.ndarray]]:
    """The samples of a folder's .npz files, one to a batch."""
    samples = []
    for path in sorted(folder.glob("*.npz")):
        arrays = dict(np.load(path))
        samples += [
            {name: array[i : i + 1] for name, array in arrays.items()} for i in range(len(next(iter(arrays.values()))))
        ]
    return samples


def count_bits(path: Path) -> float:
    """Bits a weight of the MatMuls and Gemms whose weight is stored as integers, scales and zero points included."""
    model = onnx.load(path)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    weights = total = 0.0
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            sizes = {a.name: a.i for a in node.attribute}
            weights += sizes["K"] * sizes["N"]
            total += sum(_bytes(stored[name]) for name in node.input[1:4] if name in stored)
        elif node.op_type in ("MatMul", "Gemm") and (maker := makers.get(node.input[1])) is not None:
            if maker.op_type == "DequantizeLinear" and maker.input[0] in stored:
                weights += math.prod(stored[maker.input[0]].dims)
                total += sum(_bytes(stored[name]) for name in maker.input)
    return 8 * total / max(weights, 1)


def _bytes(tensor: onnx.TensorProto) -> float:
    return math.prod(tensor.dims) * BYTES[onnx.TensorProto.DataType.Name(tensor.data_type)]


def read_windows(arguments: argparse.Namespace) -> np.ndarray:
    """Token ids (windows, length) of the text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    ids = np.array(tokenizer.encode(arguments.text.read_text("utf-8"), add_special_tokens=False).ids, np.int64)
    count = min(len(ids), arguments.tokens) // arguments.length
    return ids[: count * arguments.length].reshape(count, arguments.length)


def measure_loss(path: Path, windows: np.ndarray) -> tuple[float, float]:
    """The mean loss of the next token in nats, and tokens a second."""
    session, losses, seconds = open_session(path, 1), [], []
    for ids in windows:
        began = time.process_time()
        (logits,) = session.run(["logits"], feed(session, ids[None]))
        seconds.append(time.process_time() - began)
        rows = logits[0, :-1].astype(np.float64)
        rows -= rows.max(1, keepdims=True)
        losses.append(np.log(np.exp(rows).sum(1)) - rows[np.arange(len(rows)), ids[1:]])
    return float(np.concatenate(losses).mean()), windows.shape[1] / float(np.median(seconds))


def feed(session: ort.InferenceSession, ids: np.ndarray) -> dict[str, np.ndarray]:
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy()
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": positions}
    return {each.name: given[each.name] for each in session.get_inputs()}


def measure(model: Path, text: str, peer: str | None, arguments: argparse.Namespace, known: dict) -> dict[str, Any]:
    """One row; one that fails says why under ``failed``."""
    name = f"{peer} {text}" if peer else text
    output = arguments.out / f"{model.stem}.{name.lower().replace(' ', '-')}.onnx"
    job = {"model": str(model), "output": str(output), "format": text, "peer": peer, "calib": str(arguments.calib)}
    row: dict[str, Any] = {"model": model.stem, "format": name}
    row |= run_job(__file__, job | {"more": arguments.settings})
    if "failed" in row:
        return row
    loss, speed = measure_loss(output, known["windows"])
    row |= {"loss": loss, "lost": loss - known["loss"], "tokens": speed, "float_tokens": known["tokens"]}
    return row | {"bits": count_bits(output)}


def render(row: dict[str, Any]) -> str:
    return render_row(f"{row['model']:12} {row['format']:20}", row, FORMATS, 13)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: [Path(each) for each in text.split(",")], default=[])
    for name in ("calib", "text", "tokenizer", "json"):
        parser.add_argument(f"--{name}", type=Path)
    formats = ["W4-128", "W4-column", "W3-64", "W2-64"]
    parser.add_argument("--formats", type=lambda text: text.split(","), default=formats)
    parser.add_argument("--settings", type=json.loads, default={}, help="more settings of onnxcalib, as JSON")
    parser.add_argument("--peers", action="store_true", help="onnxruntime's own quantizer beside it")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of the text to measure on")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder for quantized models")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.job:
        print(f"\n{json.dumps(quantize(arguments.job))}", flush=True)  # peers may leave a line open
        return 0
    if not (arguments.models and arguments.calib and arguments.text and arguments.tokenizer):
        print("Give --models, --calib, --text and --tokenizer.")
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"{'model':12} {'format':20}{''.join(f'{key:>13}' for key in FORMATS)}", flush=True)
    rows = []
    for model in arguments.models:
        windows = read_windows(arguments)
        loss, speed = measure_loss(model, windows)
        known = {"windows": windows, "loss": loss, "tokens": speed}
        print(f"{model.stem:12} {'float':20}{loss:>13.4f}", flush=True)
        for text in arguments.formats:
            peers = PEERS[read_format(text)["weight_bits"]] if arguments.peers else ()
            for peer in (None, *peers):
                rows.append(measure(model, text, peer, arguments, known))
                print(render(rows[-1]), flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps(rows, indent=2))
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
