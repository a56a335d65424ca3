"""Samples on disk: raw values in a file for each input, of which neighbours of one shape are read as one array."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..spec import InputSpec
from .arrays import Part
from .checked import CheckedSamples


class SpooledArray:
    """Some samples in a file of raw values, mapped anew for each read, as ``StoredArray`` does."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self._path, self._offset = path, offset

    def __getitem__(self, index: Any) -> np.ndarray:
        try:
            view = np.memmap(self._path, self.dtype, "r", self._offset, self.shape)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self._path}: the samples were kept here and cannot be read ({error}); leave the files there, or set"
                " TMPDIR to another folder"
            ) from None
        return np.array(view[index])


@dataclass
class Group:
    """Neighbouring items of one shape: where their values start, and the labels that they carry."""

    first: int
    shapes: dict[str, tuple[int, ...]]
    starts: dict[str, int]
    rows: int = 0
    last: int = 0
    labels: list[float] = field(default_factory=list)
    unlabelled: int | None = None  # the first item without labels
    fault: str | None = None  # what is wrong with labels, raised when they are asked for

    @property
    def where(self) -> str:
        return f"data: item {self.first}" if self.first == self.last else f"data: items {self.first} to {self.last}"

    def add(self, checked: CheckedSamples, number: int) -> None:
        self.rows += checked.rows
        self.last = number
        if not checked.labelled:
            self.unlabelled = number if self.unlabelled is None else self.unlabelled
        elif self.fault is None:
            try:
                self.labels += checked.read_labels().tolist()
            except DataError as error:
                self.fault = str(error)

    def read_labels(self) -> np.ndarray:
        if self.fault is not None:
            raise DataError(self.fault)
        if self.unlabelled is not None:
            raise DataError(
                f"data: item {self.unlabelled}: no labels, as other items have; all or none must have them; add"
                " them, or give --labels"
            )
        return np.array(self.labels)


class Spool:
    """One file for each input, to which values are appended. Raises DataError where they cannot be written."""

    def __init__(self, folder: Path, inputs: Sequence[InputSpec]) -> None:
        self._types = {spec.name: np.dtype(spec.dtype) for spec in inputs}
        self._paths = {spec.name: folder / f"input_{number}.raw" for number, spec in enumerate(inputs)}
        self._files: dict[str, FileIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Spool:
        for name, path in self._paths.items():
            self._files[name] = self._stack.enter_context(FileIO(path, "w"))
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def start(self, checked: CheckedSamples, number: int) -> Group:
        return Group(number, checked.shapes, {name: file.tell() for name, file in self._files.items()})

    def write(self, checked: CheckedSamples) -> None:
        try:
            for name, file in self._files.items():
                with np.errstate(over="ignore"):  # values beyond the type are found with the other infinities
                    values = checked.take(name, range(checked.rows), self._types[name])
                view = memoryview(values.tobytes())
                while view:  # a raw file may take a part
                    view = view[file.write(view) :]
        except OSError as error:
            folder = next(iter(self._paths.values())).parent
            raise DataError(
                f"{folder}: samples cannot be kept here ({error}); free space, or set TMPDIR to another folder"
            ) from None

    def finish(self, group: Group, notes: tuple[str, ...]) -> Part:
        arrays = {
            name: SpooledArray(self._paths[name], start, (group.rows, *group.shapes[name]), self._types[name])
            for name, start in group.starts.items()
        }
        labelled = bool(group.labels) or group.fault is not None
        return Part(group.where, arrays, labels=group.read_labels if labelled else None, notes=notes)
