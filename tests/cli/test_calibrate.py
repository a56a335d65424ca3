"""``onnxcalib calibrate``: the ranges that it writes, quantize with them, and how it fails."""

import json

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from onnxcalib.cli.app import app


@pytest.fixture
def run(build, weigh, draw, tmp_path, monkeypatch):
    """Runs onnxcalib in a folder with a model and its samples."""
    monkeypatch.chdir(tmp_path)
    text = "g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { [one] a = Conv (x, w)  [two] y = Conv (a, v) }"
    onnx.save(build(text, w=weigh(5, 3, 3, 3), v=weigh(4, 5, 1, 1)), "net.onnx")
    np.save("x.npy", draw(16, 3, 8, 8))
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_ranges_are_written_beside_the_model_and_give_the_same_file(run, tmp_path):
    result = run("calibrate", "net.onnx", "--calib", "x.npy")
    assert result.exit_code == 0, result.output
    assert "net.ranges.json: the ranges of 3 activations" in result.stdout
    streamed = run("calibrate", "net.onnx", "--calib", "x.npy", "-o", "-")
    assert streamed.stdout == (tmp_path / "net.ranges.json").read_text() + "\n"
    data = json.loads((tmp_path / "net.ranges.json").read_text())
    low, high = data["activations"]["x"]
    assert low < 0 < high and set(data) == {"schema", "model", "batch", "activations", "requantized"}
    assert run("quantize", "net.onnx", "--calib", "x.npy", "-o", "one.onnx", "--quiet").exit_code == 0
    given = run("quantize", "net.onnx", "--calib", "x.npy", "-o", "two.onnx", "--quiet", "--ranges", "net.ranges.json")
    assert given.exit_code == 0, given.output
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_an_edited_range_changes_the_scale(run, tmp_path):
    run("calibrate", "net.onnx", "--calib", "x.npy", "-o", "r.json")
    data = json.loads((tmp_path / "r.json").read_text())
    data["activations"]["x"] = [-100.0, 155.0]
    (tmp_path / "r.json").write_text(json.dumps(data))
    assert run("quantize", "net.onnx", "--calib", "x.npy", "--ranges", "r.json", "--quiet").exit_code == 0
    values = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load("net.quantized.onnx").graph.initializer}
    assert values["x_scale"] == 1.0 and values["x_zero_point"] == 100


def test_a_file_that_is_no_ranges_is_refused_before_any_work(run):
    result = run("quantize", "net.onnx", "--calib", "x.npy", "--ranges", "x.npy")
    assert result.exit_code == 2 and "x.npy: not UTF-8 text" in result.stderr


def test_the_ranges_of_other_bits_are_refused_where_a_tensor_lacks_one(run):
    run("calibrate", "net.onnx", "--calib", "x.npy", "--exclude", "one", "-o", "r.json")
    result = run("quantize", "net.onnx", "--calib", "x.npy", "--ranges", "r.json", "--quiet")
    assert result.exit_code == 2 and "ranges: found none of tensor" in result.stderr


def test_a_file_that_is_read_is_not_written_over(run):
    result = run("calibrate", "net.onnx", "--calib", "x.npy", "-o", "net.onnx")
    assert result.exit_code == 1 and "net.onnx: is read by this run" in result.stderr


def test_histograms_that_are_saved_give_the_ranges_of_another_method_without_a_pass(run, tmp_path, monkeypatch):
    def calibrate(name, *options):
        result = run("calibrate", "net.onnx", "--calib", "x.npy", "-o", name, "--cache-dir", name + ".d", *options)
        assert result.exit_code == 0, result.output
        return (tmp_path / name).read_bytes()

    wanted = calibrate("a.json", "--range", "entropy")
    calibrate("b.json", "--save-histograms", "h.bin")
    assert (tmp_path / "h.bin").stat().st_size < 3 * 2**14
    monkeypatch.setattr("onnxcalib.quantization.kept_statistics.collect_statistics", None)
    assert calibrate("c.json", "--range", "entropy", "--histograms", "h.bin") == wanted


def test_histograms_that_do_not_fit_are_refused(run, tmp_path, build, draw):
    def calibrate(*options):
        return run("calibrate", "net.onnx", "--calib", "x.npy", "--quiet", *options)

    assert calibrate("--exclude", "two", "--save-histograms", "h.bin").exit_code == 0
    result = calibrate("--histograms", "h.bin")
    assert (
        result.exit_code == 2 and "histograms: found none of tensor 'y' in h.bin; collect them again" in result.stderr
    )
    text = "g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) { [one] y = Conv (x, w) }"
    onnx.save(build(text, w=draw(4, 3, 1, 1)), "net.onnx")
    result = calibrate("--histograms", "h.bin")
    assert result.exit_code == 2 and "histograms: found those of another model in h.bin" in result.stderr
    (tmp_path / "h.bin").write_bytes(b"text")
    result = calibrate("--histograms", "h.bin")
    assert result.exit_code == 2 and "h.bin: holds no histograms of this version, or is damaged" in result.stderr
