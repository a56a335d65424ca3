"""Labels: every file that gives them, and every fault that is refused, each by its names."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from onnxcalib.config import DataConfig
from onnxcalib.data import open_calibration
from onnxcalib.data.labels import check_classes, choose_labels, read_labels
from onnxcalib.errors import DataError
from onnxcalib.spec import InputSpec

VECTOR = [InputSpec("x", np.dtype(np.float32), (None, 2))]
TRIPLES = [InputSpec("x", np.dtype(np.float32), (3, 2))]
HEADER = "file,class\n"


@pytest.fixture
def folder(tmp_path):
    """Five samples, a.npy to e.npy."""
    (tmp_path / "data").mkdir()
    for name in "abcde":
        np.save(tmp_path / "data" / f"{name}.npy", np.ones(2, np.float32))
    return tmp_path / "data"


def open_samples(source, inputs=VECTOR, limit=None):
    return open_calibration(source, inputs, limit=limit)


def write(path, content):
    if path.suffix == ".json":
        path.write_text(json.dumps(content), encoding="utf-8")
    elif path.suffix == ".npy":
        np.save(path, content)
    elif path.suffix == ".npz":
        np.savez(path, **content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refuse(text, path, samples):
    with pytest.raises(DataError, match=re.escape(text)) as refusal:
        read_labels(path, samples)
    assert "\n" not in str(refusal.value)


ROWS = "a.npy,3\nb.npy,1\nc.npy,0\nd.npy,3\ne.npy,2\n"
BY_NAME = {"a.npy": 3, "b.npy": 1, "c.npy": 0, "d.npy": 3, "e.npy": 2}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", ROWS),
        ("l.csv", HEADER + ROWS),
        ("l.CSV", b"\xef\xbb\xbf" + ROWS.encode()),
        ("l.csv", "\n" + ROWS.replace("\n", " \r\n").replace("a.npy,", '"a.npy", ')),
        ("l.csv", "".join(sorted(ROWS.splitlines(keepends=True), reverse=True))),
        ("l.csv", ROWS.replace("b.npy", "./b.npy") + "a.npy,3\n"),
        ("l.json", BY_NAME),
        ("l.npy", np.array([3, 1, 0, 3, 2], np.int32)),
        ("l.npy", np.array([[3], [1], [0], [3], [2]])),
        ("l.npz", {"labels": [3, 1, 0, 3, 2], "x": np.ones((9, 9))}),
        ("l.npz", {"y": [3, 1, 0, 3, 2]}),
    ],
)
def test_a_file_gives_each_sample_its_class(folder, tmp_path, name, content):
    labels = read_labels(write(tmp_path / name, content), open_samples(folder))
    assert (labels.tolist(), labels.dtype) == ([3, 1, 0, 3, 2], np.int64)


@pytest.mark.parametrize("name", ["l.csv", "l.json"])
def test_files_in_sub_folders_are_named_with_them_and_outrank_the_folders(tmp_path, name):
    for folder in ("cat", "dog"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        np.save(tmp_path / "data" / folder / "a.npy", np.ones(2, np.float32))
    samples = open_samples(tmp_path / "data")
    content = "cat/a.npy,7\ndog/a.npy,5\n" if name == "l.csv" else {"dog/a.npy": 5, "cat/a.npy": 7}
    path = write(tmp_path / name, content)
    assert choose_labels(path, samples).tolist() == [7, 5]
    assert choose_labels(None, samples).tolist() == [0, 1]


def test_there_are_no_labels_where_neither_a_file_nor_the_data_has_them(folder):
    assert choose_labels(None, open_samples(folder)) is None


@pytest.mark.parametrize(
    ("name", "content"), [("l.csv", ROWS), ("l.json", BY_NAME), ("l.npy", [3, 1, 0, 3, 2]), ("l.npz", {"y": [3, 1, 0]})]
)
def test_samples_beyond_the_limit_may_be_labelled_too(folder, tmp_path, name, content):
    path = write(tmp_path / name, content)
    assert read_labels(path, open_samples(folder, limit=3)).tolist() == [3, 1, 0]


@pytest.mark.parametrize(("name", "content"), [("l.csv", ROWS), ("l.npy", [3, 1, 0, 3, 2])])
def test_samples_that_a_fixed_batch_leaves_out_may_be_labelled_too(folder, tmp_path, name, content):
    path = write(tmp_path / name, content)
    assert read_labels(path, open_samples(folder, TRIPLES)).tolist() == [3, 1, 0]


def test_samples_without_a_class_are_refused_with_their_number_and_the_first_names(folder, tmp_path):
    samples = open_samples(folder)
    path = write(tmp_path / "l.csv", HEADER + "c.npy,0\n")
    refuse(f"{path}: no class for 4 of 5 samples: 'a.npy', 'b.npy', 'd.npy', ...; add a line", path, samples)
    refuse("no class for 1 of 5 samples: 'e.npy'; add", write(path, ROWS.replace("e.npy,2\n", "")), samples)
    refuse("no class for 5 of 5 samples", write(path, ""), samples)


@pytest.mark.parametrize("prefix", ["other/", "../data/", "data/"])
def test_files_that_are_not_in_the_folder_are_refused_with_their_number_and_the_first_names(folder, tmp_path, prefix):
    path = write(tmp_path / "l.csv", re.sub(r"(\w)\.npy", rf"{prefix}\1.npy", ROWS))
    text = (
        f"{path}: 5 of 5 files are not in {folder}: '{prefix}a.npy', '{prefix}b.npy', '{prefix}c.npy', ...; "
        "write paths relative to it, such as 'a.npy'"
    )
    refuse(text, path, open_samples(folder))


def test_an_unknown_file_beside_a_complete_list_is_refused(folder, tmp_path):
    strangers = write(tmp_path / "l.csv", f"{ROWS}{folder / 'a.npy'},3\nf.npy,1\n")
    for limit in (None, 2):
        refuse(
            f"2 of 7 files are not in {folder}: '{folder / 'a.npy'}', 'f.npy'; write",
            strangers,
            open_samples(folder, limit=limit),
        )


@pytest.mark.parametrize("label", ["-1", "1.0", "cat", "", "1" * 19, "²"])
def test_classes_that_are_no_integers_are_refused_with_their_number_and_the_first_names(folder, tmp_path, label):
    text = f"2 of 5 classes are no integers from 0 on: those of 'b.npy', 'd.npy', the first being {label!r}; give"
    rows = ROWS.replace("b.npy,1", f"b.npy,{label}").replace("d.npy,3", f"d.npy,{label}")
    refuse(text, write(tmp_path / "l.csv", rows), open_samples(folder))
    refuse(text, write(tmp_path / "l.json", BY_NAME | {"b.npy": label, "d.npy": label}), open_samples(folder))


@pytest.mark.parametrize("label", [None, True, 1.0, [1], {"a": 1}, ["long"] * 99])
def test_a_class_of_json_that_is_no_integer_is_refused(folder, tmp_path, label):
    path = write(tmp_path / "l.json", BY_NAME | {"b.npy": label})
    refuse("1 of 5 classes are no integers from 0 on: those of 'b.npy', the first being", path, open_samples(folder))
    with pytest.raises(DataError) as refusal:
        read_labels(path, open_samples(folder))
    assert len(str(refusal.value)) < len(str(path)) + 200


def test_a_negative_class_in_the_first_line_is_no_header(folder, tmp_path):
    path = write(tmp_path / "l.csv", ROWS.replace("a.npy,3", "a.npy,-3"))
    refuse("1 of 5 classes are no integers from 0 on: those of 'a.npy', the first being", path, open_samples(folder))


def test_a_file_with_two_classes_is_refused_with_its_name(folder, tmp_path):
    path = write(tmp_path / "l.csv", ROWS + "./b.npy,2\nb.npy,0\n")
    refuse(f"{path}: 1 of 5 files have two classes: 'b.npy'; keep one for each", path, open_samples(folder))
    path = tmp_path / "l.json"
    path.write_text('{"a.npy": 1, "a.npy": 2}', encoding="utf-8")
    refuse("1 of 1 files have two classes: 'a.npy'", path, open_samples(folder))


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("l.csv", "a.npy\nb.npy\n", "line 1: found 1 columns; write two, file,class, with a comma"),
        ("l.csv", ROWS + "a.npy,1,2\n", "line 6: found 3 columns"),
        ("l.csv", 'a.npy,"3', "line 1: not CSV (invalid end of data)"),
        ("l.csv", b"a.npy,1\xff\n", "not UTF-8 text"),
        ("l.json", [1], "found list"),
        ("l.json", 3, "found int"),
        ("l.npy", [3, 1, 0, 3], "found labels of shape (4); there are 5 samples"),
        ("l.npy", [3, 1, 0, 3, 2, 2], "found labels of shape (6); there are 5 samples"),
        ("l.npy", list("abcde"), "labels are <U1; numbers are needed"),
        ("l.npz", {"classes": [3, 1, 0, 3, 2]}, "no array of labels, found classes; name it label or labels or y"),
        ("l.text", ROWS, "not a file of labels; give .csv or .json of file and class, or .npy"),
    ],
)
def test_a_file_of_another_form_is_refused(folder, tmp_path, name, content, text):
    path = write(tmp_path / name, content)
    refuse(f"{path}: {text}", path, open_samples(folder))


def test_too_few_labels_for_a_limit_are_refused(folder, tmp_path):
    path = write(tmp_path / "l.npy", [3, 1])
    refuse("found labels of shape (2); there are 3 samples", path, open_samples(folder, limit=3))


@pytest.mark.parametrize("content", ["{", "[" * 100_000])
def test_broken_json_is_refused_with_its_name(folder, tmp_path, content):
    (tmp_path / "l.json").write_text(content, encoding="utf-8")
    refuse("l.json: not JSON (", tmp_path / "l.json", open_samples(folder))


@pytest.mark.parametrize("name", ["l.npy", "l.npz"])
def test_a_broken_array_is_refused_with_its_name(folder, tmp_path, name):
    for content in (b"", b"junk", b"PK\x03\x04junk", b"\x93NUMPY\x01\x00"):
        (tmp_path / name).write_bytes(content)
        refuse(f"{name}: labels are not a complete array of numbers (", tmp_path / name, open_samples(folder))


def test_a_missing_file_of_labels_is_refused_with_its_name(folder, tmp_path):
    refuse(f"{tmp_path / 'l.csv'}: no such file; give --labels a .csv", tmp_path / "l.csv", open_samples(folder))


@pytest.mark.parametrize("name", ["l.csv", "l.json", "l.txt", "l.npy", "l.npz"])
def test_labels_that_are_no_regular_file_are_refused_with_their_name(folder, tmp_path, name):
    samples = open_samples(folder)
    (tmp_path / name).mkdir()
    refuse(f"{name}: is a directory; give --labels a .csv", tmp_path / name, samples)
    (tmp_path / name).rmdir()
    os.mkfifo(tmp_path / name)
    refuse(f"{name}: is a pipe; give --labels a .csv", tmp_path / name, samples)
    refuse("cannot be read (File name too long); give --labels a .csv", tmp_path / ("l" * 5_000 + name), samples)
    refuse("is no name of a file (embedded null byte); give --labels", tmp_path / f"\0{name}", samples)


def test_labels_by_file_are_refused_for_samples_without_files(tmp_path):
    np.save(tmp_path / "data.npy", np.ones((5, 2), np.float32))
    text = "l.csv: classes by file, but the samples have no files of their own; give .npy, .npz, or a .txt or .csv of"
    refuse(text, write(tmp_path / "l.csv", ROWS), open_samples(tmp_path / "data.npy"))


@pytest.mark.parametrize("name", ["l.txt", "l.csv"])
def test_one_column_of_numbers_is_in_the_order_of_the_samples(tmp_path, name):
    np.save(tmp_path / "data.npy", np.ones((3, 2), np.float32))
    samples = open_samples(tmp_path / "data.npy")
    labels = read_labels(write(tmp_path / name, "label\r\n3\r\n0\r\n12\r\n\r\n"), samples)
    assert labels.tolist() == [3, 0, 12] and labels.dtype == np.int64
    scores = read_labels(write(tmp_path / name, "3\n.5\n-1e2"), samples)
    assert scores.tolist() == [3.0, 0.5, -100.0] and scores.dtype == np.float64
    refuse("found labels of shape (2); there are 3", write(tmp_path / name, "3\n5"), samples)
    refuse(f"{name}: line 2: found ''; write one number a line", write(tmp_path / name, "3\n\n5\n1"), samples)


@pytest.fixture
def open_lines(tmp_path):
    """Samples of the lines of a text file, of words that are digits."""
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(10)}, unk_token="0"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    def make(lines, limit=None):
        path = write(tmp_path / "x.txt", "\n".join(lines))
        inputs = [InputSpec("input_ids", np.dtype(np.int64), (None, None))]
        return open_calibration(path, inputs, DataConfig(tokenizer=tmp_path / "tokenizer.json"), limit=limit)

    return make


def test_labels_of_texts_are_in_their_order_where_none_is_empty(open_lines, tmp_path):
    path = write(tmp_path / "l.npy", [3, 1, 2])
    assert read_labels(path, open_lines("312")).tolist() == [3, 1, 2]
    assert read_labels(path, open_lines(["3", "", "1", "2"])).tolist() == [3, 1, 2]
    assert read_labels(path, open_lines(["3", "1", "", "2"], limit=2)).tolist() == [3, 1]


@pytest.mark.parametrize("limit", [None, 2])
def test_labels_that_may_count_empty_texts_are_refused(open_lines, tmp_path, limit):
    path = write(tmp_path / "l.npy", [3, 0, 1, 2])
    refuse("l.npy: labels are in the order of texts, but ", path, open_lines(["3", "", "1", "2"], limit=limit))
    refuse("x.txt: 1 text is empty and left out, the first at line 2, so", path, open_lines(["3", "", "1", "2"], limit))


def test_classes_of_the_model_are_let_pass():
    check_classes(np.array([0, 4, 2]), 5, "labels.csv")


def test_a_label_that_is_no_class_of_the_model_is_refused_with_its_sample():
    text = r"l\.csv: 2 of 4 labels are no class of the model, the first is 7 of 'b\.png'; allowed: 0 to 4; give"
    with pytest.raises(DataError, match=text):
        check_classes(np.array([0, 7, 2, 5]), 5, "l.csv", names=("a.png", "b.png", "c.png", "d.png"))
    with pytest.raises(DataError, match="the first is -1 of sample 0; allowed: 0 to 4"):
        check_classes(np.array([-1, 0]), 5, "l.csv")


def test_labels_counted_from_1_are_said_to_look_so():
    with pytest.raises(DataError, match="allowed: 0 to 4; they look counted from 1; subtract 1 from each"):
        check_classes(np.array([1, 5, 2]), 5, "l.csv")
    with pytest.raises(DataError, match="allowed: 0 to 4; give the class indices"):
        check_classes(np.array([0, 5, 2]), 5, "l.csv")


def test_labels_of_another_meaning_are_read_but_are_no_classes(folder, tmp_path):
    path = write(tmp_path / "scores.npy", np.array([0.5, 3, -1, 2, 4]))
    scores = read_labels(path, open_samples(folder))
    assert scores.tolist() == [0.5, 3, -1, 2, 4]
    with pytest.raises(DataError, match=r"output y: labels are float64; class indices .* or --metric"):
        check_classes(scores, 5, "output y")


def test_a_first_row_that_names_a_sample_is_no_header(folder, tmp_path):
    path = write(tmp_path / "l.csv", ROWS.replace("a.npy,3", "a.npy,cat"))
    refuse(
        "1 of 5 classes are no integers from 0 on: those of 'a.npy', the first being 'cat'", path, open_samples(folder)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_labels_that_are_not_finite_are_refused_with_their_sample(folder, tmp_path, value):
    path = write(tmp_path / "l.npy", np.array([0.5, 1, value, 2, 3]))
    refuse(f"l.npy: the label of sample 2 is {value}; labels are numbers of 64 bits", path, open_samples(folder))


def test_a_number_beyond_floats_is_no_label(folder, tmp_path):
    path = write(tmp_path / "l.txt", "1\n1e400\n2\n3\n4")
    refuse("l.txt: the label of sample 1 is inf; labels are numbers of 64 bits", path, open_samples(folder))


def test_an_unsigned_label_that_would_turn_negative_is_refused(folder, tmp_path):
    path = write(tmp_path / "l.npy", np.array([0, 1, 2, 3, 2**63], np.uint64))
    refuse("l.npy: the label of sample 4 is 9223372036854775808; labels", path, open_samples(folder))


def test_an_array_that_claims_more_labels_than_there_are_is_not_read(folder, tmp_path):
    samples = open_samples(folder)
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776,)}"
    (tmp_path / "l.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(40))
    refuse("its header claims int64 of shape (1099511627776), so", tmp_path / "l.npy", samples)
    with open(tmp_path / "l.npy", "r+b") as file:
        file.truncate(10 + len(header) + 2**43)
    refuse("found labels of shape (1099511627776); there are 5 samples", tmp_path / "l.npy", samples)
    assert read_labels(tmp_path / "l.npy", open_samples(folder, limit=2)).tolist() == [0, 0]


def test_more_labels_than_any_folder_has_are_refused(folder, tmp_path):
    samples = open_samples(folder)
    for name in ("l.csv", "l.json", "l.txt"):
        (tmp_path / name).write_text("1,\n" * 2_097_153)
        refuse(f"{name}: holds more than 2,097,152 labels", tmp_path / name, samples)
    with open(tmp_path / "l.csv", "wb") as file:
        file.truncate(2**40)
    refuse("l.csv: holds 1,099,511,627,776 bytes or more; at most 67,108,864 are read", tmp_path / "l.csv", samples)
