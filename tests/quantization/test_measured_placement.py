"""Placement as measured: the fastest of several files here."""

import numpy as np
import pytest

import onnxcalib
from onnxcalib import OnnxCalibWarning, QuantizeConfig, pipeline
from onnxcalib.errors import ModelError
from onnxcalib.quantization import measured_placement
from onnxcalib.quantization.cost_placement import list_choices
from onnxcalib.quantization.measured_placement import RAN_SLOWER
from onnxcalib.quantization.speed import read_median
from onnxcalib.quantization.tensor_shapes import measure_shapes

# A depthwise layer that the model of time leaves in float, in front of a dense one.
THIN = """g (float[N, 16, 64, 64] x) => (float[N, 64, 32, 32] y) {
    [one] a = Conv (x, w1)  r = Relu (a)
    [thin] b = Conv <pads = [2, 2, 2, 2], group = 8> (r, w2)  s = Relu (b)
    [dense] y = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (s, w3)
}"""


@pytest.fixture
def thin(build, weigh):
    return build(THIN, w1=weigh(8, 16, 1, 1), w2=weigh(8, 1, 5, 5), w3=weigh(64, 8, 3, 3))


@pytest.fixture
def samples(draw):
    return draw(16, 16, 64, 64)


@pytest.fixture
def pretend(monkeypatch):
    """Let the files of the choices, the fewest nodes in float first, take these times, which may be too many."""

    def pretend(*seconds):
        def time(sessions, feeds, **_):
            return np.array([[seconds[number] for number in range(len(sessions))]] * 5)

        monkeypatch.setattr(measured_placement, "time_briefly", time)

    return pretend


class Notes(onnxcalib.Observer):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


def make(model, samples, **settings):
    return pipeline.prepare(model, samples, QuantizeConfig(placement="measured", threads=1, **settings))


@pytest.mark.parametrize(
    ("seconds", "in_float"),
    [
        ((1.0, 2.0, 2.0, 2.0, 2.0), False),
        ((1.0, 0.99, 0.98, 0.98, 0.98), False),
        ((1.0, 0.5, 0.6, 0.6, 0.6), True),
    ],
)
def test_the_fastest_file_is_taken_and_of_equal_ones_that_with_the_least_in_float(
    thin, samples, pretend, seconds, in_float
):
    pretend(*seconds)
    found = make(thin, samples).in_float
    assert set(found.values()) == ({RAN_SLOWER} if in_float else set())
    assert ("thin" in found) == in_float


def test_choices_begin_with_nothing_in_float_and_differ(thin, samples, pretend):
    pretend(1.0, 2.0, 2.0, 2.0, 2.0)
    prepared = make(thin, samples)
    shapes = measure_shapes(prepared.model, read_median(prepared.samples))
    choices = list_choices(prepared.model, prepared.scheme, shapes, [])
    assert choices[0] == [] and len({*map(tuple, choices)}) == len(choices) > 1
    assert [len(names) for names in choices] == sorted(len(names) for names in choices)


def test_files_are_timed_here_and_the_run_says_so(thin, samples, monkeypatch):
    monkeypatch.setattr(measured_placement, "SECONDS", 0.0)
    observer = Notes()
    settings = QuantizeConfig(placement="measured", threads=1, reconstruct=False)
    result = onnxcalib.quantize(thin, samples, settings, observer=observer)
    told = "placement: nodes in float, and time here as a share of the first: 0: 1.00, "
    assert any(line.startswith(told) for line in observer.lines)
    assert {record.reason for record in result.report.in_float} <= {RAN_SLOWER}


def test_a_large_model_goes_by_the_model_of_time_and_is_told(thin, samples, monkeypatch):
    monkeypatch.setattr(measured_placement, "MOST_BYTES", 100)
    with pytest.warns(OnnxCalibWarning, match="placement: found a model of over 100 bytes.*model of time"):
        found = make(thin, samples).in_float
    assert "thin" in found and RAN_SLOWER not in found.values()


def test_a_file_that_onnxruntime_refuses_is_no_choice(thin, samples, monkeypatch):
    def refuse(*_, **__):
        raise ModelError("model: refused")

    monkeypatch.setattr(measured_placement, "open_as_users", refuse)
    assert not make(thin, samples).in_float


def test_layers_of_a_plan_are_those_of_its_own_run(thin, samples, pretend):
    pretend(1.0, 0.5, 0.6, 0.6, 0.6)
    settings = QuantizeConfig(placement="measured", threads=1, max_size="1@8-bit", effort="fast")
    plan = onnxcalib.plan(thin, samples, settings)
    assert plan.layers["thin"] == "float" and plan.layers["dense"] == "W8A8"
    pretend(1.0, 2.0, 2.0, 2.0, 2.0)
    prepared = pipeline.prepare(thin, samples, QuantizeConfig(placement="measured", threads=1), plan=plan)
    assert {layer.name for layer in prepared.scheme.layers} == {
        name for name, bits in plan.layers.items() if bits != "float"
    }
