"""What was measured once is not measured again, unless what it depends on is another."""

import warnings

import pytest

from onnxcalib.runtime.cache import Cache


def test_what_was_found_is_recalled_by_subject_and_name(tmp_path):
    calls = []
    for subject, name in [("a", "x"), ("a", "x"), ("a", "y"), ("b", "x"), ("a", "x")]:
        found = Cache(subject, tmp_path).recall(name, lambda key=subject + name: calls.append(key) or [key])
        assert found == [subject + name]
    assert calls == ["ax", "ay", "bx"]


def test_what_is_known_is_told(tmp_path):
    cache = Cache("a", tmp_path)
    assert "x" not in cache
    cache.recall("x", lambda: 1)
    assert "x" in cache and "y" not in cache and "x" in Cache("a", tmp_path)


def test_where_nothing_can_be_kept_all_is_found_anew(tmp_path):
    (tmp_path / "file").write_text("")
    cache = Cache("a", tmp_path / "file")
    assert [cache.recall("x", lambda: 1), cache.recall("x", lambda: 2)] == [1, 2]
    assert "x" not in cache and cache.broken == f"{tmp_path / 'file'}: File exists"


def test_a_spoilt_entry_is_found_anew(tmp_path):
    Cache("a", tmp_path).recall("x", lambda: 1)
    (entry,) = tmp_path.rglob("output.pkl")
    entry.write_bytes(b"spoilt")
    assert Cache("a", tmp_path).recall("x", lambda: 2) == 2


def test_warnings_of_what_is_computed_reach_the_user_and_leave_the_cache_at_work(tmp_path):
    def compute():
        warnings.warn("a lossy cast", RuntimeWarning, stacklevel=2)
        return 1

    cache = Cache("a", tmp_path)
    with pytest.warns(RuntimeWarning, match="a lossy cast"):
        assert cache.recall("x", compute) == 1
    assert not cache.broken
    assert Cache("a", tmp_path).recall("x", lambda: 2) == 1


class Unwritable:
    def __reduce__(self):
        raise OSError("no space left")


def test_a_value_that_cannot_be_written_is_returned_and_nothing_more_is_kept(tmp_path):
    cache = Cache("a", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(cache.recall("x", Unwritable), Unwritable)
    assert "no space left" in cache.broken
    assert [cache.recall("y", lambda: 1), cache.recall("y", lambda: 2)] == [1, 2]
