"""Models with states: each step reads what the one before gave."""

import re

import numpy as np
import pytest

from onnxcalib.data import open_calibration
from onnxcalib.errors import DataError
from onnxcalib.graph.load import inputs_of
from onnxcalib.graph.states import mark_states
from onnxcalib.quantization import closed_loop
from onnxcalib.quantization.closed_loop import ClosedLoop, fill_states, spread_steps
from onnxcalib.runtime.session import Session

SUM = """g (float[N, 1] x, float[N, 1] h) => (float[N, 1] y, float[N, 1] hn, float[N] flat) {
    hn = Add (x, h)  two = Constant <value = float[1] {2}> ()  y = Mul (hn, two)
    one = Constant <value = int64[1] {1}> ()  flat = Squeeze (hn, one) }"""


@pytest.fixture
def open_sums(build):
    """The set of sequences of a model that adds up its inputs, and its session."""
    model = build(SUM)

    def make(*sequences, state="hn:h"):
        inputs = mark_states(model, inputs_of(model), [state])
        return Session(model), open_calibration(iter(sequences), inputs)

    return make


def test_each_step_has_the_state_that_the_one_before_gave(open_sums):
    values = np.array([[1], [2], [4]], np.float32)
    session, samples = open_sums({"x": values, "h": np.array([[8]], np.float32)}, values[:2], values)
    filled = fill_states(session, samples)
    assert filled.read(range(8))["h"].ravel().tolist() == [8, 9, 11, 0, 1, 0, 1, 3]
    assert filled.sequences.tolist() == [0, 0, 0, 1, 1, 2, 2, 2] and filled.states == {"h": "hn"}
    assert filled.take([1, 6]).sequences.tolist() == [0, 2]
    assert filled.steps and filled.take([1]).steps


def test_labels_of_steps_are_kept_where_they_are_asked_for(open_sums):
    session, samples = open_sums({"x": np.ones((3, 1), np.float32), "label": np.array([2, 0, 1])})
    assert fill_states(session, samples, labelled=True).labels.tolist() == [2, 0, 1]
    assert fill_states(session, samples).labels is None


def test_a_step_that_does_not_follow_the_last_starts_from_its_sample(open_sums):
    session, samples = open_sums(np.ones((4, 1), np.float32))
    loop = ClosedLoop(session, fill_states(session, samples))
    given = [float(loop.run(index, loop.feed(index))["hn"].item()) for index in (2, 3, 0, 1)]
    assert given == [3, 4, 1, 2]


def test_an_output_of_another_rank_is_refused(open_sums):
    session, samples = open_sums(np.ones((4, 1), np.float32))
    samples.states = {"h": "flat"}
    text = "state: output 'flat' is float32 of shape (1), input 'h' float32 of shape (1, 1)"
    with pytest.raises(DataError, match=re.escape(text)):
        fill_states(session, samples)


def test_the_steps_to_solve_on_are_spread_over_all_sequences(open_sums, monkeypatch):
    monkeypatch.setattr(closed_loop, "MOST_STEPS", 6)
    _, samples = open_sums(*[np.ones((count, 1), np.float32) for count in (5, 5, 10)])
    assert spread_steps(samples).sequences.tolist() == [0, 0, 1, 2, 2, 2]
    assert spread_steps(samples.take(range(6))).sequences.tolist() == [0] * 5 + [1]
