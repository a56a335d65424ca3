"""Sequences whose steps are samples: which arrays, files and folders are one, and what each step reads."""

import re

import numpy as np
import pytest

from onnxcalib.config import DataConfig
from onnxcalib.data import open_calibration
from onnxcalib.data.holdout import hold_out
from onnxcalib.errors import DataError
from onnxcalib.spec import InputSpec

FLOAT = np.dtype(np.float32)
CELL = [InputSpec("x", FLOAT, (None, 2)), InputSpec("h", FLOAT, (None, 3), "hn")]
# As speech models have it: the states count samples on their second axis, and a number has no axis.
STACKED = [
    InputSpec("x", FLOAT, (None, None)),
    InputSpec("h", FLOAT, (2, None, 3), "hn"),
    InputSpec("rate", np.dtype(np.int64), ()),
]
VALUES = np.arange(10, dtype=np.float32).reshape(5, 2)


def refuse(text, source, inputs=CELL, **settings):
    with pytest.raises(DataError, match=re.escape(text)):
        open_calibration(source, inputs, DataConfig(**settings))


def test_an_array_is_a_sequence_of_steps_that_start_from_zeros():
    samples = open_calibration(VALUES, CELL)
    assert samples.sequences.tolist() == [0] * 5 and samples.states == {"h": "hn"}
    read = samples.read([1, 4])
    assert read["x"].tolist() == VALUES[[1, 4]].tolist() and read["h"].tolist() == np.zeros((2, 3)).tolist()
    assert samples.notes == ("data: 1 sequence of 5 steps",)


def test_steps_of_a_model_without_a_batch_axis_are_samples_of_one():
    values = {"x": VALUES, "rate": np.int64(16), "h": np.ones((2, 1, 3), np.float32)}
    read = open_calibration(values, STACKED).read([2])
    assert read["x"].tolist() == VALUES[2:3].tolist() and read["rate"] == 16
    assert read["h"].tolist() == np.ones((2, 1, 3)).tolist()
    whole = open_calibration(values | {"x": VALUES[:, None], "rate": np.full(5, 16)}, STACKED)
    assert len(whole) == 5 and whole.read([2])["x"].tolist() == read["x"].tolist()


@pytest.mark.parametrize("shape", [(1, 3), (3,), (5, 3)])
def test_the_first_step_gives_the_start_of_a_state(shape):
    start = np.full(shape, 7, np.float32)
    assert open_calibration({"x": VALUES, "h": start}, CELL).read([0])["h"].tolist() == [[7, 7, 7]]


def test_with_axis_1_an_array_holds_several_sequences_and_a_limit_counts_these():
    values = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    settings = DataConfig(state="hn:h", sequence_axis=1)
    samples = open_calibration(values, CELL, settings, limit=2)
    assert samples.sequences.tolist() == [0] * 4 + [1] * 4
    assert samples.read(range(8))["x"].tolist() == values[:2].reshape(8, 2).tolist()
    items = open_calibration(iter([values[:1], values[1:]]), CELL, settings)
    assert items.sequences.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert items.read([9])["x"].tolist() == values[2, 1:2].tolist()


def test_items_of_an_iterable_are_sequences_of_any_length():
    samples = open_calibration(iter([VALUES, {"x": VALUES[:2], "label": np.array([3, 4])}, VALUES]), CELL, limit=2)
    assert samples.sequences.tolist() == [0] * 5 + [1] * 2
    pair = open_calibration([(VALUES[:3], np.int64(8)), (VALUES[:1], np.int64(8))], STACKED)
    assert pair.sequences.tolist() == [0, 0, 0, 1] and pair.read([3])["rate"] == 8


def test_each_file_of_a_folder_is_a_sequence_in_natural_order(tmp_path):
    for number, count in ((2, 5), (10, 3)):
        np.savez(tmp_path / f"clip{number}.npz", x=VALUES[:count])
    samples = open_calibration(tmp_path, CELL)
    assert samples.sequences.tolist() == [0] * 5 + [1] * 3 and len(open_calibration(tmp_path, CELL, limit=1)) == 5
    assert samples.notes[0].endswith("2 sequences of 3 to 5 steps")


def test_a_folder_of_single_steps_is_one_sequence_and_so_is_each_sub_folder(tmp_path):
    for folder, count in (("b2", 3), ("b10", 2)):
        (tmp_path / "all" / folder).mkdir(parents=True)
        for number in range(count):
            np.save(tmp_path / "all" / folder / f"{9 + number}.npy", VALUES[number])
    samples = open_calibration(tmp_path / "all", CELL)
    assert samples.sequences.tolist() == [0, 0, 0, 1, 1]
    assert samples.read(range(3))["x"].tolist() == VALUES[:3].tolist()
    assert open_calibration(tmp_path / "all" / "b2", CELL).sequences.tolist() == [0, 0, 0]
    assert "in natural order" in samples.notes[0] and len(open_calibration(tmp_path / "all", CELL, limit=1)) == 3


def test_sub_folders_named_by_inputs_hold_the_sequences_of_each(tmp_path):
    inputs = [*CELL, InputSpec("z", FLOAT, (None, 1))]
    for name, width in (("x", 2), ("z", 1)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "one.npy", VALUES[:, :width])
    assert open_calibration(tmp_path, inputs).sequences.tolist() == [0] * 5


def test_sequences_that_do_not_fit_are_refused(tmp_path):
    refuse("data: input 'x': found shape (1, 1, 5, 2); a step has (any, 2)", VALUES[None, None])
    refuse("give --sequence-axis 1 where axis 0 counts sequences", VALUES.reshape(1, 5, 1, 2))
    refuse("data: input 'x': found 5 samples in a step", VALUES[None])
    refuse("found 4 steps of input 'h', 5 steps of 'x'; give as many", {"x": VALUES, "h": np.ones((4, 3), np.float32)})
    refuse("found shape (0, 2), which holds no step", VALUES[:0])
    fixed = [InputSpec("x", FLOAT, (4, 2)), InputSpec("h", FLOAT, (4, 3), "hn")]
    refuse("state: the model takes 4 samples in a run", VALUES, fixed)
    refuse("the file has no shape of it", {"x": VALUES}, [InputSpec("x", FLOAT, None), CELL[1]])
    refuse("words.txt: not a file of sequences", _write(tmp_path / "words.txt"))
    (tmp_path / "several" / "one").mkdir(parents=True)
    np.save(tmp_path / "several" / "one" / "a.npy", np.ones((2, 3, 2), np.float32))
    refuse("found a file of several sequences", tmp_path / "several", state="hn:h", sequence_axis=1)


def _write(path):
    path.write_text("a\n")
    return path


def test_whole_sequences_are_held_out():
    samples = open_calibration(iter([np.full((9, 2), number, np.float32) for number in range(8)]), CELL)
    used, held = hold_out(samples)
    assert set(held.sequences) == {2, 6} and len(held) == 18 and set(used.sequences) == {0, 1, 3, 4, 5, 7}
    assert set(held.read(range(18))["x"][:, 0]) == {2, 6}
    few = samples.take(range(27))
    assert hold_out(few) == (few, None)


def test_files_behind_the_sequences_that_are_asked_for_are_not_opened(tmp_path):
    np.save(tmp_path / "clip1.npy", VALUES)
    (tmp_path / "clip2.npy").write_bytes(b"no array")
    assert len(open_calibration(tmp_path, CELL, limit=1)) == 5
    refuse("clip2.npy", tmp_path)
