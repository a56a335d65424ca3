"""Whether outputs came nearer to the float model's."""

import math

import numpy as np
import pytest

from onnxcalib.config import DataConfig
from onnxcalib.data import open_calibration
from onnxcalib.graph.load import inputs_of
from onnxcalib.quantization import evaluate
from onnxcalib.quantization.evaluate import Evaluator, is_nearer
from onnxcalib.quantization.float_outputs import FloatOutputs
from onnxcalib.quantization.padding_mask import PaddingMask
from onnxcalib.runtime.session import Session
from onnxcalib.runtime.store import Store


@pytest.mark.parametrize(
    ("after", "before", "nearer"),
    [
        ({"y": 0.1}, {"y": 0.2}, True),
        ({"y": 0.2}, {"y": 0.2}, False),
        ({"y": 0.1, "z": 3.0}, {"y": 0.2, "z": 2.0}, True),
        ({"y": 0.1, "z": 5.0}, {"y": 0.2, "z": 2.0}, False),
        ({"y": 0.1, "z": math.inf}, {"y": 0.2, "z": math.inf}, True),
        ({"y": 0.1, "z": math.inf}, {"y": 0.2, "z": 1.0}, False),
        ({"y": 0.1, "z": 0.0}, {"y": 0.2, "z": 0.0}, True),
        ({"y": 0.1, "z": 1e-9}, {"y": 0.2, "z": 0.0}, False),
        ({"y": 0.0}, {"y": 0.2}, True),
        ({"y": 0.1}, {"y": 0.2, "z": 2.0}, True),
        ({}, {}, False),
    ],
)
def test_the_mean_gain_decides(after, before, nearer):
    assert is_nearer(after, before) == nearer


def test_of_many_samples_those_evenly_spread_are_compared(build, draw, monkeypatch):
    text = "g (float[N, 4] x) => (float[N, 3] y) { [a] y = MatMul (x, w) }"
    weight, x = draw(4, 3), draw(40, 4)
    model, other = build(text, w=weight), build(text, w=np.round(4 * weight) / 4)
    monkeypatch.setattr(evaluate, "batch_size", lambda *_: 4)
    monkeypatch.setattr(evaluate, "MOST_SAMPLES", 20)
    samples, known, some = open_calibration(x, inputs_of(model), DataConfig()), FloatOutputs(), []
    known.start(4)
    for feeds in samples.batches(4):
        known.add(Session(model).run(feeds))
    for given in (None, known):
        with Store() as store:
            evaluator = Evaluator(model, samples, PaddingMask(model), store, threads=1, known=given)
            some.append(evaluator.evaluate(other))
    chosen = x.reshape(10, 4, 4)[::2].reshape(-1, 4)
    signal, error = chosen @ weight, chosen @ weight - chosen @ (np.round(4 * weight) / 4)
    ((record,), losses), second = some
    assert record.sqnr_db == pytest.approx(10 * np.log10(np.square(signal).sum() / np.square(error).sum()), rel=1e-4)
    assert losses == second[1]
