"""Quantize small networks of many architectures, exported in every way, and print the outcome of each.

    python benchmarks/coverage.py [--models a,b] [--exporters ts11,dynamo20] [--bits W8A8,W4A8] [--data DIR] [--latency]

Networks with random weights (architectures.py, sequences.py) are exported by torch: by its older exporter (ts, with a
dynamic batch) at opsets 11, 13 and 17, and by its newer one (dynamo, which needs onnxscript) at 18, 20, 21 and its
default. The models of a data folder's ops/ (--data, else $ONNXCALIB_DATA, else ../shared/data beside the repository)
follow, on random input. Each is quantized with few random samples at effort fast and with AdaQuant steps on every
block, so that every block has to become a torch module.

Columns: blocks = blocks with weights that became torch modules / all; rolled = those of them whose loss did not fall;
layers = quantized layers; whole = whether the whole model becomes one, which probes and the learning of biases need;
sqnr_db of the worst output; fused % of QuantizeLinear and DequantizeLinear; risks = integer kernels that can saturate
on x86 without VNNI; exact = whether onnxruntime loads the file with session.x64quantprecision = 1; seconds; with
--latency the speed against float on one thread. Layers and blocks that fell back follow, indented, with the reason.
The exit status is 1 where no model was measured, a model failed or has an SQNR below 5 dB, a kernel can saturate, a
file does not load, or fewer than 90% of all blocks became torch modules.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from accuracy import ROOT, compare_speed
from architectures import ARCHITECTURES, build

import onnxcalib
from onnxcalib.data import open_calibration
from onnxcalib.graph.index import all_nodes
from onnxcalib.graph.load import inputs_of, load_model
from onnxcalib.quantization.learn import check_parity
from onnxcalib.quantization.rewrite import rewrite
from onnxcalib.runtime.blocks import BlockError, to_torch
from onnxcalib.runtime.session import Session

EXPORTERS = ("ts11", "ts13", "ts17", "dynamo18", "dynamo20", "dynamo21", "dynamo")
DEFAULT_BITS = ("W8A8", "W4A8")
STEPS = 4
LEAST_TAKEN = 0.9
# A lower SQNR, on random weights and few random samples, is a fault and not noise.
LEAST_SQNR = 5
TAKEN = ("reconstructed", "rolled back")
FORMATS = {
    "rolled": "d",
    "layers": "d",
    "whole": "s",
    "sqnr_db": ".1f",
    "fused": ".0f",
    "risks": "d",
    "exact": "s",
    "seconds": ".1f",
    "speed": ".2f",
}


def opset_of(exporter: str) -> int | None:
    """That of ``ts11`` or ``dynamo18``, None for the default."""
    return int(exporter.removeprefix("dynamo").removeprefix("ts") or 0) or None


def export(name: str, exporter: str, path: Path) -> None:
    """Write one of ARCHITECTURES as the exporter does, ``ts`` or ``dynamo`` with the opset behind."""
    newer, opset = exporter.startswith("dynamo"), opset_of(exporter)
    entry, model = ARCHITECTURES[name], build(name, scripted=not newer)
    x = torch.from_numpy(entry.draw(1 if newer else 2))
    if not newer and entry.scripted:
        model = torch.jit.script(model)
    more = {"verbose": False} if newer else {"dynamic_axes": {"x": {0: "batch"}}, "input_names": ["x"]}
    with torch.no_grad():
        torch.onnx.export(model, (x,), str(path), dynamo=newer, opset_version=opset, **more)


def draw_inputs(model: onnx.ModelProto, count: int) -> dict[str, np.ndarray]:
    """Random values for a model of which nothing else is known; unknown sizes are small, the batch ``count``."""
    generator = np.random.default_rng(0)
    values = {}
    for spec in inputs_of(model):
        shape = [size or 512 for size in spec.shape]
        if spec.dtype.kind in "iu":
            values[spec.name] = np.full(shape, 16000, spec.dtype)
            continue
        axis = next((place for place, size in enumerate(spec.shape) if not size), 0) if shape else 0
        shape[axis] *= count
        values[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    return values


def measure(path: Path, samples: Any, bits: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row; a failure says why under ``failed``."""
    digits = dict(zip(("weight_bits", "activation_bits"), map(int, re.findall(r"\d+", bits)), strict=True))
    config = onnxcalib.QuantizeConfig(effort="fast", steps=arguments.steps, threads=1, **digits)
    began = time.perf_counter()
    try:
        result = onnxcalib.quantize(path, samples, config)
    except onnxcalib.OnnxCalibError as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    except Exception as error:  # a fault of ours: the table goes on, and shows where it was
        where = traceback.extract_tb(error.__traceback__)[-1]
        return {"failed": f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}"}
    report, seconds = result.report, time.perf_counter() - began
    pairs = Counter(node.op_type for node in all_nodes(result.model.graph))
    linear = pairs["QuantizeLinear"] + pairs["DequantizeLinear"]
    fallen = {b.name: f"{b.outcome}: {b.reason}" for b in report.blocks if not is_taken(b)}
    row = {"blocks": len(report.blocks), "taken": len(report.blocks) - len(fallen), "fallen": fallen}
    row |= {"rolled": sum(b.outcome == "rolled back" for b in report.blocks), "layers": len(report.layers)}
    levels = [record.sqnr_db for record in report.outputs if record.sqnr_db is not None]
    row |= {"sqnr_db": min(levels, default=float("nan")), "fused": 100 * (1 - len(report.unfused) / max(linear, 1))}
    reason = refuse_whole(path, samples, config)
    row |= {"whole": "no" if reason else "yes", **({"whole_reason": reason} if reason else {})}
    row |= {"risks": len(report.saturation.layers), "exact": "yes" if loads_exact(result.model) else "no"}
    row |= {"seconds": seconds, "warnings": list(report.warnings)}
    row["unfused"] = [f"{left.op} {left.tensor}: {left.reason}" for left in report.unfused]
    if arguments.latency:
        saved = path.with_suffix(".quantized.onnx")
        result.save(saved)
        feed = samples[:1] if isinstance(samples, np.ndarray) else None
        row["speed"] = compare_speed(path, saved, feed) if feed is not None else float("nan")
    return row


def loads_exact(model: onnx.ModelProto) -> bool:
    """Whether onnxruntime takes the file with unsigned weights in place of signed ones."""
    try:
        Session(model, unsigned=True)
    except onnxcalib.ModelError:
        return False
    return True


def refuse_whole(path: Path, samples: Any, config: onnxcalib.QuantizeConfig) -> str | None:
    """Why torch does not take the whole model, as it is prepared."""
    original = load_model(path)
    model, inputs = rewrite(load_model(original), config).model, inputs_of(original)
    calibration = open_calibration(samples, inputs, config.data)
    feeds = calibration.read(range(calibration.fixed_batch or 2))
    try:
        check_parity(to_torch(model), model, feeds, list(Session(model, threads=1).run(feeds).values()))
    except BlockError as error:
        return str(error)
    return None


def is_taken(block: onnxcalib.report.BlockRecord) -> bool:
    """Whether torch took the block as a whole."""
    return block.outcome in TAKEN and not (block.reason or "").startswith("not as one block")


def render(row: dict[str, Any]) -> str:
    head = f"{row['model']:28} {row['exporter']:9} {row['bits']:5}"
    if "failed" in row:
        return f"{head} failed: {row['failed']}"
    blocks = f"{row['taken']}/{row['blocks']}"
    cells = [format(format(row[key], form), ">8") for key, form in FORMATS.items() if key in row]
    return "\n".join(
        [f"{head} {blocks:>8}{''.join(cells)}", *(f"    {name}: {text}" for name, text in row["fallen"].items())]
    )


def list_jobs(arguments: argparse.Namespace, folder: Path):
    """(name, exporter, path, samples), exported one by one; a fault of the exporter stands in the path's place."""
    for name in [name for name in ARCHITECTURES if arguments.models is None or name in arguments.models]:
        for exporter in arguments.exporters:
            if (opset_of(exporter) or math.inf) < ARCHITECTURES[name].least_opset:
                continue
            path = folder / f"{name}.{exporter}.onnx"
            try:
                with redirect_stdout(io.StringIO()):  # the older exporter prints the graphs that it does not know
                    export(name, exporter, path)
            except Exception as error:  # torch's exporters raise whatever they meet
                yield name, exporter, f"not exported: {type(error).__name__}: {str(error).strip()[:200]}", None
                continue
            yield name, exporter, path, ARCHITECTURES[name].draw(arguments.samples)
            path.unlink()
    for path in sorted(arguments.data.glob("ops/*.onnx")):
        if arguments.models is None or path.stem in arguments.models:
            yield path.stem, "file", path, draw_inputs(onnx.load(path), 2)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("ONNXCALIB_DATA", ROOT.parent / "shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="folder with ops/*.onnx")
    parser.add_argument("--models", type=lambda text: text.split(","), help=", ".join(ARCHITECTURES))
    parser.add_argument("--exporters", type=lambda text: text.split(","), default=EXPORTERS, help=", ".join(EXPORTERS))
    parser.add_argument("--bits", type=lambda text: text.upper().split(","), default=DEFAULT_BITS)
    parser.add_argument("--samples", type=int, default=8, help="random samples; default: 8")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"AdaQuant steps of each block; default: {STEPS}")
    parser.add_argument("--latency", action="store_true", help="measure speed too")
    parser.add_argument("--json", type=Path, help="write all rows there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a layer, which the older exporter does not know
    rows = []
    columns = [key for key in FORMATS if key != "speed" or arguments.latency]
    print(f"{'model':28} {'exporter':9} {'bits':5} {'blocks':>8}{''.join(f'{key:>8}' for key in columns)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, exporter, path, samples in list_jobs(arguments, Path(folder)):
            for bits in arguments.bits:
                found = {"failed": path} if samples is None else measure(path, samples, bits, arguments)
                rows.append({"model": name, "exporter": exporter, "bits": bits, **found})
                print(render(rows[-1]), flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps(rows, indent=2))
    return summarize(rows)


def summarize(rows: list[dict[str, Any]]) -> int:
    blocks, taken = (sum(row.get(key, 0) for row in rows) for key in ("blocks", "taken"))
    failed = sum("failed" in row for row in rows)
    noisy = [row for row in rows if not row.get("sqnr_db", math.inf) > LEAST_SQNR]
    for row in noisy:
        print(f"{row['model']} {row['exporter']} {row['bits']}: {row['sqnr_db']:.1f} dB, {LEAST_SQNR} are wanted")
    unsafe = sum(bool(row.get("risks")) or row.get("exact") == "no" for row in rows)
    safety = f"{unsafe} files not exact on x86"
    print(f"{len(rows)} runs, {failed} failed; {taken} of {blocks} blocks taken as a whole; {safety}")
    return int(not rows or failed > 0 or bool(noisy) or unsafe > 0 or taken < LEAST_TAKEN * blocks)


if __name__ == "__main__":
    sys.exit(main())
