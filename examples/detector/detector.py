"""Quantize a small detector with its decoding left in float, and compare boxes in onnxruntime.

    python examples/detector/detector.py [--out DIR] [--steps N]

The detector finds one bright square in a noisy image. Its head gives each cell of a grid a score and, for each side of
the box, a distribution over distances. The decoding turns these into boxes of pixels: a Softmax, a Conv with fixed
weights 0, 1, 2, ... that takes the mean, and the arithmetic on the grid. onnxcalib leaves this Conv in float by itself,
as it computes coordinates. All nodes of the decoding are named /decode/..., so one regular expression leaves the whole
of it in float for certain. The images are made here, and the training takes seconds.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

import onnxcalib

SIZE, STRIDE, BINS = 48, 8, 8  # pixels of an image's side and of a cell's; distances that a side of a box may have
CELLS = SIZE // STRIDE
DECODING = "/decode/.*"
CALIBRATION_IMAGES, TEST_IMAGES = 64, 200
SEED = 0


@dataclass(frozen=True)
class Row:
    """One line of the table: overlap of the best box with the true one (mean IoU), and with the float model's."""

    name: str
    overlap: float
    overlap_with_float: float
    size: int


class Decode(nn.Module):
    """Distributions over distances to boxes (left, top, right, bottom) in pixels, for every cell."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Conv2d(BINS, 1, 1, bias=False)
        self.mean.weight = nn.Parameter(
            torch.arange(BINS, dtype=torch.float32).view(1, BINS, 1, 1), requires_grad=False
        )
        centres = (torch.arange(CELLS) + 0.5) * STRIDE
        grid = torch.stack([centres.repeat(CELLS), centres.repeat_interleave(CELLS)])
        self.register_buffer("grid", grid)  # (2, cells), x and y

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        spread = logits.view(logits.shape[0], 4, BINS, CELLS * CELLS).transpose(1, 2).softmax(1)
        sides = self.mean(spread).squeeze(1) * (STRIDE / 2)
        return torch.cat([self.grid - sides[:, :2], self.grid + sides[:, 2:]], 1).transpose(1, 2)


class Detector(nn.Module):
    """Images (N, 3, SIZE, SIZE) to boxes (N, cells, 4) in pixels, and scores (N, cells)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64)
        parts = [self.convolve(*pair) for pair in itertools.pairwise(widths)]
        self.backbone = nn.Sequential(*parts, nn.Conv2d(widths[-1], 64, 3, padding=1), nn.ReLU())
        self.sides, self.score = nn.Conv2d(64, 4 * BINS, 1), nn.Conv2d(64, 1, 1)
        self.decode = Decode()

    def convolve(self, inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.backbone(image)
        return self.decode(self.sides(features)), self.score(features).flatten(1).sigmoid()


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images with a bright square each, float32 (count, 3, SIZE, SIZE), and the squares' boxes (count, 4)."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 0.3, (count, 3, SIZE, SIZE)).astype(np.float32)
    widths = rng.integers(8, 20, (count, 2))
    corners = (rng.random((count, 2)) * (SIZE - widths)).astype(int)
    boxes = np.hstack([corners, corners + widths])
    for image, (left, top, right, bottom) in zip(images, boxes, strict=True):
        image[:, top:bottom, left:right] += rng.uniform(0.5, 1.5, (3, 1, 1)).astype(np.float32)
    return images, boxes.astype(np.float32)


def measure_overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4), pair by pair."""
    corner, end = np.maximum(first[:, :2], second[:, :2]), np.minimum(first[:, 2:], second[:, 2:])
    shared = np.clip(end - corner, 0, None).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    return shared / (areas[0] + areas[1] - shared)


def train(steps: int) -> Detector:
    """The cell that holds the centre of the square learns its sides; all cells learn whether they do."""
    torch.manual_seed(SEED)
    detector = Detector()
    optimizer = torch.optim.Adam([p for p in detector.parameters() if p.requires_grad], lr=3e-3)
    for step in range(steps):
        images, boxes = (torch.from_numpy(array) for array in draw(32, SEED + 1 + step))
        centres = ((boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE).long()
        cells = centres[:, 1] * CELLS + centres[:, 0]
        found, scores = detector(images)
        targets = nn.functional.one_hot(cells, CELLS * CELLS).float()
        rows = torch.arange(len(cells))
        loss = nn.functional.l1_loss(found[rows, cells], boxes) / STRIDE
        loss = loss + 10 * nn.functional.binary_cross_entropy(scores, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return detector.eval()


def export(detector: Detector, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the newer exporter names nodes otherwise
        torch.onnx.export(
            detector,
            (torch.zeros(2, 3, SIZE, SIZE),),
            path,
            dynamo=False,
            input_names=["image"],
            output_names=["boxes", "scores"],
            dynamic_axes={name: {0: "batch"} for name in ("image", "boxes", "scores")},
        )


def detect(path: Path, images: np.ndarray) -> np.ndarray:
    """The box with the best score of each image, (N, 4)."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    boxes, scores = session.run(["boxes", "scores"], {"image": images})
    return boxes[np.arange(len(boxes)), scores.argmax(1)]


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the models and the images")
    parser.add_argument("--steps", type=int, default=250, help="of training")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    paths = {"float": options.out / "detector.onnx"}
    export(train(options.steps), paths["float"])
    samples, _ = draw(CALIBRATION_IMAGES, SEED)
    np.save(options.out / "samples.npy", samples)
    for name, excluded in (("all layers", ()), ("decoding in float", (DECODING,))):
        config = onnxcalib.QuantizeConfig(exclude=excluded)
        paths[name] = options.out / f"detector.{name.replace(' ', '_')}.onnx"
        onnxcalib.quantize(paths["float"], samples, config).save(paths[name])
    images, truth = draw(TEST_IMAGES, SEED + 10**6)
    found = {name: detect(path, images) for name, path in paths.items()}
    rows = [
        Row(
            name,
            float(measure_overlap(boxes, truth).mean()),
            float(measure_overlap(boxes, found["float"]).mean()),
            paths[name].stat().st_size,
        )
        for name, boxes in found.items()
    ]
    for row in rows:
        print(
            f"{row.name:18} overlap with the square {row.overlap:.3f}  with the float box {row.overlap_with_float:.4f}"
            f"  {row.size / 1000:6.0f} kB"
        )
    return rows


if __name__ == "__main__":
    main()
