"""The folder of somebody who reads README and docs: the files that commands and snippets there name, made small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, numpy_helper, parser
from PIL import Image
from scipy.io import wavfile
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

CLASSIFIER = """
colours (float[batch, CHANNELS, height, width] image) => (float[batch, 4] scores) {
    first = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(image, kernel)
    active = Relu(first)
    second = Conv<strides = [2, 2]>(active, mixer)
    strong = Relu(second)
    third = Conv<strides = [2, 2]>(strong, wider)
    bright = Relu(third)
    pooled = GlobalAveragePool(bright)
    features = Flatten(pooled)
    scores = Gemm<transB = 1>(features, weight, bias)
}
"""
ENCODER = """
encoder (int64[batch, tokens] input_ids, int64[batch, tokens] attention_mask) => (float[batch, 8] embedding)
<int64[1] last = {2}, int64[1] tokens_axis = {1}> {
    words = Gather(table, input_ids)
    hidden = MatMul(words, inner)
    active = Relu(hidden)
    mixed = MatMul(active, outer)
    counted = Cast<to = 1>(attention_mask)
    spread = Unsqueeze(counted, last)
    masked = Mul(mixed, spread)
    total = ReduceSum<keepdims = 0>(masked, tokens_axis)
    count = ReduceSum(counted, tokens_axis)
    embedding = Div(total, count)
}
"""
TRACKER = """
tracker (float[batch, 8] x, float[batch, 16] h) => (float[batch, 4] y, float[batch, 16] hn) {
    read = MatMul(x, wx)
    kept = MatMul(h, wh)
    sum = Add(read, kept)
    hn = Tanh(sum)
    y = MatMul(hn, head)
}
"""
DECODER = """
decoder (int64[batch, tokens] input_ids, float[batch, past, 32] past_key)
    => (float[batch, tokens, WORDS] logits, float[batch, all, 32] present_key) {
    words = Gather(table, input_ids)
    key = MatMul(words, inner)
    present_key = Concat<axis = 1>(past_key, key)
    turned = Transpose<perm = [0, 2, 1]>(present_key)
    scores = MatMul(words, turned)
    shares = Softmax(scores)
    mixed = MatMul(shares, present_key)
    logits = MatMul(mixed, head)
}
"""
DETECTOR = """
detector (float[batch, 3, 16, 16] image) => (float[batch, 4, 8, 8] boxes, float[batch, 1, 8, 8] scores)
<float scale = {8.0}> {
    features = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(image, kernel)
    active = Relu(features)
    sides = Conv(active, sides_weight)
    scores = Conv(active, score_weight)
    sizes = Exp(sides)
    boxes = Mul(sizes, scale)
}
"""
# Names of nodes that pages mention, by the output of the node.
NODES = {"first": "/layer1/conv1/Conv", "second": "/head/Conv", "sizes": "/decode/Exp", "boxes": "/decode/Mul"}
COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [120, 120, 120]])
SENTENCES = [f"{who} {does} the {what}" for who in "we you they".split() for does in "see paint".split() for what in
             "house tree river road".split()]  # fmt: skip


def build(text: str, **weights: np.ndarray) -> ModelProto:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    for node in model.graph.node:
        node.name = NODES.get(node.output[0], f"/{node.output[0]}")
    return model


def draw_images(folder: Path, seed: int, count: int, *, channels: int = 3) -> np.ndarray:
    """Write noisy images of four colours in turn; what a model sees of them, without a mean and a deviation."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    seen = []
    for i in range(count):
        pixels = np.clip(COLOURS[i % 4] + rng.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
        pixels = pixels[..., :channels]
        Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(folder / f"{i:02}.png")
        seen.append((pixels / 255).transpose(2, 0, 1))
    return np.array(seen, np.float32)


def fit_classifier(images: np.ndarray) -> ModelProto:
    """Random convolutions under a linear classifier that least squares fit to the colours in turn."""
    rng = np.random.default_rng(0)
    channels = images.shape[1]
    text = CLASSIFIER.replace("CHANNELS", str(channels))
    shapes = {"kernel": (8, channels, 3, 3), "mixer": (48, 8, 3, 3), "wider": (48, 48, 3, 3)}
    weights = {name: rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()}
    weights |= {"weight": np.zeros((4, 48)), "bias": np.zeros(4)}
    probe = build(text, **weights)
    probe.graph.output.append(onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    (features,) = session.run(["features"], {"image": images})
    columns = np.hstack([features, np.ones((len(features), 1))])
    solution = np.linalg.lstsq(columns, np.eye(4)[np.arange(len(images)) % 4], rcond=1e-4)[0].T
    weights["weight"], weights["bias"] = solution[:, :-1], solution[:, -1]
    return build(text, **weights)


def write_clips_and_tracker(folder: Path) -> None:
    """A recurrent cell, and sequences of what it reads."""
    rng = np.random.default_rng(7)
    weights = {
        "wx": rng.normal(size=(8, 16)) / 4,
        "wh": rng.normal(size=(16, 16)) / 4,
        "head": rng.normal(size=(16, 4)),
    }
    onnx.save(build(TRACKER, **weights), folder / "tracker.onnx")
    wide = {**weights, "wx": rng.normal(size=(12, 16)) / 4}
    onnx.save(build(TRACKER.replace("8] x", "12] x"), **wide), folder / "listener.onnx")
    (folder / "speech").mkdir()
    wavfile.write(folder / "speech/clip.wav", 8000, rng.normal(scale=0.1, size=200).astype(np.float32))
    (folder / "clips").mkdir()
    for number in range(4):
        np.savez(folder / f"clips/{number}.npz", x=rng.normal(size=(20, 8)).astype(np.float32))


def list_classes(count: int) -> str:
    """What ``draw_images`` draws, as a table of file and class."""
    return "".join(f"{i:02}.png,{i % 4}\n" for i in range(count))


def write_images_and_classifiers(folder: Path) -> None:
    seen = draw_images(folder / "images", 1, 12)
    onnx.save(fit_classifier(seen), folder / "model.onnx")
    draw_images(folder / "test", 2, 12)
    (folder / "labels.csv").write_text(list_classes(12))
    samples = draw_images(folder / "more", 3, 32)
    np.save(folder / "samples.npy", samples)
    for number in range(2):
        (folder / f"testdata/test_data_set_{number}").mkdir(parents=True)
        tensor = numpy_helper.from_array(samples[number * 8 : number * 8 + 8], "image")
        (folder / f"testdata/test_data_set_{number}/input_0.pb").write_bytes(tensor.SerializeToString())
    for images, model in (("demo/calibration", "demo/digits.onnx"), ("digits", "digits.onnx")):
        onnx.save(fit_classifier(draw_images(folder / images, 4, 64, channels=1)), folder / model)
    draw_images(folder / "demo/test", 4, 16, channels=1)
    (folder / "demo/labels.csv").write_text(list_classes(16))


def write_texts_and_encoder(folder: Path) -> None:
    rng = np.random.default_rng(5)
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(SENTENCES, trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"]))
    tokenizer.save(str(folder / "tokenizer.json"))
    shapes = {"table": (tokenizer.get_vocab_size(), 32), "inner": (32, 64), "outer": (64, 8)}
    weights = {name: rng.normal(size=shape) / 8 for name, shape in shapes.items()}
    onnx.save(build(ENCODER, **weights), folder / "encoder.onnx")
    weights = {"table": weights["table"], "inner": weights["inner"][:, :32], "head": weights["table"].T}
    words = str(len(weights["table"]))
    onnx.save(build(DECODER.replace("WORDS", words), **weights), folder / "decoder.onnx")
    (folder / "sentences.txt").write_text("\n".join(SENTENCES))
    rows = [f"{question},{answer}\n" for question, answer in zip(SENTENCES, reversed(SENTENCES), strict=True)]
    (folder / "train.csv").write_text("".join(["question,answer\n", *rows]))


def write_detector(folder: Path) -> None:
    rng = np.random.default_rng(6)
    shapes = {"kernel": (8, 3, 3, 3), "sides_weight": (4, 8, 1, 1), "score_weight": (1, 8, 1, 1)}
    weights = {name: rng.normal(size=shape) / 4 for name, shape in shapes.items()}
    onnx.save(build(DETECTOR, **weights), folder / "detector.onnx")
    np.save(folder / "detector.npy", rng.normal(size=(16, 3, 16, 16)).astype(np.float32))


def write_all(folder: Path) -> None:
    """All files, the models in float."""
    write_images_and_classifiers(folder)
    write_texts_and_encoder(folder)
    write_clips_and_tracker(folder)
    write_detector(folder)
