"""The .npy format: headers that claim what is not there, and rows that are read from where they stand."""

from __future__ import annotations

import re
import struct

import numpy as np
import pytest

from onnxcalib.data import open_calibration
from onnxcalib.data.npy import open_npy
from onnxcalib.errors import DataError
from onnxcalib.spec import InputSpec

VECTOR = [InputSpec("x", np.dtype(np.float32), (None, 2))]


def write(path, header, values=b"", version=(1, 0)):
    text = header.encode() if isinstance(header, str) else header
    length = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    path.write_bytes(b"\x93NUMPY" + bytes(version) + length + text + values)
    return path


def spell(shape, descr="'<f4'", fortran=False):
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}"


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (
            spell("(1099511627776, 2)"),
            "its header claims float32 of shape (1099511627776, 2), so 8,796,093,022,208 bytes",
        ),
        (spell("(9999999999999999999999, 2)"), "its header claims float32 of shape (9999999999999999999999, 2)"),
        (spell("(3, 2)"), "its header claims float32 of shape (3, 2), so 24 bytes; it has 16"),
        (spell("(1, 2)"), "its header claims float32 of shape (1, 2), so 8 bytes; it has 16"),
        (spell("(-2, -2)"), "it claims the shape (-2, -2)"),
        (spell("(True, 2)"), "it claims the shape (True, 2)"),
        (spell("(" + "1, " * 40 + "4)"), "it claims the shape (1, 1"),
        (spell("(2, 2)", "'|O'"), "it holds objects"),
        (spell("(2,)", "[('a', '<f4'), ('b', '<f4')]"), "it holds records"),
        (spell("(2, 2)", "'|V0'"), "it holds records"),
        (spell("(2, 2)", "'<f99'"), "not a complete .npy array of numbers ("),
        ("(" * 9_000, "not a complete .npy array of numbers ("),
        ("-" * 9_000 + "1", "not a complete .npy array of numbers ("),
        ("'\\d'", "Header is not a dictionary"),
        ("", "not a complete .npy array of numbers ("),
    ],
)
def test_a_header_that_claims_what_is_not_there_is_refused_before_any_value_is_read(tmp_path, header, text):
    path = write(tmp_path / "a.npy", header, bytes(16))
    with pytest.raises(DataError, match=re.escape(text)) as refusal:
        open_calibration(path, VECTOR)
    said = str(refusal.value)
    assert said.startswith(f"{path}: not a complete .npy array of numbers (") and "\n" not in said
    assert len(said) < len(str(path)) + 400


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{")
    with pytest.raises(DataError, match="its header claims 4,294,967,295 bytes; at most 10,000 are read"):
        open_npy(tmp_path / "a.npy")


@pytest.mark.parametrize("version", [(4, 0), (1, 1), (0, 0)])
def test_an_unknown_version_is_refused(tmp_path, version):
    write(tmp_path / "a.npy", spell("(2, 2)"), bytes(16), version)
    with pytest.raises(DataError, match="it does not start as one"):
        open_npy(tmp_path / "a.npy")


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_version_byte_order_and_order_of_axes_is_read(tmp_path, version, dtype, order):
    values = np.asarray(np.arange(24).reshape(4, 3, 2), dtype, order=order)
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array(file, values, version)
    array = open_npy(tmp_path / "a.npy")
    assert (array.shape, array.dtype) == ((4, 3, 2), np.dtype(dtype))
    np.testing.assert_array_equal(array[...], values)
    np.testing.assert_array_equal(array[[3, 0, 1, 1]], values[[3, 0, 1, 1]])
    np.testing.assert_array_equal(array[:2], values[:2])


def test_values_without_axes_are_read(tmp_path):
    np.save(tmp_path / "a.npy", np.float32(3))
    assert open_npy(tmp_path / "a.npy")[...] == 3


def test_a_file_that_is_cut_after_opening_is_refused_and_ends_no_process(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4096, 2), np.float32))
    samples = open_calibration(tmp_path / "a.npy", VECTOR)
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.npy: not a complete \.npy array of numbers \(it has become shorter\)"):
        samples.read([4095])


def test_strings_are_no_samples_even_where_numpy_would_convert_them(tmp_path):
    for descr, found in (("'<m8[s]'", "timedelta64"), ("'<U1'", "<U1"), ("'<c8'", "complex64")):
        size = 2 * np.dtype(descr.strip("'")).itemsize
        path = write(tmp_path / "a.npy", spell("(1, 2)", descr), bytes(size))
        with pytest.raises(DataError, match=f"input 'x': found {found}.*; the model takes int64"):
            open_calibration(path, [InputSpec("x", np.dtype(np.int64), (None, 2))])
