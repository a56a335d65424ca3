"""Texts that a model has no rows for, in its table of tokens or of positions, are told from faults of the model."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib import QuantizeConfig, ValidateConfig, quantize, validate
from onnxcalib.data import open_calibration
from onnxcalib.errors import DataError
from onnxcalib.graph.load import inputs_of
from onnxcalib.quantization.smoke_test import run_longest_texts
from onnxcalib.runtime.session import Session

ROWS, POSITIONS = 6, 4
MODEL = """g (int64[N, T] input_ids, int64[N, T] position_ids) => (float[N, T, 5] y) {
    [token] t = Gather (table, input_ids)  [position] p = Gather (positions, position_ids)
    [sum] s = Add (t, p)  [out] y = MatMul (s, w)
}"""


@pytest.fixture
def model(build, weigh):
    return build(MODEL, table=weigh(ROWS, 8), positions=weigh(POSITIONS, 8), w=weigh(8, 5))


TOO_LARGE = ["1 2 3", "4 9", "1"]
TOO_LONG = ["5", "1 2 3 4 5"]


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (TOO_LARGE, "^data: the model cannot run sample 1, 2 tokens up to 9 by .*tokenizer.json; its table of tokens"),
        (TOO_LONG, "cannot run sample 1, 5 tokens up to 5 by .* give --tokenizer the model's own tok"),
    ],
)
def test_texts_beyond_a_table_are_refused_with_the_tokenizer(model, tokenizer, texts, found):
    samples = open_calibration(texts, inputs_of(model), tokenizer)
    with pytest.raises(DataError, match=found):
        run_longest_texts(Session(model), samples)
    with pytest.raises(DataError, match=found):
        quantize(model, texts, QuantizeConfig(data=tokenizer, threads=1, effort="fast"))
    with pytest.raises(DataError, match=found):
        validate(model, model, texts, ValidateConfig(data=tokenizer, threads=1))


def test_texts_within_the_tables_and_other_samples_are_let_pass(model, tokenizer):
    run_longest_texts(Session(model), open_calibration(["1 2 3 4", "5"], inputs_of(model), tokenizer))
    arrays = {name: np.full((2, 3), 9) for name in ("input_ids", "position_ids")}
    run_longest_texts(Session(model), open_calibration(arrays, inputs_of(model)))


def test_texts_that_a_limit_or_a_fixed_batch_leaves_out_are_not_tried(build, weigh, tokenizer):
    fixed = build(MODEL.replace("[N, T", "[2, 3"), table=weigh(ROWS, 8), positions=weigh(POSITIONS, 8), w=weigh(8, 5))
    run_longest_texts(Session(fixed), open_calibration(["1 2", "3", "9"], inputs_of(fixed), tokenizer))
    with pytest.raises(DataError, match="cannot run sample 1, "):
        run_longest_texts(Session(fixed), open_calibration(["1 2", "9"], inputs_of(fixed), tokenizer))
