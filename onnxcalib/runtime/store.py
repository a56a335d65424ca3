"""Activations at block cuts, on disk: memory does not grow with the number of samples."""

from __future__ import annotations

import math
import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import OutputError


class Store:
    """Named tensors of a whole calibration set, kept as one file a tensor in a temporary folder.

    Tensors arrive batch by batch. Files are read and written, not memory-mapped, so that pages of them do not count as
    this process' memory. Use as a context manager; the folder goes when it ends.
    """

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="onnxcalib-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self._chunks: dict[str, list[tuple[int, tuple[int, ...], np.dtype | None]]] = {}
        self._paths: dict[str, Path] = {}
        self._made = 0

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_exception) -> None:
        self._temporary.cleanup()

    def __contains__(self, name: str) -> bool:
        return name in self._paths

    def names(self) -> list[str]:
        """Tensors that are kept now."""
        return list(self._paths)

    def append(self, name: str, value: np.ndarray | list) -> None:
        """Add the next batch of a tensor; raises OutputError where the disk has no room for it.

        Strings and sequences are pickled: their batches come back, but have no rows.
        """
        pickled = isinstance(value, list) or value.dtype.hasobject
        data = np.frombuffer(pickle.dumps(value), np.uint8) if pickled else np.asarray(value)
        if name not in self._paths:
            self._paths[name] = self.folder / str(self._made)
            self._chunks[name] = []
            self._made += 1
        try:
            with open(self._paths[name], "ab") as file:
                self._chunks[name].append((file.tell(), data.shape, None if pickled else data.dtype))
                file.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise OutputError(
                f"{self.folder}: tensor {name} cannot be stored ({error.strerror or error}); room for the activations"
                " at a cut is needed; free some, set TMPDIR to another disk, or calibrate with fewer samples"
            ) from error

    def drop(self, name: str) -> None:
        """Forget a tensor and free its disk space."""
        self._paths.pop(name).unlink()
        del self._chunks[name]

    def batch(self, name: str, number: int) -> np.ndarray | list:
        """The batch that was appended as ``number``."""
        offset, shape, dtype = self._chunks[name][number]
        if dtype is None:
            return pickle.loads(np.fromfile(self._paths[name], np.uint8, math.prod(shape), offset=offset).data)
        return np.fromfile(self._paths[name], dtype, math.prod(shape), offset=offset).reshape(shape)

    def counts(self, name: str) -> list[int]:
        """Values in each batch."""
        return [math.prod(shape) for _, shape, _ in self._chunks[name]]

    def rows(self, name: str, indices: Sequence[int]) -> np.ndarray:
        """Samples by number, where axis 0 of every batch counts samples."""
        _, shape, dtype = self._chunks[name][0]
        row = math.prod(shape[1:])
        out = np.empty((len(indices), row), dtype)
        with open(self._paths[name], "rb") as file:
            for place, index in enumerate(indices):
                file.seek(int(index) * row * dtype.itemsize)
                out[place] = np.fromfile(file, dtype, row)
        return out.reshape(len(indices), *shape[1:])

    def mapped(self, name: str) -> np.ndarray:
        """The whole tensor, (samples, ...), mapped from disk; every batch must count samples on axis 0."""
        _, shape, dtype = self._chunks[name][0]
        samples = sum(shape[0] for _, shape, _ in self._chunks[name])
        return np.memmap(self._paths[name], dtype, mode="r", shape=(samples, *shape[1:]))

    def sample_major(self, name: str, sizes: Sequence[int]) -> bool:
        """Whether axis 0 counts samples: every batch has as many rows as samples, and rows of one shape."""
        chunks = self._chunks[name]
        rows = [shape[0] if shape and dtype is not None else None for _, shape, dtype in chunks]
        return rows == list(sizes) and len({shape[1:] for _, shape, _ in chunks}) == 1
