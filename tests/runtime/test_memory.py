"""What glibc keeps of freed memory in the workers of a cluster."""

import pytest

from onnxcalib.runtime import memory


@pytest.fixture
def options(monkeypatch):
    """The options that were set, in order."""
    found = []

    class Glibc:
        def __init__(self, _name):
            pass

        def mallopt(self, option, value):
            found.append((option, value))

        def malloc_trim(self, _bytes):
            found.append("trim")

    monkeypatch.setattr(memory.ctypes, "CDLL", Glibc)
    return found


class Owner:
    pass


def test_what_is_freed_is_kept_until_its_last_owner_ends_where_dask_would_give_it_back(options, monkeypatch):
    monkeypatch.setenv(memory.TRIM_VARIABLE, "65536")
    one, other = Owner(), Owner()
    for owner in (one, one, other):
        memory.keep_freed(owner)
    assert options == 2 * [(-3, 2**25), (-1, 2**26)]
    del one, owner
    assert len(options) == 4 and other
    del other
    assert options[4:] == [(-3, 2**17), (-1, 65536), "trim"]


@pytest.mark.parametrize("text", [None, "", "much"])
def test_nothing_is_set_without_the_variable(options, monkeypatch, text):
    monkeypatch.delenv(memory.TRIM_VARIABLE, raising=False)
    if text is not None:
        monkeypatch.setenv(memory.TRIM_VARIABLE, text)
    memory.keep_freed(Owner())
    assert options == []
