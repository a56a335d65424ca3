"""What the float model showed on samples is collected once, whatever asks for it."""

from dataclasses import replace

import numpy as np
import pytest

import onnxcalib
from onnxcalib import Observer, QuantizeConfig
from onnxcalib.quantization import kept_statistics

NET = """g (float[N, 4] x) => (float[N, 3] y) {
    [m] m = MatMul (x, w)  [r] y = Relu (m)
}"""


class Listener(Observer):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)

    def warn(self, text):
        pass


@pytest.fixture
def prepare(build, weigh, draw, tmp_path, monkeypatch):
    """Prepares a small net; returns it with the lines that tell of the cache, and the calls that collect."""
    net, samples, collect, calls = build(NET, w=weigh(4, 3)), draw(8, 4), kept_statistics.collect_statistics, []
    monkeypatch.setattr(
        kept_statistics, "collect_statistics", lambda *given, **options: calls.append(1) or collect(*given, **options)
    )

    def make(scale=1.0, **settings):
        listener = Listener()
        config = QuantizeConfig(cache_dir=tmp_path / "c", placement="all", **settings)
        return onnxcalib.prepare(net, samples * np.float32(scale), config, observer=listener), listener.lines, calls

    return make


def test_another_range_and_another_pipeline_need_no_pass(prepare, tmp_path):
    prepared, lines, calls = prepare()
    first = onnxcalib.calibrate(prepared)
    assert len(calls) == 1 and not any("before" in line for line in lines)
    for settings in ({"range": "min-max"}, {"pipeline": "light"}):
        prepared, lines, calls = prepare(**settings)
        again = onnxcalib.calibrate(prepared)
        assert len(calls) == 1
        assert lines[-1].endswith(f"collected before on these samples: taken from {tmp_path / 'c'}")
    assert again.activations.keys() == first.activations.keys()


def test_a_static_run_takes_nothing_of_a_dynamic_one_that_saw_the_same_tensors(build, weigh, draw, tmp_path):
    net, samples = build("g (float[N, 4] x) => (float[N, 3] y) { [m] y = MatMul (x, w) }", w=weigh(4, 3)), draw(8, 4)
    found = []
    for activations in ("dynamic", "static"):
        config = QuantizeConfig(cache_dir=tmp_path, placement="all", activations=activations)
        found.append(set(onnxcalib.calibrate(onnxcalib.prepare(net, samples, config)).activations))
    assert found == [set(), {"x"}]


@pytest.mark.parametrize("changes", [{"scale": 2.0}, {"threads": 3}])
def test_other_samples_and_other_threads_need_one(prepare, changes):
    onnxcalib.calibrate(prepare(threads=2)[0])
    prepared, _, calls = prepare(**{"threads": 2} | changes)
    onnxcalib.calibrate(prepared)
    assert len(calls) == 2


def test_what_is_recalled_is_what_was_collected_in_the_order_asked_for(prepare):
    prepared, _, _ = prepare()
    found = prepared.collect(prepared.scheme)
    other = replace(prepared.scheme, activations=dict(reversed(prepared.scheme.activations.items())))
    again = prepared.collect(other)
    assert list(again.histograms) == list(reversed(found.histograms)) and again.batch == found.batch
    for tensor, histogram in found.histograms.items():
        np.testing.assert_array_equal(histogram.counts, again.histograms[tensor].counts)
        np.testing.assert_array_equal(histogram.peaks, again.histograms[tensor].peaks)


@pytest.mark.filterwarnings("ignore::onnxcalib.OnnxCalibWarning")
def test_what_a_run_measures_does_not_depend_on_what_was_kept(build, weigh, draw, tmp_path):
    net, samples = build(NET, w=weigh(4, 3)), draw(8, 4)
    config = QuantizeConfig(cache_dir=tmp_path, placement="all", pipeline="light")
    first, again = (onnxcalib.quantize(net, samples, config) for _ in range(2))
    assert again.model.SerializeToString() == first.model.SerializeToString()
    assert (again.report.outputs, again.report.steps) == (first.report.outputs, first.report.steps)


def test_samples_that_changed_between_two_runs_are_others(build, weigh, draw, tmp_path):
    net, values, config = build(NET, w=weigh(4, 3)), draw(8, 4), QuantizeConfig(cache_dir=tmp_path, placement="all")
    samples = onnxcalib.open_calibration(values, net)

    def find_range():
        return onnxcalib.calibrate(onnxcalib.prepare(net, samples, config)).activations["x"]

    before = find_range()
    assert find_range() == before
    values *= 2
    assert find_range() != before
