"""Train a small CNN on handwritten digits, export it to ONNX, quantize it with onnxcalib and compare.

    python examples/classifier/demo.py [--out DIR] [--epochs N]

The digits are scikit-learn's (1,797 real 8x8 images, inside that package). The network never sees the held-out
digits, and quantization sees no labels: it reads a folder of 128 training digits as gray PNG images. The held-out
digits and their labels are left in DIR/test and DIR/labels.csv, for ``onnxcalib validate``.
Everything printed is measured in this run, in onnxruntime on the CPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

INK = 16  # load_digits counts dark pixels of 4x4 cells: 0 to 16
PIXELS_PER_INK = 15  # 16 * 15 = 240 fits an 8-bit gray pixel
CALIBRATION_IMAGES = 128
CHANNELS = (32, 64, 128)
SEED = 0
BATCHES = (1, 64)
BITS = ((8, 8), (4, 4))  # (weights, activations)


@dataclass(frozen=True)
class Digits:
    """8-bit gray images (N, 8, 8) and their digits; mean and std of pixel / 255 over the training images."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray

    @property
    def mean(self) -> float:
        return float((self.train / 255).mean())

    @property
    def std(self) -> float:
        return float((self.train / 255).std())

    def normalize(self, images: np.ndarray) -> np.ndarray:
        """x = (pixel / 255 - mean) / std, as float32 (N, 1, 8, 8)."""
        return ((images / 255 - self.mean) / self.std).astype(np.float32)[:, None]


@dataclass(frozen=True)
class Row:
    """One line of the table; accuracy and agreement are shares, speedup is float time over this model's, by batch."""

    name: str
    accuracy: float
    agreement: float
    size: int
    speedup: dict[int, float]


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        project = (nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if same else nn.Sequential(*project)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.shortcut(x) + self.body(x))


def build_network() -> nn.Sequential:
    first, second, third = CHANNELS
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        ResidualBlock(first, first, 1),
        ResidualBlock(first, second, 2),
        ResidualBlock(second, third, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(third, 10),
    )


def split_digits() -> Digits:
    data = load_digits()
    images = (data.images * PIXELS_PER_INK).astype(np.uint8)
    train, test, train_labels, test_labels = train_test_split(
        images, data.target, test_size=0.3, random_state=SEED, stratify=data.target
    )
    return Digits(train, train_labels, test, test_labels)


def train(digits: Digits, epochs: int) -> nn.Sequential:
    """Adam with a one-cycle learning rate on images shifted by up to one pixel."""
    torch.manual_seed(SEED)
    network = build_network()
    images, labels = torch.from_numpy(digits.normalize(digits.train)), torch.from_numpy(digits.train_labels)
    blank = float(images.min())
    batch = 64
    optimizer = torch.optim.Adam(network.parameters(), weight_decay=1e-4)
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(batch):
            row, column = torch.randint(0, 3, (2,)).tolist()
            padded = nn.functional.pad(images[chosen], (1, 1, 1, 1), value=blank)
            loss = nn.functional.cross_entropy(
                network(padded[..., row : row + 8, column : column + 8]), labels[chosen], label_smoothing=0.1
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def export(network: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        # The newer exporter needs onnxscript, which nothing else here needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network,
            (torch.zeros(2, 1, 8, 8),),
            path,
            dynamo=False,
            input_names=["image"],
            output_names=["scores"],
            dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}},
        )


def write_images(images: np.ndarray, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:04}.png")


def write_labels(labels: np.ndarray, path: Path) -> None:
    """A line for each image of ``write_images``: its file and its digit."""
    path.write_text("".join(f"{number:04}.png,{label}\n" for number, label in enumerate(labels)))


def quantize(model: Path, calibration: Path, output: Path, bits: tuple[int, int], digits: Digits) -> None:
    """Run the command that a user would type; raises CalledProcessError where it fails."""
    options = {
        "--calib": calibration,
        "--output": output,
        "--weight-bits": bits[0],
        "--activation-bits": bits[1],
        "--mean": digits.mean,
        "--std": digits.std,
        "--channels": "gray",
        "--report": output.with_suffix(".json"),
    }
    command = ["onnxcalib", "quantize", str(model), *(str(word) for pair in options.items() for word in pair)]
    print("$", " ".join(command), flush=True)
    script = shutil.which("onnxcalib", path=Path(sys.executable).parent)
    if script is None:
        raise SystemExit(
            f"no onnxcalib command beside {sys.executable}: install the package there with pip install -e ."
        )
    subprocess.run([script, *command[1:]], check=True)


def open_session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def compare_speed(sessions: list[ort.InferenceSession], images: np.ndarray, runs: int = 200) -> list[float]:
    """Time of the first session over that of each, by medians of interleaved runs on one thread."""
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(runs):
        for session, record in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(None, {"image": images})
            record.append(time.perf_counter() - start)
    medians = [statistics.median(record) for record in times]
    return [medians[0] / median for median in medians]


def measure(models: dict[str, Path], digits: Digits) -> list[Row]:
    """One row a model, on the held-out digits; the first model is the float one."""
    sessions = [open_session(path) for path in models.values()]
    images = digits.normalize(digits.test)
    classes = [session.run(None, {"image": images})[0].argmax(1) for session in sessions]
    speedups = {batch: compare_speed(sessions, images[:batch]) for batch in BATCHES}
    return [
        Row(
            name=name,
            accuracy=float((classes[i] == digits.test_labels).mean()),
            agreement=float((classes[i] == classes[0]).mean()),
            size=path.stat().st_size,
            speedup={batch: speedups[batch][i] for batch in BATCHES},
        )
        for i, (name, path) in enumerate(models.items())
    ]


def show(rows: list[Row], samples: int) -> None:
    table = Table(title=f"Float against quantized on {samples} held-out digits, onnxruntime, one thread")
    speeds = [f"speed, batch {batch}" for batch in BATCHES]
    for heading in ("model", "accuracy", "agreement", "file", *speeds):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        size = f"{row.size / 1000:.0f} kB ({row.size / rows[0].size:.2f})"
        speeds = [f"{row.speedup[batch]:.2f} x" for batch in BATCHES]
        table.add_row(row.name, f"{row.accuracy:.1%}", f"{row.agreement:.1%}", size, *speeds)
    Console().print(table)


def suggest(out: Path, digits: Digits) -> str:
    """The commands to try next on the files that the script leaves, for a shell in the working directory."""
    pixels = f"--mean {digits.mean:.4f} --std {digits.std:.4f} --channels gray"
    lines = [f"onnxcalib quantize {out}/digits.onnx --calib {out}/calibration {pixels}"]
    lines += [
        f"onnxcalib validate {out}/digits.onnx {out}/digits.quantized.onnx --data {out}/test --labels {out}/labels.csv "
        f"--max-drop 1 {pixels}"
    ]
    if sys.prefix != sys.base_prefix and "VIRTUAL_ENV" not in os.environ:
        lines.insert(0, f". {os.path.relpath(sys.prefix)}/bin/activate")
    return "\n".join(["try next:", *(f"  {line}" for line in lines)])


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the models and images")
    parser.add_argument("--epochs", type=int, default=15)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # so small a network gains nothing from two, and loses much where the machine is busy
    digits = split_digits()
    print(f"training on {len(digits.train)} digits for {options.epochs} epochs", flush=True)
    models = {"float": options.out / "digits.onnx"}
    export(train(digits, options.epochs), models["float"])
    calibration = options.out / "calibration"
    write_images(digits.train[:CALIBRATION_IMAGES], calibration)
    write_images(digits.test, options.out / "test")
    write_labels(digits.test_labels, options.out / "labels.csv")
    for weights, activations in BITS:
        name = f"W{weights}A{activations}"
        models[name] = options.out / f"digits.{name.lower()}.onnx"
        quantize(models["float"], calibration, models[name], (weights, activations), digits)
    rows = measure(models, digits)
    show(rows, len(digits.test))
    print(suggest(options.out, digits))
    return rows


if __name__ == "__main__":
    main()
