"""Files of arrays: whatever is damaged in one, it is refused or read as a whole."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcalib.data import open_calibration
from onnxcalib.errors import DataError
from onnxcalib.spec import InputSpec

VECTOR = [InputSpec("x", np.dtype(np.float32), (None, 2))]
VALUES = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("arrays")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from([".npy", ".npz"]), st.booleans(), st.data())
def test_a_damaged_file_is_refused_with_its_name_in_one_line(folder, suffix, packed, data):
    file = io.BytesIO()
    if suffix == ".npy":
        np.save(file, VALUES)
    else:
        (np.savez_compressed if packed else np.savez)(file, x=VALUES)
    content = bytearray(file.getvalue())
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = folder / f"a{suffix}"
    path.write_bytes(bytes(content))
    try:
        values = open_calibration(path, VECTOR).read([0])["x"]
    except DataError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert values.shape == (1, 2)
