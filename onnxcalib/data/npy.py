"""The .npy format: what a header claims is compared with the bytes that are there, before any of them is read."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from ..errors import DataError, first_line
from ..files.reading import open_file
from ..spec import spell_shape
from .listing import shorten

MAGIC = b"\x93NUMPY"
LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # of the header's length, by version
MOST_HEADER = 10_000  # numpy's own limit, as it reads headers by Python's parser
MOST_AXES = 32
BROKEN = "not a complete .npy array of numbers"


@dataclass(frozen=True)
class Layout:
    """Where the values of an array stand in a file, and how.

    fortran: the first axis runs fastest. offset: the byte at which the values start.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool = False
    offset: int = 0

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_layout(stream: IO[bytes], total: int) -> Layout:
    """The layout of an .npy file of ``total`` bytes, of which the header is read.

    Raises ValueError, or whatever else a damaged header leads numpy's parser to.
    """
    start = _take(stream, len(MAGIC) + 2)
    width = LENGTH_BYTES.get(start[len(MAGIC)], 0)
    if start[: len(MAGIC)] != MAGIC or start[-1] != 0 or not width:
        raise ValueError("it does not start as one")
    counted = _take(stream, width)
    length = int.from_bytes(counted, "little")
    if length > MOST_HEADER:
        raise ValueError(f"its header claims {length:,} bytes; at most {MOST_HEADER:,} are read")
    parse = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():  # of Python's parser, about odd characters, and of numpy's about old files
        warnings.simplefilter("ignore")
        shape, fortran, dtype = parse(io.BytesIO(counted + _take(stream, length)))
    if any(isinstance(side, bool) or side < 0 for side in shape) or len(shape) > MOST_AXES:
        raise ValueError(f"it claims the shape {spell_shape(shape)}")
    if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None or not dtype.itemsize:
        raise ValueError(f"it holds {'objects' if dtype.hasobject else 'records'}")
    fortran = fortran and sum(side != 1 for side in shape) > 1  # where there is one axis, the order is one
    layout = Layout(shape, dtype, fortran, len(start) + width + length)
    if layout.offset + layout.bytes != total:
        raise ValueError(
            f"its header claims {dtype} of shape {spell_shape(shape)}, so {layout.bytes:,} bytes; it has"
            f" {total - layout.offset:,}"
        )
    return layout


def _take(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise ValueError("its header is cut off")
    return data


class StoredArray:
    """An array in a file, of which rows are read when they are asked for.

    Values are read and not mapped: a mapped file that another process shortens ends this one. Those in Fortran's order
    are mapped all the same, as a row's values lie far apart.
    """

    def __init__(self, path: Path, layout: Layout, refuse: Callable[[str], DataError]) -> None:
        """``refuse`` makes the error for values that cannot be read, from what is wrong with them."""
        self.shape, self.dtype = layout.shape, layout.dtype
        self._path, self._layout, self._refuse = path, layout, refuse

    def __getitem__(self, index: Any) -> np.ndarray:
        """The values at a list or slice of rows, or all of them for ``...``. Raises DataError."""
        with open_file(self._path, DataError, give="leave it in place while it is read") as file:
            try:
                return self._read(file, index)
            except (OSError, ValueError) as error:
                raise self._refuse(first_line(error)) from None

    def _read(self, file: BinaryIO, index: Any) -> np.ndarray:
        layout = self._layout
        if layout.fortran:
            mapped = np.memmap(file, layout.dtype, "r", layout.offset, layout.shape, order="F")
            return np.array(mapped[index])
        if index is Ellipsis:
            whole = np.empty(layout.shape, layout.dtype)
            _fill(file, layout.offset, whole)
            return whole
        rows = range(layout.shape[0])[index] if isinstance(index, slice) else index
        values = np.empty((len(rows), *layout.shape[1:]), layout.dtype)
        for first, end in _find_runs(rows):
            _fill(file, layout.offset + rows[first] * layout.row_bytes, values[first:end])
        return values


def _find_runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and the end of each run of rows that follow each other in the file."""
    first = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end] != rows[end - 1] + 1:
            yield first, end
            first = end


def _fill(file: BinaryIO, offset: int, values: np.ndarray) -> None:
    """Read the values of a contiguous array. Raises ValueError where the file ends before them."""
    file.seek(offset)
    if file.readinto(values.reshape(-1).view(np.uint8)) != values.nbytes:  # type: ignore[attr-defined]
        raise ValueError("it has become shorter")


def open_npy(path: Path, found: str = BROKEN) -> StoredArray:
    """The array of a .npy file. ``found`` is what is said of a file that is none. Raises DataError."""

    def refuse(text: str) -> DataError:
        return DataError(f"{path}: {found} ({shorten(text)}); write it again")

    with open_file(path, DataError, give="give a .npy file") as file:
        try:
            layout = read_layout(file, os.fstat(file.fileno()).st_size)
        except Exception as error:  # as read_layout says
            raise refuse(first_line(error)) from None
    return StoredArray(path, layout, refuse)
