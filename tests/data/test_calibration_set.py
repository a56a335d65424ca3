"""Calibration sets: every source that is read, and every fault that is refused, each by its name."""

from __future__ import annotations

import gc
import re
import tracemalloc
from itertools import pairwise

import numpy as np
import onnx
import pytest
from PIL import Image

from onnxcalib.config import DataConfig
from onnxcalib.data import open_calibration
from onnxcalib.errors import DataError
from onnxcalib.spec import InputSpec

FLOAT = np.dtype(np.float32)


def make_spec(*shape, name="x", dtype=np.float32):
    return InputSpec(name, np.dtype(dtype), shape)


def make_values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make_image(path, height=8, width=8, mode="RGB", seed=0):
    depth = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *depth), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


VECTOR = [make_spec(None, 4)]
PLANES = [make_spec(None, 3, 8, 8)]
PAIR = [make_spec(None, 4, name="left"), make_spec(None, 2, name="right")]
STATEFUL = [
    make_spec(None, None, name="input"),
    make_spec(name="sr", dtype=np.int64),
    make_spec(2, None, 3, name="state"),
]


def refuse(text, source, inputs, config=None, **options):
    with pytest.raises(DataError, match=re.escape(text)) as refusal:
        open_calibration(source, inputs, config, **options)
    assert "\n" not in str(refusal.value)


# Arrays


def test_an_array_is_read_by_index_in_any_order():
    values = make_values(5, 4)
    calibration = open_calibration(values, VECTOR)
    assert (len(calibration), calibration.fixed_batch, calibration.warnings) == (5, None, ())
    np.testing.assert_array_equal(calibration.read([3, 0, 3])["x"], values[[3, 0, 3]])


def test_batches_cover_all_samples_in_order():
    values = make_values(5, 4)
    batches = [batch["x"] for batch in open_calibration({"x": values}, VECTOR).batches(2)]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(batches), values)


def test_doubles_are_converted_to_the_type_of_the_input():
    batch = open_calibration(np.ones((2, 4)) * 0.1, VECTOR).read([0])["x"]
    assert batch.dtype == FLOAT


def test_an_index_beyond_the_set_is_an_error():
    with pytest.raises(IndexError, match="sample 2: the calibration set has 2"):
        open_calibration(make_values(2, 4), VECTOR).read([2])


def test_limit_uses_the_first_samples_and_does_not_look_at_the_others(tmp_path):
    np.save(tmp_path / "0.npy", make_values(4, 4))
    (tmp_path / "1.npy").write_bytes(b"junk")
    assert len(open_calibration(tmp_path, VECTOR, limit=3)) == 3
    refuse("1.npy: not a complete .npy array", tmp_path, VECTOR, limit=5)


def test_a_folder_of_npy_mixes_files_of_many_samples_and_of_one(tmp_path):
    many, one = make_values(3, 4), make_values(4, seed=1)
    np.save(tmp_path / "a.npy", many)
    np.save(tmp_path / "b.npy", np.asfortranarray(many))
    np.save(tmp_path / "c.npy", one)
    calibration = open_calibration(tmp_path, VECTOR)
    np.testing.assert_array_equal(calibration.read(range(7))["x"], np.concatenate([many, many, one[None]]))
    np.testing.assert_array_equal(calibration.read([6, 4, 0])["x"], np.stack([one, many[1], many[0]]))


def test_one_npy_file_is_a_set(tmp_path):
    np.save(tmp_path / "a.npy", make_values(3, 4))
    assert len(open_calibration(str(tmp_path / "a.npy"), VECTOR)) == 3


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_holds_arrays_by_input_and_its_labels_are_not_read_unasked(tmp_path, save):
    left, right = make_values(3, 4), make_values(3, 2)
    save(tmp_path / "a.npz", left=left, right=right, labels=np.array([None, "a", 3], dtype=object))
    batch = open_calibration(tmp_path / "a.npz", PAIR).read([2, 1])
    np.testing.assert_array_equal(batch["left"], left[[2, 1]])
    np.testing.assert_array_equal(batch["right"], right[[2, 1]])


def test_an_npz_without_names_feeds_a_single_input(tmp_path):
    np.savez(tmp_path / "a.npz", make_values(3, 4))
    assert len(open_calibration(tmp_path / "a.npz", VECTOR)) == 3


def test_a_folder_of_npz_concatenates_its_files(tmp_path):
    for index in range(3):
        np.savez(tmp_path / f"{index}.npz", left=make_values(4), right=make_values(2, seed=index))
    batch = open_calibration(tmp_path, PAIR).read([0, 2])
    np.testing.assert_array_equal(batch["right"], np.stack([make_values(2, seed=0), make_values(2, seed=2)]))


def test_npy_files_named_by_input_are_one_set(tmp_path):
    np.save(tmp_path / "left.npy", make_values(3, 4))
    np.save(tmp_path / "right.npy", make_values(3, 2))
    assert len(open_calibration(tmp_path, PAIR)) == 3


def test_sub_folders_named_by_input_are_read_side_by_side(tmp_path):
    for name, width in (("left", 4), ("right", 2)):
        (tmp_path / name).mkdir()
        for index in range(2):
            np.save(tmp_path / name / f"{index}.npy", make_values(width, seed=index))
    batch = open_calibration(tmp_path, PAIR).read([1])
    np.testing.assert_array_equal(batch["left"], make_values(1, 4, seed=1))
    np.testing.assert_array_equal(batch["right"], make_values(1, 2, seed=1))


def test_onnx_test_data_is_read_in_the_order_of_the_inputs_or_by_name(tmp_path):
    for index, names in enumerate((("", ""), ("right", "left"))):
        folder = tmp_path / f"test_data_set_{index}"
        folder.mkdir()
        for number, name in enumerate(names):
            width = 2 if (name or ("left", "right")[number]) == "right" else 4
            tensor = onnx.numpy_helper.from_array(make_values(1, width, seed=index), name)
            onnx.save_tensor(tensor, folder / f"input_{number}.pb")
        (folder / "output_0.pb").write_bytes(b"never read")
    batch = open_calibration(tmp_path, PAIR).read([0, 1])
    np.testing.assert_array_equal(batch["left"], np.stack([make_values(4, seed=0), make_values(4, seed=1)]))
    np.testing.assert_array_equal(batch["right"], np.stack([make_values(2, seed=0), make_values(2, seed=1)]))
    assert len(open_calibration(tmp_path / "test_data_set_0", PAIR)) == 1


# Sub-folders named by class, and the names and labels of samples


def save_classes(folder, names, *, files=("a.npy", "b.npy")):
    for number, name in enumerate(names):
        (folder / name).mkdir()
        for row, file in enumerate(files):
            np.save(folder / name / file, np.full(4, 10 * number + row, np.float32))


@pytest.mark.parametrize(
    ("classes", "labels"), [(("cat", "dog"), [0, 1, 0, 1]), (("10", "2"), [10, 2, 10, 2]), (("10", "a"), [0, 1, 0, 1])]
)
def test_sub_folders_are_classes_by_their_number_or_else_by_their_order(tmp_path, classes, labels):
    save_classes(tmp_path, classes)
    samples = open_calibration(tmp_path, VECTOR)
    assert samples.names == tuple(f"{name}/{file}" for file in ("a.npy", "b.npy") for name in classes)
    assert (samples.labels.tolist(), samples.labels.dtype) == (labels, np.int64)
    np.testing.assert_array_equal(samples.read([0, 1, 2, 3])["x"][:, 0], [0, 10, 1, 11])


def test_class_folders_of_images_must_agree_in_size_with_each_other(tmp_path):
    for name, height in (("cat", 8), ("dog", 9)):
        (tmp_path / name).mkdir()
        make_image(tmp_path / name / "a.png", height)
    inputs = [make_spec(None, 3, None, None)]
    refuse("a.png: found 9x8 pixels (height x width) where a.png has 8x8", tmp_path, inputs)
    assert open_calibration(tmp_path, inputs, DataConfig(resize=8, crop=8)).labels.tolist() == [0, 1]


def test_all_rows_of_a_file_in_a_class_folder_are_of_that_class(tmp_path):
    save_classes(tmp_path, ["0", "7"], files=["a.npy"])
    np.save(tmp_path / "7" / "b.npy", make_values(3, 4))
    samples = open_calibration(tmp_path, VECTOR)
    assert (samples.labels.tolist(), samples.names) == ([0, 7, 7, 7, 7], None)


def test_the_folder_of_a_class_outranks_the_labels_of_its_npz_files(tmp_path):
    for name in ("3", "5"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "a.npz", x=make_values(4), y=9)
    assert open_calibration(tmp_path, VECTOR).labels.tolist() == [3, 5]


def test_a_list_of_labels_beside_the_samples_is_no_sample(tmp_path):
    np.save(tmp_path / "a.npy", make_values(4))
    (tmp_path / "labels.csv").write_text("a.npy,1\n")
    assert open_calibration(tmp_path, VECTOR).names == ("a.npy",)
    (tmp_path / "a.npy").unlink()
    refuse(f"{tmp_path}: found only labels; samples are needed; put", tmp_path, VECTOR)


def test_an_open_set_is_taken_as_it_is_and_not_with_another_limit(tmp_path):
    samples = open_calibration(make_values(5, 4), VECTOR)
    assert open_calibration(samples, VECTOR, limit=5) is samples
    refuse("found an open set of 5 samples; 3 are wanted; open it with limit=", samples, VECTOR, limit=3)


def test_an_empty_class_folder_is_refused_with_its_name(tmp_path):
    save_classes(tmp_path, ["cat"])
    (tmp_path / "dog").mkdir()
    refuse(f"{tmp_path / 'dog'}: the folder is empty", tmp_path, VECTOR)


def test_class_folders_of_two_kinds_are_refused_with_an_example_of_each(tmp_path):
    save_classes(tmp_path, ["cat"])
    (tmp_path / "dog").mkdir()
    make_image(tmp_path / "dog" / "c.png")
    refuse(f"{tmp_path}: found both cat/a.npy and dog/c.png", tmp_path, VECTOR)


def test_a_folder_in_a_class_folder_is_refused_with_its_name(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    refuse(f"{tmp_path / 'train' / 'cat'}: not a file of samples", tmp_path, VECTOR)


def test_a_single_sub_folder_that_is_no_number_tells_no_class(tmp_path):
    save_classes(tmp_path, ["images"])
    samples = open_calibration(tmp_path, VECTOR)
    assert (samples.names, samples.labels) == (("images/a.npy", "images/b.npy"), None)


def test_sub_folders_of_a_model_with_several_inputs_are_its_inputs(tmp_path):
    save_classes(tmp_path, ["cat", "dog"])
    refuse("'cat' is no input of the model; the model's inputs are left, right", tmp_path, PAIR)


def test_a_limit_and_a_fixed_batch_shorten_names_and_labels_too(tmp_path):
    save_classes(tmp_path, ["3", "5"])
    batched = open_calibration(tmp_path, [make_spec(3, 4)])
    limited = open_calibration(tmp_path, VECTOR, limit=3)
    for samples in (batched, limited):
        assert samples.names == ("3/a.npy", "5/a.npy", "3/b.npy")
        assert samples.labels.tolist() == [3, 5, 3]
    assert (batched.available, limited.available) == (4, None)


def test_samples_of_a_file_of_several_have_no_names(tmp_path):
    np.save(tmp_path / "a.npy", make_values(4))
    assert open_calibration(tmp_path, VECTOR).names == ("a.npy",)
    assert open_calibration(tmp_path / "a.npy", VECTOR).names is None
    np.save(tmp_path / "b.npy", make_values(3, 4))
    assert open_calibration(tmp_path, VECTOR).names is None
    assert open_calibration(make_values(1, 4), VECTOR).names is None


@pytest.mark.parametrize("name", ["label", "labels", "y"])
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_an_npz_carries_labels(tmp_path, name, shape):
    np.savez(tmp_path / "a.npz", **{"x": make_values(3, 4), name: np.array([4, 0, 2], np.uint8).reshape(shape)})
    labels = open_calibration(tmp_path / "a.npz", VECTOR).labels
    assert (labels.tolist(), labels.dtype) == ([4, 0, 2], np.int64)


def test_a_mapping_carries_labels():
    assert open_calibration({"x": make_values(3, 4), "y": [4, 0, 2]}, VECTOR, limit=2).labels.tolist() == [4, 0]


def test_a_folder_of_npz_carries_labels(tmp_path):
    np.savez(tmp_path / "a.npz", x=make_values(2, 4), labels=[1, 2])
    np.savez(tmp_path / "b.npz", x=make_values(4), labels=7)
    assert open_calibration(tmp_path, VECTOR).labels.tolist() == [1, 2, 7]


def test_files_and_sub_folders_named_by_input_carry_labels_beside_them(tmp_path):
    np.save(tmp_path / "left.npy", make_values(2, 4))
    np.save(tmp_path / "right.npy", make_values(2, 2))
    np.save(tmp_path / "labels.npy", [1, 2])
    assert open_calibration(tmp_path, PAIR).labels.tolist() == [1, 2]
    for name, value in (("x", np.ones(4, np.float32)), ("y", 5)):
        (tmp_path / "columns" / name).mkdir(parents=True)
        np.save(tmp_path / "columns" / name / "0.npy", value)
    columns = open_calibration(tmp_path / "columns", VECTOR)
    assert (columns.names, columns.labels.tolist()) == (("x/0.npy",), [5])


def test_an_input_named_like_labels_is_an_input(tmp_path):
    np.savez(tmp_path / "a.npz", y=make_values(3, 4))
    samples = open_calibration(tmp_path / "a.npz", [make_spec(None, 4, name="y")])
    assert (len(samples), samples.labels) == (3, None)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (np.array([None, "a", 3], dtype=object), "a.npz: labels are not a complete array of numbers"),
        (np.array(["a", "b", "c"]), "a.npz: labels are <U1; numbers are needed"),
        (np.ones(4, np.int64), "a.npz: found labels of shape (4); there are 3 samples"),
        (np.eye(3, dtype=np.int64), "a.npz: found labels of shape (3, 3); there are 3 samples"),
        (np.int64(1), "a.npz: found labels of shape (); there are 3 samples"),
    ],
)
def test_labels_that_are_no_numbers_a_sample_are_refused_when_they_are_asked_for(tmp_path, labels, text):
    np.savez(tmp_path / "a.npz", x=make_values(3, 4), labels=labels)
    samples = open_calibration(tmp_path / "a.npz", VECTOR)
    assert len(samples) == 3
    with pytest.raises(DataError, match=re.escape(text)) as refusal:
        _ = samples.labels
    assert "\n" not in str(refusal.value)


def test_labels_in_some_files_alone_are_refused_with_one_that_has_none(tmp_path):
    np.savez(tmp_path / "a.npz", x=make_values(4), y=1)
    np.savez(tmp_path / "b.npz", x=make_values(4))
    samples = open_calibration(tmp_path, VECTOR)
    with pytest.raises(DataError, match=r"b\.npz: no labels, as in 1 of 2 files; all or none must have them"):
        _ = samples.labels


# Batches that the model dictates


def test_a_fixed_batch_leaves_the_odd_samples_out_and_says_so():
    calibration = open_calibration(make_values(7, 4), [make_spec(3, 4)])
    assert (len(calibration), calibration.fixed_batch) == (6, 3)
    assert [len(batch["x"]) for batch in calibration.batches(100)] == [3, 3]
    assert calibration.warnings == ("data: the model takes 3 samples in a run; the last 1 are left out",)


def test_fewer_samples_than_a_fixed_batch_are_refused():
    refuse("data: found 2 samples; the model takes 3 in a run", make_values(2, 4), [make_spec(3, 4)])


def test_a_model_without_a_batch_axis_gets_one_file_a_run(tmp_path):
    for index in range(2):
        state = make_values(2, 1, 3, seed=index)
        np.savez(tmp_path / f"{index}.npz", input=make_values(1, 9 + index), sr=np.int64(16000), state=state)
    calibration = open_calibration(tmp_path, STATEFUL)
    assert (len(calibration), calibration.fixed_batch) == (2, 1)
    first, second = calibration.batches(8)
    assert [first["input"].shape, second["input"].shape] == [(1, 9), (1, 10)]
    assert (first["sr"].shape, int(first["sr"])) == ((), 16000)
    np.testing.assert_array_equal(second["state"], make_values(2, 1, 3, seed=1))


def test_samples_of_one_size_are_run_together_in_the_order_of_the_first(tmp_path):
    for index, (rows, length) in enumerate([(2, 5), (4, 7), (3, 5)]):
        np.save(tmp_path / f"{index}.npy", make_values(rows, length, seed=index))
    calibration = open_calibration(tmp_path, [make_spec(None, None)])
    assert (calibration.fixed_batch, calibration.largest) == (None, 2)
    assert calibration.split(3) == [[0, 1, 6], [2, 3, 4], [5], [7, 8]]
    assert calibration.split(8, among=[8, 5, 1]) == [[5], [8, 1]]
    assert [batch["x"].shape for batch in calibration.batches(3)] == [(3, 5), (3, 7), (1, 7), (2, 5)]
    np.testing.assert_array_equal(calibration.read([0, 6])["x"][1], make_values(3, 5, seed=2)[0])
    assert calibration.alike(6) == [0, 1, 6, 7, 8, 0]


def test_a_run_counts_its_samples():
    assert open_calibration(make_values(3, 4), VECTOR).count({"x": make_values(2, 4)}) == 2
    lone = {"input": make_values(1, 9), "sr": np.int64(16000), "state": make_values(2, 1, 3)}
    assert open_calibration(lone, STATEFUL).count(lone) == 1


def test_samples_of_different_sizes_are_refused_where_a_run_takes_several(tmp_path):
    for index, length in enumerate((5, 7)):
        np.save(tmp_path / f"{index}.npy", make_values(2, length))
    refuse("1.npy: samples have other sizes than in", tmp_path, [make_spec(2, None)])


# Faults of arrays


def test_a_missing_folder_is_refused_with_its_name(tmp_path):
    refuse(f"{tmp_path / 'absent'}: no such file; give a folder of images", tmp_path / "absent", VECTOR)


def test_an_empty_folder_is_refused_with_its_name(tmp_path):
    (tmp_path / ".hidden").touch()
    refuse(f"{tmp_path}: the folder is empty", tmp_path, VECTOR)


def test_an_empty_sub_folder_is_refused_with_its_name(tmp_path):
    (tmp_path / "x").mkdir()
    refuse(f"{tmp_path / 'x'}: the folder is empty", tmp_path, VECTOR)


def test_a_source_of_another_type_is_refused():
    refuse("data: found float; give a path, an array, a dict of arrays, a list of texts, or an iterable", 3.5, VECTOR)
    refuse("data: found bytes; give a path", b"12", VECTOR)


@pytest.mark.parametrize("name", ["notes.txt", "nested"])
def test_a_stranger_in_the_folder_is_refused_with_its_name(tmp_path, name):
    np.save(tmp_path / "a.npy", make_values(3, 4))
    (tmp_path / name).touch() if "." in name else (tmp_path / name).mkdir()
    refuse(f"{tmp_path / name}: not a file of samples", tmp_path, VECTOR)


def test_a_single_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "a.pdf").touch()
    refuse("a.pdf: not a file of samples; give a folder", tmp_path / "a.pdf", VECTOR)


def test_a_folder_of_two_kinds_is_refused_with_an_example_of_each(tmp_path):
    np.save(tmp_path / "a.npy", make_values(3, 4))
    make_image(tmp_path / "b.png")
    refuse("found both a.npy and b.png", tmp_path, VECTOR)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x93NUMPY\x01\x00"])
def test_a_broken_npy_is_refused_with_its_name(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    refuse("a.npy: not a complete .npy array", tmp_path, VECTOR)


def test_a_truncated_npy_is_refused_with_its_name(tmp_path):
    np.save(tmp_path / "a.npy", make_values(30, 4))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
    refuse("a.npy: not a complete .npy array", tmp_path, VECTOR)


def test_a_file_that_vanishes_after_opening_is_a_data_error(tmp_path):
    np.save(tmp_path / "a.npy", make_values(3, 4))
    calibration = open_calibration(tmp_path, VECTOR)
    (tmp_path / "a.npy").unlink()
    with pytest.raises(DataError, match=r"a\.npy: no such file; leave it in place while it is read"):
        calibration.read([0])


def test_an_npy_of_objects_is_refused_and_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([None, 1], dtype=object), allow_pickle=True)
    refuse("a.npy: not a complete .npy array of numbers", tmp_path, VECTOR)


def test_a_broken_npz_is_refused_with_its_name(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK junk")
    refuse("a.npz: not a complete .npz file", tmp_path, VECTOR)


def test_an_unknown_array_is_refused_with_the_nearest_input(tmp_path):
    np.savez(tmp_path / "a.npz", lefft=make_values(3, 4), right=make_values(3, 2))
    refuse(
        "'lefft' is no input of the model; the model's inputs are left, right; did you mean 'left'?",
        tmp_path / "a.npz",
        PAIR,
    )


def test_an_array_that_is_like_no_input_is_refused_too():
    refuse(
        "'images' is no input of the model; the model's inputs are x; rename it", {"images": make_values(3, 4)}, VECTOR
    )


def test_a_missing_input_is_refused_with_its_name():
    refuse(
        "no array for input 'right', found left; the model's inputs are left, right", {"left": make_values(3, 4)}, PAIR
    )


def test_one_array_does_not_feed_two_inputs(tmp_path):
    np.save(tmp_path / "a.npy", make_values(3, 4))
    for source in (tmp_path / "a.npy", make_values(3, 4)):
        refuse("found one array; the model has inputs left, right", source, PAIR)


def test_sub_folders_must_hold_the_same_files(tmp_path):
    for name, files in (("left", ("0.npy", "1.npy")), ("right", ("0.npy",))):
        (tmp_path / name).mkdir()
        for file in files:
            np.save(tmp_path / name / file, make_values(2))
    refuse("1.npy is in only one of left and right", tmp_path, PAIR)


def test_a_sub_folder_of_an_input_holds_npy_alone(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.txt").touch()
    refuse("a.txt: a sub-folder of one input holds .npy files only", tmp_path, VECTOR)


def test_inputs_with_unequal_numbers_of_samples_are_refused():
    source = {"left": make_values(3, 4), "right": make_values(2, 2)}
    refuse("data: found 3 samples of 'left', 2 of 'right'", source, PAIR)


def test_a_test_data_set_with_too_few_inputs_is_refused(tmp_path):
    onnx.save_tensor(onnx.numpy_helper.from_array(make_values(1, 4)), tmp_path / "input_0.pb")
    refuse("found 1 input_*.pb; the model has inputs left, right", tmp_path, PAIR)


def test_a_broken_tensor_file_is_refused_with_its_name(tmp_path):
    (tmp_path / "input_0.pb").write_bytes(b"\xff\xff\xff")
    refuse("input_0.pb: not an ONNX tensor", tmp_path, VECTOR)


def test_a_tensor_of_text_is_refused_with_its_name(tmp_path):
    onnx.save_tensor(onnx.helper.make_tensor("x", onnx.TensorProto.STRING, [1], [b"a"]), tmp_path / "input_0.pb")
    refuse("input_0.pb: found object; samples are integers, floats or booleans", tmp_path, VECTOR)


@pytest.mark.parametrize("shape", [(3, 5), (3, 1, 4, 1), ()])
def test_a_wrong_shape_is_refused_with_what_is_allowed(shape):
    text = "the model takes (any, 4), the first axis being samples; reshape or resize the data"
    refuse(f"input 'x': found shape {str(shape).replace(',)', ')')}; {text}", make_values(*shape), VECTOR)


def test_an_array_without_samples_is_refused():
    refuse("found shape (0, 4), which holds no values", make_values(0, 4), VECTOR)


@pytest.mark.parametrize(
    ("found", "wanted", "move"),
    [
        ((2, 8, 8, 3), (None, 3, 8, 8), (-1, 1)),
        ((8, 8, 3), (None, 3, None, None), (-1, 0)),
        ((2, 3, 8, 8), (None, 8, 8, 3), (1, -1)),
    ],
)
def test_a_transposed_layout_is_refused_with_the_move_that_cures_it(found, wanted, move):
    values = make_values(*found)
    refuse(f"move them with numpy.moveaxis(x, {move[0]}, {move[1]})", values, [make_spec(*wanted)])
    assert len(open_calibration(np.moveaxis(values, *move), [make_spec(*wanted)])) in (1, 2)


def test_pixels_for_a_float_input_are_refused_with_the_conversion():
    pixels = np.zeros((2, 3, 8, 8), np.uint8)
    refuse("input 'x': found uint8; the model takes float32; convert as in training", pixels, PLANES)


@pytest.mark.parametrize(("found", "wanted"), [("bool", "float32"), ("float32", "int64"), ("int64", "int32")])
def test_a_type_that_would_lose_values_is_refused(found, wanted):
    inputs = [make_spec(None, 4, dtype=wanted)]
    refuse(f"found {found}; the model takes {wanted}; convert with .astype('{wanted}')", np.ones((2, 4), found), inputs)


def test_integers_of_a_smaller_type_are_converted():
    batch = open_calibration(np.ones((2, 4), np.int32), [make_spec(None, 4, dtype=np.int64)]).read([0])
    assert batch["x"].dtype == np.int64


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_a_value_that_is_not_finite_is_refused_with_file_input_and_sample(tmp_path, bad):
    values = np.ones((3, 4))
    values[2, 1] = bad
    np.save(tmp_path / "a.npy", values)
    refuse("a.npy: input 'x': NaN or infinity in sample 2", tmp_path, VECTOR)


def test_values_are_scanned_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxcalib.data.scan.SCAN_BYTES", 20)
    values = make_values(50, 4)
    values[37, 3] = np.nan
    refuse("NaN or infinity in sample 37", values, VECTOR)


def test_values_like_raw_pixels_are_warned_of():
    values = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8)).astype(np.float32)
    (warning,) = open_calibration(values, PLANES).warnings
    assert "look like raw pixels" in warning
    assert open_calibration(values / 255, PLANES).warnings == ()


def test_constant_values_are_warned_of():
    (warning,) = open_calibration(np.full((2, 4), 0.5), VECTOR).warnings
    assert warning == "input 'x': every value is 0.5; real data vary"


@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_an_input_of_one_value_beside_one_that_varies_is_a_state_or_a_mask(kind):
    inputs = (InputSpec("x", np.dtype(kind), (None, 4)), InputSpec("state", np.dtype(np.float32), (None, 2)))
    samples = {"x": (10 * make_values(3, 4)).astype(kind), "state": np.zeros((3, 2), np.float32)}
    assert open_calibration(samples, inputs).warnings == ()
    samples["x"][:] = 0
    assert "input 'state': every value is 0; real data vary" in open_calibration(samples, inputs).warnings


def test_image_settings_beside_arrays_are_warned_of():
    (warning,) = open_calibration(make_values(2, 4), VECTOR, DataConfig(mean=0.5)).warnings
    assert "these samples are used as they are" in warning


# Images


def test_images_are_normalized_as_documented_and_sorted_by_name(tmp_path):
    pixels = [make_image(tmp_path / name, seed=seed) for seed, name in enumerate(("a.png", "b.BMP"))]
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    batch = open_calibration(tmp_path, PLANES, DataConfig(mean=mean, std=std)).read([0, 1])["x"]
    expected = ((np.stack(pixels) / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert batch.dtype == FLOAT
    np.testing.assert_allclose(batch, expected, rtol=0, atol=1e-6)


def test_bgr_turns_the_channels_after_normalizing(tmp_path):
    make_image(tmp_path / "a.png")
    mean = (0.1, 0.2, 0.3)
    turned, plain = (
        open_calibration(tmp_path, PLANES, DataConfig(mean=mean, channels=channels)).read([0])["x"]
        for channels in ("bgr", "rgb")
    )
    np.testing.assert_array_equal(turned, plain[:, ::-1])


def test_the_layout_is_read_off_the_model(tmp_path):
    pixels = make_image(tmp_path / "a.png")
    batch = open_calibration(tmp_path, [make_spec(1, 8, 8, 3)]).read([0])["x"]
    np.testing.assert_allclose(batch[0], pixels / np.float32(255), rtol=1e-6)


def test_an_image_model_of_uint8_gets_the_pixels(tmp_path):
    pixels = make_image(tmp_path / "a.png")
    batch = open_calibration(tmp_path, [make_spec(None, 8, 8, 3, dtype=np.uint8)]).read([0])["x"]
    np.testing.assert_array_equal(batch[0], pixels)


def test_resize_sets_the_shorter_side_and_crop_keeps_the_centre(tmp_path):
    make_image(tmp_path / "a.png", 20, 31)
    make_image(tmp_path / "b.png", 30, 10)
    inputs = [make_spec(None, 3, None, None)]
    config = DataConfig(resize=10, crop="8x6")
    with Image.open(tmp_path / "a.png") as image:
        resized = np.asarray(image.resize((15, 10), Image.Resampling.BILINEAR))
    batch = open_calibration(tmp_path, inputs, config).read([0, 1])["x"]
    assert batch.shape == (2, 3, 8, 6)
    np.testing.assert_allclose(batch[0].transpose(1, 2, 0), resized[1:9, 4:10] / np.float32(255), rtol=1e-6)


def test_other_pixel_formats_are_converted(tmp_path):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "deep.png")
    rgba = make_image(tmp_path / "alpha.png", mode="RGBA")
    with Image.open(tmp_path / "alpha.png") as image:
        image.convert("RGB").quantize(16).save(tmp_path / "palette.png")
    calibration = open_calibration(tmp_path, PLANES)
    alpha, deep, palette = calibration.read(range(3))["x"] * 255
    np.testing.assert_allclose(alpha.transpose(1, 2, 0), rgba[..., :3], atol=1e-3)
    np.testing.assert_allclose(deep[0], values >> 8, atol=1e-3)
    assert palette.shape == (3, 8, 8)


def test_one_channel_makes_gray_images(tmp_path):
    pixels = make_image(tmp_path / "a.png", mode="L")
    batch = open_calibration(tmp_path, [make_spec(None, 1, 8, 8)]).read([0])["x"]
    np.testing.assert_allclose(batch[0, 0], pixels / np.float32(255), rtol=1e-6)


def test_an_unreadable_image_is_refused_with_its_name(tmp_path):
    make_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"junk")
    refuse("b.png: not a readable image", tmp_path, PLANES)


def test_a_truncated_image_is_refused_when_it_is_read(tmp_path):
    make_image(tmp_path / "a.png", 64, 64)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    calibration = open_calibration(tmp_path, [make_spec(None, 3, 64, 64)])
    with pytest.raises(DataError, match=r"a\.png: not a readable image"):
        calibration.read([0])


def test_images_of_two_sizes_are_refused_with_both(tmp_path):
    make_image(tmp_path / "a.png")
    make_image(tmp_path / "b.png", 9, 8)
    text = (
        "b.png: found 9x8 pixels (height x width) where a.png has 8x8; all must have one size; use --resize and --crop,"
        " or --letterbox; with --multiple-of they may differ"
    )
    refuse(text, tmp_path, [make_spec(None, 3, None, None)])


def test_images_of_another_size_than_the_models_are_refused_with_the_options(tmp_path):
    make_image(tmp_path / "a.png", 9, 12)
    refuse(
        "a.png: found 9x12 pixels (height x width); the model's input 'x' takes 8x8; use --resize 8 --crop 8,"
        " --resize 8x8 or --letterbox 8x8, as the model's own preprocessing does",
        tmp_path,
        PLANES,
    )
    refuse("use --resize 8 --crop 6x8", tmp_path, [make_spec(None, 3, 6, 8)])
    assert len(open_calibration(tmp_path, PLANES, DataConfig(resize=8, crop=8))) == 1


def test_a_crop_larger_than_the_image_is_refused(tmp_path):
    make_image(tmp_path / "a.png")
    refuse("a.png: found 8x8 pixels (height x width); --crop needs 9x9 or more", tmp_path, PLANES, DataConfig(crop=9))


@pytest.mark.parametrize(
    ("inputs", "config", "text"),
    [
        (PAIR, {}, "images feed one input; the model has inputs left, right"),
        (VECTOR, {}, "images need a 4-D input; the model's input 'x' has 2 dimensions"),
        ([make_spec(None, 3, 8, 8, dtype=np.int64)], {}, "the model's input 'x' is int64"),
        (
            [make_spec(None, 3, 8, 8, dtype=np.uint8)],
            {"mean": 0.5},
            "is uint8, so raw pixels; leave out --mean and --std",
        ),
        ([make_spec(None, 4, 8, 8)], {}, "has 4 channels in layout nchw; images have 1 or 3"),
        (PLANES, {"layout": "nhwc"}, "has 8 channels in layout nhwc; images have 1 or 3; change --layout"),
        (PLANES, {"channels": "gray"}, "has 3 channels; --channels gray gives 1; use --channels rgb or bgr"),
        (
            [make_spec(None, 1, 8, 8)],
            {"channels": "rgb"},
            "has 1 channels; --channels rgb gives 3; use --channels gray",
        ),
        ([make_spec(None, 1, 8, 8)], {"mean": "0.1,0.2,0.3"}, "takes 1 channel; --mean has 3 numbers; give one"),
    ],
)
def test_images_that_do_not_suit_the_model_are_refused(tmp_path, inputs, config, text):
    make_image(tmp_path / "a.png")
    refuse(text, tmp_path, inputs, DataConfig(**config))


def test_reading_does_not_keep_the_samples_in_memory(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.tile(np.arange(4096, dtype=np.float32), (2000, 1)))  # 32 MB
    tracemalloc.start()
    calibration = open_calibration(tmp_path / "a.npz", [make_spec(None, 4096)], limit=500)
    for batch in calibration.batches(10):
        assert batch["x"][0, 4095] == 4095
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 4e6


def test_unpacked_files_are_removed_with_the_set(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    np.savez(tmp_path / "a.npz", x=make_values(3, 4))
    calibration = open_calibration(tmp_path / "a.npz", VECTOR)
    assert len(list(tmp_path.iterdir())) == 2
    del calibration
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_unpacked_files_are_removed_when_the_data_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    np.savez(tmp_path / "a.npz", x=make_values(3, 5))
    refuse("found shape (3, 5)", tmp_path / "a.npz", VECTOR)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_model_without_inputs_is_refused():
    refuse("the model has no inputs", make_values(3, 4), [])


def test_a_set_of_many_files_keeps_their_order(tmp_path):
    for index in range(12):
        np.save(tmp_path / f"{index:02}.npy", np.full((2, 4), index, np.float32))
    firsts = [batch["x"][0, 0] for batch in open_calibration(tmp_path, VECTOR).batches(2)]
    assert all(before < after for before, after in pairwise(firsts))


STATE = [InputSpec("x", np.dtype(np.float32), (None, 4)), InputSpec("state", np.dtype(np.float32), (2, None, 3))]


def test_a_batch_on_another_axis_is_told(tmp_path):
    path = tmp_path / "calib.npz"
    np.savez(path, x=np.ones((48, 4), np.float32), state=np.ones((2, 48, 3), np.float32))
    samples = open_calibration(path, STATE)
    wanted = (
        f"{path}: input 'state': the array of shape (2, 48, 3) is taken as one sample, as the model's inputs share no"
        " first axis; it may have any size on axis 1; if that axis counts samples, give a file for each, or stack them"
        " on a new axis 0"
    )
    assert len(samples) == 1 and wanted in samples.warnings


def test_several_samples_and_a_batch_of_one_are_taken_for_granted(tmp_path):
    x, state = np.ones((3, 5, 4), np.float32), np.ones((3, 2, 5, 3), np.float32)
    for number, arrays in enumerate(({"x": x, "state": state}, {"x": x[0, :1], "state": state[0, :, :1]})):
        np.savez(tmp_path / f"{number}.npz", **arrays)
        found = open_calibration(tmp_path / f"{number}.npz", STATE)
        assert len(found) == [3, 1][number] and not [line for line in found.warnings if "one sample" in line]
