"""Make bit plans of real networks and print their accuracy, beside that of the same bits in every layer.

    python benchmarks/plans.py [--data DIR] [--models a,b] [--candidates W8A8,W4A8] [--effort fast] [--json F]

Data folder and columns are those of ``accuracy.py``. Rows of each model: W4A8 and W8A8 in every layer; a bit plan at
the size of W4A8, and one midway between the two sizes. More columns: budget = file / allowed size, in %; gap = share of
the dB between W4A8 and W8A8 that a plan keeps, in %; predicted, measured = losses of the assembled model. Below follow
the frontier's losses, which must never rise with the size, and the time of planning, in passes of the float model.
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

import accuracy

COMMAND = "from onnxcalib.cli.main import main; raise SystemExit(main())"
DEFAULT_MODELS = ("cifar10_resnet20", "cifar10_resnet56", "imagenet_mobilenetv2")
FORMATS = {"file": ".4f", "budget": ".1f", "agreement": ".1f", "sqnr_db": ".2f", "gap": ".0f"}
LOSSES = {"predicted": ".2e", "measured": ".2e"}


def call(*arguments: str) -> str:
    """What ``onnxcalib`` prints on stderr with these arguments."""
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return done.stderr


def measure(model: Path, folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one model; the last one has the frontier and the time of planning."""
    task = model.name.split("_")[0]
    mean, std = accuracy.read_preprocessing(arguments.data, model.name)
    spell = [",".join(f"{x / 255:.6g}" for x in values) for values in (mean, std)]
    common = [str(model), "--calib", str(arguments.data / task / "calib256"), "--effort", arguments.effort]
    common += ["--mean", spell[0], "--std", spell[1], "--crop", str(accuracy.SIZES[task])]
    planned = ["--cache-dir", str(folder / "cache"), "--candidates", arguments.candidates]
    test, scaling = accuracy.read_test(arguments.data, task), (mean, std)
    reference = accuracy.run(accuracy.open_session(model), test[0], scaling)[0]

    def evaluate(name: str, path: Path, **more: Any) -> dict[str, Any]:
        row = {"model": model.stem, "choice": name, **accuracy.evaluate(model, path, reference, test, scaling), **more}
        print(render(row), flush=True)
        return row

    rows = []
    for bits in ("4", "8"):
        path = folder / f"w{bits}.onnx"
        call("quantize", *common, "--weight-bits", bits, "-o", str(path))
        rows.append(evaluate(f"W{bits}A8", path))
    sizes = [(folder / f"w{bits}.onnx").stat().st_size for bits in "48"]
    for name, size in (("at W4A8", sizes[0]), ("midway", sum(sizes) // 2)):
        plan, path = folder / "plan.json", folder / "planned.onnx"
        said = call("plan", *common, *planned, "--max-size", str(size), "-o", str(plan))
        call("quantize", *common, "--plan", str(plan), "-o", str(path))
        totals = json.loads(plan.read_text())["totals"]
        losses = {"predicted": totals["predicted_loss"], "measured": totals["measured_loss"]}
        rows.append(evaluate(name, path, budget=100 * path.stat().st_size / size, **losses))
        low, high = rows[0]["sqnr_db"], rows[1]["sqnr_db"]
        rows[-1]["gap"] = 100 * (rows[-1]["sqnr_db"] - low) / (high - low)
        print(f"    keeps {rows[-1]['gap']:.0f}% of the gap; {'; '.join(re.findall('solving.*', said))}", flush=True)
    call("plan", *common, *planned, "--frontier", "-o", str(folder / "f.json"))
    points = json.loads((folder / "f.frontier.json").read_text())["points"]
    losses = [point["loss"] for point in points]
    print(f"    frontier of {len(points)} points, falling: {losses == sorted(losses, reverse=True)}", flush=True)
    return [*rows, {"model": model.stem, "choice": "frontier", "points": points}]


def render(row: dict[str, Any]) -> str:
    cells = [format(row[key], form) if key in row else "-" for key, form in (FORMATS | LOSSES).items()]
    return f"{row['model']:24} {row['choice']:8}{''.join(f'{cell:>11}' for cell in cells)}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("ONNXCALIB_DATA", accuracy.ROOT.parent / "shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="folder with models and images")
    parser.add_argument("--models", type=lambda text: text.split(","), default=DEFAULT_MODELS)
    parser.add_argument("--candidates", default="W8A8,W4A8")
    parser.add_argument("--effort", choices=tuple(accuracy.EFFORT_BARS), default="fast")
    parser.add_argument("--json", type=Path, help="write all rows there")
    arguments = parser.parse_args(argv)
    models = [path for path in accuracy.list_models(arguments) if path.stem in arguments.models]
    if not models:
        print(f"No models to measure in {arguments.data}/models: name the data folder by --data or $ONNXCALIB_DATA.")
        return 0
    print(f"{'model':24} {'choice':8}{''.join(f'{key:>11}' for key in FORMATS | LOSSES)}", flush=True)
    rows: list[dict[str, Any]] = []
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(model, Path(folder), arguments)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
