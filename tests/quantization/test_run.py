"""What all stages share: times, warnings and reasons of a run."""

import pytest
import torch

from onnxcalib import ConfigError, DeviceMemoryError, Observer, QuantizeConfig
from onnxcalib.quantization.run import Run
from onnxcalib.report import LeftOutRecord


def test_a_stage_is_told_and_timed_and_named_while_it_goes_on(listen):
    listener = listen()
    run = Run(QuantizeConfig(), listener)
    assert run.current_stage is None
    with run.stage("calibrate"):
        assert run.current_stage == "calibrate" and run.seconds == {}
    assert run.current_stage is None and listener.heard == [("stage", "calibrate")]
    assert list(run.seconds) == ["calibrate"] and run.seconds["calibrate"] >= 0


def test_warnings_and_what_is_left_out_reach_the_observer_and_are_kept(listen):
    listener = listen()
    run = Run(QuantizeConfig(), listener)
    run.warn("look here")
    run.leave_out("probes", "no output has a gradient")
    assert listener.heard == [("warn", "look here"), ("note", "probes: none, no output has a gradient")]
    assert run.warnings == ["look here"]
    assert run.left_out == [LeftOutRecord("probes", "no output has a gradient")]


def test_warnings_have_no_control_characters_of_names(listen):
    listener = listen()
    run = Run(QuantizeConfig(), listener)
    run.warn("node a\x1b[2J\u202e\n")
    assert run.warnings == [r"node a\x1b[2J\u202e\x0a"] and listener.heard == [("warn", run.warnings[0])]


def test_bits_are_not_planned_where_all_activations_have_16_bits():
    with pytest.raises(ConfigError, match=r"^activation_bits: found 16 beside a budget, which says where .*; take"):
        Run(QuantizeConfig(activation_bits=16, max_a16=15.0, target="qnn"), Observer())


def test_too_little_memory_of_the_device_names_the_stage():
    run = Run(QuantizeConfig(device="cpu"), Observer())
    with pytest.raises(DeviceMemoryError, match=r"on cpu in the stage reconstruct \(CUDA out of memory\)"):
        with run.computing(), run.stage("reconstruct"):
            raise torch.OutOfMemoryError("CUDA out of memory.")


def test_torch_computes_on_one_thread_as_its_sums_depend_on_their_number():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with Run(QuantizeConfig(threads=2), Observer()).computing():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
