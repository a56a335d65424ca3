"""Paths of samples: only regular files and folders are opened, and whatever else is there is named."""

from __future__ import annotations

import os
import re
import socket

import numpy as np
import pytest

from onnxcalib.config import DataConfig
from onnxcalib.data import open_calibration
from onnxcalib.errors import DataError
from onnxcalib.spec import InputSpec

VECTOR = [InputSpec("x", np.dtype(np.float32), (None, 2))]
PAIR = [InputSpec(name, np.dtype(np.float32), (None, 2)) for name in ("left", "right")]
VALUES = np.arange(6, dtype=np.float32).reshape(3, 2)
SUFFIXES = [".npy", ".npz", ".txt", ".csv", ".tsv", ".jsonl", ".pdf", ""]


def refuse(text, source, inputs=VECTOR, **options):
    with pytest.raises(DataError, match=re.escape(text)) as refusal:
        open_calibration(source, inputs, **options)
    assert "\n" not in str(refusal.value)


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """Make something that is no regular file at a path."""
    monkeypatch.chdir(tmp_path)  # as the name of a socket may have 107 characters

    def make(kind, path):
        if kind == "a pipe":
            os.mkfifo(path)
        elif kind == "a socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(os.path.relpath(path))
        elif kind == "a device":
            path.symlink_to("/dev/zero")
        elif kind == "cannot be read (Too many levels of symbolic links)":
            path.symlink_to(path.name)
        else:
            path.symlink_to("absent")

    return make


KINDS = [
    "a pipe", "a socket", "a device", "cannot be read (Too many levels of symbolic links)", "no such file",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_regular_file_is_refused_as_samples(tmp_path, odd, kind, suffix):
    odd(kind, tmp_path / f"a{suffix}")
    refuse(f"{kind}; give a folder of images", tmp_path / f"a{suffix}", config=None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["b.npy", "b.npz", "b.png", "b", "input_0.pb", "test_data_set_0"])
def test_what_is_no_regular_file_is_refused_in_a_folder(tmp_path, odd, kind, name):
    np.save(tmp_path / "a.npy", VALUES)
    odd(kind, tmp_path / name)
    refuse(f"{kind}; take it out of the folder", tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_in_sub_folders(tmp_path, odd, kind):
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", VALUES)
        odd(kind, tmp_path / name / "1.npy")
    refuse(f"{kind}; take it out of the folder", tmp_path)
    refuse(f"{kind}; give a .npy file", tmp_path, PAIR)


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    for name in ("left", "right"):
        (tmp_path / name / "0.npy").mkdir(parents=True)
    refuse("0.npy: is a directory; give a .npy file", tmp_path, PAIR)
    (tmp_path / "input_0.pb").mkdir()
    refuse("input_0.pb: is a directory; give ONNX tensors", tmp_path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_that_no_file_can_have_are_refused(suffix):
    refuse("cannot be read (File name too long); give a folder of images", "a" * 5_000 + suffix)
    refuse("is no name of a file (embedded null byte); give a folder of images", f"a\0{suffix}")
    refuse("data: found an empty path; give a folder of images", "")


def test_a_set_of_more_samples_than_can_be_listed_is_refused_with_the_option(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxcalib.data.calibration_set.MOST_SAMPLES", 4)
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", VALUES)
    refuse("b.npy: found 6 samples or more; at most 4 are used; give fewer with --samples", tmp_path)
    assert len(open_calibration(tmp_path, VECTOR, limit=4)) == 4


def test_limits_of_size_are_no_settings_of_a_kind_of_samples():
    samples = open_calibration(VALUES, VECTOR, DataConfig(max_pixels=9, max_line="1KB", max_unpacked="1KB"))
    assert samples.warnings == ()
