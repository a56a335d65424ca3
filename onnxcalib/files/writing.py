"""Replace files whole or not at all, several of them together, and never one that the run reads."""

from __future__ import annotations

import errno
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ..errors import OutputError
from . import scratch
from .reading import STDIN
from .scratch import ASIDE, held_files, is_held

Content = str | bytes


@dataclass
class Aside:
    """A file that is written aside, and the name that it gets at the end."""

    target: Path
    path: Path
    file: BinaryIO
    renamed: bool = False

    def write(self, data: bytes | memoryview) -> None:
        """Raises OutputError."""
        with _faults(self.target):
            self.file.write(data)


@dataclass
class Replacement:
    """Files that are written aside, in the order in which they are to be renamed."""

    files: list[Aside] = field(default_factory=list)

    def open(self, target: Path) -> Aside:
        """An empty file for ``target``, which its caller writes. Raises OutputError."""
        path = target.with_name(f"{ASIDE}{secrets.token_hex(8)}.tmp")
        with _faults(target):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            aside = Aside(target, path, open(descriptor, "wb"))
            self.files.append(aside)
            held_files.add(path)
            if not is_held(descriptor, path):
                raise FileNotFoundError(errno.ENOENT, "removed while it was written", str(path))
        return aside

    def write(self, target: Path, content: Content) -> None:
        """Write a whole file aside. Raises OutputError."""
        data = content.encode("utf-8", errors="replace") if isinstance(content, str) else content  # names of files
        self.open(target).write(data)


@contextmanager
def replacing(*, lasting: bool = True) -> Iterator[Replacement]:
    """Files that are renamed to their own names at the end of ``with``, in the order in which they were opened.

    Until all of them are on the disk, none is renamed. lasting: wait until the disk has them. Any failure removes what
    was written aside. Raises OutputError for failures of the file system.
    """
    files = Replacement()
    try:
        yield files
        for aside in files.files:
            with _faults(aside.target):
                aside.file.flush()
                if lasting:
                    os.fsync(aside.file.fileno())  # a full disk raises here at the latest, and not after a rename
        with _renaming():
            for aside in files.files:
                with _faults(aside.target):
                    os.replace(aside.path, aside.target)
                    aside.renamed = True
        if lasting:
            for folder in {aside.target.parent for aside in files.files}:
                _sync_folder(folder)
    finally:
        for aside in files.files:
            with suppress(OSError):  # a full disk raises once more when the rest is written
                aside.file.close()
            if not aside.renamed:
                aside.path.unlink(missing_ok=True)
            held_files.discard(aside.path)


def write_together(contents: Mapping[Path, Content]) -> None:
    """Write several files, all or none. Raises OutputError."""
    with replacing() as files:
        for path, content in contents.items():
            files.write(path, content)


def write_file(path: Path, content: Content) -> None:
    """Write a file whole or not at all. Raises OutputError."""
    write_together({path: content})


def check_output(path: Path, *sources: Path) -> None:
    """Raise OutputError, before any work is done, for a path that cannot be written or that holds what a run reads.

    sources: the files and folders that the run reads. They are compared as files, so that links to them count; nothing
    in these folders is written either.
    """
    path = Path(path)
    folder = path.parent
    if str(path) == STDIN:
        raise OutputError(f"{path}: is no name of a file here; results are not written to standard output; name a file")
    try:
        own = _identify(path)
        for source in map(Path, sources):
            _check_source(path, own, source)
        if path.is_dir():
            raise OutputError(f"{path}: is a directory; a file name is needed; add one to it")
        if own is not None and not path.is_file():
            raise OutputError(f"{path}: is no regular file; it would be replaced; choose another output")
        if not folder.exists():
            raise OutputError(f"{path}: the folder {folder} does not exist; an existing one is needed; make it first")
        if not folder.is_dir():
            raise OutputError(f"{path}: {folder} is no folder; an existing one is needed; choose another output")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{path}: the folder {folder} is not writable; choose another output")
        if _is_systems(follow_links(folder)):  # /dev/stdout is a link, which would be replaced
            raise OutputError(f"{path}: lies in {folder}, which is the system's; choose another output")
        if not path.name:
            raise OutputError(f"{path}: is no name of a file; add one")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path}: cannot be written ({reason}); choose another output") from None


def check_folder(path: Path, sources: Iterable[Path]) -> None:
    """Raise OutputError for a folder, which need not exist yet, in one that the run reads."""
    for source in sources:
        with suppress(ValueError):  # no path of a file; what reads it says so
            if source.is_dir():
                _check_folder(Path(path), source, None)


def check_outputs(outputs: Mapping[str, Path | None], sources: Iterable[Path]) -> None:
    """Raise OutputError for an output that ``check_output`` refuses, and where two are one file.

    outputs: option -> file, or None where the option was not given.
    """
    wanted = {option: path for option, path in outputs.items() if path is not None}
    read = list(sources)
    for path in wanted.values():
        check_output(path, *read)
    for option, path in wanted.items():
        others = [other for other, file in wanted.items() if other != option and _is_same(path, file)]
        if others:
            raise OutputError(
                f"{path}: is the file of both {option} and {others[0]}; one would replace the other; give one of them"
                " another name"
            )


def _is_systems(folder: Path) -> bool:
    """Whether a resolved folder holds devices or facts about processes; /dev/shm holds files."""
    return folder == Path("/dev") or folder.parts[:2] in (("/", "proc"), ("/", "sys"))


def _check_source(path: Path, own: tuple[int, int] | None, source: Path) -> None:
    try:
        same = _identify(source) == own is not None or follow_links(path) == follow_links(source)
        folder = source.is_dir()
    except (OSError, ValueError):  # no path of a file; what reads it says so
        return
    if same:
        raise OutputError(f"{path}: is read by this run; what is read is never overwritten; choose another output")
    if folder:
        _check_folder(path, source, own)


def _check_folder(path: Path, folder: Path, own: tuple[int, int] | None) -> None:
    """Refuse what lies in a folder that is read or that a link in it leads to, and its files under other names."""
    refused = OutputError(f"{path}: lies in {folder}, which this run reads; that folder stays as it is; choose another")
    parents = follow_links(path).parents
    if follow_links(folder) in parents:
        raise refused
    for root, folders, names in os.walk(folder):  # which follows no links, as they may lead in a circle
        linked = (Path(root, name) for name in folders if not name.startswith(".") and os.path.islink(Path(root, name)))
        if any(follow_links(link) in parents for link in linked):
            raise refused
        for name in names if own is not None else ():
            with suppress(OSError):  # a link that leads to itself; what reads the folder says so
                if _identify(Path(root, name)) == own:
                    raise OutputError(
                        f"{path}: is the file {Path(root, name)}, which this run reads; what is read is never"
                        " overwritten; choose another output"
                    )


def _is_same(path: Path, other: Path) -> bool:
    own = _identify(path)
    return follow_links(path) == follow_links(other) or own == _identify(other) is not None


def follow_links(path: Path) -> Path:
    """Where the links of a path lead; those that lead in a circle stay, where ``Path.resolve`` raises."""
    return Path(os.path.realpath(path))


def _identify(path: Path) -> tuple[int, int] | None:
    """Device and inode of what a path leads to, None where there is nothing. Raises OSError for an impossible path."""
    try:
        facts = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return facts.st_dev, facts.st_ino


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder last; some file systems refuse it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _renaming() -> Iterator[None]:
    """Signals that end the process wait until all files have their names."""
    with scratch.renaming:
        scratch.renaming_thread = threading.get_ident()
        try:
            yield
        finally:
            scratch.renaming_thread = None


@contextmanager
def _faults(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{target}: cannot be written ({reason}); room and the right to write are needed; choose another output"
        ) from error
