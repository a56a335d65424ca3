"""Timing both models: in turns, on the samples of one run, medians and spreads of known times."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib.data import open_calibration
from onnxcalib.errors import ConfigError
from onnxcalib.graph.load import inputs_of
from onnxcalib.numeric.intervals import median_ratio_interval
from onnxcalib.runtime import turns
from onnxcalib.spec import InputSpec
from onnxcalib.validation import timing as module
from onnxcalib.validation.timing import LEAST_ROUNDS, MOST_ROUNDS, SECONDS, WARM_UP, clock

ROWS = [InputSpec("x", np.dtype(np.float32), (None, 2))]
DATA = np.arange(12, dtype=np.float32).reshape(6, 2)


@pytest.fixture
def fake(monkeypatch):
    """Sessions whose runs take the seconds that ``fake.seconds(model, round)`` says, by a clock that only they move."""

    class State:
        now = 100.0

        def __init__(self):
            self.runs, self.threads, self.feeds = [], [], []
            self.seconds = lambda model, turn: {"float": 0.004, "quantized": 0.002}[model]

        def perf_counter(self):
            return self.now

    state = State()

    class Session:
        def __init__(self, model, *, deployed, draws, threads, whole):
            assert deployed and draws and whole
            self.model = model
            state.threads.append(threads)

        def run(self, feeds):
            state.now += state.seconds(self.model, state.runs.count(self.model))
            state.runs.append(self.model)
            state.feeds.append(feeds["x"])

    monkeypatch.setattr(turns, "Session", Session)
    monkeypatch.setattr(module, "time", state)
    monkeypatch.setattr(module, "SECONDS", SECONDS)
    monkeypatch.setattr(turns, "time", state)
    return state


def time_rows(batch=1, inputs=ROWS, data=DATA):
    return clock("float", "quantized", open_calibration(data, inputs), batch)


def test_both_models_take_turns_on_one_thread_each(fake):
    time_rows()
    assert fake.threads == [1, 1]
    assert fake.runs == ["float", "quantized"] * (len(fake.runs) // 2)


def test_medians_are_in_milliseconds_and_the_speedup_is_float_over_quantized_time(fake):
    found = time_rows()
    assert (found.float_ms, found.quantized_ms, found.speedup) == pytest.approx((4, 2, 2))
    assert (found.float_spread, found.quantized_spread) == pytest.approx((0, 0), abs=1e-9)
    assert found.speedup_interval == pytest.approx((2, 2))


def test_the_spread_is_the_distance_of_the_quartiles_as_a_share_of_the_median(fake):
    fake.seconds = lambda model, turn: (1 if model == "float" else 2) * (turn - WARM_UP + 1) if turn >= WARM_UP else 999
    found = time_rows()
    times = np.arange(1, LEAST_ROUNDS + 1)
    low, median, high = np.percentile(times, (25, 50, 75))
    assert found.runs == LEAST_ROUNDS
    assert (found.float_ms, found.quantized_ms) == pytest.approx((1e3 * median, 2e3 * median))
    assert (found.float_spread, found.quantized_spread) == pytest.approx(2 * ((high - low) / median,))
    assert found.speedup == pytest.approx(0.5)


def test_the_interval_is_that_of_the_ratios_of_one_round(fake):
    """What slows a round slows both, and leaves the ratio as it is."""
    fake.seconds = lambda model, turn: (2 if model == "float" else 1) * 0.001 * (1 + turn % 7)
    found = time_rows()
    assert found.float_spread > 0.3
    assert found.speedup_interval == pytest.approx((2, 2))
    fake.seconds = lambda model, turn: 0.001 * (1 + (turn - WARM_UP) % 5) if model == "float" else 0.001
    found = time_rows()
    ratios = 1 + np.arange(found.runs) % 5
    assert found.speedup_interval == pytest.approx(median_ratio_interval(ratios))


def test_the_first_runs_are_not_counted(fake):
    fake.seconds = lambda model, turn: 50.0 if turn < WARM_UP else 0.025
    found = time_rows()
    assert found.runs == pytest.approx(SECONDS / 0.05, abs=1)
    assert (found.float_ms, found.float_spread) == pytest.approx((25, 0))


def test_slow_models_are_run_the_least_rounds_and_fast_ones_the_most(fake):
    fake.seconds = lambda model, turn: 60.0
    assert time_rows().runs == LEAST_ROUNDS
    fake.seconds = lambda model, turn: 1e-6
    assert time_rows().runs == MOST_ROUNDS


def test_rounds_fill_the_seconds(fake):
    fake.seconds = lambda model, turn: 0.025
    assert time_rows().runs == pytest.approx(SECONDS / 0.05, abs=1)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_run_takes_the_first_samples(fake, batch):
    found = time_rows(batch)
    assert found.batch == batch
    assert all(np.array_equal(feeds, DATA[:batch]) for feeds in fake.feeds)


def test_samples_are_repeated_where_a_batch_takes_more_than_there_are(fake):
    time_rows(8)
    np.testing.assert_array_equal(fake.feeds[0], np.concatenate([DATA, DATA[:2]]))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_model_of_fixed_batch_is_timed_with_it(fake, batch):
    found = time_rows(batch, [InputSpec("x", np.dtype(np.float32), (3, 2))])
    assert found.batch == 3
    np.testing.assert_array_equal(fake.feeds[0], DATA[:3])


@pytest.mark.parametrize(("fixed", "batch"), [(3, 2), (1, 2)])
def test_a_batch_that_the_model_cannot_run_is_refused(fake, fixed, batch):
    text = f"batch: found {batch}; a run of this model on these samples takes {fixed}; leave --batch out"
    with pytest.raises(ConfigError, match=text):
        time_rows(batch, [InputSpec("x", np.dtype(np.float32), (fixed, 2))])
    assert fake.runs == []


def test_a_model_without_a_batch_axis_is_timed_on_one_sample(build, draw):
    model = build(
        "g (float[K] x, float[3, 2] y) => (float[3, 2] z) { s = ReduceMax <keepdims = 0> (x)  z = Mul (y, s) }"
    )
    found = clock(model, model, open_calibration({"x": draw(4, 5), "y": draw(4, 3, 2)}, inputs_of(model)), 1)
    assert (found.batch, found.runs) == (1, LEAST_ROUNDS)


def test_real_models_are_told_apart_by_their_work(build, draw):
    small = build("g (float[N, 64] x) => (float[N, 64] y) { y = Relu (x) }")
    work = " ".join(f"t{i} = MatMul (t{i - 1}, w)" for i in range(1, 60))
    large = build(
        f"g (float[N, 64] x) => (float[N, 64] y) {{ t0 = Relu (x) {work} y = Relu (t59) }}", w=draw(64, 64) / 8
    )
    found = clock(large, small, open_calibration(draw(4, 64), inputs_of(small)), 4)
    assert found.float_ms > found.quantized_ms > 0
    assert found.speedup_interval[0] > 1 and found.speedup > 1
