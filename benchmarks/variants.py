"""Compare ways to reconstruct blocks, one choice changed at a time: agreement, SQNR and time of each.

    python benchmarks/variants.py [--data DIR] [--models a,b] [--bits W4A4] [--variants a,b] [--json FILE]

The data folder and the way of measuring are those of benchmarks/accuracy.py: 256 calibration images, each quantization
in a process of its own. All variants start from the layers as ``--effort fast`` solves them, without views:

    solved            no reconstruction of blocks
    steps-N           N AdaQuant steps a block, as onnxcalib takes them: straight-through weights, plain squared error
    soft-N            N steps of AdaRound (Nagel et al. 2020) from the solved integers; activations as in steps-N
    weighted-N        N AdaQuant steps, each element's error weighted by the diagonal of the Fisher matrix of the output
    layers-N          N AdaQuant steps on every layer by itself
    pairs-N           N AdaQuant steps on two blocks at once
    views-N           no reconstruction of blocks, but N views of each image

With --json FILE, rows that are in the file already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from accuracy import ROOT, evaluate, open_session, quantize, read_preprocessing, read_test, run

MODELS = ("cifar10_resnet20", "cifar10_resnet56", "imagenet_mobilenetv2")
VARIANTS = ("solved", "steps-100", "steps-300", "steps-1000", "steps-3000", "soft-100", "soft-300", "soft-1000")
VARIANTS += ("weighted-100", "layers-100", "pairs-100", "views-1", "views-2", "views-5")
COLUMNS = {"agreement": ".1f", "sqnr_db": ".2f", "top1": ".1f", "time": ".0f"}
# AdaRound: h = clip((1.2 sigmoid(v) - 0.1), 0, 1); its penalty anneals from 20 to 2 after a fifth of the steps.
STRETCH, SHIFT = 1.2, -0.1
SHARPNESS, WARM_UP = (20.0, 2.0), 0.2
# A solved integer may lie far from the float weight, so that the start is at most this far beyond the threshold.
MOST_START = 0.3
SOFT_RATE = 0.03
# Samples, and random directions in the space of outputs for each, from which the Fisher diagonal is estimated.
FISHER_SAMPLES, FISHER_DRAWS = 64, 4


def soften(steps: int) -> None:
    """Make the library learn soft roundings, up or down from where each solved integer lies."""
    import torch

    from onnxcalib.numeric import adaquant
    from onnxcalib.quantization import learn as learn_stage

    live: list[SoftRounding] = []

    class SoftRounding(adaquant.WeightQuantizer):
        def __init__(self, position, scale, spec):
            super().__init__(position, scale, spec)
            self.register_buffer("base", position.clone())
            self.ready = False
            live.append(self)

        def begin(self, weight) -> None:
            apart = (weight.detach() / self.start - self.base).nan_to_num()
            h = torch.where(apart >= 0, apart.clamp(0.01, MOST_START), 1 + apart.clamp(-MOST_START, -0.01))
            self.base -= (apart < 0).to(self.base)
            self.position.data = torch.logit((h - SHIFT) / STRETCH)
            self.ready = True

        def opened(self):
            return (STRETCH * torch.sigmoid(self.position) + SHIFT).clamp(0, 1)

        def forward(self, weight):
            if not self.ready:
                self.begin(weight)
            integers = self.base + self.opened() if self.training else self.integers()
            return integers.clamp(self.spec.qmin, self.spec.qmax) * self.scale

        def integers(self):
            return (self.base + self.opened().ge(0.5)).clamp(self.spec.qmin, self.spec.qmax)

    plain, learn, state = adaquant._mean_ratio, adaquant.learn_block, {"step": 0, "start": None}

    def penalized(sums):
        error = plain(sums)
        if not error.requires_grad:  # held-out samples are evaluated without the penalty
            return error
        state["start"] = state["start"] or float(error.detach())
        state["step"] += 1
        done = (state["step"] / steps - WARM_UP) / (1 - WARM_UP)
        if done <= 0:
            return error
        beta = SHARPNESS[1] + (SHARPNESS[0] - SHARPNESS[1]) * (1 + math.cos(math.pi * done)) / 2
        open_ones = [1 - (2 * part.opened() - 1).abs().pow(beta) for part in live]
        return error + state["start"] * torch.cat([values.flatten() for values in open_ones]).mean()

    def begin_block(*args, **kwargs):
        state.update(step=0, start=None)
        try:
            return learn(*args, **kwargs)
        finally:
            live.clear()

    adaquant._mean_ratio, adaquant.WEIGHT_RATE = penalized, SOFT_RATE
    learn_stage.learn_block, learn_stage.WeightQuantizer = begin_block, SoftRounding


def weigh() -> None:
    """Make the library weight a block's squared error by the Fisher diagonal of the model's first output."""
    import torch

    from onnxcalib.graph.extract import extract
    from onnxcalib.numeric import adaquant
    from onnxcalib.quantization import reconstruct
    from onnxcalib.runtime.blocks import to_torch

    learn, pairs = reconstruct._learn, adaquant.floating
    fisher: dict[str, Any] = {"root": None}

    def find_root(state, block):
        """Root of the weights, in the shape (1, ...) of one sample's output; None for the block that ends the model."""
        model, stored = state.problem.model, state.stored
        goal = model.graph.output[0].name
        if len(block.outputs) != 1 or goal in block.outputs:
            return None
        rest = extract(model, stored.types, inputs=block.outputs, outputs=[goal])
        rows = range(min(FISHER_SAMPLES, sum(stored.sizes)))
        x = torch.from_numpy(stored.store.rows(f"float:{block.outputs[0]}", rows)).requires_grad_()
        logits = to_torch(rest).eval()(x)[0]
        root = logits.detach().softmax(1).sqrt()
        total = 0.0
        for _ in range(FISHER_DRAWS):
            drawn = torch.randn(root.shape, generator=fisher["generator"])
            direction = root * (drawn - root * (root * drawn).sum(1, keepdim=True))  # its covariance is diag(p) - pp'
            total = total + torch.autograd.grad((logits * direction).sum(), x, retain_graph=True)[0].square()
        weights = total.mean(0, keepdim=True)
        return (weights / weights.mean()).sqrt()

    def learn_weighted(state, block, steps):
        fisher["generator"] = torch.Generator().manual_seed(state.problem.config.seed)
        fisher["root"] = find_root(state, block)
        return learn(state, block, steps)

    def weighted(outputs, targets):
        root = fisher["root"]
        return pairs(outputs, targets) if root is None else [(a * root, b * root) for a, b in pairs(outputs, targets)]

    reconstruct._learn, adaquant.floating = learn_weighted, weighted


def regroup(size: int) -> None:
    """Make the library reconstruct each layer by itself (``size`` 1), or ``size`` blocks at once."""
    from onnxcalib.graph.blocks import find_blocks, join_blocks, single_layers
    from onnxcalib.quantization import stages

    def find_parts(model, scheme, *, index):
        found = find_blocks(model, scheme, index=index)
        return tuple(part for block in found for part in single_layers(model, scheme, block, index=index))

    def find_groups(model, scheme, *, index):
        found = find_blocks(model, scheme, index=index)
        groups = [found[start : start + size] for start in range(0, len(found), size)]
        return tuple(join_blocks(model, scheme, group, index=index) for group in groups)

    stages.find_blocks = find_parts if size == 1 else find_groups


def apply(variant: str) -> dict[str, int]:
    """Patch the library for the variant; gives the settings that the variant also needs."""
    kind, _, number = variant.partition("-")
    if kind == "views":
        return {"steps": 0, "views": int(number)}
    if kind == "soft":
        soften(int(number))
    elif kind == "weighted":
        weigh()
    elif kind in ("layers", "pairs"):
        regroup(1 if kind == "layers" else 2)
    return {"steps": int(number or 0)}


def measure(model: Path, bits: str, variant: str, arguments: argparse.Namespace) -> dict[str, Any]:
    row: dict[str, Any] = {"model": model.stem, "bits": bits, "variant": variant}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "quantized.onnx"
        job = {"data": str(arguments.data), "model": str(model), "bits": bits, "output": str(output)}
        job |= {"samples": None, "effort": "fast", "variant": variant}
        command = [sys.executable, str(Path(__file__).resolve()), "--job", json.dumps(job)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return row | {"failed": (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]}
        scaling = read_preprocessing(arguments.data, model.name)
        test = read_test(arguments.data, model.name.split("_")[0])
        reference = run(open_session(model), test[0], scaling)[0]
        return row | json.loads(done.stdout.splitlines()[-1]) | evaluate(model, output, reference, test, scaling)


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    settings = apply(job["variant"])
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "variant.toml"
        config.write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))
        return quantize({**job, "config": str(config)})


def render(row: dict[str, Any]) -> str:
    cells = [row["model"], row["bits"], row["variant"]]
    cells += [row["failed"]] if "failed" in row else [format(row[key], form) for key, form in COLUMNS.items()]
    return "| " + " | ".join(cells) + " |"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("ONNXCALIB_DATA", ROOT.parent / "shared/data"))
    split = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--data", type=Path, default=default, help="folder with models and images")
    parser.add_argument("--models", type=split, default=MODELS, help="names without .onnx")
    parser.add_argument("--bits", default="W4A4", help="such as W4A4")
    parser.add_argument("--variants", type=split, default=VARIANTS, help="names as above, with any N")
    parser.add_argument("--json", type=Path, help="file that all rows are written to")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.job:
        print(json.dumps(run_job(arguments.job)))
        return 0
    models = [path for name in arguments.models if (path := arguments.data / f"models/{name}.onnx").exists()]
    if not models:
        print(f"No models to measure in {arguments.data}/models: name the data folder by --data or $ONNXCALIB_DATA.")
        return 0
    rows = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else []
    print("| " + " | ".join(("model", "bits", "variant", *COLUMNS)) + " |", flush=True)
    for model in models:
        for variant in arguments.variants:
            named = {"model": model.stem, "bits": arguments.bits, "variant": variant}
            row = next((r for r in rows if "failed" not in r and named.items() <= r.items()), None)
            if row is None:
                row = measure(model, arguments.bits, variant, arguments)
                rows.append(row)
            print(render(row), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=2))
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
