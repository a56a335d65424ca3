"""The loss of language models over all tokens, and which models have one."""

from itertools import pairwise

import numpy as np
import pytest

import onnxcalib
from onnxcalib.config import ValidateConfig
from onnxcalib.data import open_calibration
from onnxcalib.spec import InputSpec
from onnxcalib.validation.next_tokens import NextTokenTally, predicts_next

WORDS = 6
IDS = InputSpec("input_ids", np.dtype(np.int64), (None, None))
# Five tokens a sample, of which some are padding.
FIXED = [InputSpec(name, np.dtype(np.int64), (None, 5)) for name in ("input_ids", "attention_mask")]
ROWS = np.array([[1, 2, 3, 4, 5], [5, 4, 3, 2, 0]])
DECODER = f"decoder (int64[batch, tokens] input_ids) => (float[batch, tokens, {WORDS}] logits)"


class Model:
    """A session that computes logits of ids."""

    def __init__(self, make):
        self.make = make

    def run(self, feeds):
        return {"logits": self.make(feeds["input_ids"])}


@pytest.fixture
def table(draw):
    return draw(WORDS, WORDS)


def test_a_decoder_is_told_from_an_encoder_by_what_its_scores_depend_on(table):
    samples = open_calibration({"input_ids": ROWS}, [IDS])
    assert predicts_next(Model(lambda ids: table[ids]), samples)
    assert not predicts_next(Model(lambda ids: table[ids] + table[ids].mean(axis=1, keepdims=True)), samples)
    assert not predicts_next(Model(lambda ids: table[ids][..., :4]), samples)  # fewer classes than tokens
    assert not predicts_next(Model(lambda ids: table[ids].mean(axis=1)), samples)
    other = open_calibration(np.zeros((4, 3), np.float32), [InputSpec("x", np.dtype(np.float32), (None, 3))])
    assert not predicts_next(Model(lambda ids: table[ids]), other)


@pytest.mark.parametrize("mask", [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
def test_a_decoder_is_told_from_an_encoder_by_a_padded_sample(table, mask):
    rows, real = np.array([[1, 2, 3, 4, 5]]), np.array([mask])
    samples = open_calibration({"input_ids": rows, "attention_mask": real}, FIXED)
    ahead = 2 * np.tril(np.ones((5, 5), np.float32), k=-1)[None]
    assert predicts_next(Model(lambda ids: table[ids] + ahead @ table[ids]), samples)
    assert not predicts_next(Model(lambda ids: table[ids] + (real @ table[ids])), samples)


def test_the_loss_is_the_mean_over_all_next_tokens_and_its_drop_at_the_floats_own_is_the_divergence(table, draw):
    other = table + draw(WORDS, WORDS) / 8
    tally = NextTokenTally()
    tally.add({"input_ids": ROWS}, {"logits": table[ROWS]}, {"logits": other[ROWS]})
    text, own = tally.records()
    wanted, given = (np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for each in (table, other))
    pairs = [(a, b) for row in ROWS for a, b in pairwise(row)]
    assert text.float_score == pytest.approx(np.mean([np.log(wanted[pair]) for pair in pairs]), rel=1e-5)
    assert text.quantized_score == pytest.approx(np.mean([np.log(given[pair]) for pair in pairs]), rel=1e-5)
    kl = np.mean([(wanted[a] * np.log(wanted[a] / given[a])).sum() for a, _ in pairs])
    assert own.drop == pytest.approx(kl, rel=1e-4) and own.drop_interval is not None


def test_padding_is_no_token_of_the_loss(table):
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    tally = NextTokenTally()
    logits = {"logits": table[ROWS]}
    tally.add({"input_ids": ROWS, "attention_mask": mask}, logits, logits)
    short, long = NextTokenTally(), NextTokenTally()
    short.add({"input_ids": ROWS[:1, :3]}, {"logits": table[ROWS[:1, :3]]}, {"logits": table[ROWS[:1, :3]]})
    long.add({"input_ids": ROWS[1:]}, {"logits": table[ROWS[1:]]}, {"logits": table[ROWS[1:]]})
    whole = (2 * short.records()[0].float_score + 4 * long.records()[0].float_score) / 6
    assert tally.records()[0].float_score == pytest.approx(whole) and tally.records()[0].drop_interval is None


def test_a_drop_in_nats_is_judged_without_labels(build, draw):
    body = "{ words = Gather (table, input_ids)  logits = MatMul (words, head) }"
    weights = {"table": draw(WORDS, 8), "head": draw(8, WORDS)}
    model = build(f"{DECODER} {body}", **weights)
    quantized = build(f"{DECODER} {body}", **{**weights, "head": weights["head"].round(1)})
    for limit, passed in ((5.0, True), (1e-9, False)):
        config = ValidateConfig(max_drop=limit)
        verdict = onnxcalib.validate(model, quantized, {"input_ids": np.tile(ROWS, (8, 1))}, config)
        assert verdict.gates[0].passed == passed and verdict.gates[0].text.startswith("log-likelihood, nats a token")
        assert verdict.outputs[0].positions == 80
