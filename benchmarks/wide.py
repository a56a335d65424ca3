"""Quantize networks with 8, with 16, and with both bits of activations, and print how much a planned share recovers.

    python benchmarks/wide.py [--data DIR] [--models a,FILE.onnx] [--share 15] [--target qnn] [--greedy] [--out DIR]

Weights have 8 bits. Rows of each network: W8A8; W8A16; ``plan``, in which --share % of the elements of activations have
16 bits, as ``onnxcalib plan --max-a16`` chooses them; with --greedy, the sets of the largest losses of their own until
the share is full, as tools do that flip one after the other. Each is made in a process of its own from 256 samples, and
judged on others by onnxruntime without graph optimizations, whose sums are exact: networks of images on TASK/eval or
TASK/test of the data folder, sentence encoders on sentences of STS-B. --keep judges what --out has already.

Columns: a16 = elements of 16 bits in %; sqnr_db of the outputs; recovered = share of the dB between W8A8 and W8A16, in
%; score = agreement with the float model's classes, or Spearman's correlation with people's scores, in %; seconds to
make the file, planning included. It exits with 1 where a plan recovers less than BAR.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from accuracy import SIZES, normalize, read_preprocessing
from jobs import open_parser, run_job
from text import choose_texts, read_pairs, score
from xint8 import Judge

BAR = 200 / 3  # % of the dB between W8A8 and W8A16
SAMPLES, LENGTH = 256, 64  # of calibration; tokens of a sentence, which those of STS-B hardly exceed
PAIRS = 400
COLUMNS = {"a16": ".1f", "sqnr_db": ".1f", "recovered": ".0f", "score": ".1f", "seconds": ".0f"}


def list_settings(model: Path, data: Path) -> dict[str, Any]:
    """What the samples of a network need, and the shape of its inputs."""
    if model.stem.startswith("text_"):
        tokenizer = str(data / "text/tokenizer.json")
        return {"tokenizer": tokenizer, "max_length": LENGTH, "shape": f"1,{LENGTH}"}
    task = model.stem.split("_")[0]
    mean, std = (tuple((values / 255).tolist()) for values in read_preprocessing(data, model.name))
    return {"crop": SIZES[task], "mean": mean, "std": std, "shape": f"1,3,{SIZES[task]},{SIZES[task]}"}


def make(job: dict[str, Any]) -> None:
    """One file, in a process of its own."""
    import onnxcalib
    from onnxcalib.bitplan import read_plan
    from onnxcalib.config import load_config

    data, model, output = Path(job["data"]), Path(job["model"]), Path(job["output"])
    options = {"target": job["target"], **list_settings(model, data)}
    is_text = "tokenizer" in options
    samples = choose_texts(data, SAMPLES) if is_text else data / model.stem.split("_")[0] / "calib256"
    found, plan, plan_file = {"a16": 100.0 * (job["kind"] == "W8A16")}, None, output.parent / job["plan"]
    began = time.perf_counter()
    if job["kind"] == "W8A16":
        options["activation_bits"] = 16
    elif job["kind"] == "plan":
        cache = {"cache_dir": str(output.parent / "cache")}
        plan = onnxcalib.plan(model, samples, load_config(None, options | {"max_a16": job["share"]} | cache))
        plan_file.write_text(plan.to_json())
        found["a16"] = plan.totals.a16
        found |= {"predicted": plan.totals.predicted_loss, "measured": plan.totals.measured_loss}
    elif job["kind"] == "greedy":
        options["tensors"], found["a16"] = choose_greedily(read_plan(plan_file), job["share"])
    result = onnxcalib.quantize(model, samples, load_config(None, options), plan=plan, test=samples)
    result.save(output)
    print(json.dumps(found | {"seconds": time.perf_counter() - began}))


def choose_greedily(plan: Any, share: float) -> tuple[dict[str, int], float]:
    """The sets of the largest losses, one after the other as they fit, and their share in %."""
    total, taken, chosen = sum(each.elements for each in plan.sets), 0, {}
    losses = [(max(loss or 0 for loss in each.loss.values()), each) for each in plan.sets]
    for _, each in sorted(losses, key=lambda pair: -pair[0]):
        if 100 * (taken + each.elements) <= share * total:
            taken += each.elements
            chosen[each.tensors[0]] = 16
    return chosen, 100 * taken / total


class ImageJudge(Judge):
    """As Judge, of files that take one image at a time."""

    def run(self, path: Path) -> np.ndarray:
        from onnxcalib.runtime.session import Session

        session = Session(onnx.load(path), name=path.name, optimize=False)
        batch = normalize(self.images, *self.scaling)
        made = [session.run({session.inputs[0]: image[None]})[session.outputs[0]] for image in batch]
        return np.concatenate(made).astype(np.float64)


class TextJudge:
    """Pairs of sentences that calibration did not see, and what the float model makes of them."""

    def __init__(self, model: Path, data: Path) -> None:
        from onnxcalib import DataConfig, open_calibration
        from onnxcalib.quantization.prepare import load

        first, second, gold = read_pairs(data / "text/sts-dev.csv")
        rows = np.linspace(0, len(first) - 1, PAIRS).astype(int)
        self.gold = [gold[row] for row in rows]
        settings = DataConfig(**list_settings(model, data))
        self.fixed = load(model, settings)
        texts = [first[row] for row in rows] + [second[row] for row in rows]
        self.samples = open_calibration(texts, self.fixed, settings)
        self.reference = self.run(self.fixed)

    def run(self, model: Path | onnx.ModelProto) -> np.ndarray:
        from onnxcalib.runtime.session import Session

        session = Session(onnx.load(model) if isinstance(model, Path) else model, optimize=False)
        made = [session.run(self.samples.read([n]))[session.outputs[0]] for n in range(len(self.samples))]
        return np.concatenate(made).astype(np.float64)

    def score(self, outputs: np.ndarray) -> dict[str, float]:
        error = np.square(self.reference - outputs).sum()
        return {
            "sqnr_db": float(10 * np.log10(np.square(self.reference).sum() / error)),
            "score": score(outputs.reshape(len(outputs), -1), self.gold),
        }


def measure(model: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    is_text, rows = model.stem.startswith("text_"), []
    judge = (TextJudge if is_text else ImageJudge)(model, arguments.data)
    for kind in ("W8A8", "W8A16", "plan", *(["greedy"] if arguments.greedy else [])):
        output = arguments.out / f"{model.stem}.{kind.lower()}.onnx"
        job = {"data": str(arguments.data), "model": str(model), "output": str(output), "kind": kind}
        job |= {"target": arguments.target, "share": arguments.share, "plan": f"{model.stem}.plan.json"}
        row: dict[str, Any] = {"model": model.stem, "kind": kind}
        facts = output.with_suffix(".json")
        if not (arguments.keep and output.exists() and facts.exists()):
            made = run_job(__file__, job)
            if "failed" in made:
                rows.append(row | made)
                print(render(rows[-1]), flush=True)
                continue
            facts.write_text(json.dumps(made))
        found = judge.score(judge.run(output))
        row |= json.loads(facts.read_text()) | {"sqnr_db": found["sqnr_db"]}
        row["score"] = found.get("score", found.get("agreement"))
        ends = [each["sqnr_db"] for each in rows[:2] if "sqnr_db" in each]
        if len(ends) == 2:
            row["recovered"] = 100 * (row["sqnr_db"] - ends[0]) / (ends[1] - ends[0])
        rows.append(row)
        print(render(row), flush=True)
    return rows


def render(row: dict[str, Any]) -> str:
    cells = [format(row[key], form) if key in row else "" for key, form in COLUMNS.items()]
    if "failed" in row:
        cells = [f"failed: {row['failed']}"]
    return f"| {' | '.join([row['model'], row['kind'], *cells])} |"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = open_parser(__doc__)
    parser.add_argument(
        "--models",
        type=lambda text: text.split(","),
        default=["imagenet_mobilenetv2"],
        help="names in the data folder, or files; text_*.onnx is a sentence encoder",
    )
    parser.add_argument("--share", type=float, default=15.0, help="%% of the elements that may have 16 bits")
    parser.add_argument("--target", default="qnn", help="name, or path of a TOML file; default: qnn")
    parser.add_argument("--greedy", action="store_true", help="add a row of the largest losses first")
    return parser.parse_args(arguments)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.job:
        make(arguments.job)
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"| network | bits | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 2)}", flush=True)
    rows: list[dict[str, Any]] = []
    for name in arguments.models:
        path = Path(name) if name.endswith(".onnx") else arguments.data / "models" / f"{name}.onnx"
        rows += measure(path, arguments)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=2))
    short = [row for row in rows if "failed" in row or (row["kind"] == "plan" and row.get("recovered", 0) < BAR)]
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
