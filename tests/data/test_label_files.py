"""Files of labels: what any of them gives back, however it is written, and what any other file is refused with."""

from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onnxcalib.data import open_calibration
from onnxcalib.data.labels import read_labels
from onnxcalib.errors import DataError
from onnxcalib.spec import InputSpec

VECTOR = [InputSpec("x", np.dtype(np.float32), (None, 2))]
NAMES = sorted(["a.npy", "b,c.npy", 'd"e".npy', "f\ng.npy", "ü 1.npy"])
BOM = "\ufeff"
CLASSES = st.lists(st.integers(0, 10**18 - 1), min_size=len(NAMES), max_size=len(NAMES))
ORDERS = st.permutations(range(len(NAMES)))
NUMBERS = st.lists(st.integers(1 - 10**18, 10**18 - 1) | st.floats(-1e9, 1e9), min_size=3, max_size=3)
# Files of the characters that mean something to a parser, and any bytes.
FILES = st.text(st.sampled_from('",\n\r{}[]:a1.-e\\\x00é')).map(str.encode) | st.binary()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("labels")


@pytest.fixture(scope="module")
def named(folder):
    """Samples that each have a file."""
    (folder / "data").mkdir()
    for name in NAMES:
        np.save(folder / "data" / name, np.ones(2, np.float32))
    return open_calibration(folder / "data", VECTOR)


@pytest.fixture(scope="module")
def ordered():
    """Samples without files of their own."""
    return open_calibration(np.ones((3, 2), np.float32), VECTOR)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@settings(deadline=None, derandomize=True)
@given(CLASSES, ORDERS, st.booleans(), st.sampled_from(["", BOM]), st.sampled_from(["\n", "\r\n"]))
def test_a_csv_gives_each_sample_its_class(folder, named, classes, order, headed, bom, end):
    file = io.StringIO(newline="")
    rows = [("file", "class")] * headed + [(NAMES[i], classes[i]) for i in order]
    csv.writer(file, lineterminator=end).writerows(rows)
    assert read_labels(write(folder / "l.csv", bom + file.getvalue()), named).tolist() == classes


@settings(deadline=None, derandomize=True)
@given(CLASSES, ORDERS, st.booleans(), st.sampled_from(["", BOM]), st.sampled_from([None, 2]))
def test_a_json_gives_each_sample_its_class(folder, named, classes, order, ascii_only, bom, indent):
    content = json.dumps({NAMES[i]: classes[i] for i in order}, ensure_ascii=ascii_only, indent=indent)
    assert read_labels(write(folder / "l.json", bom + content), named).tolist() == classes


@settings(deadline=None, derandomize=True)
@given(CLASSES, st.sampled_from(["label", "labels", "y"]), st.booleans(), st.booleans())
def test_an_npz_and_a_npy_give_classes_in_order(folder, named, classes, name, packed, column):
    values = np.array(classes).reshape(-1, 1) if column else np.array(classes)
    (np.savez_compressed if packed else np.savez)(folder / "l.npz", **{name: values, "other": np.ones(9)})
    np.save(folder / "l.npy", values)
    for file in ("l.npz", "l.npy"):
        assert read_labels(folder / file, named).tolist() == classes


@settings(deadline=None, derandomize=True)
@given(NUMBERS, st.booleans(), st.sampled_from(["l.txt", "l.csv"]), st.sampled_from(["\n", "\r\n", " \n"]))
def test_a_column_of_numbers_gives_them_in_order(folder, ordered, numbers, headed, name, end):
    content = end.join(["class"] * headed + [repr(number) for number in numbers])
    for tail in ("", end, end + end):
        found = read_labels(write(folder / name, content + tail), ordered)
        assert found.tolist() == np.array(numbers).tolist()
        assert found.dtype == (np.float64 if any(isinstance(number, float) for number in numbers) else np.int64)


@settings(deadline=None, derandomize=True)
@given(FILES, st.sampled_from(["l.csv", "l.json", "l.txt"]), st.booleans())
@example(b"[" * 100_000, "l.json", True)
@example(b'{"a": ' + b"1" * 5_000 + b"}", "l.json", True)
@example(b'{"a\\u0000": 1}', "l.json", True)
@example(b'{"\\ud800": 1}', "l.json", True)
@example(b'"a', "l.csv", True)
@example(b"a" * 200_000 + b",1", "l.csv", True)
@example(b"1\n" + b"9" * 19 + b"\n3", "l.txt", False)
def test_any_other_text_is_refused_with_its_name_in_one_line(folder, named, ordered, content, name, by_name):
    samples = named if by_name else ordered
    try:
        labels = read_labels(write(folder / name, content), samples)
    except DataError as error:
        assert str(error).startswith(f"{folder / name}: ") and "\n" not in str(error)
    else:
        assert len(labels) == len(samples) and labels.dtype in (np.int64, np.float64)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(["l.npy", "l.npz"]), st.booleans(), st.data())
def test_a_damaged_array_is_refused_with_its_name_in_one_line(folder, ordered, name, packed, data):
    file = io.BytesIO()
    if name == "l.npy":
        np.save(file, np.array([3, 1, 2]))
    else:
        (np.savez_compressed if packed else np.savez)(file, y=np.array([3, 1, 2]))
    content = bytearray(file.getvalue())
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        labels = read_labels(write(folder / name, bytes(content)), ordered)
    except DataError as error:
        assert str(error).startswith(f"{folder / name}: ") and "\n" not in str(error)
    else:
        assert len(labels) == 3


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("l.csv", "a.npy,1\na,b,c\n", "l.csv: line 2: found 3 columns; write two, file,class, with a comma"),
        ("l.csv", 'a.npy,1\n"a"b,1\n', "l.csv: line 2: not CSV ("),
        ("l.csv", 'a.npy,1\n"a\nb', "l.csv: line 3: not CSV ("),
        ("l.json", '{"a.npy": }', "l.json: not JSON (Expecting value: line 1 column 11"),
        ("l.json", "[1]", 'l.json: found list, not an object; write {"file": class, ...}'),
    ],
)
def test_a_fault_is_refused_with_its_file_and_line(folder, named, name, content, text):
    with pytest.raises(DataError, match=re.escape(text)):
        read_labels(write(folder / name, content), named)


def test_a_number_that_is_no_int64_is_refused_with_its_line(folder, ordered):
    path = write(folder / "l.txt", "1\n9999999999999999999\n3")
    with pytest.raises(DataError, match=r"l\.txt: line 2: found '9999999999999999999'; write one number a line"):
        read_labels(path, ordered)
