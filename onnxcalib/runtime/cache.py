"""Keep measurements on disk for the next run."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs
from joblib import Memory
from joblib.memory import CacheWarning

# The most bytes that are kept; beyond them the entries that were used longest ago are removed.
MOST_BYTES = 4 * 2**30
# Measurements depend on the versions of these, and on our own code.
LIBRARIES = ("numpy", "onnx", "onnxruntime", "scipy", "torch")
PACKAGE = Path(__file__).resolve().parent.parent


class Cache:
    """The results of one subject, by name.

    subject: names all that the results depend on, apart from the versions of the code. folder: None is the user's
    cache folder. broken: why nothing is kept, where the folder cannot be written; otherwise empty.
    """

    def __init__(self, subject: str, folder: str | Path | None = None) -> None:
        self.subject, self.broken = f"{subject} {_versions()}", ""
        kept_in = Path(folder) if folder is not None else platformdirs.user_cache_path("onnxcalib")
        try:
            kept_in.mkdir(parents=True, exist_ok=True)
            memory = Memory(kept_in, verbose=0)
            self._recall = memory.cache(_call, ignore=["compute"])
            memory.reduce_size(bytes_limit=MOST_BYTES)
        except OSError as error:
            self.broken = f"{kept_in}: {error.strerror or error}"

    def __contains__(self, name: str) -> bool:
        return not self.broken and bool(self._recall.check_call_in_cache(self.subject, name, None))

    def keep(self, name: str, value: Any) -> Any:
        """Keep a value that was computed elsewhere; the value that is kept under this name, which may be older."""
        return self.recall(name, lambda: value)

    def recall(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value that is kept under this name, or else that of ``compute``, which is then kept."""
        if self.broken:
            return compute()
        computed: list[Any] = []

        def find() -> Any:
            computed.append(compute())
            return computed[-1]

        try:
            with warnings.catch_warnings(), _silenced():
                warnings.simplefilter("error", CacheWarning)  # raised by joblib for a value that it cannot write
                return self._recall(self.subject, name, find)
        except CacheWarning as fault:
            self.broken = str(fault).strip().splitlines()[-1]
            return computed[-1]


@contextmanager
def _silenced() -> Iterator[None]:
    """Without joblib's log of entries that it could not read, which are computed anew."""
    logger = logging.getLogger("joblib")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _call(subject: str, name: str, compute: Callable[[], Any]) -> Any:  # joblib names the entry by the other arguments
    return compute()


def machine() -> str:
    """The name of this machine, for measurements that depend on it."""
    return f"{platform.node()} {platform.machine()} {os.cpu_count()}"


@cache
def _versions() -> str:
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return " ".join([digest.hexdigest(), *(f"{name} {version(name)}" for name in LIBRARIES)])
