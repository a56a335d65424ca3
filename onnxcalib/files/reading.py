"""Read files that users name: regular files alone, of a bounded size, with one message for each fault.

Messages are ``path: what was found; give``, where ``give`` says what is needed and what to do.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import OnnxCalibError, first_line

STDIN = "-"  # instead of a file: standard input
# Larger files of settings, plans and ranges are none: those of 10,000 layers have some 5 MB.
MOST_BYTES = 2**25
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
Fault = type[OnnxCalibError]


def spell_fault(error: Exception) -> str:
    """What the system says about a file, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error})"
    return f"is no name of a file ({error})"  # a null byte, or characters that the system cannot encode


def is_folder(path: Path, fault: Fault, *, give: str) -> bool:
    """Whether a path is a folder; otherwise it is a regular file. Raises ``fault`` for anything else."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise fault(f"{path}: {spell_fault(error)}; {give}") from None
    if stat.S_ISDIR(mode):
        return True
    _check_regular(path, mode, fault, give)
    return False


def open_file(path: Path, fault: Fault, *, give: str) -> BinaryIO:
    """A regular file, open for reading. Raises ``fault`` for anything else, without waiting for a pipe's writer."""
    try:
        mode = os.stat(path).st_mode
        _check_regular(path, mode, fault, give)  # before it is opened, as opening some devices has effects
        file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except (OSError, ValueError) as error:
        raise fault(f"{path}: {spell_fault(error)}; {give}") from None
    try:
        _check_regular(path, os.fstat(file.fileno()).st_mode, fault, give)
    except OnnxCalibError:
        file.close()
        raise
    return file


def check_file(path: Path, fault: Fault, *, give: str) -> int:
    """The size of a regular file that can be read, in bytes. Raises ``fault`` for anything else."""
    with open_file(path, fault, give=give) as file:
        return os.fstat(file.fileno()).st_size


def read_file(path: Path, fault: Fault, *, give: str, most: int = MOST_BYTES) -> bytes:
    """All bytes of a regular file, or of standard input for ``-``. Raises ``fault`` for more than ``most``."""
    if str(path) == STDIN and sys.stdin is not None:
        data = sys.stdin.buffer.read(most + 1)
        size = len(data)
    else:
        with open_file(path, fault, give=give) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                data = file.read(most + 1) if size <= most else b""
            except OSError as error:
                raise fault(f"{path}: {spell_fault(error)}; {give}") from None
    if max(size, len(data)) > most:
        raise fault(f"{path}: holds {size:,} bytes or more; at most {most:,} are read; {give}")
    return data


def read_text(path: Path, fault: Fault, *, give: str, most: int = MOST_BYTES) -> str:
    """The UTF-8 text of a file as ``read_file`` reads it, without a byte order mark. Raises ``fault``."""
    try:
        return read_file(path, fault, give=give, most=most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise fault(f"{path}: not UTF-8 text (at byte {error.start}); save it as UTF-8") from None


def read_json(path: Path, fault: Fault, *, give: str, most: int = MOST_BYTES) -> Any:
    """The content of a JSON file as ``read_file`` reads it. Raises ``fault``."""
    text = read_text(path, fault, give=give, most=most)
    try:
        return json.loads(text, object_pairs_hook=read_object)
    except RecursionError:
        raise fault(f"{path}: not JSON: nested too deep; {give}") from None
    except ValueError as error:
        raise fault(f"{path}: not JSON: {first_line(error)}; {give}") from None


def read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError for a key that is given twice, of which a reader sees one alone."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:100]!r} is given twice")
    return found


def _check_regular(path: Path, mode: int, fault: Fault, give: str) -> None:
    if not stat.S_ISREG(mode):
        raise fault(f"{path}: is {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}; {give}")
