"""Run other quantizers side by side with onnxcalib: same models, bits and calibration images, one table, one plot.

    python benchmarks/peers.py [--data DIR] [--tools a,b] [--models a,b] [--bits W8A8,W4A4] [--json FILE] [--plot FILE]

The data folder and the way of measuring are those of benchmarks/accuracy.py: each quantization in a process of its own,
evaluated in onnxruntime on the test images. Each peer has a virtual environment of its own under --out, created on
first use. All quantize weights per output channel and keep the first and the last layer at 8 bits. The inputs of a
residual Add have 8 bits in onnxcalib and the activation bits in the peers, by the default of each. Peers are used as
their documentation says; those with gradients take --iterations steps a layer. Where a peer fails, its row says why.

Columns as in benchmarks/accuracy.py; speed: float time / quantized time at batch 1 on one thread. With --json FILE,
rows that are in the file already are not measured again. --plot draws SQNR against time from the rows.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from accuracy import (
    BATCH,
    FLOAT_PASSES,
    ROOT,
    SIZES,
    compare_speed,
    evaluate,
    normalize,
    open_session,
    read_peak_gb,
    read_photographs,
    read_preprocessing,
    read_test,
    run,
)
from accuracy import measure as measure_onnxcalib

MODELS = ("cifar10_resnet20", "cifar10_resnet56", "imagenet_mobilenetv2")
ALL_BITS = ("W8A8", "W4A8", "W4A4")
OWN = "onnxcalib"
CALIBRATION_BATCH = 32
LAYERS = ("Conv", "Gemm", "MatMul")
# torch first and alone, so that a CPU build that lies at hand is taken.
TORCH = ("torch==2.13.0",)
COMMON = ("onnxruntime==1.32.0", "numpy", "pillow")
ENVIRONMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "onnxruntime": (("onnx==1.23.2", "sympy", *COMMON),),
    "aimet": (TORCH, ("aimet-onnx==2.42.0", *TORCH, *COMMON)),
    "quark": (TORCH, ("amd-quark==0.13", *TORCH, *COMMON)),
}
COLUMNS = {"agreement": ".1f", "sqnr_db": ".1f", "top1": ".1f", "time": ".0f", "memory_gb": ".2f"}
COLUMNS |= {"file": ".3f", "speed": ".2f", "unfused": "d"}
MARKS = "sD^vP*X<>"


@dataclass(frozen=True)
class Job:
    """What a peer is given; feeds are batches of CALIBRATION_BATCH images by input name."""

    model: Path
    output: Path
    weight_bits: int
    activation_bits: int
    feeds: list[dict[str, np.ndarray]]
    iterations: int

    def wide(self) -> tuple[list[str], list[str]]:
        """Weights and inputs of the first and the last layer, which keep 8 bits."""
        graph = onnx.load(self.model).graph
        constants = {tensor.name for tensor in graph.initializer}
        nodes = [n for n in graph.node if n.op_type in LAYERS and n.input[1] in constants]
        ends = (nodes[0], nodes[-1])
        return [n.input[1] for n in ends], [n.input[0] for n in ends]

    def in_batches_of(self, size: int) -> Job:
        """The same with smaller batches."""
        parts = [
            {name: value[start : start + size] for name, value in feed.items()}
            for feed in self.feeds
            for start in range(0, CALIBRATION_BATCH, size)
        ]
        return replace(self, feeds=[part for part in parts if all(map(len, part.values()))])


class Reader:
    """The feeds as onnxruntime and Quark read them."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]):
        self.feeds = feeds
        self.rewind()

    def rewind(self) -> None:
        self._next: Iterator = iter(self.feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._next, None)

    def __iter__(self) -> Iterator:
        return iter(self.feeds)

    def __len__(self) -> int:
        return len(self.feeds)


def run_onnxruntime(job: Job, method: str) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    kinds = {
        (8, "w"): QuantType.QInt8,
        (4, "w"): QuantType.QInt4,
        (8, "a"): QuantType.QUInt8,
        (4, "a"): QuantType.QUInt4,
    }
    weights, inputs = job.wide()
    overrides: dict[str, list] = {name: [{"quant_type": QuantType.QInt8, "axis": 0}] for name in weights}
    overrides |= {name: [{"quant_type": QuantType.QUInt8}] for name in inputs} if job.activation_bits == 4 else {}
    prepared = job.output.with_suffix(".prepared.onnx")
    quant_pre_process(str(job.model), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(job.output),
        Reader(job.in_batches_of(8).feeds),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=kinds[job.activation_bits, "a"],
        weight_type=kinds[job.weight_bits, "w"],
        calibrate_method=CalibrationMethod[method],
        extra_options={"TensorQuantOverrides": overrides if job.weight_bits == 4 else {}},
    )
    prepared.unlink()


def run_aimet(job: Job, method: str) -> None:
    import aimet_onnx
    from aimet_onnx.common.quantsim_config.utils import get_path_for_per_channel_config

    types = {8: aimet_onnx.int8, 4: aimet_onnx.int4}
    sim = aimet_onnx.QuantizationSimModel(
        onnx.load(job.model),
        param_type=types[job.weight_bits],
        activation_type=types[job.activation_bits],
        # Sequential MSE searches the weights' ranges itself, and takes no other scheme.
        quant_scheme="min_max" if method == "seq_mse" else "tf_enhanced",
        config_file=get_path_for_per_channel_config(),
    )
    weights, inputs = job.wide()
    sim.set_tensor_precision([*weights, *inputs], aimet_onnx.int8, strict=False)
    if method == "seq_mse":
        aimet_onnx.apply_seq_mse(sim, job.feeds)
    if method == "adaround":
        aimet_onnx.apply_adaround(sim, job.feeds, num_iterations=job.iterations)
    sim.compute_encodings(job.feeds)
    onnx.save(sim.to_onnx_qdq(prequantize_constants=True), job.output)


def run_quark(job: Job, method: str) -> None:
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import custom_config
    from quark.onnx.quantization.config.config import Config

    config = replace(getattr(custom_config, f"U8S8_AAWS{method}_CONFIG"), per_channel=True)
    if tuning := config.extra_options.get("FastFinetune"):
        tuning |= {"NumIterations": job.iterations, "DataSize": sum(len(next(iter(f.values()))) for f in job.feeds)}
    reader = Reader(job.in_batches_of(1).feeds)
    ModelQuantizer(Config(global_quant_config=config)).quantize_model(str(job.model), str(job.output), reader)


@dataclass(frozen=True)
class Tool:
    """A peer at one setting; ``modules`` are imported before the clock starts."""

    environment: str
    modules: tuple[str, ...]
    call: Callable[[Job, str], None]
    method: str
    bits: tuple[str, ...] = ALL_BITS


_ORT, _AIMET, _QUARK = ("onnxruntime.quantization",), ("aimet_onnx",), ("quark.onnx",)
TOOLS = {
    "onnxruntime min-max": Tool("onnxruntime", _ORT, run_onnxruntime, "MinMax"),
    "onnxruntime percentile": Tool("onnxruntime", _ORT, run_onnxruntime, "Percentile"),
    "aimet tf-enhanced": Tool("aimet", _AIMET, run_aimet, ""),
    "aimet seq-mse": Tool("aimet", _AIMET, run_aimet, "seq_mse", ("W4A8", "W4A4")),
    "aimet adaround": Tool("aimet", _AIMET, run_aimet, "adaround"),
    # No integer 4-bit type.
    "quark": Tool("quark", _QUARK, run_quark, "", ("W8A8",)),
    "quark adaround": Tool("quark", _QUARK, run_quark, "_ADAROUND", ("W8A8",)),
    "quark adaquant": Tool("quark", _QUARK, run_quark, "_ADAQUANT", ("W8A8",)),
}
OWN_TOOLS = {f"{OWN} {effort}": effort for effort in ("fast", "balanced", "best")}


def do_job(job: dict[str, Any]) -> dict[str, Any]:
    """One quantization by a peer, in its own environment; imports come first, so that they are not timed."""
    tool = TOOLS[job["tool"]]
    for module in tool.modules:
        importlib.import_module(module)
    data, model = Path(job["data"]), Path(job["model"])
    task = model.name.split("_")[0]
    scaling = read_preprocessing(data, model.name)
    images = read_photographs(sorted((data / task / "calib256").glob("*.*")), SIZES[task])
    session = open_session(model)
    run(session, images[:BATCH], scaling)  # the first run allocates
    float_seconds = statistics.median(run(session, images, scaling)[1] for _ in range(FLOAT_PASSES))
    name = session.get_inputs()[0].name
    starts = range(0, len(images), CALIBRATION_BATCH)
    feeds = [{name: normalize(images[i : i + CALIBRATION_BATCH], *scaling)} for i in starts]
    weight_bits, activation_bits = (int(digit) for digit in job["bits"][1::2])
    began = time.perf_counter()
    given = Job(model, Path(job["output"]), weight_bits, activation_bits, feeds, job["iterations"])
    tool.call(given, tool.method)
    seconds = time.perf_counter() - began
    return {"time": seconds / float_seconds, "seconds": seconds, "memory_gb": read_peak_gb()}


def make_environment(name: str, folder: Path) -> Path:
    """The Python of a peer's environment, made where it is not there yet."""
    python, done = folder / name / "bin/python", folder / name / "installed"
    if not done.exists():
        print(f"installing {name} into {folder / name}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder / name], check=True)
        for packages in ENVIRONMENTS[name]:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        done.touch()
    return python


def measure_peer(name: str, model: Path, bits: str, arguments: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The quantized file, and its row so far."""
    output = arguments.out / f"{model.stem}.{bits.lower()}.{name.replace(' ', '-')}.onnx"
    output.unlink(missing_ok=True)
    job = {"tool": name, "data": str(arguments.data), "model": str(model), "bits": bits, "output": str(output)}
    job |= {"iterations": arguments.iterations}
    python = make_environment(TOOLS[name].environment, arguments.out / "environments")
    command = [str(python), str(Path(__file__).resolve()), "--job", json.dumps(job)]
    with tempfile.TemporaryDirectory() as folder:  # peers leave files where they run
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode or not output.exists():
        return output, {"failed": (done.stderr.strip() or "nothing was written").splitlines()[-1][:200]}
    return output, json.loads(done.stdout.splitlines()[-1])


def measure(name: str, model: Path, bits: str, arguments: argparse.Namespace, test: tuple) -> dict[str, Any]:
    """One row; a tool that fails says why under ``failed``."""
    row: dict[str, Any] = {"tool": name, "model": model.stem, "bits": bits}
    scaling = read_preprocessing(arguments.data, model.name)
    try:
        if name in OWN_TOOLS:
            own = {"data": arguments.data, "out": arguments.out, "effort": OWN_TOOLS[name]}
            own |= {"config": None, "samples": None, "latency": False}
            row |= measure_onnxcalib(model, bits, argparse.Namespace(**own), test, {})
            output = arguments.out / f"{model.stem}.{bits.lower()}.onnx"
        else:
            output, found = measure_peer(name, model, bits, arguments)
            row |= found
            if "failed" not in row:
                reference = run(open_session(model), test[0], scaling)[0]
                row |= evaluate(model, output, reference, test, scaling)
        if "failed" not in row:
            row["speed"] = compare_speed(model, output, normalize(test[0][:1], *scaling))
    except Exception as error:  # onnxruntime's exceptions have no common parent; the table must go on
        row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return row


def render(row: dict[str, Any]) -> str:
    cells = [row["model"], row["bits"], row["tool"]]
    if "failed" in row:
        return f"| {' | '.join(cells)} | failed: {row['failed']} |"
    return f"| {' | '.join(cells + [format(row[key], form) for key, form in COLUMNS.items()])} |"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """SQNR (of all measures the one that few images tell best) against time, a panel for each model and bits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if "failed" not in row]
    models, bits = (list(dict.fromkeys(row[key] for row in rows)) for key in ("model", "bits"))
    figure, panels = pyplot.subplots(
        len(models), len(bits), figsize=(4.2 * len(bits), 3.2 * len(models)), squeeze=False, layout="constrained"
    )
    peers = dict.fromkeys(row["tool"] for row in rows if row["tool"] not in OWN_TOOLS)
    marks = {
        tool: {"marker": mark, "color": f"C{number}"}
        for number, (tool, mark) in enumerate(zip(peers, MARKS, strict=False), 1)
    }
    for i, j in np.ndindex(panels.shape):
        panel, here = panels[i, j], [row for row in rows if (row["model"], row["bits"]) == (models[i], bits[j])]
        own = sorted((row["time"], row["sqnr_db"]) for row in here if row["tool"] in OWN_TOOLS)
        if own:
            panel.plot(*zip(*own, strict=True), "o-", color="C0", label=f"{OWN} fast, balanced, best")
        for row in here:
            if row["tool"] in marks:
                panel.plot(row["time"], row["sqnr_db"], linestyle="", label=row["tool"], **marks[row["tool"]])
        panel.set(xscale="log", title=f"{models[i]} {bits[j]}", xlabel="time, float passes", ylabel="SQNR, dB")
        panel.grid(alpha=0.3)
    labelled = {
        text: line for panel in panels.flat for line, text in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=100)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("ONNXCALIB_DATA", ROOT.parent / "shared/data"))
    names = [*TOOLS, *OWN_TOOLS]
    parser.add_argument("--data", type=Path, default=default, help="folder with models and images")
    parser.add_argument("--tools", type=lambda text: text.split(","), default=names, help=", ".join(names))
    parser.add_argument("--models", type=lambda text: text.split(","), default=MODELS, help="names without .onnx")
    parser.add_argument("--bits", type=lambda text: text.upper().split(","), default=ALL_BITS)
    parser.add_argument("--iterations", type=int, default=2000, help="steps a layer of peers with gradients")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="quantized models, environments")
    parser.add_argument("--json", type=Path, help="keep all rows there")
    parser.add_argument("--plot", type=Path, help="draw SQNR against time into this .png")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.job:
        print(json.dumps(do_job(arguments.job)))
        return 0
    unknown = set(arguments.tools) - {*TOOLS, *OWN_TOOLS}
    if unknown:
        print(
            f"--tools: found {', '.join(sorted(unknown))}; allowed: {', '.join([*TOOLS, *OWN_TOOLS])}", file=sys.stderr
        )
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else []
    rows = {(row["model"], row["bits"], row["tool"]): row for row in kept}
    print(f"| model | bits | tool | {' | '.join(COLUMNS)} |\n|{'---|' * (3 + len(COLUMNS))}", flush=True)
    for stem in arguments.models:
        model = arguments.data / f"models/{stem}.onnx"
        test = read_test(arguments.data, stem.split("_")[0])
        for bits in arguments.bits:
            for name in arguments.tools:
                if name in TOOLS and bits not in TOOLS[name].bits:
                    continue
                key = (stem, bits, name)
                if key not in rows:
                    rows[key] = measure(name, model, bits, arguments, test)
                print(render(rows[key]), flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps(list(rows.values()), indent=2))
    if arguments.plot:
        plot(list(rows.values()), arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
