"""The past of a decoder, which the model itself makes of the first half of each sequence."""

import re

import numpy as np
import pytest

from onnxcalib.data import open_calibration
from onnxcalib.errors import DataError
from onnxcalib.graph.load import inputs_of
from onnxcalib.quantization.past import fill_past
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
