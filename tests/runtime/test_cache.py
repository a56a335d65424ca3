"""What was measured once is not measured again, unless what it depends on is another; what is read runs no code."""

import hashlib
import json
import os
import pickle
from dataclasses import dataclass

import numpy as np
import pytest

from onnxcalib.runtime import cache as module
from onnxcalib.runtime.cache import Cache
from onnxcalib.runtime.record_file import MAGIC


def entry_of(folder):
    (path,) = folder.glob("*.onnxcalib")
    return path


def test_what_was_found_is_recalled_by_subject_and_name(tmp_path):
    calls = []
    for subject, name in [("a", "x"), ("a", "x"), ("a", "y"), ("b", "x"), ("a", "x")]:
        found = Cache(subject, tmp_path).recall(name, lambda key=subject + name: calls.append(key) or key, str)
        assert found == subject + name
    assert calls == ["ax", "ay", "bx"]


def test_what_is_known_is_told_and_what_is_kept_stands(tmp_path):
    cache = Cache("a", tmp_path)
    assert cache.find("x", float) is None
    assert [cache.keep("x", 1.5, float), cache.keep("x", 2.5, float)] == [1.5, 1.5]
    assert cache.find("x", float) == Cache("a", tmp_path).find("x", float) == 1.5 and cache.find("y", float) is None


def test_where_nothing_can_be_kept_all_is_found_anew_and_one_is_told_once(tmp_path):
    (tmp_path / "file").write_text("")
    told = []
    cache = Cache("a", tmp_path / "file", told.append)
    assert [cache.recall("x", lambda: 1, int), cache.recall("x", lambda: 2, int)] == [1, 2]
    assert cache.find("x", int) is None and cache.broken == f"{tmp_path / 'file'}: File exists"
    assert told == [f"cache_dir: measurements are not kept: {cache.broken}"]


def test_a_folder_that_has_no_name_is_told(tmp_path):
    assert Cache("a", f"{tmp_path}/\0").broken.endswith(": embedded null byte")


def test_a_user_without_a_home_gets_no_folder_in_the_current_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.platformdirs, "user_cache_path", lambda name: module.Path("~/.cache") / name)
    assert Cache("a").broken == "~/.cache/onnxcalib: the user has no home folder" and not os.listdir(tmp_path)


def test_a_full_disk_ends_the_keeping_and_not_the_run(tmp_path, limited_files):
    cache = Cache("a", tmp_path)
    with limited_files(1000):
        assert cache.recall("x", lambda: "y" * 5000, str) == "y" * 5000
    assert cache.broken == f"{tmp_path}: File too large"
    assert [cache.recall("y", lambda: 1, int), cache.recall("y", lambda: 2, int)] == [1, 2] and not os.listdir(tmp_path)


def test_a_folder_that_can_only_be_read_is_of_use(tmp_path, monkeypatch, limited_files):
    Cache("a", tmp_path).keep("x", 1, int)

    def refuse(*_arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module.os, "utime", refuse)
    cache = Cache("a", tmp_path)
    with limited_files(10):
        assert [cache.recall("y", lambda: 2, int), cache.recall("x", lambda: 3, int)] == [2, 1]
    assert cache.broken


def write_entry(path, *facts, arrays=b"", digest=True):
    """The entry of a header, with the right sum unless ``digest`` is False."""
    header = json.dumps(facts).encode()
    data = MAGIC + len(header).to_bytes(8) + header + arrays
    path.write_bytes(data + (hashlib.sha256(data).digest() if digest else bytes(32)))


class Trap:
    def __reduce__(self):
        return pytest.fail, ("code of an entry was run",)


BIG = ["<f8", [2**40], "C"]


@pytest.mark.parametrize(
    "spoil",
    {
        "empty": lambda path, subject: path.write_bytes(b""),
        "text": lambda path, subject: path.write_bytes(b"spoilt" * 100),
        "pickle": lambda path, subject: path.write_bytes(pickle.dumps(Trap())),
        "cut": lambda path, subject: os.truncate(path, path.stat().st_size - 1),
        "longer": lambda path, subject: os.truncate(path, path.stat().st_size + 1),
        "sparse": lambda path, subject: os.truncate(path, 2**40),
        "one byte": lambda path, subject: path.write_bytes(path.read_bytes().replace(b"@", b"A")),
        "header without end": lambda path, subject: path.write_bytes(MAGIC + b"\xff" * 8 + b"{}"),
        "no JSON": lambda path, subject: path.write_bytes(MAGIC + (3).to_bytes(8) + b"{1}"),
        "nested": lambda path, subject: path.write_bytes(MAGIC + (10**5).to_bytes(8) + b"[" * 10**5),
        "number": lambda path, subject: path.write_bytes(MAGIC + (1).to_bytes(8) + b"1"),
        "other subject": lambda path, subject: write_entry(path, "b", "x", [], 1),
        "other name": lambda path, subject: write_entry(path, subject, "y", [], 1),
        "other type": lambda path, subject: write_entry(path, subject, "x", [], "1"),
        "wrong sum": lambda path, subject: write_entry(path, subject, "x", [], 0, digest=False),
        "huge array": lambda path, subject: write_entry(path, subject, "x", [BIG], 0),
        "object array": lambda path, subject: write_entry(path, subject, "x", [["|O", [1], "C"]], 0, arrays=bytes(8)),
        "arrays that are none": lambda path, subject: write_entry(path, subject, "x", 5, 0),
        "array without facts": lambda path, subject: write_entry(path, subject, "x", [5], 0),
        "no such array": lambda path, subject: write_entry(path, subject, "x", [["<f8", [1], "C"]], 1, arrays=bytes(8)),
        "a folder": lambda path, subject: (path.unlink(), path.mkdir()),
        "a pipe": lambda path, subject: (path.unlink(), os.mkfifo(path)),
        "a device": lambda path, subject: (path.unlink(), path.symlink_to("/dev/zero")),
        "a loop": lambda path, subject: (path.unlink(), path.symlink_to(path)),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_spoilt_entry_is_found_anew(tmp_path, spoil):
    cache = Cache("a", tmp_path)
    cache.keep("x", np.full(3, 2.0), np.ndarray)
    spoil[1](entry_of(tmp_path), cache.subject)
    assert cache.find("x", np.ndarray) is None
    assert cache.recall("x", lambda: np.ones(1), np.ndarray).tolist() == [1]


def test_a_spoilt_entry_is_replaced(tmp_path):
    Cache("a", tmp_path).keep("x", 1, int)
    entry_of(tmp_path).write_bytes(b"spoilt")
    assert [Cache("a", tmp_path).recall("x", lambda n=n: n, int) for n in (2, 3)] == [2, 2]


def test_what_cannot_be_kept_is_a_fault_of_the_program(tmp_path):
    with pytest.raises(TypeError, match=r"^set is not kept as "):
        Cache("a", tmp_path).recall("x", lambda: {1}, tuple[int, ...])
    assert not os.listdir(tmp_path)


def test_the_entries_used_longest_ago_are_removed_and_nothing_else(tmp_path, monkeypatch):
    cache = Cache("a", tmp_path)
    for name in "xyz":
        cache.keep(name, name * 1000, str)
    for age, name in enumerate("zyx"):
        os.utime(cache._path(name), (1000 - age, 1000 - age))
    assert cache.find("x", str)  # is the newest now
    others = [tmp_path / name for name in ("mine.onnxcalib", "a" * 64, f"{'a' * 64}.onnxcalib.txt")]
    for other in others:
        other.write_bytes(bytes(5000))
        os.utime(other, (1, 1))
    (tmp_path / f"{'b' * 64}.onnxcalib").symlink_to(others[0])
    (tmp_path / f"{'c' * 64}.onnxcalib").mkdir()
    monkeypatch.setattr(module, "MOST_BYTES", 2 * entry_size(cache, "x"))
    Cache("b", tmp_path)
    assert [cache.find(name, str) is not None for name in "xyz"] == [True, False, True]
    assert all(other.exists() for other in others) and len(os.listdir(tmp_path)) == 7


def entry_size(cache, name):
    return cache._path(name).stat().st_size


def test_what_a_killed_run_wrote_aside_is_removed(tmp_path):
    left = tmp_path / ".onnxcalib-0123456789abcdef.tmp"
    left.write_bytes(b"half")
    Cache("a", tmp_path)
    assert not left.exists()


@dataclass(frozen=True)
class Pair:
    left: np.ndarray
    right: float


def test_records_keep_their_arrays(tmp_path):
    cache = Cache("a", tmp_path)
    cache.keep("x", {"p": Pair(np.arange(3, dtype=np.int8), float("nan"))}, dict[str, Pair])
    found = cache.find("x", dict[str, Pair])["p"]
    assert found.left.dtype == np.int8 and found.left.tolist() == [0, 1, 2] and np.isnan(found.right)
    found.left[0] = 5  # arrays that were read may be changed
