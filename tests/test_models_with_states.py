"""Models with states from end to end: calibrated over their own steps, measured in closed loop."""

import json
import re

import numpy as np
import pytest

import onnxcalib
from onnxcalib import DataConfig, QuantizeConfig, ValidateConfig
from onnxcalib.errors import ConfigError, DataError, OnnxCalibWarning
from onnxcalib.runtime.session import Session
from onnxcalib.validation.render import to_markdown

CELL = """cell (float[N, 8] x, float[N, 16] h) => (float[N, 4] y, float[N, 16] hn) {
    [wx] a = MatMul (x, wx)  [wh] b = MatMul (h, wh)  s = Add (a, b)  hn = Tanh (s)  [head] y = MatMul (hn, head) }"""
STATES = DataConfig(state="hn:h")


@pytest.fixture
def cell(build, draw):
    """A net whose state keeps most of what it holds, so that errors add up over the steps."""
    wh = np.linalg.qr(draw(16, 16).astype(np.float64))[0].astype(np.float32)
    return build(CELL, wx=0.3 * draw(8, 16), wh=wh, head=draw(16, 4))


@pytest.fixture
def sequences(draw):
    return [draw(24 if number % 2 else 40, 8) for number in range(8)]


def run_loop(model, values):
    """The outputs of a model over a sequence, with its own states."""
    session, state, outputs = Session(model), np.zeros((1, 16), np.float32), []
    for step in values:
        given = session.run({"x": step[None], "h": state})
        state = given["hn"]
        outputs.append(given["y"])
    return np.concatenate(outputs)


@pytest.mark.filterwarnings("ignore::onnxcalib.OnnxCalibWarning")
def test_both_models_are_measured_with_their_own_states(cell, sequences):
    settings = QuantizeConfig(pipeline="light", weight_bits=4, data=STATES)
    result = onnxcalib.quantize(cell, iter(sequences), settings)
    report = result.report
    assert report.measured_on.source == "held out" and report.closed_loop.states == ("hn:h",)
    assert (report.closed_loop.sequences, report.closed_loop.steps) == (2, 80)
    held = [sequences[2], sequences[6]]
    wanted, given = (np.concatenate([run_loop(model, each) for each in held]) for model in (cell, result.model))
    sqnr = 10 * np.log10((wanted**2).sum() / ((wanted - given) ** 2).sum())
    found = {record.name: record.sqnr_db for record in report.outputs}
    assert found["y"] == pytest.approx(sqnr, abs=1e-3)
    grown = {
        (record.first, record.last): record.sqnr_db for record in report.closed_loop.growth if record.output == "y"
    }
    assert list(grown) == [(1, 1), (2, 10), (11, 40), (None, None)] and grown[1, 1] > grown[11, 40]
    assert json.loads(report.to_json())["closed_loop"]["growth"][0]["first"] == 1
    verdict = onnxcalib.validate(cell, result.model, iter(held), ValidateConfig(data=STATES, min_sqnr=1))
    assert verdict.outputs[0].sqnr_db == pytest.approx(sqnr, abs=1e-3)
    assert verdict.closed_loop == report.closed_loop and verdict.samples == 80
    assert re.search(r"closed loop, dB at step \| 1 \| 2 to 10 \| 11 to 40 \| last", to_markdown(verdict))


def test_samples_without_states_are_told_of_the_states_that_names_show(cell, draw):
    values = {"x": draw(20, 8), "h": draw(20, 16)}
    with pytest.warns(OnnxCalibWarning, match=r"if these are states, give --state hn:h: samples are then sequences"):
        onnxcalib.prepare(cell, values)


def test_an_open_set_is_one_of_steps_whose_states_the_run_fills(cell, sequences):
    opened = onnxcalib.open_calibration(iter(sequences), cell, STATES, limit=3)
    assert len(opened) == 40 + 24 + 40 and not opened.read([5])["h"].any()
    prepared = onnxcalib.prepare(cell, opened, QuantizeConfig(data=STATES))
    assert prepared.samples.read([5])["h"].any() and prepared.samples.states == {"h": "hn"}
    with pytest.raises(ConfigError, match="state: found descriptions of inputs"):
        onnxcalib.open_calibration(iter(sequences), opened.inputs[:1], STATES)


@pytest.mark.filterwarnings("ignore::onnxcalib.OnnxCalibWarning")
def test_an_open_set_has_the_states_and_the_sequences_that_the_run_is_to_have(cell, sequences):
    opened = onnxcalib.open_calibration(iter(sequences), cell, STATES)
    with pytest.raises(DataError, match="data: found an open set of 8 sequences; 3 are wanted; open it with limit="):
        onnxcalib.prepare(cell, opened, QuantizeConfig(data=STATES, samples=3))
    assert len(onnxcalib.prepare(cell, opened, QuantizeConfig(data=STATES, samples=8)).test) == 80
    single = onnxcalib.open_calibration({"x": np.ones((20, 8), np.float32), "h": np.ones((20, 16), np.float32)}, cell)
    text = "data: found an open set without states; hn:h are set; open it with these"
    with pytest.raises(DataError, match=text):
        onnxcalib.prepare(cell, single, QuantizeConfig(data=STATES))
    with pytest.raises(DataError, match=text):
        onnxcalib.validate(cell, cell, single, ValidateConfig(data=STATES))
