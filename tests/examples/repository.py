"""The files that examples/ci expects: images of four colours, and a network that tells them apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper, parser
from PIL import Image

SETTINGS = Path(__file__).resolve().parents[2] / "examples" / "ci" / "onnxcalib.toml"
MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
colours (float[batch, 3, 224, 224] image) => (float[batch, 4] scores) {
    first = Conv<strides = [8, 8]>(image, kernel)
    active = Relu(first)
    second = Conv<strides = [2, 2]>(active, mixer)
    bright = Relu(second)
    pooled = GlobalAveragePool(bright)
    features = Flatten(pooled)
    scores = Gemm<transB = 1>(features, weight, bias)
}
"""
COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [120, 120, 120]])
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def draw_images(folder: Path, seed: int, count: int) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """Write noisy images of four colours; what the model is to see of them, and the class of each file."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    seen, classes = [], []
    for i in range(count):
        label = i % len(COLOURS)
        pixels = np.clip(COLOURS[label] + rng.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
        pixels = pixels.repeat(8, axis=0).repeat(8, axis=1)  # 256 pixels, so that resizing changes nothing
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        seen.append(((pixels[16:240, 16:240] / 255 - MEAN) / STD).transpose(2, 0, 1))
        classes.append((f"{i:02}.png", label))
    return np.array(seen, np.float32), classes


def fit_model(images: np.ndarray, labels: np.ndarray) -> onnx.ModelProto:
    """Random convolutions under a linear classifier that least squares fit."""
    rng = np.random.default_rng(0)
    model = parser.parse_model(MODEL)
    weights = {
        "kernel": rng.normal(size=(16, 3, 8, 8)) / 14,
        "mixer": rng.normal(size=(128, 16, 3, 3)) / 12,
        "weight": np.zeros((4, 128)),
        "bias": np.zeros(4),
    }

    def fill() -> None:
        del model.graph.initializer[:]
        model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items())

    fill()
    model.graph.output.append(onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (features,) = session.run(["features"], {"image": images})
    del model.graph.output[1:]
    columns = np.hstack([features, np.ones((len(features), 1))])
    solution = np.linalg.lstsq(columns, np.eye(4)[labels], rcond=1e-4)[0].T
    weights["weight"], weights["bias"] = solution[:, :-1], solution[:, -1]
    fill()
    return model


def spoil(path: Path) -> None:
    """Let the classifier answer with the class after the one it means."""
    model = onnx.load(path)
    (tensor,) = [t for t in model.graph.initializer if sorted(t.dims) == [4, 128]]
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.roll(array, 1, axis=array.shape.index(4)), tensor.name))
    onnx.save(model, path)


def write_repository(folder: Path) -> None:
    """Write the model, the samples, their labels and the settings into an empty folder."""
    images, _ = draw_images(folder / "calibration", 1, 16)
    _, classes = draw_images(folder / "samples", 2, 48)
    onnx.save(fit_model(images, np.arange(len(images)) % len(COLOURS)), folder / "float.onnx")
    (folder / "labels.csv").write_text("".join(f"{name},{label}\n" for name, label in classes))
    shutil.copy(SETTINGS, folder)
