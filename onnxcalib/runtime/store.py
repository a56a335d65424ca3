"""Activations between blocks, kept on disk, so that memory does not grow with the number of samples."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import OutputError
from ..files.scratch import Scratch


class _Batch(NamedTuple):
    """Where a batch begins in its tensor's file, in bytes; without a dtype it is pickled, ``shape`` counting bytes."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None


class Store:
    """Named tensors of a whole calibration set, each in a file of a temporary folder.

    Tensors arrive batch by batch. Files are read and written, not memory-mapped, so that their pages do not count as
    this process' memory. Use as a context manager; the folder is removed when it ends.
    """

    def __init__(self) -> None:
        self._scratch = Scratch()
        self.folder = self._scratch.path
        self._batches: dict[str, list[_Batch]] = {}
        self._paths: dict[str, Path] = {}
        self._made = 0

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._scratch.remove()

    def __contains__(self, name: str) -> bool:
        return name in self._paths

    def names(self) -> list[str]:
        """The tensors that are kept now."""
        return list(self._paths)

    def append(self, name: str, value: Any) -> None:
        """Add the next batch of a tensor. Raises OutputError where the disk has no room for it.

        What is no array of numbers, such as strings, a sequence, a map or an optional value that is none, is pickled:
        it can be read batch by batch, but not row by row.
        """
        pickled = not isinstance(value, (np.ndarray, np.generic)) or value.dtype.hasobject
        data = np.frombuffer(pickle.dumps(value), np.uint8) if pickled else np.asarray(value)
        if name not in self._paths:
            self._paths[name] = self.folder / str(self._made)
            self._batches[name] = []
            self._made += 1
        try:
            with open(self._paths[name], "ab") as file:
                self._batches[name].append(_Batch(file.tell(), data.shape, None if pickled else data.dtype))
                file.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise OutputError(
                f"{self.folder}: tensor {name} cannot be stored ({error.strerror or error}); room for the activations"
                " between two blocks is needed; free some, set TMPDIR to another disk, or calibrate with fewer samples"
            ) from error

    def drop(self, name: str) -> None:
        """Forget a tensor and free its disk space."""
        self._paths.pop(name).unlink()
        del self._batches[name]

    def batch(self, name: str, number: int) -> Any:
        """The batch that was appended as ``number``: an array, or the sequence that it was."""
        offset, shape, dtype = self._batches[name][number]
        if dtype is None:
            return pickle.loads(np.fromfile(self._paths[name], np.uint8, math.prod(shape), offset=offset).data)
        return np.fromfile(self._paths[name], dtype, math.prod(shape), offset=offset).reshape(shape)

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
        assert dtype is not None, f"{name} is pickled and has no rows"
        return shape[1:], dtype

    def sample_major(self, name: str, sizes: Sequence[int]) -> bool:
        """Whether axis 0 counts samples: every batch has as many rows as ``sizes`` says, all of one shape."""
        batches = self._batches[name]
        rows = [batch.shape[0] if batch.shape and batch.dtype is not None else None for batch in batches]
        return rows == list(sizes) and len({batch.shape[1:] for batch in batches}) == 1
