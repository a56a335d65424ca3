"""The README as a test: its Python runs, its commands are ones that the command line knows."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from onnxcalib.config import LayerConfig, load_config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = re.findall(r"^    (onnxcalib .*)$", README, flags=re.MULTILINE)

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
tiny (float[batch, 3, 8, 8] image) => (float[batch, 5] scores) {
    features = Conv<pads = [1, 1, 1, 1]>(image, kernel, offset)
    active = Relu(features)
    pooled = GlobalAveragePool(active)
    flat = Flatten(pooled)
    scores = Gemm<transB = 1>(flat, weight, bias)
}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of a user with model.onnx and samples.npy."""
    random = np.random.default_rng(0)
    model = parser.parse_model(MODEL)
    shapes = {"kernel": (8, 3, 3, 3), "offset": (8,), "weight": (5, 8), "bias": (5,)}
    model.graph.initializer.extend(
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name) for name, shape in shapes.items()
    )
    onnx.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "samples.npy", random.normal(size=(32, 3, 8, 8)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_snippet_quantizes_a_model(folder):
    (snippet,) = SNIPPETS
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    printed = re.fullmatch(r"scores: ([\d.]+) dB", done.stdout.strip())
    assert printed and float(printed[1]) > 20
    samples = np.load(folder / "samples.npy")
    scores = [
        ort.InferenceSession(folder / name, providers=["CPUExecutionProvider"]).run(None, {"image": samples})[0]
        for name in ("model.onnx", "model.quantized.onnx")
    ]
    error = np.square(scores[0] - scores[1]).sum() / np.square(scores[0]).sum()
    assert 0 < error < 0.01
    operators = {node.op_type for node in onnx.load(folder / "model.quantized.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators


def read_options(command: str) -> set[str]:
    code = f"import sys; from onnxcalib.cli.main import main; sys.exit(main(['{command}', '--help']))"
    helped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert helped.returncode == 0, helped.stderr
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", helped.stdout))


def test_every_option_of_the_shown_commands_exists():
    options = {command: read_options(command) for command in ("quantize", "plan", "validate")}
    assert [command.split()[1] for command in COMMANDS] == [
        *("quantize", "quantize", "quantize", "plan", "quantize", "plan", "validate", "validate")
    ]
    for command in COMMANDS:
        shown = {word for word in shlex.split(command) if word.startswith("-")}
        assert shown <= options[command.split()[1]], command
    assert set(re.findall(r"`(--[\w-]+)", README)) <= set().union(*options.values())


def test_the_toml_shown_is_taken(tmp_path):
    (snippet,) = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "run.toml").write_text(snippet)
    layers = load_config(tmp_path / "run.toml").layers
    assert layers == {"/layer1/conv1/Conv": LayerConfig(weight_bits=8, activation_bits=8)}


def test_every_dependency_is_given_a_reason():
    listed = re.search(r"install_requires =\n(.*?)\n\n", (ROOT / "setup.cfg").read_text(), flags=re.DOTALL)[1]
    section = README.split("## Dependencies")[1]
    for name in re.findall(r"^ +([\w-]+)", listed, flags=re.MULTILINE):
        assert re.search(rf"\b{name}\b", section), name


def test_every_linked_file_exists():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).is_file(), link
