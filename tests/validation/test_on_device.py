"""Validation runs the file in the runtime of its target, where that is installed."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from onnxcalib import GateError, QuantizeConfig, ValidateConfig, quantize, validate
from onnxcalib.report import Observer
from onnxcalib.runtime import foreign
from onnxcalib.runtime.foreign import Runtime
from onnxcalib.validation import on_device, render
from onnxcalib.validation.judge import judge
from tests.runtime import tasks

NET = """g (float[N, 6] x) => (float[N, 4] y) {
    [stem] h = Gemm <transB = 1> (x, w1)  [relu] r = Relu (h)  [head] y = Gemm <transB = 1> (r, w2) }"""
DATA = np.random.default_rng(5).normal(size=(12, 6)).astype(np.float32)
CHIP = 'name = "chip"\nruntime = "json"\n[rules.opset]\nleast = 1\nsource = "the manual"\n'


@pytest.fixture
def models(build, weigh):
    net = build(NET, w1=weigh(8, 6), w2=weigh(4, 8))
    return net, quantize(net, DATA, QuantizeConfig(reconstruct=False)).model


@pytest.fixture
def on_chip(models, monkeypatch, tmp_path):
    """Validate for a made target, whose runtime is one of the tests."""
    (tmp_path / "chip.toml").write_text(CHIP)

    def run(opener, *, fixed=False, timed=False, data=DATA, **settings):
        monkeypatch.setitem(foreign.RUNTIMES, "json", Runtime(opener, "chip", fixed, timed))
        return validate(*models, data, ValidateConfig(target=str(tmp_path / "chip.toml"), **settings))

    return run


def find_gate(verdict, name):
    return next(gate for gate in verdict.gates if gate.name == name)


def test_the_outputs_on_the_device_are_compared_with_float_and_with_onnxruntime(on_chip):
    verdict = on_chip(tasks.Chip)
    device = verdict.device
    assert (device.runtime, device.samples, device.fault) == ("json", 12, "")
    assert device.against_float[0].sqnr_db == pytest.approx(verdict.outputs[0].sqnr_db, abs=0.5)
    assert device.against_unoptimized[0].sqnr_db > device.against_float[0].sqnr_db
    assert device.onnxruntime[0].agreement == device.against_float[0].agreement
    target = find_gate(verdict, "target")
    assert target.passed and target.text == (
        "the one rule of target chip holds; json ran 12 of 12 samples, 1 of 2 nodes on the chip (50.00%)"
    )
    assert json.loads(verdict.to_json())["device"]["off"] == [{"node": "head", "op": "Gemm", "reason": "too wide"}]


def test_a_device_that_is_no_simulator_is_timed_with_the_float_model_and_with_the_file(on_chip):
    verdict = on_chip(tasks.SlowingChip, timed=True)
    assert 0.1 < verdict.device.speedup < 0.7  # a quarter, but for what other processes take
    low, high = verdict.device.speedup_interval
    assert low <= verdict.device.speedup <= high
    told = r"0\.\d\d times as fast as the float model there \(95%: 0\.\d\d to "
    assert re.search(told, find_gate(verdict, "target").text)


def test_a_device_on_which_the_float_model_does_not_run_is_not_timed(on_chip):
    verdict = on_chip(tasks.IntegerChip, timed=True)
    assert (verdict.device.fault, verdict.device.speedup) == ("", None)


def test_a_gate_judges_the_share_of_nodes_on_the_device(on_chip):
    verdict = on_chip(tasks.Chip, min_placed=50)
    assert verdict.passed
    gate = find_gate(verdict, "min_placed")
    assert gate.text == "1 of 2 nodes on the chip (50.00%); off: head, at least 50%"
    for limit in (50.1, 100):
        assert [each.passed for each in judge(verdict, ValidateConfig(min_placed=limit))] == [False, True]
    names = [case.get("name") for case in ElementTree.fromstring(render.to_junit(verdict)).iter("testcase")]
    assert "min_placed" in names
    text = render.to_markdown(verdict)
    assert "device and float" in text and "| `head` | Gemm | too wide |" in text


def test_a_runtime_that_crashes_fails_its_gates_and_not_the_run(on_chip):
    verdict = on_chip(tasks.open_and_die, min_placed=50, min_sqnr=1)
    crash = "json ended its process when it was to compile the file"
    assert find_gate(verdict, "target").text == f"the one rule of target chip holds; {crash}"
    assert find_gate(verdict, "min_placed").text == f"{crash}, at least 50%"
    assert [gate.name for gate in verdict.gates if not gate.passed] == ["min_placed", "target"]
    later = on_chip(tasks.DyingChip, min_placed=50)
    assert later.device.fault.endswith("when it was to run the file") and later.device.samples == 0
    assert find_gate(later, "min_placed").passed and not find_gate(later, "target").passed


@pytest.mark.parametrize(
    ("opener", "text"),
    [
        (tasks.OverflowingChip, "48 values of output y are not finite on the device"),
        (
            tasks.CuttingChip,
            "output y on the device could not be compared with the float model's: the float model gives",
        ),
    ],
)
def test_outputs_that_are_no_numbers_or_of_another_shape_fail_the_target(on_chip, opener, text):
    verdict = on_chip(opener)
    assert verdict.device.fault.startswith(text) and not find_gate(verdict, "target").passed


def test_a_runtime_that_takes_one_shape_runs_the_samples_of_the_first_ones(build, weigh, monkeypatch, tmp_path):
    net = build("g (float[N, S, 6] x) => (float[N, S, 4] y) { [head] y = MatMul (x, w) }", w=weigh(6, 4))
    data = [{"x": np.ones((1, size, 6), np.float32)} for size in (3, 5, 3, 3)]
    small = quantize(net, data, QuantizeConfig(reconstruct=False)).model
    (tmp_path / "chip.toml").write_text(CHIP)
    for fixed, count in ((True, 3), (False, 4)):
        monkeypatch.setitem(foreign.RUNTIMES, "json", Runtime(tasks.Chip, "chip", fixed))
        config = ValidateConfig(target=str(tmp_path / "chip.toml"))
        assert validate(net, small, data, config).device.samples == count


def test_no_more_samples_are_run_than_time_allows(on_chip, monkeypatch):
    monkeypatch.setattr(on_device, "SECONDS", 0.0)
    verdict = on_chip(tasks.Chip)
    assert verdict.device.samples == 1 and "ran 1 of 12 samples" in find_gate(verdict, "target").text


def test_a_runtime_that_hangs_fails_the_target_and_not_the_run(on_chip):
    verdict = on_chip(tasks.open_and_wait, device_timeout=0.2, min_sqnr=1)
    text = "json did not compile the file within 0.2 s, and its process was ended; give device_timeout more seconds"
    assert verdict.device.fault == text and find_gate(verdict, "min_sqnr").passed
    assert not find_gate(verdict, "target").passed


class Listener(Observer):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_without_the_runtime_the_file_is_read_alone_and_one_line_says_what_runs_it(models, monkeypatch):
    monkeypatch.setattr(foreign, "find_spec", lambda name: None)
    listener = Listener()
    verdict = validate(*models, DATA, ValidateConfig(target="openvino"), observer=listener)
    assert verdict.device is None and find_gate(verdict, "target").text.endswith("the device was not run")
    (note,) = [each for each in listener.notes if "openvino" in each]
    assert note == (
        "target openvino: the file is read and not run; openvino, which runs it, is not installed;"
        " pip install 'onnxcalib[openvino]'"
    )
    with pytest.raises(
        GateError, match=r"^min_placed: target openvino has no runtime here: openvino, which runs it, is"
    ):
        validate(*models, DATA, ValidateConfig(target="openvino", min_placed=100))


def test_a_gate_on_placement_needs_a_target_whose_runtime_tells_it(models):
    with pytest.raises(GateError, match=r"^min_placed: found no target; the runtime of one places the nodes; give --t"):
        validate(*models, DATA, ValidateConfig(min_placed=100))
    with pytest.raises(
        GateError, match=r"^min_placed: target tensorrt has no runtime here that tells placement; openv"
    ):
        validate(*models, DATA, ValidateConfig(target="tensorrt", min_placed=100))


def test_the_kernels_of_onnxruntime_are_not_judged_for_another_target_unless_a_gate_asks_for_them(on_chip):
    verdict = on_chip(tasks.Chip)
    assert not verdict.fused and [gate.name for gate in verdict.gates] == ["target"]
    assert (verdict.unfused, verdict.contract.samples, verdict.saturation.kernels) == ((), 0, 0)
    assert "of exact sums, by onnxruntime without its optimizations" in render.to_markdown(verdict)
    asked = on_chip(tasks.Chip, max_unfused=9)
    assert asked.fused and [gate.name for gate in asked.gates] == ["max_unfused", "max_steps", "target"]
    assert asked.contract.samples == 12 and asked.saturation.kernels > 0
