"""Temporary files, which end with the run that made them: those of a killed run are removed by the next one.

A run holds a lock on each of its temporary folders, and on each file that it writes aside, until it has removed it. The
system releases the locks of a process that ends, however it ends. So what can be locked belongs to nobody.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError

FOLDER = "onnxcalib-"  # how the names of temporary folders begin
ASIDE = ".onnxcalib-"  # how the names of files begin that are not yet renamed to their own
# The temporary folders of this process, and the files that it writes aside. Plain sets, as only a plain set can be
# listed while another thread adds to it.
_held_folders: set[Path] = set()
held_files: set[Path] = set()
renaming = threading.Lock()  # held while files that belong together get their names
renaming_thread: int | None = None  # the thread that gives them now


class Scratch:
    """A temporary folder, removed at the end of ``with``, with the last reference to this object, or by ``remove``.

    Raises OutputError where no folder can be made.
    """

    def __init__(self) -> None:
        try:
            self.path, lock = _make_folder()
        except OSError as error:
            raise OutputError(
                f"{os.environ.get('TMPDIR', '/tmp')}: no temporary folder can be made here"
                f" ({error.strerror or error}); free space, or set TMPDIR to another folder"
            ) from None
        _held_folders.add(self.path)
        self.remove = weakref.finalize(self, _remove, self.path, lock, os.getpid())

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_exception: object) -> None:
        self.remove()


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Raise OutputError in place of an OSError, for code that writes into a temporary folder."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{folder}: temporary files cannot be kept here ({error.strerror or error}); free space, set TMPDIR to"
            " another disk, or give fewer samples"
        ) from error


def remove_held() -> None:
    """Remove the temporary folders and files of this process, which is about to end."""
    for path in [*_held_folders, *held_files]:
        _delete(path)


def sweep(*folders: Path) -> list[Path]:
    """Remove what killed runs of this user left, and return what was removed.

    That are temporary folders where runs make them, and in ``folders`` files that were written aside.
    """
    try:
        places = [(FOLDER, tempfile.gettempdir()), *((ASIDE, str(folder)) for folder in folders)]
    except OSError:  # no folder for temporary files; what needs one says so
        return []
    removed = []
    for prefix, folder in dict.fromkeys(places):
        with suppress(OSError), os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if _is_own(entry, prefix)]
            removed += [path for path in found if _remove_abandoned(path)]
    return removed


def _is_own(entry: os.DirEntry[str], prefix: str) -> bool:
    if not entry.name.startswith(prefix):
        return False
    kind = entry.is_dir(follow_symlinks=False) if prefix == FOLDER else entry.is_file(follow_symlinks=False)
    return kind and entry.stat(follow_symlinks=False).st_uid == os.getuid()


def _make_folder() -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock. Raises OSError."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=FOLDER))
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # swept by another run before it could be locked
            continue
        if is_held(lock, path):
            return path, lock
        os.close(lock)


def is_held(descriptor: int, path: Path) -> bool:
    """Lock a file or folder that was just made, and say whether it is still there: another run may have swept it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # the sweep of another run holds it
        return False
    except OSError:  # a file system without locks, on which nothing can be swept
        pass
    return os.path.lexists(path)


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold the lock of a file or folder, and give whether that is so: it is there, and no process holds it."""
    lock, free = -1, False
    with suppress(OSError):
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = os.path.samestat(os.fstat(lock), os.lstat(path))
    try:
        yield free
    finally:
        if lock >= 0:
            os.close(lock)


def _remove_abandoned(path: Path) -> bool:
    """Remove a folder or file unless a process holds it, and say whether it is gone."""
    with claimed(path) as free:
        if free:
            _delete(path)
    return free and not os.path.lexists(path)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _remove(path: Path, lock: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked process has a copy of the object, and not the folder
        _delete(path)
    _held_folders.discard(path)
    with suppress(OSError):
        os.close(lock)
