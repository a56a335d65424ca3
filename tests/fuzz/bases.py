"""The good files and commands that cases start from: tiny models of each kind, four samples in each form."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper, parser
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

SAMPLES, INPUTS, CLASSES, SIDE, WORDS = 4, 8, 4, 8, 16
SHAPE = (SAMPLES, INPUTS)
MLP = f"""mlp (float[N, {INPUTS}] x) => (float[N, {CLASSES}] y) {{
    [first] h = Gemm <transB = 1> (x, w1, b1)
    [relu] r = Relu (h)
    [second] y = Gemm <transB = 1> (r, w2, b2)
}}"""
CNN = f"""cnn (float[N, 3, {SIDE}, {SIDE}] image) => (float[N, {CLASSES}] scores) {{
    [stem] c = Conv <pads = [1, 1, 1, 1]> (image, w1)
    [norm] n = BatchNormalization (c, scale, shift, mean, variance)
    [relu] r = Relu (n)
    [deep] d = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)
    [add] s = Add (d, r)
    [pool] p = GlobalAveragePool (s)
    [flat] f = Flatten (p)
    [head] scores = Gemm <transB = 1> (f, w3, b3)
}}"""
ENCODER = f"""encoder (int64[N, T] input_ids, int64[N, T] attention_mask) => (float[N, {CLASSES}] embedding)
<int64[1] last = {{2}}, int64[1] tokens_axis = {{1}}> {{
    [words] words = Gather (table, input_ids)
    [query] q = MatMul (words, wq)
    [key] k = MatMul (words, wk)
    [turn] t = Transpose <perm = [0, 2, 1]> (k)
    [score] s = MatMul (q, t)
    [soft] a = Softmax <axis = -1> (s)
    [mix] m = MatMul (a, words)
    [out] o = MatMul (m, wo)
    [count] c = Cast <to = 1> (attention_mask)
    [spread] u = Unsqueeze (c, last)
    [mask] v = Mul (o, u)
    [sum] embedding = ReduceSum <keepdims = 0> (v, tokens_axis)
}}"""
TEXTS = ["we see the house", "you paint a tree", "they see a river", "we paint the road"]
QUIET = ("--pipeline", "light", "--threads", "1")
OUT = (*QUIET, "-o", "out.onnx", "--report", "report.json")
ON_HTP = ("--target", "qnn", "--shape", f"1,{INPUTS}")
# A target of one's own, of which cases change the rules.
CHIP = 'name = "chip"\n[rules.activation_types]\ntypes = ["uint8"]\nsource = "page 7"\n'
LABEL_FILES = ("labels.csv", "labels.json", "labels.npy", "labels.npz", "labels.txt")
# The output files of the bases, which a run may replace where they are there before.
OUTPUTS = ("out.onnx", "report.json", "out.json", "junit.xml", "out.md")
# What the tool makes of the good files for other commands to read, once.
MADE_BY_TOOL = (
    ("quantize", "mlp.onnx", "--calib", "mlp.npy", *QUIET, "-o", "mlp.q.onnx"),
    ("quantize", "cnn.onnx", "--calib", "images", *QUIET, "-o", "cnn.q.onnx"),
    ("plan", "mlp.onnx", "--calib", "mlp.npy", "--max-size", "9KB", "--jobs", "1", "-o", "plan.json"),
    ("plan", "mlp.onnx", "--calib", "mlp.npy", *ON_HTP, "--max-a16", "60", "--jobs", "1", "-o", "wide.json"),
    ("calibrate", "mlp.onnx", "--calib", "mlp.npy", "-o", "ranges.json"),
)  # fmt: skip


class Base(NamedTuple):
    """A command line, and the files and folders that it reads."""

    files: tuple[str, ...]
    command: tuple[str, ...]


def _quantize(model: str, data: str, *more: str) -> Base:
    return Base((model, data, *more[1::2]), ("quantize", model, "--calib", data, *more, *OUT))


def _validate(model: str, data: str, labels: str | None = None) -> Base:
    files, gates = (f"{model}.onnx", f"{model}.q.onnx", data), ("--min-sqnr", "-100", "--threads", "1")
    given = ("--labels", labels) if labels else ()
    command = ("validate", *files[:2], "--data", data, *given, *gates, "--json", "out.json", "--junit", "junit.xml")
    return Base((*files, *given[1:]), (*command, "--markdown", "out.md"))


_PLAN = ("plan", "mlp.onnx", "--calib", "mlp.npy", "--jobs", "1", "--threads", "1", "-o", "out.json")
BASES: Mapping[str, Base] = {
    "mlp": _quantize("mlp.onnx", "mlp.npy"),
    "npz": _quantize("mlp.onnx", "mlp.npz"),
    "folder": _quantize("mlp.onnx", "arrays"),
    "images": _quantize("cnn.onnx", "images"),
    "classes": _validate("cnn", "classes"),
    "tests": _quantize("mlp.onnx", "testdata"),
    "encoder": _quantize("encoder.onnx", "texts.txt", "--tokenizer", "tokenizer.json"),
    "ids": _quantize("encoder.onnx", "ids"),
    "csv": _quantize("encoder.onnx", "texts.csv", "--tokenizer", "tokenizer.json"),
    "jsonl": _quantize("encoder.onnx", "texts.jsonl", "--tokenizer", "tokenizer.json"),
    "external": Base(("external.onnx", "external.bin", "mlp.npy"), _quantize("external.onnx", "mlp.npy").command),
    "config": _quantize("mlp.onnx", "mlp.npy", "--config", "settings.toml"),
    "use plan": _quantize("mlp.onnx", "mlp.npy", "--plan", "plan.json"),
    "use wide plan": Base(
        ("mlp.onnx", "mlp.npy", "wide.json"),
        (*_quantize("mlp.onnx", "mlp.npy", "--plan", "wide.json").command, *ON_HTP),
    ),
    "target": _quantize("mlp.onnx", "mlp.npy", "--target", "chip.toml"),
    "use ranges": _quantize("mlp.onnx", "mlp.npy", "--ranges", "ranges.json"),
    "calibrate": Base(("mlp.onnx", "mlp.npy"), ("calibrate", "mlp.onnx", "--calib", "mlp.npy", "-o", "out.json")),
    "plan": Base(("mlp.onnx", "mlp.npy"), (*_PLAN, "--max-size", "9KB")),
    "latencies": Base(
        ("mlp.onnx", "mlp.npy", "latencies.csv"), (*_PLAN, "--max-latency", "1s", "--latencies", "latencies.csv")
    ),
    "inspect": Base(("mlp.q.onnx",), ("inspect", "mlp.q.onnx", "--json", "out.json")),
    "inspect float": Base(("external.onnx", "external.bin"), ("inspect", "external.onnx", "--json", "out.json")),
    "validate": _validate("mlp", "mlp.npy"),
    **{f"validate {name}": _validate("cnn", "images", name) for name in LABEL_FILES},
}
FOLDER = Path()  # where the good files are; make_bases sets it


def copy_files(base: Base, folder: Path) -> None:
    """The files of a base, in the folder of a case."""
    for name in base.files:
        source = FOLDER / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder / name)


def write_files(folder: Path) -> None:
    """All good files but those of the tool's own making."""
    rng = np.random.default_rng(0)
    _write_models(folder, rng)
    _write_arrays(folder, rng)
    _write_images(folder, rng)
    _write_texts(folder)
    (folder / "settings.toml").write_text('range = "min-max"\n[data]\nmean = 0.5\n[layers."first"]\nweight-bits = 4\n')
    (folder / "chip.toml").write_text(CHIP)
    rows = [f"{layer},{bits},{time}" for layer in ("first", "second") for bits, time in _TIMES.items()]
    (folder / "latencies.csv").write_text("\n".join(["layer,configuration,milliseconds", *rows, ""]))


_TIMES = {"W8A8": 0.02, "W4A8": 0.02, "W4A4": 0.01, "W8A4": 0.02}


def _write_models(folder: Path, rng: np.random.Generator) -> None:
    mlp = _build(MLP, rng, w1=(16, INPUTS), b1=(16,), w2=(CLASSES, 16), b2=(CLASSES,))
    onnx.save(mlp, folder / "mlp.onnx")
    external = {"save_as_external_data": True, "location": "external.bin", "size_threshold": 0}
    onnx.save(mlp, folder / "external.onnx", **external)
    norm = dict.fromkeys(("scale", "shift", "mean", "variance"), (8,))
    cnn = _build(CNN, rng, w1=(8, 3, 3, 3), **norm, w2=(8, 8, 3, 3), b2=(8,), w3=(CLASSES, 8), b3=(CLASSES,))
    onnx.save(cnn, folder / "cnn.onnx")
    inner = dict.fromkeys(("wq", "wk", "wo"), (8, 8)) | {"wo": (8, CLASSES)}
    onnx.save(_build(ENCODER, rng, table=(WORDS, 8), **inner), folder / "encoder.onnx")


def _build(text: str, rng: np.random.Generator, **shapes: tuple[int, ...]) -> ModelProto:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    for name, shape in shapes.items():
        values = rng.normal(size=shape) if name != "variance" else rng.uniform(1, 2, shape)
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return model


def _write_arrays(folder: Path, rng: np.random.Generator) -> None:
    samples = rng.normal(size=SHAPE).astype(np.float32)
    np.save(folder / "mlp.npy", samples)
    np.savez_compressed(folder / "mlp.npz", x=samples, labels=np.arange(SAMPLES) % CLASSES)
    (folder / "arrays").mkdir()
    for i, sample in enumerate(samples):
        np.save(folder / f"arrays/{i}.npy", sample[None])
        (folder / f"testdata/test_data_set_{i}").mkdir(parents=True)
        tensor = numpy_helper.from_array(sample[None], "x")
        (folder / f"testdata/test_data_set_{i}/input_0.pb").write_bytes(tensor.SerializeToString())
    (folder / "ids").mkdir()
    np.save(folder / "ids/input_ids.npy", rng.integers(0, WORDS, SHAPE))
    np.save(folder / "ids/attention_mask.npy", np.ones(SHAPE, np.int64))


def _write_images(folder: Path, rng: np.random.Generator) -> None:
    names = [f"{i}.{suffix}" for i, suffix in enumerate(("png", "jpg", "bmp", "webp"))]
    for i, name in enumerate(names):
        image = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
        for path in (folder / "images" / name, folder / f"classes/{'ab'[i % 2]}" / name):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    classes = [i % CLASSES for i in range(SAMPLES)]
    (folder / "labels.csv").write_text("".join(f"{name},{i}\n" for name, i in zip(names, classes, strict=True)))
    (folder / "labels.json").write_text(json.dumps(dict(zip(names, classes, strict=True))))
    (folder / "labels.txt").write_text("".join(f"{i}\n" for i in classes))
    np.save(folder / "labels.npy", np.array(classes))
    np.savez(folder / "labels.npz", labels=np.array(classes))


def _write_texts(folder: Path) -> None:
    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    (folder / "texts.csv").write_text("".join(["id,text\n", *(f"{i},{text}\n" for i, text in enumerate(TEXTS))]))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
