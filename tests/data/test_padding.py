"""Padding of token sequences: trimmed where the model runs any length, reported where it stays."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib.data import open_calibration
from onnxcalib.data.padding import count_tokens
from onnxcalib.errors import DataError
from onnxcalib.spec import InputSpec

INT = np.dtype(np.int64)
IDS, MASK = InputSpec("input_ids", INT, (None, None)), InputSpec("attention_mask", INT, (None, None))
POSITIONS = InputSpec("position_ids", INT, (None, None))
NUMBERS = np.arange(12).reshape(3, 4)


def read_all(samples, name="input_ids"):
    return [samples.read([i])[name][0].tolist() for i in range(len(samples))]


def test_padding_behind_a_sample_is_trimmed():
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    samples = open_calibration({"input_ids": NUMBERS, "attention_mask": mask}, [IDS, MASK])
    assert read_all(samples) == [[0, 1], [4, 5, 6, 7], [8, 9]]
    assert all(set(row) == {1} for row in read_all(samples, "attention_mask"))
    assert (samples.warnings, samples.split(8), samples.largest) == ((), [[0, 2], [1]], 1)


def test_padding_before_a_sample_is_trimmed_where_positions_are_given():
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]])
    arrays = {"input_ids": NUMBERS, "attention_mask": mask, "position_ids": NUMBERS * 10}
    samples = open_calibration(arrays, [IDS, MASK, POSITIONS])
    assert read_all(samples) == [[2, 3], [4, 5, 6, 7], [9, 10]]
    assert read_all(samples, "position_ids")[0] == [20, 30] and samples.warnings == ()


@pytest.mark.parametrize("row", [[0, 0, 1, 1], [1, 0, 1, 0]])
def test_a_mask_with_gaps_leaves_its_sample_whole_and_is_reported(row):
    mask = np.array([row, [1, 1, 0, 0], [1, 1, 1, 1]])
    samples = open_calibration({"input_ids": NUMBERS, "attention_mask": mask}, [IDS, MASK])
    assert read_all(samples) == [[0, 1, 2, 3], [4, 5], [8, 9, 10, 11]]
    (warning,) = samples.warnings
    assert "padding is run: 1 of 3 samples have a mask that is no run of ones first" in warning


def test_a_sample_of_which_no_token_counts_is_refused():
    mask = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    with pytest.raises(DataError, match="attention_mask: all is 0 in 2 of 3 samples, the first being sample 1; a samp"):
        open_calibration({"input_ids": NUMBERS, "attention_mask": mask}, [IDS, MASK])
    floats = InputSpec("attention_mask", np.dtype(np.float32), (None, None))
    added = np.where(NUMBERS > 9, -1e4, 0).astype(np.float32)
    assert len(open_calibration({"input_ids": NUMBERS, "attention_mask": added}, [IDS, floats])) == 3


@pytest.mark.parametrize(
    ("shape", "text"), [((None, 4), "the model takes 4 tokens"), ((3, None), "the model takes 3 samples in a run")]
)
def test_a_model_that_fixes_a_size_gets_its_padding(shape, text):
    specs = [InputSpec(spec.name, INT, shape) for spec in (IDS, MASK)]
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]])
    samples = open_calibration({"input_ids": NUMBERS, "attention_mask": mask}, specs)
    assert read_all(samples, "attention_mask") == mask.tolist() if shape[0] is None else samples.fixed_batch == 3
    assert f"padding is run: {text};" in samples.warnings[0]


def test_another_input_that_may_count_tokens_keeps_samples_whole():
    specs = [IDS, MASK, InputSpec("bias", np.dtype(np.float32), (None, 2, None))]
    bias = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    mask = np.array([[1, 1, 0, 0]] * 3)
    samples = open_calibration({"input_ids": NUMBERS, "attention_mask": mask, "bias": bias}, specs)
    assert read_all(samples) == NUMBERS.tolist()
    assert "padding is run: input 'bias' may count tokens too" in samples.warnings[0]


def test_a_mask_that_counts_tokens_of_the_past_trims_nothing():
    past = InputSpec("past", np.dtype(np.float32), (None, None, 2))
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    arrays = {
        "input_ids": NUMBERS[:, :1],
        "attention_mask": mask,
        "past": np.random.default_rng(0).normal(size=(3, 3, 2)),
    }
    samples = open_calibration(arrays, [IDS, MASK, past])
    assert read_all(samples, "attention_mask") == mask.tolist() and samples.split(8) == [[0, 1, 2]]
    assert "padding is run: no input_ids or inputs_embeds has the 4 tokens of the mask" in samples.warnings[0]


def test_vectors_of_tokens_are_trimmed_too():
    specs = [MASK, InputSpec("inputs_embeds", np.dtype(np.float32), (None, None, 2))]
    values = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    mask = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    samples = open_calibration({"inputs_embeds": values, "attention_mask": mask}, specs)
    np.testing.assert_array_equal(samples.read([2])["inputs_embeds"], values[2:, :3])


def test_files_padded_to_unlike_lengths_run_together_where_their_samples_are_of_one(tmp_path):
    for number, width in enumerate((4, 5)):
        ids = np.arange(2 * width).reshape(2, width)
        mask = np.zeros_like(ids)
        mask[:, :3] = 1
        np.savez(tmp_path / f"{number}.npz", input_ids=ids, attention_mask=mask)
    samples = open_calibration(tmp_path, [IDS, MASK])
    assert samples.split(8) == [[0, 1, 2, 3]]
    assert samples.read(range(4))["input_ids"].shape == (4, 3)


@pytest.mark.parametrize(
    ("mask", "real"),
    [
        (np.array([[1, 1, 0]]), [[True, True, False]]),
        (np.array([[1, 0, 0]], np.float32), [[True, False, False]]),
        (np.array([[0, 0, -1e4]], np.float32), [[True, True, False]]),  # added to scores
        (np.zeros((1, 3), np.float32), [[True, True, True]]),
        (np.zeros((1, 3), np.int64), [[False, False, False]]),
    ],
)
def test_a_mask_says_which_tokens_count_by_its_type_and_values(mask, real):
    assert count_tokens(mask).tolist() == real
