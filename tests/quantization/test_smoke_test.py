"""Texts that a model has no rows for, in its table of tokens or of positions, are told from faults of the model."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from onnxcalib import QuantizeConfig, ValidateConfig, quantize, validate
from onnxcalib.config import DataConfig
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


@pytest.fixture
def config(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(10)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return DataConfig(tokenizer=tmp_path / "tokenizer.json")


TOO_LARGE = ["1 2 3", "4 9", "1"]
TOO_LONG = ["5", "1 2 3 4 5"]


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (TOO_LARGE, "^data: the model cannot run sample 1, 2 tokens up to 9 by .*tokenizer.json; its table of tokens"),
        (TOO_LONG, "cannot run sample 1, 5 tokens up to 5 by .* give --tokenizer the model's own tok"),
    ],
)
def test_texts_beyond_a_table_are_refused_with_the_tokenizer(model, config, texts, found):
    samples = open_calibration(texts, inputs_of(model), config)
    with pytest.raises(DataError, match=found):
        run_longest_texts(Session(model), samples)
    with pytest.raises(DataError, match=found):
        quantize(model, texts, QuantizeConfig(data=config, threads=1, effort="fast"))
    with pytest.raises(DataError, match=found):
        validate(model, model, texts, ValidateConfig(data=config, threads=1))


def test_texts_within_the_tables_and_other_samples_are_let_pass(model, config):
    run_longest_texts(Session(model), open_calibration(["1 2 3 4", "5"], inputs_of(model), config))
    arrays = {name: np.full((2, 3), 9) for name in ("input_ids", "position_ids")}
    run_longest_texts(Session(model), open_calibration(arrays, inputs_of(model)))


def test_texts_that_a_limit_or_a_fixed_batch_leaves_out_are_not_tried(build, weigh, config):
    fixed = build(MODEL.replace("[N, T", "[2, 3"), table=weigh(ROWS, 8), positions=weigh(POSITIONS, 8), w=weigh(8, 5))
    run_longest_texts(Session(fixed), open_calibration(["1 2", "3", "9"], inputs_of(fixed), config))
    with pytest.raises(DataError, match="cannot run sample 1, "):
        run_longest_texts(Session(fixed), open_calibration(["1 2", "9"], inputs_of(fixed), config))
