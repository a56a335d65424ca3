"""What was measured once, kept on disk for the next run."""

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

# What is kept in all, in bytes; of more, what was used last stays.
MOST_BYTES = 4 * 2**30
# Results depend on these, and on our own code.
LIBRARIES = ("numpy", "onnx", "onnxruntime", "scipy", "torch")
PACKAGE = Path(__file__).resolve().parent.parent


class Cache:
    """Results of one subject, by name; everything that they depend on is part of ``subject``, or of the versions.

    folder: None is the user's cache folder. Where it cannot be written, nothing is kept, and ``broken`` says why.
    """

    def __init__(self, subject: str, folder: str | Path | None = None) -> None:
        self.subject, self.broken = f"{subject} {_versions()}", ""
        place = Path(folder) if folder is not None else platformdirs.user_cache_path("onnxcalib")
        try:
            place.mkdir(parents=True, exist_ok=True)
            memory = Memory(place, verbose=0)
            self._recall = memory.cache(_call, ignore=["compute"])
            memory.reduce_size(bytes_limit=MOST_BYTES)
        except OSError as error:
            self.broken = f"{place}: {error.strerror or error}"

    def __contains__(self, name: str) -> bool:
        return not self.broken and self._recall.check_call_in_cache(self.subject, name, None)

    def keep(self, name: str, value: Any) -> Any:
        """Keep what was found elsewhere."""
        return self.recall(name, lambda: value)

    def recall(self, name: str, compute: Callable[[], Any]) -> Any:
        """What was found by this name before, or what ``compute`` finds now; its own warnings reach the user."""
        if self.broken:
            return compute()
        computed: list[Any] = []

        def find() -> Any:
            computed.append(compute())
            return computed[-1]

        try:
            with warnings.catch_warnings(), _silenced():
                warnings.simplefilter("error", CacheWarning)  # joblib's word for a value that it could not write
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


def _call(subject: str, name: str, compute: Callable[[], Any]) -> Any:  # joblib names the entry by the other two
    return compute()


def machine() -> str:
    """What times depend on."""
    return f"{platform.node()} {platform.machine()} {os.cpu_count()}"


@cache
def _versions() -> str:
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return " ".join([digest.hexdigest(), *(f"{name} {version(name)}" for name in LIBRARIES)])
