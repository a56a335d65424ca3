"""Quantize made nets whose layers are in bodies of If, Loop and Scan, beside the same nets without control flow.

    python benchmarks/bodies.py [--bits W8A8,W4A8,W4A32] [--effort fast] [--samples 64] [--odd]
    python benchmarks/bodies.py --plan 0.95@8-bit,0.9@8-bit [--cells mlp,conv]

A net applies one cell a number of times to a state, with random weights. Its forms give equal outputs: unrolled, and
the same in a branch, in a Loop, in a Scan, in a Loop in a branch; and with weights of its own in each turn, unrolled,
in a branch, and in both branches, which the samples take by turns. Unrolled, all turns read one constant; "copies" is
the same with a copy of it for each turn. Cells: a residual MLP, a residual block of convolutions, and an RNN that reads
a frame a turn. All layers have the same bits. A Loop has one grid for all turns, where the unrolled forms have one in
each, and copies have integers of their own too.

Columns: SQNR of the outputs on samples that were held out, and the difference in dB from "unrolled", or from "unrolled,
own"; layers that were quantized; bytes beside the float file; integer kernels that onnxruntime made; Q/DQ that it left;
seconds. The exit status is 1 where a form of the same constants is more than BAR dB below.

--plan: each form at these sizes, planned of W8A8 and W4A8, beside both everywhere: bytes, SQNR in dB, and layers at 4
bits. The exit status is 1 where a file is larger than its limit or than its plan says, or where a branch has another
plan than the same net without control flow.

--odd: the odd bodies of tests/quantization/odd_bodies.py too, with every kind of settings: which of them are not as
their table says, or not what the float model gives.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, numpy_helper, parser

import onnxcalib
from onnxcalib.numeric.metrics import Comparison

ROOT = Path(__file__).resolve().parent.parent
BAR = 1.0  # dB
TURNS, OTHERS = 4, 64  # turns of a net, and samples that it is measured on
# Cell -> its nodes from state s (and frame f) to state t, shapes of state and weights.
MLP = "{n}h = Gemm ({s}, w1{k}, b1{k}) {n}r = Relu ({n}h) {n}g = Gemm ({n}r, w2{k}, b2{k}) {t} = Add ({s}, {n}g)"
CONV = """{n}h = Conv <pads = [1, 1, 1, 1]> ({s}, w1{k}, b1{k}) {n}r = Relu ({n}h)
    {n}g = Conv <pads = [1, 1, 1, 1]> ({n}r, w2{k}, b2{k}) {t} = Add ({s}, {n}g)"""
RNN = "{n}g = Gemm ({f}, w1{k}, b1{k}) {n}h = Gemm ({s}, w2{k}, b2{k}) {n}k = Add ({n}g, {n}h) {t} = Tanh ({n}k)"
CELLS: dict[str, tuple[str, list[int], list[int]]] = {
    "mlp": (MLP, [1, 64], [64, 64]),
    "conv": (CONV, [1, 16, 12, 12], [16, 16, 3, 3]),
    "rnn": (RNN, [1, 64], [64, 64]),
}
# Those whose turns have weights of their own come last. The first of each kind is the one to compare with.
FORMS = (
    "unrolled",
    "copies",
    "branch",
    "loop",
    "scan",
    "loop in a branch",
    "unrolled, own",
    "branch, own",
    "both, own",
)
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {}, "rounded": {"reconstruct": False}, "W4A8": {"weight_bits": 4}, "W8A32": {"activation_bits": 32},
    "W4A32": {"activation_bits": 32, "weight_bits": 4}, "dynamic": {"activations": "dynamic"},
    "matmulnbits": {"activation_bits": 32, "weight_bits": 4, "encoding": "matmulnbits"},
}  # fmt: skip


def make_net(cell: str, form: str) -> ModelProto:
    """The model of a net; the sign of its input c chooses between branches."""
    text, sizes, kernel = CELLS[cell]
    state, reads = f"float{sizes}", cell == "rnn"
    front = "frames = Transpose <perm = [1, 0, 2]> (x)" if reads else "start = Identity (x)"

    def unroll(prefix: str, out: str, *, own: bool = form == "copies") -> str:
        taken = [f"{prefix}f{i} = Gather <axis = 0> (frames, i{i})" for i in range(TURNS) if reads]
        ends = ["start", *(f"{prefix}s{i}" for i in range(1, TURNS)), out]
        turns = (
            text.format(n=f"{prefix}{i}", s=ends[i], t=ends[i + 1], f=f"{prefix}f{i}", k=f"k{i}" if own else "")
            for i in range(TURNS)
        )
        return " ".join([*taken, *turns])

    def loop(out: str) -> str:
        frame = "f = Gather <axis = 0> (frames, i)" if reads else ""
        cell_nodes = text.format(n="n", s="s", t="t", f="f", k="")
        body = (
            f"turn (int64 i, bool go, {state} s) => (bool on, {state} t) {{ on = Identity (go) {frame} {cell_nodes} }}"
        )
        return f"{out} = Loop <body = {body}> (turns, yes, start)"

    def scan(out: str) -> str:
        frame = f"float[1, {sizes[1]}]" if reads else "float"
        body = f"turn ({state} s, {frame} f) => ({state} t) {{ {text.format(n='n', s='s', t='t', f='f', k='')} }}"
        return f"{out} = Scan <num_scan_inputs = 1, body = {body}> (start, {'frames' if reads else 'ticks'})"

    def choose(then: str, other: str) -> str:
        branches = f"then_branch = a () => ({state} p) {{ {then} }}, else_branch = b () => ({state} q) {{ {other} }}"
        return f"less = Less (c, nought) sign = Squeeze (less) y = If (sign) <{branches}>"

    nodes = {
        "copies": unroll("a", "y"),
        "unrolled": unroll("a", "y"),
        "branch": choose(unroll("a", "p"), "q = Neg (start)"),
        "unrolled, own": unroll("a", "y", own=True),
        "branch, own": choose(unroll("a", "p", own=True), "q = Neg (start)"),
        "both, own": choose(unroll("a", "p", own=True), unroll("b", "q", own=True)),
        "loop": loop("y"),
        "scan": scan("y"),
        "loop in a branch": choose(loop("p"), "q = Neg (start)"),
    }[form]
    given = f"float[1, {TURNS}, {sizes[1]}]" if reads else state
    graph = f"net ({given} x, float[1] c) => ({state} y) {{ {front} {nodes} }}"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{graph}')
    for name, value in _list_constants(kernel, sizes, reads=reads, copies=form == "copies").items():
        if f'"{name}"' in str(model.graph):
            model.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.checker.check_model(model, full_check=True)
    return model


def _list_constants(kernel: list[int], sizes: list[int], *, reads: bool, copies: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ends = [f"{number}{turn}" for turn in ("", *(f"k{i}" for i in range(TURNS))) for number in (1, 2)]
    weights = {f"w{end}": rng.normal(size=kernel) / np.sqrt(np.prod(kernel[1:])) for end in ends}
    biases = {f"b{end}": rng.normal(size=kernel[0]) / 10 for end in ends}
    drawn = weights | biases
    floats = {name: drawn[name[:2] if copies else name].astype(np.float32) for name in drawn}
    floats |= {"nought": np.array([0], np.float32), "ticks": np.zeros(TURNS, np.float32)}
    if reads:
        floats["start"] = np.zeros(sizes, np.float32)
    return floats | {"turns": np.array(TURNS), "yes": np.array(True), **{f"i{i}": np.array(i) for i in range(TURNS)}}


def draw(cell: str, form: str, count: int, seed: int) -> dict[str, np.ndarray]:
    """Samples of x, and numbers of which negative ones take the first branch: all, or every second."""
    rng = np.random.default_rng(seed)
    sizes = CELLS[cell][1]
    shape = (count, TURNS, sizes[1]) if cell == "rnn" else (count, *sizes[1:])
    sign = np.where(np.arange(count) % 2, 1, -1) if form.startswith("both") else np.full(count, -1)
    return {"x": rng.normal(size=shape).astype(np.float32), "c": sign.astype(np.float32)}


def measure(cell: str, form: str, bits: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    digits = dict(zip(("weight_bits", "activation_bits"), map(int, re.findall(r"\d+", bits)), strict=True))
    model, began = make_net(cell, form), time.perf_counter()
    config = onnxcalib.QuantizeConfig(
        effort=arguments.effort, threads=1, first_last_bits=digits["weight_bits"], **digits
    )
    count = arguments.samples * (2 if form.startswith("both") else 1)  # as many for each branch
    result = onnxcalib.quantize(model, draw(cell, form, count, 1), config)
    report, seconds = result.report, time.perf_counter() - began
    size = len(result.model.SerializeToString()) / len(model.SerializeToString())
    level = compare(model, result.model, draw(cell, form, OTHERS, 2))
    row = {"sqnr_db": level, "layers": len(report.layers), "size": size, "kernels": report.saturation.kernels}
    return {**row, "unfused": len(report.unfused), "seconds": seconds, "left": report.in_float}


def run_plans(cells: list[str], limits: list[str], arguments: argparse.Namespace) -> int:
    """Print the planned files; returns how many are not as they should be."""
    wrong, fixed = 0, {"effort": arguments.effort, "threads": 1, "jobs": 1, "placement": "all"}
    for cell in cells:
        chosen: dict[tuple[str, str], dict[str, str]] = {}
        for form in FORMS:
            model, count = make_net(cell, form), arguments.samples * (2 if form.startswith("both") else 1)
            samples, others = draw(cell, form, count, 1), draw(cell, form, OTHERS, 2)
            for what in ("W8A8", "W4A8", *limits):
                own: dict[str, Any] = {"weight_bits": int(what[1])} if what[0] == "W" else {"max_size": what}
                config = onnxcalib.QuantizeConfig(candidates=("W8A8", "W4A8"), **own, **fixed)
                try:
                    result = onnxcalib.quantize(model, samples, config)
                except onnxcalib.OnnxCalibError as error:
                    print(f"{cell:6}{form:18}{what:12}{error}", flush=True)
                    continue
                found, size = result.report.plan, result.report.quantized_bytes
                four = sum(layer.weight_bits == 4 for layer in result.report.layers)
                if found is not None:
                    wrong += not found["totals"]["bytes"] == size <= found["budgets"]["max_size"]
                    chosen[form, what] = found["layers"]
                level = compare(model, result.model, others)
                print(
                    f"{cell:6}{form:18}{what:12}{size:8,}{level:8.1f}{four:4} of {len(result.report.layers)}",
                    flush=True,
                )
        wrong += sum(
            chosen[form, limit] != layers for (inside, limit), layers in chosen.items()
            for form in ("unrolled, own",) if inside == "branch, own" and (form, limit) in chosen
        )  # fmt: skip
    print(f"{wrong} not as they should be")
    return wrong


def compare(one: ModelProto, other: ModelProto, samples: dict[str, np.ndarray]) -> float:
    """SQNR in dB of all outputs of floats together, as a user's session gives them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    sessions = [
        onnxruntime.InferenceSession(each.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for each in (one, other)
    ]
    total = Comparison()
    for i in range(len(samples["x"])):
        wanted, given = (each.run(None, {k: v[i : i + 1] for k, v in samples.items()}) for each in sessions)
        for a, b in zip(wanted, given, strict=True):
            if np.asarray(a).dtype.kind == "f":
                total.add(np.asarray(a, np.float32), np.asarray(b, np.float32))
    return total.sqnr_db


def run_odd() -> int:
    """Print what is not as the table of odd bodies says; returns how many are not."""
    sys.path.insert(0, str(ROOT))
    from tests.quantization.odd_bodies import ODD

    wrong = 0
    for kind, settings in SETTINGS.items():
        levels: list[float] = []
        for name, odd in ODD.items():
            model, config = odd.build(), onnxcalib.QuantizeConfig(threads=1, **settings)
            try:
                result = onnxcalib.quantize(model, odd.samples(), config)
            except onnxcalib.OnnxCalibError as error:
                if not odd.refused or not re.search(odd.refused, str(error)):
                    wrong += 1
                    print(f"  {kind}, {name}: {error}")
                continue
            levels.append(compare(model, result.model, odd.samples()))
            found, bar = (
                {layer.name for layer in result.report.layers},
                25 if result.report.layers[0].weight_bits == 8 else 10,
            )
            if odd.refused or not {*odd.quantized} - {"*"} <= found or levels[-1] < bar:
                wrong += 1
                print(f"  {kind}, {name}: {levels[-1]:.1f} dB, layers {sorted(found)}")
        print(f"odd bodies, {kind}: {len(ODD)} models, SQNR {min(levels):.1f} to {max(levels):.1f} dB", flush=True)
    print(f"{wrong} not as they should be")
    return wrong


def main(argv: list[str] | None = None) -> int:
    parser_ = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser_.add_argument("--bits", type=lambda text: text.upper().split(","), default=["W8A8", "W4A8", "W4A32"])
    parser_.add_argument("--cells", type=lambda text: text.split(","), default=list(CELLS), help=", ".join(CELLS))
    parser_.add_argument("--effort", default="fast")
    parser_.add_argument("--samples", type=int, default=64)
    parser_.add_argument(
        "--plan", type=lambda text: text.split(","), metavar="SIZE,...", help="plans within sizes alone"
    )
    parser_.add_argument("--odd", action="store_true", help="the odd bodies too")
    arguments = parser_.parse_args(argv)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if arguments.plan:
        return int(run_plans(arguments.cells, arguments.plan, arguments) > 0)
    missed = 0
    names = {"SQNR dB": 9, "to plain": 9, "layers": 7, "size": 6, "kernels": 8, "unfused": 8, "s": 6}
    print(f"{'cell':6}{'form':18}{'bits':6}" + "".join(name.rjust(width) for name, width in names.items()))
    for cell in arguments.cells:
        for bits in arguments.bits:
            plain = 0.0
            for form in FORMS:
                row = measure(cell, form, bits, arguments)
                plain = row["sqnr_db"] if form in ("unrolled", "unrolled, own") else plain
                change = row["sqnr_db"] - plain
                missed += change < -BAR
                print(
                    f"{cell:6}{form:18}{bits:6}{row['sqnr_db']:9.1f}{change:+9.1f}{row['layers']:7}{row['size']:6.2f}"
                    f"{row['kernels']:8}{row['unfused']:8}{row['seconds']:6.1f}",
                    flush=True,
                )
                for record in row["left"]:
                    print(f"    {record.name}: {record.reason}")
    print(f"{missed} more than {BAR:g} dB below the form without control flow")
    wrong = run_odd() if arguments.odd else 0
    return int(missed > 0 or wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
