"""Activations between blocks, kept on disk, so that memory does not grow with the number of samples."""

from __future__ import annotations

import math
import os
import shutil
import threading
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import OutputError
from ..files.scratch import Scratch
from .sequences import read_value, spell_value

CHUNK_BYTES = 2**24  # that are read at once to compare a file with its sum
SPELLED = "?"  # in place of the type of a value that is no array


class _Batch(NamedTuple):
    """Where a batch begins in its tensor's file, in bytes; without a dtype it is spelled, ``shape`` counting bytes."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * (1 if self.dtype is None else self.dtype.itemsize)


@dataclass(frozen=True)
class KeptTensor:
    """A tensor of a store that outlives its process: its file, the CRC-32 of its bytes, and its batches in order.

    batches: ``<f4 16 3 8 8;...``, the numpy type and the shape of each; ``?`` for a spelled value of so many bytes. One
    text, as a record of thousands of numbers behind each block would take a tenth of the time of a run.
    """

    file: str
    checksum: int
    batches: str


class Store:
    """Named tensors of a whole calibration set, each in a file of a temporary folder.

    Tensors arrive batch by batch. Files are read and written, not memory-mapped, so that their pages do not count as
    this process' memory. Use as a context manager; the temporary folder is removed when it ends.

    folder: one that outlives the process, in place of a temporary one. What ``list_kept`` gave is removed there by the
    ``release`` behind its drop, so that a run can go back to it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._scratch = None if folder is not None else Scratch()
        self.folder = self._scratch.path if self._scratch is not None else Path(folder or ".")
        self._batches: dict[str, list[_Batch]] = {}
        self._paths: dict[str, Path] = {}
        self._sums: dict[str, int] = {}
        self._listed: set[Path] = set()  # files that a state that was kept may need, and those of them that are dropped
        self._dropped: list[Path] = []
        self._made = 0
        self._synced: set[Path] = set()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._scratch is not None:
            self._scratch.remove()

    def __contains__(self, name: str) -> bool:
        return name in self._paths

    def names(self) -> list[str]:
        """The tensors that are kept now."""
        return list(self._paths)

    def append(self, name: str, value: Any) -> None:
        """Add the next batch of a tensor. Raises OutputError where the disk has no room for it.

        What is no array of numbers, such as strings, a sequence, a map or an optional value that is none, is spelled:
        it can be read batch by batch, but not row by row.
        """
        spelled = not isinstance(value, (np.ndarray, np.generic)) or value.dtype.hasobject
        data = np.frombuffer(spell_value(value), np.uint8) if spelled else np.asarray(value)
        if name not in self._paths:
            self._paths[name] = self._choose_path()
            self._batches[name] = []
            self._sums[name] = 0
        plain = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        try:
            try:
                offset = self._write(name, plain)
            except OSError:
                if not self._dropped:
                    raise
                self.release()  # room is worth more than a state to go back to
                offset = self._write(name, plain)
        except OSError as error:
            elsewhere = "choose another disk with --work-dir" if self._scratch is None else "set TMPDIR to another disk"
            raise OutputError(
                f"{self.folder}: tensor {name} cannot be stored ({error.strerror or error}); room for the activations"
                f" between two blocks is needed; free some, {elsewhere}, or calibrate with fewer samples"
            ) from error
        self._batches[name].append(_Batch(offset, data.shape, None if spelled else data.dtype))
        if self._scratch is None:
            self._sums[name] = zlib.crc32(plain, self._sums[name])

    def _write(self, name: str, data: memoryview) -> int:
        """Append bytes to the file of a tensor, and return where they begin; what was written in part is cut off."""
        written = self._batches[name][-1] if self._batches[name] else None
        offset = written.offset + written.bytes if written else 0
        self._synced.discard(self._paths[name])
        with open(self._paths[name], "r+b" if written else "wb") as file:
            file.seek(offset)
            file.truncate()
            file.write(data)
        return offset

    def _choose_path(self) -> Path:
        path = self.folder / f"{self._made}.tensor"
        self._made += 1
        return path

    def drop(self, name: str) -> None:
        """Forget a tensor and free its disk space; where ``list_kept`` gave it, that is done by ``release``."""
        path = self._paths.pop(name)
        del self._batches[name], self._sums[name]
        if path in self._listed:
            self._dropped.append(path)
        else:
            path.unlink(missing_ok=True)

    def take(self, other: Store) -> None:
        """Have the tensors of another store, a temporary one, which must not be used any more. Raises OutputError."""
        for name, batches in other._batches.items():
            if self._scratch is None:  # whose files have sums
                for number in range(len(batches)):
                    self.append(name, other.batch(name, number))
                continue
            self._paths[name], self._batches[name], self._sums[name] = self._choose_path(), batches, 0
            shutil.move(other._paths[name], self._paths[name])

    def list_kept(self) -> dict[str, KeptTensor]:
        """What ``restore`` needs to have the present tensors again; their files are on their way to the disk.

        A process that is killed leaves them whole at once. A machine that fails may leave them cut, which ``restore``
        sees.
        """
        new = [path for path in self._paths.values() if path not in self._synced]
        self._synced.update(new)
        self._listed.update(self._paths.values())
        threading.Thread(target=_sync, args=(new,), daemon=True).start()  # waiting for the disk would take seconds
        return {
            name: KeptTensor(path.name, self._sums[name], ";".join(map(_spell_batch, self._batches[name])))
            for name, path in self._paths.items()
        }

    def release(self) -> None:
        """Remove the files of tensors that were dropped: what ``list_kept`` gave before can no longer be restored."""
        for path in self._dropped:
            with suppress(OSError):
                path.unlink()
        self._listed.difference_update(self._dropped)
        self._dropped = []

    def restore(self, kept: dict[str, KeptTensor]) -> None:
        """Have these tensors again, in an empty store. Raises ValueError or OSError where a file is not what it was."""
        paths = {name: self.folder / Path(tensor.file).name for name, tensor in kept.items()}
        batches = {name: _place_batches(tensor.batches) for name, tensor in kept.items()}
        for name, tensor in kept.items():
            end = sum(batch.bytes for batch in batches[name])
            if _sum_up(paths[name], end) != tensor.checksum:
                raise ValueError(f"{paths[name].name} is damaged")
            os.truncate(paths[name], end)
        self._paths, self._batches = paths, batches
        self._sums = {name: tensor.checksum for name, tensor in kept.items()}
        self._synced, self._listed = set(paths.values()), set(paths.values())
        self._made = 1 + max((int(path.stem) for path in paths.values() if path.stem.isdecimal()), default=-1)

    def batch(self, name: str, number: int) -> Any:
        """The batch that was appended as ``number``: an array, or the sequence that it was."""
        offset, shape, dtype = self._batches[name][number]
        if dtype is None:
            return read_value(np.fromfile(self._paths[name], np.uint8, math.prod(shape), offset=offset).tobytes())
        return np.fromfile(self._paths[name], dtype, math.prod(shape), offset=offset).reshape(shape)

    def dtype(self, name: str) -> np.dtype[Any] | None:
        """The type of a tensor's first batch; None where that is no array of numbers."""
        return self._batches[name][0].dtype

    def counts(self, name: str) -> list[int]:
        """The number of values in each batch."""
        return [math.prod(batch.shape) for batch in self._batches[name]]

    def rows(self, name: str, indices: Sequence[int]) -> np.ndarray:
        """Samples by number, (indices, ...), where axis 0 of every batch counts samples."""
        shape, dtype = self._row(name)
        row = math.prod(shape)
        out = np.empty((len(indices), row), dtype)
        with open(self._paths[name], "rb") as file:
            for position, index in enumerate(indices):
                file.seek(int(index) * row * dtype.itemsize)
                out[position] = np.fromfile(file, dtype, row)
        return out.reshape(len(indices), *shape)

    def mapped(self, name: str) -> np.ndarray:
        """The whole tensor, (samples, ...), mapped from disk; axis 0 of every batch must count samples."""
        shape, dtype = self._row(name)
        samples = sum(batch.shape[0] for batch in self._batches[name])
        return np.memmap(self._paths[name], dtype, mode="r", shape=(samples, *shape))

    def _row(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """The shape and type of one sample."""
        _, shape, dtype = self._batches[name][0]
        assert dtype is not None, f"{name} is spelled and has no rows"
        return shape[1:], dtype

    def sample_major(self, name: str, sizes: Sequence[int]) -> bool:
        """Whether axis 0 counts samples: every batch has as many rows as ``sizes`` says, all of one shape."""
        batches = self._batches[name]
        rows = [batch.shape[0] if batch.shape and batch.dtype is not None else None for batch in batches]
        return rows == list(sizes) and len({batch.shape[1:] for batch in batches}) == 1


def _sync(paths: Sequence[Path]) -> None:
    for path in paths:
        with suppress(OSError), open(path, "rb") as file:  # dropped by now
            os.fsync(file.fileno())


def _spell_batch(batch: _Batch) -> str:
    return " ".join([SPELLED if batch.dtype is None else batch.dtype.str, *map(str, batch.shape)])


def _place_batches(kept: str) -> list[_Batch]:
    """Raises ValueError for what ``_spell_batch`` has not made, and for types that hold no plain values."""
    found: list[_Batch] = []
    for each in kept.split(";"):
        kind, *shape = each.split(" ")
        if not all(side.isdecimal() for side in shape):
            raise ValueError(f"{each!r} describes no batch")
        offset = found[-1].offset + found[-1].bytes if found else 0
        found.append(_Batch(offset, tuple(map(int, shape)), None if kind == SPELLED else _read_dtype(kind)))
    return found


def _read_dtype(text: str) -> np.dtype[Any]:
    """Raises ValueError for what is no type of plain values."""
    try:
        dtype = np.dtype(text)
    except TypeError as error:
        raise ValueError(f"{text!r} is no type") from error
    if dtype.hasobject or dtype.kind not in "biufcSU":
        raise ValueError(f"{text!r} is no type of plain values")
    return dtype


def _sum_up(path: Path, size: int) -> int:
    """CRC-32 of the first bytes of a file. Raises ValueError where there are fewer."""
    found = 0
    with open(path, "rb") as file:
        while size and (data := file.read(min(size, CHUNK_BYTES))):
            found, size = zlib.crc32(data, found), size - len(data)
    if size:
        raise ValueError(f"{path.name} is cut")
    return found
