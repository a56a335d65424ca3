"""A record in a file of its own, as numbers and texts: a file that someone else made runs no code.

A file has MAGIC, the length of a header, the header in JSON, the bytes of the arrays, and SHA-256 of all that.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ..errors import OutputError
from ..files.reading import open_file
from .records import Array, count_bytes, describe_array, flatten, read_kept, restore, spell_parts

# Larger headers are none: that of 10,000 layers has some 10 MB.
MOST_HEADER_BYTES = 2**26
MAGIC = b"onnxcalib measurements 1\n"
T = TypeVar("T")


def spell_record(subject: str, name: str, value: Any, kind: Any) -> Iterator[bytes | memoryview]:
    """The bytes of a file that holds a value of this type under a subject and a name, piece by piece.

    kind: a type that ``records.flatten`` knows; TypeError is raised for a value of another.
    """
    arrays: list[Array] = []
    tree = flatten(value, kind, arrays)
    header = json.dumps([subject, name, [describe_array(each) for each in arrays], tree]).encode()
    digest = hashlib.sha256()
    pieces: Iterator[bytes | memoryview] = chain.from_iterable(map(spell_parts, arrays))
    for piece in chain([MAGIC + len(header).to_bytes(8) + header], pieces):
        digest.update(piece)
        yield piece
    yield digest.digest()


def read_record(path: Path, subject: str, name: str, kind: type[T], *, most_bytes: int | None = None) -> T | None:
    """The value that a file holds; None where it is not one that was written whole under this subject and name."""
    try:
        with open_file(path, OutputError, give="") as file:
            found: T = restore(*_read(file, (subject, name), kind, most_bytes))
    except (OutputError, OSError, ValueError, RecursionError):
        return None
    return found


def _read(file: BinaryIO, wanted: tuple[str, str], kind: Any, most_bytes: int | None) -> tuple[Any, Any, list[Array]]:
    """What ``restore`` needs. Raises ValueError for a file that is not whole, or not of what is wanted."""
    start = file.read(len(MAGIC) + 8)
    length = int.from_bytes(start[len(MAGIC) :])
    if not start.startswith(MAGIC) or length > MOST_HEADER_BYTES:
        raise ValueError("no record")
    header = file.read(length)
    facts = json.loads(header)
    if not isinstance(facts, list) or len(facts) != 4 or not isinstance(facts[2], list):
        raise ValueError("no record")
    subject, name, described, tree = facts
    digest = hashlib.sha256(start + header)
    size = len(start) + length + sum(map(count_bytes, described)) + digest.digest_size
    # Before an array is made: no header may ask for more memory than its file has bytes.
    held = os.fstat(file.fileno()).st_size
    if (subject, name) != wanted or size != held or (most_bytes is not None and size > most_bytes):
        raise ValueError("another record")
    arrays = [read_kept(description, file, digest.update) for description in described]
    if file.read() != digest.digest():
        raise ValueError("a damaged record")
    return tree, kind, arrays
