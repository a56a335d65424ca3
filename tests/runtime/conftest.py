"""A stand-in for a full disk."""

import resource
from contextlib import contextmanager

import pytest


@pytest.fixture
def limited_files():
    """A context in which no file may have more bytes than it is given: writing more fails as on a full disk."""

    @contextmanager
    def limit(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
