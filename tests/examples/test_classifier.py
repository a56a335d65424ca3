"""The demo as a test: a real network, trained, exported, quantized by the command line and measured."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onnxcalib.cli.main import main

DEMO = Path(__file__).resolve().parents[2] / "examples" / "classifier" / "demo.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "demo", module)
        spec.loader.exec_module(module)
        threads = torch.get_num_threads()
        yield module
        torch.set_num_threads(threads)


def test_the_demo_quantizes_to_8_and_4_bits_and_keeps_the_accuracy(demo, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(demo, "compare_speed", partial(demo.compare_speed, runs=10))
    float_row, eight, four = demo.main(["--out", str(tmp_path), "--epochs", "4"])
    assert [row.name for row in (float_row, eight, four)] == ["float", "W8A8", "W4A4"]
    assert float_row.accuracy > 0.95
    assert float_row.agreement == 1.0
    assert eight.agreement > 0.99 and eight.accuracy > float_row.accuracy - 0.01
    assert four.agreement > 0.95 and four.accuracy > float_row.accuracy - 0.03
    assert eight.size < 0.35 * float_row.size
    assert four.size < 0.65 * eight.size
    printed = capfd.readouterr().out
    assert "W4A4" in printed and f"{four.accuracy:.1%}" in printed
    quantize, validate = map(shlex.split, printed.splitlines()[-2:])
    assert quantize[:2] == ["onnxcalib", "quantize"] and validate[:2] == ["onnxcalib", "validate"]
    assert main([*quantize[1:], "--samples", "32"]) == 0
    assert main(validate[1:]) == 0
    judged = capfd.readouterr().out
    assert "on 540 samples" in judged and "PASSED: 2 of 2 gates hold" in judged
    assert f"{100 * float_row.accuracy:.2f}" in judged, "the labels are not those of the images"


def test_the_environment_is_named_where_it_is_not_active(demo, monkeypatch, tmp_path):
    digits = demo.split_digits()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert demo.suggest(Path("demo"), digits).splitlines()[1] == "  . .venv/bin/activate"
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / ".venv"))
    assert "activate" not in demo.suggest(Path("demo"), digits)


def test_calibration_images_reproduce_what_the_network_was_trained_on(demo, tmp_path):
    digits = demo.split_digits()
    demo.write_images(digits.train[:3], tmp_path)
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("*.png"))])
    assert pixels.dtype == np.uint8
    assert np.array_equal(digits.normalize(pixels), digits.normalize(digits.train[:3]))
    assert abs(float(digits.normalize(digits.train).mean())) < 1e-5
