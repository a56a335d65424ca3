"""Records that can be imported and serialised, and what a run tells a log, an observer and a Python user."""

import json
import logging
import math
import subprocess
import sys
import typing
import warnings
from dataclasses import is_dataclass

import numpy as np
import pytest

import onnxcalib
from onnxcalib import BlockRecord, LeftOutRecord, Observer, OnnxCalibWarning, QuantizeConfig, Report, Verdict, quantize
from onnxcalib.report import LoggedObserver

CONSTANT = np.full((8, 4), 0.5, np.float32)
VARY = "input 'x': every value is 0.5; real data vary"


@pytest.fixture
def net(build, weigh):
    return build("g (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }", w=weigh(4, 3))


class Listener(Observer):
    """Overrides what it wants to hear, without a word to its base."""

    def __init__(self):
        self.warnings = []

    def stage(self, name):
        pass

    def warn(self, text):
        self.warnings.append(text)


def find_records(kind):
    """The dataclass and all that its fields hold."""
    found = {kind}
    for hint in typing.get_type_hints(kind).values():
        waiting = [hint]
        while waiting:
            part = waiting.pop()
            waiting += typing.get_args(part)
            if is_dataclass(part) and part not in found:
                found |= find_records(part)
    return found


@pytest.mark.parametrize(("root", "count"), [(Report, 21), (Verdict, 22)])
def test_every_record_that_a_result_holds_can_be_imported_from_the_package(root, count):
    records = find_records(root)
    assert len(records) == count
    for record in records:
        assert record.__name__ in onnxcalib.__all__ and getattr(onnxcalib, record.__name__) is record


def test_every_public_name_has_a_home():
    assert onnxcalib.__all__ == sorted(onnxcalib.__all__)
    assert all(getattr(onnxcalib, name) is not None for name in onnxcalib.__all__)


def test_what_was_left_out_is_in_the_json():
    report = Report(settings={}, left_out=(LeftOutRecord("views of images", "the input has 2 dimensions"),))
    assert json.loads(report.to_json())["left_out"] == [
        {"what": "views of images", "reason": "the input has 2 dimensions"}
    ]


def test_json_has_null_for_what_is_not_finite():
    block = BlockRecord("b", (), "rounded", loss_before=math.inf, loss_after=math.nan)
    (found,) = json.loads(Report(settings={}, blocks=(block,)).to_json())["blocks"]
    assert (found["loss_before"], found["loss_after"]) == (None, None)


def test_without_an_observer_warnings_reach_a_python_user_at_the_line_of_the_call(net):
    with pytest.warns(OnnxCalibWarning, match=VARY) as caught:
        report = quantize(net, CONSTANT, QuantizeConfig(reconstruct=False)).report
    (warning,) = [each for each in caught if str(each.message) == VARY]
    assert warning.filename == __file__
    assert VARY in report.warnings


def test_an_observer_that_shows_warnings_itself_is_their_only_way_to_the_user(net):
    listener = Listener()
    with warnings.catch_warnings():
        warnings.simplefilter("error", OnnxCalibWarning)
        report = quantize(net, CONSTANT, QuantizeConfig(reconstruct=False), observer=listener).report
    assert listener.warnings == list(report.warnings)


def test_the_log_has_everything_whatever_an_observer_overrides(net, caplog):
    with caplog.at_level(logging.DEBUG, logger="onnxcalib"):
        quantize(net, CONSTANT, QuantizeConfig(steps=0), observer=Listener())
    records = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "onnxcalib"]
    assert ("WARNING", VARY) in records
    assert [text for level, text in records if level == "INFO" and text.endswith(" ...")] == [
        "prepare ...", "calibrate ...", "reconstruct ...", "verify ...",
    ]  # fmt: skip
    assert any(level == "INFO" and "layers and" in text for level, text in records)
    assert any(level == "DEBUG" and text == "block MatMul_y: solved" for level, text in records)


def test_every_call_is_passed_on(caplog):
    calls = []

    class Recorder(Observer):
        def __getattribute__(self, name):
            return lambda *values: calls.append((name, *values))

    block = BlockRecord("b", (), "solved", loss_before=0.5, loss_after=0.25)
    wanted = [("stage", "plan"), ("note", "n"), ("warn", "w"), ("blocks", 3), ("planned", "a"), ("block", block)]
    with caplog.at_level(logging.DEBUG, logger="onnxcalib"):
        for name, values in (("progress", (1, 2)), ("expect", (["verify"],))):  # for those who watch, not for a log
            getattr(LoggedObserver(Recorder()), name)(*values)
            assert calls.pop() == (name, *values)
        for name, value in wanted:
            getattr(LoggedObserver(Recorder()), name)(value)
    assert calls == wanted and len(caplog.records) == len(wanted)
    assert {name for name in vars(Observer) if not name.startswith("_")} == {
        *("progress", "expect"),
        *(name for name, _ in wanted),
    }


def test_without_a_handler_the_log_is_silent():
    code = "from onnxcalib.report import LoggedObserver\nfrom onnxcalib import Observer\n"
    code += "class Quiet(Observer):\n    def warn(self, text): pass\n"
    code += "LoggedObserver(Quiet()).warn('heard by nobody')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
