"""A run that is stopped goes on where it was, and ends with the bytes of one that was not."""

import errno
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

import onnxcalib
from onnxcalib import ConfigError, Observer, OutputError, QuantizeConfig, pipeline
from onnxcalib.quantization import parallel, reconstruct
from onnxcalib.quantization.checkpoints import Calibrated, CheckpointSettings, Key, open_checkpoints
from onnxcalib.quantization.float_outputs import KeptOutputs

NET = """g (float[N, 3, 6, 6] x) => (float[N, 5] y) {
    [c1] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  [r1] r = Relu (a)
    [p] p = GlobalAveragePool (r)  [f] f = Flatten (p)  [fc] y = Gemm (f, w2, b2)
}"""
SETTINGS = {"weight_bits": 4, "first_last_bits": 4, "steps": 4, "views": 1, "threads": 1}
KEY = Key("m", "s", {"seed": "0", "weight_bits": "4"}, "1", "p")

CALIBRATED = Calibrated("{}", KeptOutputs(0, ()))


class Stop(Exception):
    """What ends a run in a test."""


class Listener(Observer):
    """Keeps what it hears of checkpoints, and stops the run where a stage begins."""

    def __init__(self, stage=None):
        self.last, self.lines = stage, []

    def note(self, text):
        self.lines += [text] if "checkpoint" in text else []

    warn = note

    def stage(self, name):
        if name == self.last:
            raise Stop


@pytest.fixture
def quantize(build, weigh, draw, tmp_path, monkeypatch):
    """Quantizes a net of two blocks into a file; stops when the work on a block, or a stage, begins.

    Returns the bytes of the model and the numbers of its report, which are None where it was stopped, the blocks that
    were worked on, and what was told of checkpoints.
    """
    net = build(NET, w1=weigh(6, 3, 3, 3), b1=weigh(6), w2=weigh(6, 5), b2=weigh(5))
    samples, solve, worked = draw(16, 3, 6, 6), reconstruct.solve_block, []

    def run(*, block=None, stage=None, output="q.onnx", save=True, **settings):
        def solve_some(state, each):
            if each.name == block:
                raise Stop
            worked.append(each.name)
            return solve(state, each)

        worked.clear()
        monkeypatch.setattr(reconstruct, "solve_block", solve_some)
        listener, config = Listener(stage), QuantizeConfig(**SETTINGS | settings)
        target = output and tmp_path / output
        try:
            result = onnxcalib.quantize(net, samples, config, output=target, observer=listener)
        except Stop:
            return None, list(worked), listener.lines
        if save:
            result.save(tmp_path / "q.onnx")
        numbers = repr((result.report.outputs, result.report.steps, result.report.layers)).encode()
        return result.model.SerializeToString() + numbers, list(worked), listener.lines

    return run


@pytest.mark.filterwarnings("ignore::onnxcalib.OnnxCalibWarning")
def test_a_run_that_is_stopped_again_and_again_ends_with_the_bytes_of_one_that_is_not(quantize, tmp_path):
    changes = {"pipeline": "advanced"}
    wanted, worked, lines = quantize(output=None, save=False, **changes)
    assert worked == ["c1", "fc"] and not lines and not os.listdir(tmp_path)
    stops = [
        ({"block": "fc"}, ["c1"], ["keeps what was done; the same command goes on from there"]),
        ({"stage": "statistics"}, ["fc"], ["it goes on after 1 of 2 blocks"]),
        ({"stage": "verify"}, [], ["it goes on after reconstruct"]),
        ({}, [], ["it goes on after biases"]),
    ]
    for stop, blocks, told in stops:
        found, worked, lines = quantize(**stop, **changes)
        assert worked == blocks and all(any(text in line for line in lines) for text in told), lines
    assert found == wanted and os.listdir(tmp_path) == ["q.onnx"]


@pytest.mark.filterwarnings("ignore::onnxcalib.OnnxCalibWarning")
def test_what_is_damaged_is_done_again(quantize, tmp_path):
    folder, copy = tmp_path / "q.onnx.checkpoints", tmp_path / "copy"
    quantize(block="fc")
    shutil.copytree(folder, copy)
    tensor = min(copy.glob("*.tensor"), key=lambda path: int(path.stem)).name
    for name, cut in (
        ("walk.record", 1),
        ("block-0.record", 0),
        ("block-1.record", 9),
        (tensor, 0),
        ("ranges.record", 1),
    ):
        data = (copy / name).read_bytes()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(copy, folder)
        (folder / name).write_bytes(data[:-cut] if cut else data[:-9] + bytes(9))
        (folder / "99.tensor").write_bytes(b"of a block that was not done")
        _, worked, lines = quantize(block="c1" if name != "ranges.record" else "fc")
        damaged = "checkpoints: that of the blocks is damaged; all blocks are done again"
        assert (damaged in lines) == (name != "ranges.record") and not worked, (name, lines)
        assert not (folder / "99.tensor").exists()


def open_at(path, key=KEY, resume=None):
    told = []
    found = open_checkpoints(CheckpointSettings(path, None, resume), key, told.append, told.append)
    return found, "\n".join(told)


@pytest.fixture
def left(tmp_path):
    """The folder of a run that was stopped when it knew its ranges."""
    found, told = open_at(tmp_path / "q")
    found.keep(("ranges", CALIBRATED, Calibrated))
    found.close()
    assert not told
    return tmp_path / "q"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "n"}, "another model"),
        ({"samples": "t"}, "other samples"),
        ({"version": "2", "settings": {"seed": "0"}}, "another version and other settings (weight_bits)"),
        ({"settings": {"seed": "1", "bits": "4"}}, "other settings (bits, seed, weight_bits)"),
    ],
)
def test_what_differs_is_told_and_the_run_starts_anew(left, changes, told):
    with pytest.raises(ConfigError, match=r"resume: found those of .* in .*; give that run's command, or leave"):
        open_at(left, replace(KEY, **changes), resume=True)
    found, lines = open_at(left, replace(KEY, **changes))
    assert lines == f"{left}: the checkpoints of {told} are removed; this run starts anew"
    assert found.find("ranges", Calibrated) is None


def test_fresh_starts_anew_and_resume_goes_on(left):
    found, lines = open_at(left, resume=True)
    assert lines.endswith("it goes on after calibrating") and found.find("ranges", Calibrated) == CALIBRATED
    found.close()
    found, lines = open_at(left, resume=False)
    assert not lines and found.find("ranges", Calibrated) is None


def test_checkpoints_of_which_none_can_tell_whose_they_are_are_removed_with_a_warning(left):
    key = left / "key.record"
    key.write_bytes(key.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"resume: found those of an unknown run, as .* missing or damaged, in .*q; "):
        open_at(left, resume=True)
    found, lines = open_at(left)
    assert lines.endswith("is missing or damaged, are removed; this run starts anew")
    assert found.find("ranges", Calibrated) is None
    found.close()
    key.unlink()
    found, lines = open_at(left, resume=False)
    assert lines.endswith("is missing or damaged, are removed, as --fresh asks")


def test_another_processor_goes_on_with_a_warning(left):
    found, lines = open_at(left, replace(KEY, processor="q"))
    assert "on another processor (p; this one is q)" in lines and found.find("ranges", Calibrated) == CALIBRATED


def test_where_there_is_nothing_to_go_on_from_resume_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"resume: found none in .*q; .* leave --resume out"):
        open_at(tmp_path / "q", resume=True)
    assert not os.listdir(tmp_path)
    with pytest.raises(ConfigError, match=r"resume: found no place of checkpoints; .* give one"):
        CheckpointSettings.of(QuantizeConfig(resume=True), None, {})


def test_a_second_run_of_the_same_output_is_refused(left):
    first, _ = open_at(left)
    with pytest.raises(OutputError, match=r"q: found another run that works there; .* --work-dir"):
        open_at(left)
    first.close()
    second, _ = open_at(left)
    first.remove()  # the folder is the second run's now
    assert second.find("ranges", Calibrated) == CALIBRATED


def test_where_no_folder_can_be_made_the_run_goes_on_unless_the_user_chose_it(tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "q.checkpoints"
    found, told = open_at(place)
    assert found.folder is None and not found.keep(("a", 1, int))
    assert told.startswith(f"{place}: checkpoints cannot be kept there (Not a directory); ")
    assert told.endswith("; until then a run that is stopped starts anew")
    with pytest.raises(OutputError, match="cannot be kept there"):
        open_at(place, resume=True)
    with pytest.raises(OutputError, match=r"work_dir: .*file cannot be made \(File exists\); choose another folder"):
        open_checkpoints(CheckpointSettings(place, chosen=True), KEY, print, print)


def test_a_run_that_fails_before_a_block_is_done_leaves_nothing(left, tmp_path):
    found, _ = open_at(left)
    found.leave(lambda text: pytest.fail(text))
    assert not os.listdir(tmp_path)


def test_checkpoints_stand_beside_the_output_or_in_the_work_folder():
    def place(output, **settings):
        return CheckpointSettings.of(QuantizeConfig(**settings), output, {}).path

    assert str(place("a/q.onnx")) == "a/q.onnx.checkpoints"
    first, again, second = (place(output, work_dir="w") for output in ("a/q.onnx", "./b/../a/q.onnx", "b/q.onnx"))
    assert re.fullmatch(r"w/q\.onnx-[0-9a-f]{8}\.checkpoints", str(first)) and first == again != second
    assert str(place(None, work_dir="w")) == "w/quantize.checkpoints" and place(None) is None


def test_on_a_full_disk_the_run_goes_on_and_says_so_once(left, monkeypatch):
    def refuse(*records):
        raise OSError(errno.ENOSPC, "No space left on device")

    found, _ = open_at(left)
    told = []
    found._warn = told.append
    with monkeypatch.context() as patch:
        patch.setattr(found.folder, "write", refuse)
        assert not found.keep(("a", "b", str)) and not found.keep(("a", "b", str))
    (line,) = told
    assert line.startswith(f"{left}: no checkpoint can be written (No space left on device); the run goes on; ")
    assert found.keep(("a", "b", str)) and found.find("a", str) == "b"


@pytest.mark.filterwarnings("ignore::onnxcalib.OnnxCalibWarning")
def test_blocks_that_were_reconstructed_apart_are_not_done_again(quantize, monkeypatch):
    options = {"pipeline": "parallel", "jobs": 1, "statistics": False}
    quantize(stage="verify", **options)
    monkeypatch.setattr(parallel, "spread_tasks", lambda function, common, tasks, config, **others: iter(tasks))
    found, worked, lines = quantize(**options)
    assert found is not None and not worked and lines[0].endswith("it goes on with 2 of the blocks done")


def test_settings_that_are_a_fault_leave_no_checkpoints(quantize, tmp_path, monkeypatch):
    def refuse(prepared, found):
        assert os.listdir(tmp_path) == ["q.onnx.checkpoints"]
        raise ConfigError("max_size: too small")

    monkeypatch.setattr(pipeline, "emit_model", refuse)
    with pytest.raises(ConfigError, match="max_size"):
        quantize()
    assert not os.listdir(tmp_path)


@pytest.mark.filterwarnings("ignore::onnxcalib.OnnxCalibWarning")
def test_workers_that_are_lost_leave_the_blocks_that_were_done(quantize, monkeypatch):
    def lose(function, common, tasks, config, **others):
        key, task = next(iter(tasks.items()))
        yield key, function(common, task)
        raise ConfigError("jobs: workers ended before their task 3 times")

    spread = parallel.spread_tasks
    monkeypatch.setattr(parallel, "spread_tasks", lose)
    with pytest.raises(ConfigError, match="workers ended"):
        quantize(pipeline="parallel", jobs=2)
    monkeypatch.setattr(parallel, "spread_tasks", spread)
    assert quantize(pipeline="parallel", jobs=1)[2][0].endswith("it goes on with 1 of the blocks done")


def test_a_result_that_is_saved_again_leaves_the_checkpoints_of_a_later_run(quantize, build, weigh, draw, tmp_path):
    net, config = build(NET, w1=weigh(6, 3, 3, 3), b1=weigh(6), w2=weigh(6, 5), b2=weigh(5)), QuantizeConfig(threads=1)
    with pytest.warns(onnxcalib.OnnxCalibWarning, match="samples"):
        earlier = onnxcalib.quantize(net, draw(4, 3, 6, 6), config, output=tmp_path / "q.onnx")
    earlier.save(tmp_path / "q.onnx")
    quantize(stage="verify")
    earlier.save(tmp_path / "other.onnx")
    assert quantize()[2][0].startswith(f"{tmp_path / 'q.onnx.checkpoints'}: found the checkpoints of a run")


def test_checkpoints_in_a_folder_that_the_run_reads_are_refused(build, weigh, draw, tmp_path):
    net = build(NET, w1=weigh(6, 3, 3, 3), b1=weigh(6), w2=weigh(6, 5), b2=weigh(5))
    np.save(tmp_path / "a.npy", draw(4, 3, 6, 6))
    before = os.listdir(tmp_path)
    with pytest.raises(OutputError, match=r"q.onnx-[0-9a-f]+.checkpoints: lies in .*, which this run reads"):
        onnxcalib.quantize(net, tmp_path, QuantizeConfig(work_dir=tmp_path), output="q.onnx")
    assert os.listdir(tmp_path) == before


@pytest.mark.filterwarnings("ignore::onnxcalib.OnnxCalibWarning")
def test_settings_that_do_not_fit_the_model_leave_the_checkpoints_of_the_run_before(quantize):
    quantize(block="fc")
    with pytest.raises(ConfigError, match="typo"):
        quantize(layers={"typo": {"weight_bits": 8}})
    assert quantize()[2][0].endswith("it goes on after 1 of 2 blocks")
