"""Quantize a detector, and count the detections that are kept: boxes and scores apart.

    python benchmarks/detector.py [--config FILE.toml] [--json FILE]
    python benchmarks/detector.py --model 320n.onnx --calib DIR --images DIR [--size 320] [--thresholds 0.25,0.1,0.05]

Without a model a small one is trained on drawn shapes for half a minute. Its head is that of YOLOv8: at two levels the
logits of boxes and of classes are joined, both levels are joined, the two are split again, decoded, and joined to one
output (N, 4 + classes, positions). A model of --model gives such an output too, as YOLOv8 does; its images are padded
to a square behind, scaled to --size and to 0..1, RGB.

A detection of the float model is kept if the quantized model has one of the same class with IoU of 0.5 or more, each
after non-maximum suppression at IoU 0.45. Exit status 1 where the small model misses a bar: 25 dB on the scores, 97%
kept at the first threshold.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image
from torch import nn

import onnxcalib
from onnxcalib.config import load_config
from onnxcalib.runtime.session import Session

BARS = {"scores_db": 25.0, "kept": 97.0}
SIDE, CLASSES, STRIDES = 96, 3, (8, 16)
STEPS, BATCH = 500, 32
CALIBRATION, TEST = 64, 256
SUPPRESSED, MATCHED = 0.45, 0.5


class Detector(nn.Module):
    """Convolutions and Swish, and a head like YOLOv8's without its distribution of distances."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 24, 32, 48)
        self.stem = nn.Sequential(*(_conv(a, b, 2) for a, b in zip((3, *widths[:2]), widths[:3], strict=True)))
        self.deep = _conv(widths[2], widths[3], 2)
        inner = widths[2:]
        self.boxes = nn.ModuleList(nn.Sequential(_conv(w, 32), nn.Conv2d(32, 4, 1)) for w in inner)
        self.classes = nn.ModuleList(nn.Sequential(_conv(w, 32), nn.Conv2d(32, CLASSES, 1)) for w in inner)
        for head in self.classes:
            nn.init.constant_(head[1].bias, -4.0)
        centres, strides = zip(*(_place(SIDE // s, s) for s in STRIDES), strict=True)
        self.register_buffer("centres", torch.cat(centres, 1))
        self.register_buffer("strides", torch.cat(strides, 1))

    def logits(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances in strides (N, 4, positions) and logits of classes (N, classes, positions)."""
        levels = [self.stem(x)]
        levels.append(self.deep(levels[0]))
        joined = [
            torch.cat([box(f), cls(f)], 1).flatten(2)
            for box, cls, f in zip(self.boxes, self.classes, levels, strict=True)
        ]
        boxes, classes = torch.cat(joined, 2).split((4, CLASSES), 1)
        return boxes, classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        boxes, classes = self.logits(x)
        first, last = self.centres - boxes[:, :2], self.centres + boxes[:, 2:]
        whole = torch.cat([(first + last) / 2, last - first], 1) * self.strides
        return torch.cat([whole, classes.sigmoid()], 1)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU(inplace=True)
    )


def _place(count: int, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    steps = torch.arange(count) + 0.5
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()]), torch.full((1, count * count), float(stride))


def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, SIDE, SIDE) of one to three shapes on noise, and the shapes (N, 3, 5): x, y, w, h, class or -1."""
    images = rng.uniform(0, 0.6, (count, 3, 1, 1)) + rng.normal(0, 0.05, (count, 3, SIDE, SIDE))
    shapes = np.full((count, 3, 5), -1.0)
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    for image, own in zip(images, shapes, strict=True):
        for shape in own[: rng.integers(1, 4)]:
            size, kind = rng.uniform(10, 36, 2), rng.integers(CLASSES)
            x, y = rng.uniform(size / 2, SIDE - size / 2)
            u, v = 2 * (columns - x) / size[0], 2 * (rows - y) / size[1]
            inside = [np.maximum(abs(u), abs(v)) < 1, u**2 + v**2 < 1, (v < 1) & (v > 2 * abs(u) - 1)][kind]
            image[:, inside] = rng.uniform(0, 1, 3)[:, None]
            shape[:] = x, y, *size, kind
    return images.clip(0, 1).astype(np.float32), shapes.astype(np.float32)


def train() -> nn.Module:
    """The small detector, trained on drawn shapes; the position nearest to a shape's centre answers for it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng, model = np.random.default_rng(0), Detector()
    rate = torch.optim.Adam(model.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(rate, 8e-3, STEPS)
    for _ in range(STEPS):
        images, shapes = map(torch.from_numpy, draw(rng, BATCH))
        boxes, classes = model.logits(images)
        near = (model.centres * model.strides)[None, None] - shapes[:, :, :2, None]  # (N, shapes, 2, positions)
        large = (shapes[:, :, 2:4].amax(2, keepdim=True) > 20) == (model.strides > STRIDES[0])
        cost = torch.where(large, near.square().sum(2), torch.inf)
        sample, shape = torch.nonzero(shapes[:, :, 4] >= 0, as_tuple=True)
        position = cost[sample, shape].argmin(1)
        wanted = torch.zeros_like(classes)
        wanted[sample, shapes[sample, shape, 4].long(), position] = 1
        target = shapes[sample, shape, :4] / model.strides[0, position, None]
        centre, own = model.centres[:, position].T, boxes[sample, :, position]
        ends = torch.cat([centre - target[:, :2] + target[:, 2:] / 2, target[:, :2] + target[:, 2:] / 2 - centre], 1)
        loss = nn.functional.binary_cross_entropy_with_logits(classes, wanted, reduction="sum") / len(sample)
        loss = loss + nn.functional.smooth_l1_loss(own, ends)
        rate.zero_grad()
        loss.backward()
        rate.step()
        schedule.step()
    return model.eval()


def export(model: nn.Module) -> onnx.ModelProto:
    buffer = io.BytesIO()
    names = {"input_names": ["images"], "output_names": ["output0"], "dynamic_axes": {"images": {0: "N"}}}
    torch.onnx.export(model, torch.zeros(1, 3, SIDE, SIDE), buffer, opset_version=17, dynamo=False, **names)
    return onnx.load_model_from_string(buffer.getvalue())


def read_images(folder: Path, size: int, limit: int) -> np.ndarray:
    """The images of a folder, padded to a square behind and scaled, (N, 3, size, size) from 0 to 1."""
    found = []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:limit]:
        image = Image.open(path).convert("RGB")
        square = Image.new("RGB", (max(image.size),) * 2)
        square.paste(image)
        found.append(np.asarray(square.resize((size, size), Image.Resampling.BILINEAR), np.float32) / 255)
    return np.stack(found).transpose(0, 3, 1, 2)


def detect(output: np.ndarray, threshold: float) -> list[tuple[np.ndarray, int]]:
    """Box (left, top, right, bottom) and class of each detection in one sample's output (4 + classes, positions)."""
    (x, y, w, h), scores = output[:4], output[4:]
    best = scores.max(0)
    boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
    left, kept = [int(i) for i in np.argsort(-best, kind="stable") if best[i] >= threshold], []
    while left:
        first, *others = left
        kept.append((boxes[first], int(scores[:, first].argmax())))
        overlaps = measure_overlap(boxes[first], boxes[others])
        left = [i for i, overlap in zip(others, overlaps, strict=True) if overlap <= SUPPRESSED]
    return kept


def measure_overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of a box with each of others (n, 4)."""
    ends = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    inner = ends.clip(0).prod(1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - inner
    return np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)


def count_kept(wanted: np.ndarray, given: np.ndarray, threshold: float) -> tuple[int, int, int]:
    """Detections of the float model, those that the other model keeps, and those that it has."""
    total = kept = other = 0
    for one, two in zip(wanted, given, strict=True):
        found, own = detect(one, threshold), detect(two, threshold)
        total, other = total + len(found), other + len(own)
        for box, kind in found:
            same = np.array([b for b, k in own if k == kind]).reshape(-1, 4)
            kept += bool((measure_overlap(box, same) >= MATCHED).any())
    return total, kept, other


def spell_ratio(wanted: np.ndarray, given: np.ndarray) -> float:
    """SQNR in dB."""
    a, b = wanted.astype(np.float64), given.astype(np.float64)
    return float(10 * np.log10(np.square(a).sum() / np.square(a - b).sum()))


def run_all(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = Session(model)
    batches = np.array_split(images, max(1, len(images) // 8))
    return np.concatenate([session.run({session.inputs[0]: each})[session.outputs[0]] for each in batches])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--limit", type=int, default=TEST)
    parser.add_argument("--thresholds", default="0.25,0.1,0.05")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.model:
        model = onnx.load(given.model)
        folders = (given.calib, CALIBRATION), (given.images, given.limit)
        calibration, test = (read_images(folder, given.size, most) for folder, most in folders)
    else:
        model = export(train())
        rng = np.random.default_rng(1)
        calibration, test = draw(rng, CALIBRATION)[0], draw(rng, TEST)[0]
    config = load_config(given.config) if given.config else onnxcalib.QuantizeConfig()
    result = onnxcalib.quantize(model, {model.graph.input[0].name: calibration}, config)
    wanted, other = (run_all(each, test) for each in (model, result.model))
    found: dict[str, Any] = {
        "whole_db": spell_ratio(wanted, other),
        "boxes_db": spell_ratio(wanted[:, :4], other[:, :4]),
        "scores_db": spell_ratio(wanted[:, 4:], other[:, 4:]),
    }
    for threshold in map(float, given.thresholds.split(",")):
        total, kept, own = count_kept(wanted, other, threshold)
        found.setdefault("kept", 100 * kept / max(total, 1))
        share = 100 * kept / max(total, 1)
        print(f"threshold {threshold:g}: {kept} of {total} detections kept ({share:.1f}%), {own} found")
    print(", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    for record in result.report.in_float:
        print(f"in float: {record.name} ({record.op}): {record.reason}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(not given.model and any(found[name] < bar for name, bar in BARS.items()))


if __name__ == "__main__":
    sys.exit(main())
