"""The least memory of a run: told, and refused where a budget is below it."""

import numpy as np
import pytest

from onnxcalib import QuantizeConfig
from onnxcalib.errors import ConfigError
from onnxcalib.pipeline import quantize
from onnxcalib.quantization import floor as floor_module
from onnxcalib.quantization import run as run_module
from onnxcalib.quantization.floor import check_memory, find_floor, record_memory
from onnxcalib.quantization.run import Run
from onnxcalib.report import Observer

TEXT = """g (int64[N] i, float[N, 64] x) => (float[N, 32] y) {
    [rows] t = Gather (table, i)  [up] a = MatMul (x, w)  [sum] s = Add (a, t)  [down] y = MatMul (s, v)
}"""


@pytest.fixture
def model(build, draw):
    return build(TEXT, table=draw(500, 128), w=draw(64, 128), v=draw(128, 32))


def test_the_floor_is_three_times_the_largest_layer_beside_the_process_and_a_sample(model, monkeypatch):
    monkeypatch.setattr(floor_module, "SEGMENT_BYTES", 1000)
    run = Run(QuantizeConfig(memory="9GB"), Observer())
    record = find_floor(run, model, 77)
    assert (record.largest, record.largest_bytes) == ("up", 4 * 64 * 128)
    assert record.floor_bytes == run.resident + 3 * 4 * 64 * 128 + 77
    assert record.budget_bytes == 9 * 10**9
    monkeypatch.setattr(floor_module, "SEGMENT_BYTES", 50_000)
    assert find_floor(run, model).largest_bytes == 50_000


def test_a_node_with_bodies_counts_as_its_largest_layer(build, draw, monkeypatch):
    monkeypatch.setattr(floor_module, "SEGMENT_BYTES", 1000)
    model = build(
        """g (float[N, 64] x, bool flag) => (float[N, 64] y) { [outside] h = MatMul (x, w)  [if] y = If (flag) <
            then_branch = yes () => (float[N, 64] p) { [wide] a = MatMul (h, u)  [narrow] p = MatMul (a, v) },
            else_branch = no () => (float[N, 64] q) { [again] b = MatMul (h, u)  [last] q = MatMul (b, v) }> }""",
        w=draw(64, 64), u=draw(64, 128), v=draw(128, 64),
    )  # fmt: skip
    record = find_floor(Run(QuantizeConfig(), Observer()), model)
    assert (record.largest, record.largest_bytes) == ("wide", 4 * 64 * 128)


def test_a_budget_below_the_floor_is_refused_with_the_layer_and_what_is_needed(build, weigh, draw):
    model = build("g (float[N, 8] x) => (float[N, 8] y) { [one] y = MatMul (x, w) }", w=weigh(8, 8))
    with pytest.raises(
        ConfigError,
        match=r"^memory: found 1.0MB; 0.\d\dGB are needed at least, 3 times the 0.0MB of the segment with layer one and"
        r" 0.\d\dGB of the process itself; give more, or leave it out$",
    ):
        quantize(model, draw(16, 8), QuantizeConfig(memory="1MB"))


def test_activations_of_a_sample_count_once_they_are_known(model):
    run = Run(QuantizeConfig(memory="2GB"), Observer())
    check_memory(run, model)
    with pytest.raises(ConfigError, match=r"with layer up, 3\.00GB of activations of a sample and "):
        check_memory(run, model, 3 * 10**9)


def test_a_run_that_took_more_than_its_budget_says_so(model, monkeypatch):
    run = Run(QuantizeConfig(memory="9GB"), Observer())
    assert record_memory(run, model).peak_bytes < 9 * 10**9 and not run.warnings
    monkeypatch.setattr(floor_module, "measure_peak", lambda: 10**10)
    with pytest.warns(UserWarning, match=r"^memory: found 10\.00GB taken of the 9\.00GB given; .*; give more$"):
        record_memory(run, model)


def test_what_the_process_took_before_a_run_is_not_the_runs(model, monkeypatch):
    for module in (run_module, floor_module):
        monkeypatch.setattr(module, "measure_peak", lambda: 10**10)
    run = Run(QuantizeConfig(memory="9GB"), Observer())
    assert record_memory(run, model).peak_bytes == 10**10 and not run.warnings


def test_a_machine_with_too_little_is_warned_of(model, monkeypatch):
    run = Run(QuantizeConfig(), Observer())
    monkeypatch.setattr(floor_module, "find_free", lambda: 10**6)
    with pytest.warns(
        UserWarning, match=r"^memory: found 0.\d\dGB free; \d.\d\dGB are .*; the system may end the run; "
    ):
        check_memory(run, model, 10**9)


def test_the_report_says_what_was_taken_and_is_needed_and_the_file_is_the_same(build, weigh, draw):
    model = build("g (float[N, 8] x) => (float[N, 8] y) { [one] y = MatMul (x, w) }", w=weigh(8, 8))
    samples = np.asarray(draw(16, 8))
    free, held = (quantize(model, samples, QuantizeConfig(memory=memory)) for memory in (None, "5GB"))
    assert held.report.memory.floor_bytes < held.report.memory.peak_bytes
    assert (free.report.memory.budget_bytes, held.report.memory.budget_bytes) == (None, 5 * 10**9)
    assert free.model.SerializeToString(deterministic=True) == held.model.SerializeToString(deterministic=True)
