"""A folder of one run that outlives its process: what a run that was stopped leaves there, the next one goes on from.

It holds records, and the tensors of a ``Store``. A run holds the lock of its folder, which the system releases when the
process ends. Files are written aside and renamed, so that each is whole or not there.
"""

from __future__ import annotations

import fcntl
import os
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ..errors import OutputError
from ..files.scratch import ASIDE
from ..files.writing import replacing
from .record_file import read_record, spell_record

RECORD, TENSOR = ".record", ".tensor"
_OWN = re.compile(rf"[a-z0-9-]+({re.escape(RECORD)}|{re.escape(TENSOR)})|{re.escape(ASIDE)}[0-9a-f]+\.tmp")
ELSEWHERE = "choose another place with --work-dir"
T = TypeVar("T")


class WorkFolder:
    """The records of a run in a folder that no other run uses, until ``close`` or ``remove``.

    subject: under which records are written; one of another subject is not read.
    """

    def __init__(self, path: Path) -> None:
        """Make the folder, or take the one that a stopped run has left.

        Raises OutputError, from an OSError where the system does not let it be made or read.
        """
        self.path, self.subject = path.absolute(), ""  # the process may change its folder before ``remove``
        try:
            lock = _claim(path)
            self.close = weakref.finalize(self, os.close, lock)  # leaves the folder to the next run
            strange = next((name for name in os.listdir(path) if not _OWN.fullmatch(name)), None)
        except BlockingIOError:
            raise OutputError(
                f"{path}: found another run that works there; runs of one output go one after the other; wait for it,"
                f" choose another output, or {ELSEWHERE}"
            ) from None
        except OSError as error:
            raise OutputError(
                f"{path}: checkpoints cannot be kept there ({error.strerror or error}); room and the right to write are"
                f" needed; {ELSEWHERE}"
            ) from error
        if strange is not None:
            self.close()
            raise OutputError(
                f"{path}: found {strange!r}, which is no checkpoint; their folder holds nothing else; move it away, or"
                f" {ELSEWHERE}"
            )

    def read(self, name: str, kind: type[T]) -> T | None:
        """The record of a name; None without one, and where its file is damaged or of another subject."""
        return read_record(self.locate(name), self.subject, name, kind)

    def write(self, *records: tuple[str, Any, type[Any]]) -> None:
        """Write or replace records, each a name, a value and its type, in this order.

        The disk has them when this returns. Raises OutputError or OSError.
        """
        with replacing() as files:
            for name, value, kind in records:
                file = files.open(self.locate(name))
                for piece in spell_record(self.subject, name, value, kind):
                    file.write(piece)

    def has(self, name: str) -> bool:
        """Whether there is a file of a record, damaged or not."""
        return self.locate(name).exists()

    def names(self) -> list[str]:
        """The names of all files."""
        return [path.name for path in self._list()]

    def clear(self, *, keep: Callable[[str], bool] = lambda name: False) -> None:
        """Remove the files of whose names this is false."""
        for path in self._list():
            if not keep(path.name):
                with suppress(OSError):
                    path.unlink()

    def count_bytes(self) -> int:
        """The bytes of all files."""
        found = 0
        for path in self._list():
            with suppress(OSError):
                found += path.stat().st_size
        return found

    def remove(self) -> None:
        """Remove the folder with all that runs wrote into it, unless another run has taken it since ``close``."""
        lock = -1
        try:
            if not self.close.alive:
                lock = _claim(self.path)
            self.clear()
            self.path.rmdir()
        except OSError:  # what is left is the next run's
            pass
        finally:
            self.close()
            if lock >= 0:
                os.close(lock)

    def locate(self, name: str) -> Path:
        """The file of a record."""
        return self.path / f"{name}{RECORD}"

    def _list(self) -> Iterator[Path]:
        with suppress(OSError):
            yield from (self.path / name for name in os.listdir(self.path) if _OWN.fullmatch(name))


def _claim(path: Path) -> int:
    """The descriptor that holds the lock of the folder, which is made where it is missing. Raises OSError."""
    while True:
        made = False
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            made = True
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise
        except OSError:  # a file system without locks
            pass
        found = os.fstat(lock)
        if not made and found.st_uid != os.getuid():  # some file systems give all that is made another owner
            os.close(lock)
            raise PermissionError(1, "another user's")
        with suppress(OSError):
            if os.path.samestat(found, os.lstat(path)):
                return lock
        os.close(lock)  # the run that held it has removed it
