"""Samples from iterables: what each kind of item means, what is refused, and what stays in memory and on disk."""

from __future__ import annotations

import gc
import re
import weakref
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader
from PIL import Image
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader, Dataset, TensorDataset

from onnxcalib.config import DataConfig
from onnxcalib.data import open_calibration
from onnxcalib.data.arrays import to_array
from onnxcalib.data.iterables import Items, spool_items
from onnxcalib.errors import DataError, OutputError
from onnxcalib.spec import InputSpec

VALUES = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
RIGHT = np.random.default_rng(1).standard_normal((6, 2)).astype(np.float32)
VECTOR = [InputSpec("x", np.dtype(np.float32), (None, 4))]
PAIR = [InputSpec("left", np.dtype(np.float32), (None, 4)), InputSpec("right", np.dtype(np.float32), (None, 2))]
INT = np.dtype(np.int64)
IDS = [InputSpec(name, INT, (None, None)) for name in ("input_ids", "attention_mask")]
PLAIN = "data: found no items; give at least one sample"


def make_rows(source):
    """The items of an array, made anew one by one."""
    return (row.copy() for row in source)


def read_all(samples, name="x"):
    return samples.read(range(len(samples)))[name]


def refuse(text, source, inputs=VECTOR, config=None, **options):
    with pytest.raises(DataError, match=re.escape(text)) as refusal:
        open_calibration(source, inputs, config, **options)
    assert "\n" not in str(refusal.value)
    return refusal.value


class Reader(CalibrationDataReader):
    def __init__(self, items):
        self._items = iter(items)

    def get_next(self):
        return next(self._items, None)


class Split:
    """What a split of Hugging Face ``datasets`` offers: a length, and rows as dictionaries of lists."""

    def __init__(self, **columns):
        self._columns = columns

    def __len__(self):
        return len(next(iter(self._columns.values())))

    def __getitem__(self, index):
        return {name: values[index] for name, values in self._columns.items()}

    def __iter__(self):
        return (self[index] for index in range(len(self)))


class Indexed(Dataset):
    """A data set of torch that has no end of its own."""

    def __len__(self):
        return len(VALUES)

    def __getitem__(self, index):
        return torch.from_numpy(VALUES[index % len(VALUES)])


class Sample(NamedTuple):
    first: np.ndarray
    second: np.ndarray


# What an item may be


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_rows(VALUES),
        lambda: list(VALUES),
        lambda: (part for part in np.split(VALUES, 3)),
        lambda: iter([VALUES[:1], VALUES[1], VALUES[2:].astype(np.float64)]),
        lambda: ({"x": row} for row in VALUES),
        lambda: [[row] for row in VALUES],
        lambda: VALUES.tolist(),
        lambda: [VALUES[:2].tolist(), VALUES[2:].tolist()],
        lambda: [{"x": row} for row in VALUES.tolist()],
        lambda: [np.asfortranarray(VALUES)],
        lambda: [[*row] for row in VALUES],  # lists of NumPy's numbers
        lambda: Reader({"x": part} for part in np.split(VALUES, 2)),
        lambda: Split(x=VALUES.tolist()),
        lambda: Split(x=torch.from_numpy(VALUES)),
        lambda: DataLoader(TensorDataset(torch.from_numpy(VALUES)), batch_size=4),
        lambda: DataLoader(list(torch.from_numpy(VALUES)), batch_size=4),
        lambda: DataLoader([{"x": row} for row in VALUES], batch_size=4),
        lambda: Indexed(),
        lambda: TensorDataset(torch.from_numpy(VALUES)),
        lambda: (torch.from_numpy(row).double().requires_grad_() for row in VALUES),
        lambda: torch.from_numpy(VALUES),
        lambda: {"x": torch.from_numpy(VALUES).requires_grad_()},
    ],
)
def test_items_give_the_samples_of_the_stacked_array(make):
    samples = open_calibration(make(), VECTOR)
    np.testing.assert_array_equal(read_all(samples), VALUES)
    assert (samples.read([3, 0])["x"].dtype, len(samples), samples.available) == (np.float32, 6, 6)
    np.testing.assert_array_equal(samples.read([3, 0])["x"], VALUES[[3, 0]])
    assert (samples.warnings, samples.labels, samples.folder, samples.split(4)) == (
        (),
        None,
        None,
        [[0, 1, 2, 3], [4, 5]],
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: zip(VALUES, RIGHT, strict=True),
        lambda: [[VALUES[:4], RIGHT[:4]], (VALUES[4:], RIGHT[4:])],
        lambda: [[left.tolist(), right.tolist()] for left, right in zip(VALUES, RIGHT, strict=True)],
        lambda: map(Sample, VALUES, RIGHT),
        lambda: DataLoader(TensorDataset(torch.from_numpy(VALUES), torch.from_numpy(RIGHT)), batch_size=4),
        lambda: [{"right": RIGHT, "left": VALUES}],
    ],
)
def test_tuples_are_in_the_order_of_the_inputs(make):
    samples = open_calibration(make(), PAIR)
    np.testing.assert_array_equal(read_all(samples, "left"), VALUES)
    np.testing.assert_array_equal(read_all(samples, "right"), RIGHT)


def test_a_tensor_of_bfloat16_is_read_as_floats():
    tensor = torch.from_numpy(VALUES).bfloat16()
    np.testing.assert_array_equal(read_all(open_calibration([tensor], VECTOR)), tensor.float().numpy())


def test_images_of_pillow_feed_a_model_of_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    spec = InputSpec("x", np.dtype(np.uint8), (None, 8, 8, 3))
    np.testing.assert_array_equal(read_all(open_calibration(map(Image.fromarray, pixels), [spec])), pixels)


def test_integers_of_lists_become_the_models_type_where_they_fit():
    small = InputSpec("x", np.dtype(np.int8), (None, None))
    samples = open_calibration([[1, -128], [127, 0]], [small])
    assert (read_all(samples).tolist(), read_all(samples).dtype) == ([[1, -128], [127, 0]], np.int8)
    refuse("data: item 1: input 'x': found int64; the model takes int8", [[1], [128]], [small])
    refuse("data: item 0: input 'x': found int64; the model takes int8", [np.array([1])], [small])


def test_a_model_without_a_batch_axis_reads_its_inputs_or_a_batch_of_them():
    inputs = [InputSpec("x", np.dtype(np.float32), (4,)), InputSpec("rate", INT, ())]
    items = [{"x": VALUES[0], "rate": 8}, {"x": VALUES[1:3], "rate": np.array([9, 10])}]
    samples = open_calibration(iter(items), inputs)
    feeds = [samples.read([index]) for index in range(3)]
    np.testing.assert_array_equal(np.stack([each["x"] for each in feeds]), VALUES[:3])
    assert [(each["rate"].shape, int(each["rate"])) for each in feeds] == [((), 8), ((), 9), ((), 10)]


def test_samples_of_unlike_sizes_are_grouped_as_those_of_files(tmp_path):
    ragged = InputSpec("x", np.dtype(np.float32), (None, None))
    items = [VALUES[:2, :2], VALUES[:2, :3], VALUES[2, :3], VALUES[3:, :2]]
    for number, item in enumerate(items):
        np.save(tmp_path / f"{number}.npy", item)
    given, filed = (open_calibration(source, [ragged]) for source in (iter(items), tmp_path))
    assert given.split(3) == filed.split(3) == [[0, 1, 5], [2, 3, 4], [6, 7]]
    for one, other in zip(given.batches(3), filed.batches(3), strict=True):
        np.testing.assert_array_equal(one["x"], other["x"])
    assert (given.largest, given.alike(4)) == (filed.largest, filed.alike(4))


def test_padding_is_trimmed_as_in_stacked_arrays():
    ids = np.arange(12).reshape(3, 4)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0]])
    stacked = open_calibration({"input_ids": ids, "attention_mask": mask}, IDS)
    rows = open_calibration(Split(input_ids=ids.tolist(), attention_mask=mask.tolist()), IDS)
    for index in range(3):
        for name, values in stacked.read([index]).items():
            np.testing.assert_array_equal(rows.read([index])[name], values)
    assert rows.warnings == stacked.warnings and "1 of 3 samples have a mask" in rows.warnings[0]
    refuse("data: item 0: attention_mask: all is 0 in 1 of 1 samples", [(ids[0], mask[0] * 0)], IDS)


def test_a_fixed_batch_leaves_the_odd_samples_out():
    samples = open_calibration(make_rows(VALUES), [InputSpec("x", np.dtype(np.float32), (4, 4))])
    assert (len(samples), samples.fixed_batch) == (4, 4)
    assert samples.warnings == ("data: the model takes 4 samples in a run; the last 2 are left out",)


# Texts


def test_an_iterable_of_texts_is_read_as_a_list_of_them(tmp_path):
    file = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"a": 1, "b": 2, "?": 0}, unk_token="?")).save(str(file))
    config, ids = DataConfig(tokenizer=file), IDS[:1]
    for source in (["a", "b"], iter(["a", "b"]), dict.fromkeys("ab").keys()):
        assert read_all(open_calibration(source, ids, config), "input_ids").tolist() == [[1], [2]]
    endless = ("a" for _ in count())
    assert len(open_calibration(endless, ids, config, limit=3)) == 3
    refuse("data: item 1: found int among texts; give texts alone", ["a", 1], ids, config)
    refuse("data: item 1: input 'input_ids': found <U1, which are no numbers", [np.array([1]), "a"], ids, config)


# Labels, and keys that are not read


@pytest.mark.parametrize("name", ["label", "labels", "y"])
def test_labels_are_read_from_a_key_of_the_items(name):
    batches = [{"x": VALUES[:4], name: torch.tensor([[3], [1], [0], [2]])}, {"x": VALUES[4], name: 5}]
    samples = open_calibration(iter(batches), VECTOR)
    assert (samples.labels.tolist(), samples.labels.dtype, samples.warnings) == ([3, 1, 0, 2, 5], np.int64, ())
    assert open_calibration(batches, VECTOR, limit=2).labels.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([0, "cat"], "data: item 1: labels are <U3; numbers are needed"),
        ([0, [1, 2]], "data: item 1: found labels of shape (2); there are 1 samples"),
        ([0, [[1], [2, 3]]], "data: item 1: labels: found lists of unlike lengths"),
        ([0, None], "data: item 1: no labels, as other items have; all or none must have them"),
    ],
)
def test_labels_that_are_no_numbers_are_refused_when_they_are_asked_for(labels, text):
    samples = open_calibration([{"x": VALUES[0], "y": label} for label in labels], VECTOR)
    np.testing.assert_array_equal(read_all(samples), VALUES[[0, 0]])
    with pytest.raises(DataError, match=re.escape(text)):
        _ = samples.labels


@pytest.mark.parametrize(
    "make",
    [
        lambda labels: DataLoader(TensorDataset(torch.from_numpy(VALUES), labels), batch_size=4),
        lambda labels: zip(VALUES, labels.tolist(), strict=True),
        lambda labels: [(VALUES, labels.numpy())],
    ],
)
def test_a_label_behind_the_inputs_of_a_tuple_is_passed_over_and_reported(make):
    samples = open_calibration(make(torch.arange(6)), VECTOR)
    np.testing.assert_array_equal(read_all(samples), VALUES)
    assert samples.labels is None
    (warning,) = samples.warnings
    assert "one array more than the model has inputs; it looks like labels and is not read" in warning
    assert "yield {'x': ..., 'label': ...}" in warning


def test_other_keys_are_not_read_and_reported_once():
    items = [{"x": VALUES[0], "idx": 0, "label": 1}, {"x": VALUES[1], "text": "b", "idx": 1, "label": 1}]
    samples = open_calibration(items, VECTOR)
    (warning,) = samples.warnings
    assert warning.startswith("data: not read from the items: 'idx', 'text'; the model's inputs are x")
    wide = InputSpec("x", np.dtype(np.float32), (None, None))
    later = [{"x": VALUES[0]}, {"x": VALUES[0, :2], "idx": 1}, {"x": VALUES[0, :3], "idx": 2}]
    assert len(open_calibration(later, [wide]).warnings) == 1


# Faults


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ([], PLAIN),
        ({}.keys(), PLAIN),
        (TensorDataset(torch.zeros(0, 4)), PLAIN),
        (iter(()), "an iterator can be read only once, and this one may have been read before; make a new one"),
        (Reader([]), "an iterator can be read only once"),
        ([{"y": VALUES[0]}], "data: item 0: no array for input 'x', found y; the model's inputs are x; add it"),
        ([VALUES[0], {}], "data: item 1: no array for input 'x', found none"),
        ([VALUES[0], VALUES[0, :3]], "data: item 1: input 'x': found shape (3); the model takes (any, 4)"),
        ([VALUES[0], VALUES.astype(int)], "data: item 1: input 'x': found int64; the model takes float32; convert"),
        ([VALUES[:0]], "data: item 0: input 'x': found shape (0, 4), which holds no values"),
        ([[]], "data: item 0: input 'x': found shape (0)"),
        ([[[1.0, 2.0], [3.0]]], "data: item 0: input 'x': found lists of unlike lengths; numbers in a regular array"),
        ([VALUES[0], None], "data: item 1: input 'x': found object, which are no numbers"),
        ([{"x": "text"}], "data: item 0: input 'x': found <U4, which are no numbers; the model takes float32"),
        ([object()], "data: item 0: input 'x': found object, which are no numbers"),
        ([torch.zeros(4).to_sparse()], "data: item 0: input 'x': found Tensor that is no array"),
        ([(VALUES[:2], VALUES[2:4])], "found 2 arrays, the last being float32 of shape (2, 4); the model's"),
        ([(VALUES[:2], np.arange(3))], "found 2 arrays, the last being int64 of shape (3); the model's"),
        ([list(VALUES)], "data: item 0: found a list of 6; the model's inputs are x; yield one array for each"),
        ([({"x": VALUES}, 1)], "data: item 0: found a tuple of 2 with a dictionary in it; yield the dictionary"),
        ([{"x": list(torch.from_numpy(VALUES))}], "found a list of Tensor, whose first axis may count samples or"),
        ([np.full(4, np.nan)], "data: item 0: input 'x': NaN or infinity in sample 0"),
        (
            [VALUES, np.where(VALUES > 1, 1e99, VALUES.astype(float))],
            "data: items 0 to 1: input 'x': NaN or infinity in sample",
        ),
    ],
)
def test_what_gives_no_samples_is_refused_with_its_item(source, text):
    refuse(text, source)


def test_items_of_a_model_with_two_inputs_name_or_order_them():
    refuse("data: item 0: found one ndarray; the model has inputs left, right; yield dictionaries", [VALUES], PAIR)
    text = "data: item 0: no array for input 'left', found lefft, right; the model's inputs are left, right; rename"
    refuse(text, [{"lefft": VALUES, "right": RIGHT}], PAIR)
    refuse("rename 'lefft' to 'left'", [{"lefft": VALUES, "right": RIGHT}], PAIR)
    refuse("add it, or rename the key that holds it", [{"zzz": VALUES, "right": RIGHT}], PAIR)
    refuse("data: item 0: found 6 samples of 'left', 5 of 'right'", [(VALUES, RIGHT[:5])], PAIR)
    refuse("data: item 0: found a tuple of 1; the model's inputs are left, right", [(VALUES,)], PAIR)


def test_inputs_of_strings_are_not_read_from_items():
    refuse("found <U1, which are no numbers; the model takes object", [["a"]], [InputSpec("x", np.dtype(object), (1,))])


def test_what_the_iterable_raises_is_the_cause_and_names_its_item():
    def fail():
        yield VALUES[0]
        raise RuntimeError("no more\nof these")

    error = refuse("data: item 1: the iterable raised RuntimeError: no more; mend what yields the samples", fail())
    assert isinstance(error.__cause__, RuntimeError)

    class Broken:
        def __iter__(self):
            raise OSError("gone")

    refuse("data: item 0: the iterable raised OSError: gone", Broken())


def test_a_generator_that_was_read_is_refused():
    source = make_rows(VALUES)
    open_calibration(source, VECTOR)
    refuse("this one may have been read before; make a new one", source)


def test_ragged_lists_in_a_dict_of_arrays_are_refused():
    refuse("data: input 'x': found lists of unlike lengths", {"x": [[1.0, 2.0], [3.0]]})


def test_an_array_of_another_library_that_fails_to_convert_is_refused():
    class Odd:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("on another device")

    with pytest.raises(DataError, match=r"here: found Odd that is no array \(on another device\)"):
        to_array(Odd(), "here")


# Streams, and what they leave


def test_a_limit_pulls_no_item_that_is_not_needed():
    pulled = []

    def yield_forever():
        for number in count():
            pulled.append(number)
            yield VALUES[:2] + np.float32(number)

    source = yield_forever()
    samples = open_calibration(source, VECTOR, limit=5)
    assert (len(samples), samples.available, pulled) == (5, None, [0, 1, 2])
    np.testing.assert_array_equal(samples.read([4])["x"], VALUES[:1] + np.float32(2))
    np.testing.assert_array_equal(next(source), VALUES[:2] + np.float32(3))


@pytest.mark.parametrize("sizes", [[4], [4, 3, 2]])
@pytest.mark.parametrize("wrap", [iter, Reader, DataLoader])
def test_one_item_is_alive_at_a_time(sizes, wrap):
    alive = weakref.WeakSet()
    seen = []

    def make(number):
        seen.append(len(alive))
        item = torch.from_numpy(np.full(sizes[number % len(sizes)], number, np.float32))
        alive.add(item)
        return {"x": item}

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return (make(number) for number in range(8))

    source = DataLoader(Stream(), batch_size=None) if wrap is DataLoader else wrap(make(number) for number in range(8))
    samples = open_calibration(source, [InputSpec("x", np.dtype(np.float32), (None, None))])
    assert (len(samples), seen) == (8, [0] * 8)


def test_files_are_as_many_as_inputs_and_removed_with_the_set(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    wide = InputSpec("x", np.dtype(np.float32), (None, None))
    samples = open_calibration((VALUES[0, : 1 + number % 3] for number in range(30)), [wide])
    (folder,) = tmp_path.iterdir()
    assert [path.name for path in folder.iterdir()] == ["input_0.raw"]
    runs = samples.batches(4)
    next(runs)
    del samples
    gc.collect()
    assert sum(len(run["x"]) for run in runs) == 26  # the rest of the runs hold the set
    del runs
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit])
def test_files_are_removed_when_reading_is_broken_off(tmp_path, monkeypatch, fault):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail():
        yield VALUES[0]
        assert len(list(tmp_path.iterdir())) == 1
        raise fault

    with pytest.raises(DataError if fault is ValueError else fault):
        open_calibration(fail(), VECTOR)
    assert list(tmp_path.iterdir()) == []


def test_files_that_vanish_are_a_data_error(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    samples = open_calibration(make_rows(VALUES), VECTOR)
    next(tmp_path.glob("*/input_0.raw")).unlink()
    with pytest.raises(DataError, match=r"input_0\.raw: no such file; leave it in place"):
        samples.read([0])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_with_the_folder_and_the_remedy(tmp_path):
    (tmp_path / "input_0.raw").symlink_to("/dev/full")
    text = f"{tmp_path}: temporary files cannot be kept here (No space left on device); free space, set TMPDIR to"
    with pytest.raises(OutputError, match=re.escape(text)):
        list(spool_items(Items(make_rows(VALUES)), VECTOR, tmp_path, None))
