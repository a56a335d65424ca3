"""Files in the runtimes of targets: in a process of their own, whose end is told in one line."""

from __future__ import annotations

import os
from importlib.util import find_spec

import numpy as np
import pytest

from onnxcalib import QuantizeConfig, quantize
from onnxcalib.errors import ModelError
from onnxcalib.runtime import foreign
from onnxcalib.runtime.foreign import Runtime, find_runtime, open_foreign, spell_runtime
from onnxcalib.runtime.placement import Off
from onnxcalib.runtime.session import Session
from tests.runtime import tasks

NET = """g (float[N, 3, 8, 8] x) => (float[N, 4] y) {
    [stem] c = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (x, w1)  [relu] r = Relu (c)
    p = GlobalAveragePool (r)  [flat] f = Flatten (p)  [head] y = Gemm <transB = 1> (f, w2) }"""
DATA = np.random.default_rng(3).normal(size=(8, 3, 8, 8)).astype(np.float32)
FEEDS = {"x": DATA[:1]}


@pytest.fixture
def net(build, weigh):
    return build(NET, w1=weigh(8, 3, 3, 3), w2=weigh(4, 8))


@pytest.fixture
def install(monkeypatch):
    """A runtime of the tests, under the name of a package that is installed everywhere."""
    return lambda opener: monkeypatch.setitem(foreign.RUNTIMES, "json", Runtime(opener, "chip"))


def test_a_file_is_placed_and_run_in_another_process(net, install, capfd):
    install(tasks.Chip)
    with open_foreign("json", net, FEEDS, 1, seconds=60) as session:
        placement = session.place()
        found = session.run(FEEDS)
    assert (placement.total, placement.off) == (2, (Off("head", "Gemm", "too wide"),))
    assert np.array_equal(found["y"], Session(net).run(FEEDS)["y"])
    assert capfd.readouterr().err == ""


def test_a_runtime_that_ends_its_process_is_told_in_one_line(net, install):
    install(tasks.open_and_die)
    with open_foreign("json", net, FEEDS, 1, seconds=60) as session, pytest.raises(ModelError) as found:
        session.place()
    assert str(found.value) == "json ended its process when it was to compile the file"
    install(tasks.DyingChip)
    with open_foreign("json", net, FEEDS, 1, seconds=60) as session, pytest.raises(ModelError) as found:
        session.run(FEEDS)
    assert str(found.value) == "json ended its process when it was to run the file"


def test_what_a_runtime_refuses_is_told_without_its_own_source_lines(net, install):
    install(tasks.RefusingChip)
    with open_foreign("json", net, FEEDS, 1, seconds=60) as session, pytest.raises(ModelError) as found:
        session.run(FEEDS)
    assert str(found.value) == "json cannot run the file: Check failed at port 0"


def test_a_runtime_that_hangs_is_ended_after_its_time(net, install):
    install(tasks.HangingChip)
    with open_foreign("json", net, FEEDS, 1, seconds=5) as session:
        process = int(session.place().of)
        session._seconds = 0.2
        with pytest.raises(ModelError) as found:
            session.run(FEEDS)
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    text = "json did not run the file within 0.2 s, and its process was ended; give device_timeout more seconds"
    assert str(found.value) == text
    install(tasks.open_and_wait)
    with open_foreign("json", net, FEEDS, 1, seconds=0.2) as session, pytest.raises(ModelError) as found:
        session.place()
    assert str(found.value).startswith("json did not compile the file within 0.2 s")


def test_a_runtime_that_is_missing_names_what_installs_it(monkeypatch):
    monkeypatch.setattr(foreign, "find_spec", lambda name: None)
    why = "openvino, which runs it, is not installed; pip install 'onnxcalib[openvino]'"
    assert find_runtime("openvino") == (None, why)
    assert find_runtime("onnxruntime_qnn")[1].endswith("'onnxcalib[qnn]'")
    assert find_runtime("onnxruntime") == find_runtime(None) == (None, "")


def test_a_runtime_is_spelt_with_its_version():
    assert spell_runtime("onnx").startswith("onnx 1.") and spell_runtime("json") == "json"


def run_real(package, net):
    model = quantize(net, DATA, QuantizeConfig(reconstruct=False)).model
    with open_foreign(package, model, FEEDS, 1, seconds=60) as session:
        placement, found = session.place(), session.run(FEEDS)["y"]
    wanted = Session(model, optimize=False).run(FEEDS)["y"]
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
    return placement


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_openvino_computes_in_8_bits_and_tells_what_it_leaves_in_float(net):
    placement = run_real("openvino", net)
    assert (placement.total, placement.off) == (2, ())
    with open_foreign("openvino", net, FEEDS, 1, seconds=60) as session:
        off = session.place().off
    assert {each.node for each in off} == {"stem", "head"} and off[0].reason.startswith("OpenVINO computes it in ")


@pytest.mark.skipif(find_spec("onnxruntime_qnn") is None, reason="the plugin for QNN is not installed")
def test_qnn_tells_which_nodes_are_off_the_htp_and_why(net):
    placement = run_real("onnxruntime_qnn", net)
    assert placement.off[0].node == "head" and "QNN refuses FullyConnected" in placement.off[0].reason
    assert placement.total > 2 * len(placement.off)
