"""Keep measurements on disk for the next run, as numbers and texts: a cache that someone else made runs no code."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import platformdirs

from ..errors import OutputError
from ..files.scratch import sweep
from ..files.writing import replacing
from .cores import count_cores
from .record_file import read_record, spell_record

# The most bytes that are kept; beyond them the entries that were used longest ago are removed.
MOST_BYTES = 4 * 2**30
# Measurements depend on the versions of these, and on our own code.
LIBRARIES = ("numpy", "onnx", "onnxruntime", "pillow", "scipy", "tokenizers", "torch")
PACKAGE = Path(__file__).resolve().parent.parent
_NAME = re.compile(r"[0-9a-f]{64}\.onnxcalib")
T = TypeVar("T")


class Cache:
    """The results of one subject, by name.

    subject: names all that the results depend on, apart from the versions of the code. folder: None is the user's
    cache folder. warn: is told once where measurements cannot be kept. broken: why they are not; otherwise empty.
    """

    def __init__(
        self, subject: str, folder: str | Path | None = None, warn: Callable[[str], None] = lambda text: None
    ) -> None:
        self.subject, self.broken, self._warn = f"{subject} {versions()}", "", warn
        self.folder = Path(folder) if folder is not None else platformdirs.user_cache_path("onnxcalib")
        try:
            if folder is None and not self.folder.is_absolute():
                raise OSError("the user has no home folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder)
            _remove_oldest(self.folder)
        except (OSError, ValueError) as error:
            self._give_up(error)

    def recall(self, name: str, compute: Callable[[], T], kind: type[T]) -> T:
        """The value that is kept under this name, or else that of ``compute``, which is then kept.

        kind: its type, one that ``records.flatten`` knows.
        """
        found = self.find(name, kind)
        return self.keep(name, compute(), kind) if found is None else found

    def find(self, name: str, kind: type[T]) -> T | None:
        """The value that is kept under this name; None without one, or where its file does not hold one."""
        path = self._path(name)
        found = read_record(path, self.subject, name, kind, most_bytes=MOST_BYTES)
        if found is None:
            return None
        with suppress(OSError):  # a folder that can only be read is of use too
            os.utime(path)  # the time of its last use
        return found

    def keep(self, name: str, value: T, kind: type[T]) -> T:
        """Keep a value that was computed elsewhere; the value that is kept under this name, which may be older."""
        found = self.find(name, kind)
        if found is not None:
            return found
        if not self.broken:
            try:
                with replacing(lasting=False) as files:
                    file = files.open(self._path(name)).file
                    for piece in spell_record(self.subject, name, value, kind):
                        file.write(piece)
            except (OSError, OutputError) as error:
                self._give_up(error.__cause__ or error)
        return value

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(f"{self.subject} {name}".encode(errors="surrogatepass"))
        return self.folder / f"{digest.hexdigest()}.onnxcalib"

    def _give_up(self, error: BaseException) -> None:
        self.broken = f"{self.folder}: {getattr(error, 'strerror', None) or error}"
        self._warn(f"cache_dir: measurements are not kept: {self.broken}")


def _remove_oldest(folder: Path) -> None:
    """Remove the entries that were used longest ago, while all of them have more than MOST_BYTES. Raises OSError."""
    with os.scandir(folder) as found:
        entries = [each for each in found if _NAME.fullmatch(each.name) and each.is_file(follow_symlinks=False)]
    facts = []
    for entry in entries:
        with suppress(OSError):  # removed by another run
            facts.append((entry.stat(follow_symlinks=False), entry.path))
    left = sum(stat.st_size for stat, _ in facts)
    for stat, path in sorted(facts, key=lambda fact: fact[0].st_mtime_ns):
        if left <= MOST_BYTES:
            return
        with suppress(OSError):
            os.unlink(path)
            left -= stat.st_size


def machine() -> str:
    """The name of this machine, for measurements that depend on it."""
    return f"{platform.node()} {platform.machine()} {count_cores()}"


@cache
def versions() -> str:
    """Digest of our own code, and the versions of LIBRARIES."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return " ".join([digest.hexdigest(), *(f"{name} {version(name)}" for name in LIBRARIES)])
