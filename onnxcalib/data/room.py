"""Space for the values of samples in the temporary folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

from ..errors import DataError, OutputError
from ..files.scratch import room_in
from .npy import Layout, StoredArray


class Room:
    """A temporary folder, and the bytes that unpacked samples may take in it.

    Raises DataError where the settings allow no more, and OutputError where the disk does not.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder = folder
        self._most = self._left = most
        self._files = 0

    def store(self, where: str, layout: Layout, chunks: Iterable[bytes]) -> StoredArray:
        """Keep an array whose bytes are ``chunks``; there is room for all of them before the first is made."""
        if layout.bytes > self._left:
            raise DataError(
                f"{where}: takes {layout.bytes:,} bytes unpacked; {self._left:,} are left of the {self._most:,} that"
                " all samples may take; give fewer with --samples, or raise --max-unpacked"
            )
        with room_in(self.folder):
            free = shutil.disk_usage(self.folder).free
        if layout.bytes > free:
            raise OutputError(
                f"{self.folder}: {where} takes {layout.bytes:,} bytes unpacked, and {free:,} are free here; free space,"
                " set TMPDIR to another disk, or give fewer samples"
            )
        self._left -= layout.bytes
        path = self.folder / f"unpacked_{self._files}.raw"
        self._files += 1
        with room_in(self.folder):
            file = FileIO(path, "w")
        with file:
            for chunk in chunks:  # made outside of room_in, as the faults of reading are others
                write_all(file, chunk, self.folder)
        return keep_raw(path, layout)


def write_all(file: FileIO, data: bytes, folder: Path) -> None:
    """Write to a file in the temporary folder. Raises OutputError."""
    view = memoryview(data)
    with room_in(folder):
        while view:  # a raw file may take a part
            view = view[file.write(view) :]


def keep_raw(path: Path, layout: Layout) -> StoredArray:
    """The array of raw values in a temporary file."""

    def refuse(text: str) -> DataError:
        return DataError(
            f"{path}: the samples were kept here and cannot be read ({text}); leave the files there, or set TMPDIR to"
            " another folder"
        )

    return StoredArray(path, layout, refuse)
