"""The example pipelines as tests: the commands that they hold are run as they stand, on a model that is made here."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser
from PIL import Image

from onnxcalib.cli.main import main

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "ci"
PIPELINES = ("github-actions.yml", "gitlab-ci.yml")
REPORTS = {"--junit": "report.xml", "--markdown": "report.md", "--json": "report.json"}
# Nothing here reads YAML: commands are the lines that begin with onnxcalib, alone or as an item of a list, and those
# that follow a backslash.
COMMAND = re.compile(r"^ +(?:- )?(onnxcalib (?:.*\\\n)*.*)$", flags=re.MULTILINE)

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


def read_commands(pipeline: str) -> list[list[str]]:
    text = (FOLDER / pipeline).read_text(encoding="utf-8")
    return [shlex.split(command.replace("\\\n", " ")) for command in COMMAND.findall(text)]


class Ended(NamedTuple):
    status: int
    stdout: str
    stderr: str


def call(arguments: list[str], folder: Path) -> Ended:
    """Run one command line in the folder."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with chdir(folder), redirect_stdout(stdout), redirect_stderr(stderr):
        status = main(arguments[1:])
    return Ended(status, stdout.getvalue(), stderr.getvalue())


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


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The files that README.md says the pipelines expect."""
    folder = tmp_path_factory.mktemp("repository")
    images, _ = draw_images(folder / "calibration", 1, 16)
    _, classes = draw_images(folder / "samples", 2, 48)
    onnx.save(fit_model(images, np.arange(len(images)) % len(COLOURS)), folder / "float.onnx")
    (folder / "labels.csv").write_text("".join(f"{name},{label}\n" for name, label in classes))
    shutil.copy(FOLDER / "onnxcalib.toml", folder)
    return folder


@pytest.fixture(scope="module")
def finished(repository):
    """The folder in which the commands were run one after the other, their results, and the last of them."""
    commands = read_commands(PIPELINES[0])
    return repository, [call(arguments, repository) for arguments in commands], commands[-1]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_pipeline_quantizes_then_validates_and_publishes_what_it_wrote(pipeline):
    quantize, validate = read_commands(pipeline)
    assert (quantize[1], validate[1]) == ("quantize", "validate")
    assert {option: validate[validate.index(option) + 1] for option in REPORTS} == REPORTS
    published = (FOLDER / pipeline).read_text(encoding="utf-8").rpartition("--json report.json")[2]
    assert all(name in published for name in REPORTS.values())
    assert "always" in published


def test_the_pipelines_run_the_same_commands():
    first, second = map(read_commands, PIPELINES)
    assert first == second


def test_gitlab_reads_the_junit_report():
    assert re.search(r"^    reports:\n      junit: report\.xml$", (FOLDER / "gitlab-ci.yml").read_text(), re.MULTILINE)


def test_a_sound_model_passes_and_leaves_all_reports(finished):
    folder, results, _ = finished
    for result in results:
        assert result.status == 0, result.stdout + result.stderr
    assert results[-1].stdout.splitlines()[-1].startswith("PASSED: ")
    suite = ElementTree.parse(folder / "report.xml").find("testsuite")
    gates = {"max_drop", "min_agreement", "min_sqnr", "max_size_ratio", "max_steps", "max_saturating"}
    assert {case.get("name") for case in suite.findall("testcase")} == gates
    assert suite.get("failures") == "0"
    assert (folder / "report.md").read_text(encoding="utf-8").startswith("## onnxcalib validate: PASSED\n")
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["passed"] is True


def test_a_spoilt_model_fails_and_leaves_all_reports_nonetheless(finished, tmp_path):
    before, _, validate = finished
    folder = tmp_path / "repository"
    shutil.copytree(before, folder, ignore=shutil.ignore_patterns("report.*"))
    spoil(folder / "quantized.onnx")
    result = call(validate, folder)
    assert result.status == 3, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith("FAILED: 3 of 6 gates do not hold: ")
    suite = ElementTree.parse(folder / "report.xml").find("testsuite")
    failed = {case.get("name") for case in suite.findall("testcase") if case.find("failure") is not None}
    assert failed == {"max_drop", "min_agreement", "min_sqnr"}
    assert (folder / "report.md").read_text(encoding="utf-8").startswith("## onnxcalib validate: FAILED\n")
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["passed"] is False
