"""The past of a decoder, which the model itself makes of the first half of each sequence."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcalib.config import DataConfig, QuantizeConfig
from onnxcalib.data import open_calibration
from onnxcalib.data.arrays import Texts
from onnxcalib.errors import DataError
from onnxcalib.graph.load import inputs_of
from onnxcalib.quantization.past import fill_past
from onnxcalib.quantization.run_samples import warn_of_no_past
from onnxcalib.runtime.session import Session

TEXT = """decoder (int64[batch, tokens] input_ids, int64[batch, all] attention_mask, float[batch, past, 4] past_key)
    => (float[batch, tokens, 6] logits, float[batch, whole, 4] present_key) {
    words = Gather (table, input_ids)  present_key = Concat <axis = 1> (past_key, words)
    turned = Transpose <perm = [0, 2, 1]> (present_key)  scores = MatMul (words, turned)
    counted = Cast <to = 1> (attention_mask)  mixed = MatMul (scores, present_key)  logits = MatMul (mixed, head) }"""
IDS = np.array([[1, 2, 3, 4, 5], [5, 4, 3, 2, 0], [0, 0, 1, 1, 2]])


@pytest.fixture
def decoder(build, draw):
    return build(TEXT, table=draw(6, 4), head=draw(4, 6))


def test_the_second_half_of_a_sequence_is_read_behind_the_past_of_the_first(decoder):
    session, inputs = Session(decoder), inputs_of(decoder)
    whole = open_calibration({"input_ids": IDS, "attention_mask": np.ones_like(IDS)}, inputs)
    found = fill_past(session, whole).read([0, 1, 2])
    assert found["input_ids"].tolist() == IDS[:, 2:].tolist() and found["attention_mask"].shape == (3, 5)
    assert found["past_key"].shape == (3, 2, 4)
    logits = session.run(found, ["logits"])["logits"]
    before = session.run(whole.read([0, 1, 2]), ["logits"])["logits"]
    np.testing.assert_allclose(logits, before[:, 2:], rtol=1e-5, atol=1e-6)


def test_both_branches_of_a_merged_decoder_get_samples_from_texts(decoder):
    switch = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    decoder.graph.input.append(switch)
    inputs = inputs_of(decoder)
    whole = open_calibration({"input_ids": IDS, "attention_mask": np.ones_like(IDS)}, inputs)
    assert whole.fixed_batch == 1 and [*whole.read([2])["use_cache_branch"]] == [False]
    found = fill_past(Session(decoder), whole)
    reads = [found.read([number]) for number in range(3)]
    assert [each["use_cache_branch"].tolist() for each in reads] == [[False], [True], [False]]
    assert [each["past_key"].shape[1] for each in reads] == [0, 2, 0]
    assert [each["input_ids"].shape[1] for each in reads] == [5, 3, 5]
    told: list[str] = []
    whole.texts = Texts("texts.txt", "tokenizer.json", np.array([5, 5, 5]), np.array([5, 5, 2]), False, "")
    for past in ("filled", "empty"):
        run = SimpleNamespace(warn=told.append, config=QuantizeConfig(data=DataConfig(past=past)))
        warn_of_no_past(whole, run)
    assert len(told) == 1 and "'use_cache_branch' is false in all samples" in told[0] and "--past filled" in told[0]


def test_a_past_without_what_says_that_it_is_read_is_refused(decoder):
    decoder.graph.input.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]))
    given = {"input_ids": IDS, "attention_mask": np.ones((3, 7), np.int64), "past_key": np.ones((3, 2, 4), np.float32)}
    with pytest.raises(DataError, match="found 'past_key' without 'use_cache_branch', which says whether it is read"):
        open_calibration(given, inputs_of(decoder))
    found = open_calibration({**given, "use_cache_branch": np.array([True])}, inputs_of(decoder))  # one for all
    assert len(found) == 3 and found.read([2])["use_cache_branch"].tolist() == [True]


def test_a_past_that_cannot_be_filled_is_refused(decoder):
    inputs = inputs_of(decoder)
    feeds = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}

    def refuse(text, values, model=decoder):
        with pytest.raises(DataError, match=re.escape(text)):
            fill_past(Session(model), open_calibration(values, inputs))

    refuse("past: found a past in sample 0", {**feeds, "past_key": np.ones((3, 1, 4), np.float32)})
    refuse("past: found one token in sample 0", {name: value[:, :1] for name, value in feeds.items()})
    decoder.graph.node[1].output[0] = decoder.graph.output[1].name = "kept"
    for node in decoder.graph.node[2:]:
        node.input[:] = ["kept" if name == "present_key" else name for name in node.input]
    refuse("past: found no output for input 'past_key'; present_key is needed", feeds)
    plain = [spec for spec in inputs if spec.name == "input_ids"]
    with pytest.raises(DataError, match="past: found no inputs of tokens and of a past"):
        fill_past(Session(decoder), open_calibration({"input_ids": IDS}, plain))
