"""The .npz format: archives of .npy files, of which no more is unpacked than is used."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import DataError, OnnxCalibError, first_line
from ..files.reading import open_file
from .listing import quote, shorten
from .npy import BROKEN, Layout, StoredArray, read_layout
from .room import Room

BROKEN_ARCHIVE = "not a complete .npz file"
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # numpy's own; zipfile unpacks others without a limit on memory
MOST_DIRECTORY = 2**20  # bytes of an archive's list of members: some 10,000
CHUNK = 2**20  # bytes unpacked at once


class _Bounded(io.RawIOBase):
    """A file of which no more than MOST_DIRECTORY bytes can be read at once: zipfile reads the list in one piece."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int | None = -1) -> bytes:
        data = self._file.read(MOST_DIRECTORY + 1 if size is None or size < 0 else min(size, MOST_DIRECTORY + 1))
        if len(data) > MOST_DIRECTORY:
            raise zipfile.BadZipFile(f"its list of members has more than {MOST_DIRECTORY:,} bytes")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


class PackedArray:
    """An array in an .npz file, known by its header."""

    def __init__(self, path: Path, name: str, layout: Layout, found: str) -> None:
        self.shape, self.dtype = layout.shape, layout.dtype
        self._path, self._name, self._layout, self._found = path, name, layout, found

    def __getitem__(self, index: Any) -> np.ndarray:
        """The first rows for a slice, or all of them for ``...``, in memory: for labels. Raises DataError."""
        layout = self._layout if index is Ellipsis else self._cut(len(range(self.shape[0])[index]))
        data = bytearray().join(self._unpack(layout.bytes))
        return np.frombuffer(data, layout.dtype).reshape(layout.shape, order="F" if layout.fortran else "C")

    def unpack(self, rows: int | None, room: Room) -> StoredArray:
        """The array, or its first rows, in a temporary file. Raises DataError and OutputError."""
        layout = replace(self._layout, offset=0) if rows is None else replace(self._cut(rows), offset=0)
        return room.store(f"{self._path}: array {self._name!r}", layout, self._unpack(layout.bytes))

    def _cut(self, rows: int) -> Layout:
        """The layout of the first rows; in Fortran's order they are not together, so that all are unpacked."""
        return self._layout if self._layout.fortran else replace(self._layout, shape=(rows, *self.shape[1:]))

    def _unpack(self, count: int) -> Iterator[bytes]:
        """The first bytes of the values, some at a time. The sum of all is checked where all are read."""
        with open_archive(self._path, self._found) as archive:
            member = find_members(archive)[self._name]
            with archive.open(member) as stream:
                if read_layout(stream, member.file_size) != self._layout:
                    raise ValueError("it has changed")
                whole, left = count == self._layout.bytes, count
                while left:
                    chunk = stream.read(min(CHUNK, left))
                    if not chunk:
                        raise ValueError(f"array {self._name!r} is cut off")
                    left -= len(chunk)
                    yield chunk
                if whole and stream.read(1):
                    raise ValueError(f"array {self._name!r} has more bytes than its header claims")


@contextmanager
def open_archive(path: Path, found: str = BROKEN_ARCHIVE) -> Iterator[zipfile.ZipFile]:
    """An .npz file. Raises DataError for it, and for whatever goes wrong while it is open."""
    with open_file(path, DataError, give="give an .npz file") as file:
        try:
            with zipfile.ZipFile(_Bounded(file)) as archive:
                yield archive
        except OnnxCalibError:
            raise
        except Exception as error:  # zipfile, zlib and numpy's parser raise whatever damaged bytes lead them to
            text = shorten(first_line(error))
            raise DataError(f"{path}: {found} ({text}); write it again with numpy.savez") from None


def find_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members that are arrays, by the array's name. Raises BadZipFile where a name is there twice."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name in members:
            raise zipfile.BadZipFile(f"array {quote(name)} is there twice")
        if name != member.filename:
            members[name] = member
    return members


def open_member(archive: zipfile.ZipFile, path: Path, name: str, found: str | None = None) -> PackedArray:
    """The array of this name. ``found`` is what is said of one that is damaged. Raises DataError."""
    member = find_members(archive)[name]
    if member.compress_type not in METHODS:
        raise zipfile.BadZipFile(f"array {name!r} is compressed in another way than by numpy.savez_compressed")
    if archive.fp is not None and member.header_offset + member.compress_size > archive.fp.seek(0, io.SEEK_END):
        raise zipfile.BadZipFile(f"array {name!r} claims {member.compress_size:,} bytes, more than the file holds")
    with archive.open(member) as stream:
        try:
            layout = read_layout(stream, member.file_size)
        except Exception as error:  # as read_layout says
            text = shorten(first_line(error))
            where = f"{path}: array {name!r}: {BROKEN}" if found is None else f"{path}: {found}"
            raise DataError(f"{where} ({text}); write it again") from None
    return PackedArray(path, name, layout, found or BROKEN_ARCHIVE)
