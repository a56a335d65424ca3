"""Files that users name: regular ones of a bounded size, anything else is refused in one line."""

from __future__ import annotations

import io
import os
import socket
import sys

import pytest

from onnxcalib.errors import ConfigError
from onnxcalib.files.reading import check_file, is_folder, open_file, read_file, read_json, read_text

GIVE = "a file is needed; check the path"


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_circle(path):
    path.symlink_to(path.name)


ODD = {
    "pipe": (make_pipe, "is a pipe"),
    "socket": (make_socket, "is a socket"),
    "circle": (make_circle, "cannot be read (Too many levels of symbolic links)"),
    "absent": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "is a directory"),
}


@pytest.mark.parametrize("read", [check_file, open_file, read_file, read_text, read_json])
@pytest.mark.parametrize("name", ODD)
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, name, read):
    make, found = ODD[name]
    make(tmp_path / name)
    with pytest.raises(ConfigError) as fault:
        read(tmp_path / name, ConfigError, give=GIVE)
    assert str(fault.value) == f"{tmp_path / name}: {found}; {GIVE}"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/dev/zero", "is a device"),
        ("n" * 5000, "cannot be read (File name too long)"),
        ("a\0b", "is no name of a file (embedded null byte)"),
    ],
)
def test_devices_and_impossible_names_are_refused(path, found):
    for look in (check_file, is_folder):
        with pytest.raises(ConfigError) as fault:
            look(path, ConfigError, give=GIVE)
        assert str(fault.value) == f"{path}: {found}; {GIVE}"


def test_folders_and_files_are_told_apart(tmp_path):
    (tmp_path / "file").write_text("text")
    assert is_folder(tmp_path, ConfigError, give=GIVE) and not is_folder(tmp_path / "file", ConfigError, give=GIVE)
    assert check_file(tmp_path / "file", ConfigError, give=GIVE) == 4


def test_a_file_is_read_whole_up_to_a_size(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a", ConfigError, give=GIVE, most=5) == b"12345"
    with pytest.raises(ConfigError, match="a: holds 5 bytes or more; at most 4 are read; a file is needed"):
        read_file(tmp_path / "a", ConfigError, give=GIVE, most=4)


def test_a_huge_file_is_refused_without_being_read(tmp_path):
    with open(tmp_path / "a", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match="holds 1,099,511,627,776 bytes or more"):
        read_text(tmp_path / "a", ConfigError, give=GIVE)


def test_a_dash_is_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"a": 1}')))
    assert read_json("-", ConfigError, give=GIVE) == {"a": 1}


def test_text_is_utf_8_with_or_without_a_byte_order_mark(tmp_path):
    (tmp_path / "a").write_bytes("\ufeffgrößer".encode())
    assert read_text(tmp_path / "a", ConfigError, give=GIVE) == "größer"
    (tmp_path / "a").write_bytes(b"a\xff")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(at byte 1\); save it as UTF-8"):
        read_text(tmp_path / "a", ConfigError, give=GIVE)


@pytest.mark.parametrize(
    ("text", "found"),
    [("{", "not JSON: Expecting"), ("[" * 20_000, "not JSON: nested too deep"), ("1" * 5000, "not JSON:")],
)
def test_what_is_no_json_is_refused(tmp_path, text, found):
    (tmp_path / "a").write_text(text)
    with pytest.raises(ConfigError, match=found):
        read_json(tmp_path / "a", ConfigError, give=GIVE)
