"""Samples on disk: raw values in a file for each input, of which neighbours of one shape are read as one array."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..files.scratch import room_in
from ..spec import InputSpec
from .arrays import Part
from .checked import CheckedSamples
from .npy import Layout
from .room import keep_raw, write_all


@dataclass
class Group:
    """Neighbouring items of one shape: where their values start, and the labels that they carry."""

    first: int
    shapes: dict[str, tuple[int, ...]]
    starts: dict[str, int]
    rows: int = 0
    last: int = 0
    lengths: list[int] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    unlabelled: int | None = None  # the first item without labels
    fault: str | None = None  # what is wrong with labels, raised when they are asked for

    @property
    def where(self) -> str:
        return f"data: item {self.first}" if self.first == self.last else f"data: items {self.first} to {self.last}"

    def add(self, checked: CheckedSamples, number: int) -> None:
        self.rows += checked.rows
        self.last = number
        self.lengths += checked.part.lengths
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
    """One file for each input, to which values are appended. Raises OutputError where they cannot be written."""

    def __init__(self, folder: Path, inputs: Sequence[InputSpec]) -> None:
        self._folder = folder
        self._types = {spec.name: np.dtype(spec.dtype) for spec in inputs}
        self._paths = {spec.name: folder / f"input_{number}.raw" for number, spec in enumerate(inputs)}
        self._files: dict[str, FileIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Spool:
        with room_in(self._folder):
            for name, path in self._paths.items():
                self._files[name] = self._stack.enter_context(FileIO(path, "w"))
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def start(self, checked: CheckedSamples, number: int) -> Group:
        return Group(number, checked.shapes, {name: file.tell() for name, file in self._files.items()})

    def write(self, checked: CheckedSamples) -> None:
        for name, file in self._files.items():
            with np.errstate(over="ignore"):  # values beyond the type are found with the other infinities
                values = checked.take(name, range(checked.rows), self._types[name])
            write_all(file, values.tobytes(), self._folder)

    def finish(self, group: Group, notes: tuple[str, ...]) -> Part:
        arrays = {}
        for name, start in group.starts.items():
            layout = Layout((group.rows, *group.shapes[name]), self._types[name], offset=start)
            arrays[name] = keep_raw(self._paths[name], layout)
        labelled = bool(group.labels) or group.fault is not None
        labels = group.read_labels if labelled else None
        return Part(group.where, arrays, labels=labels, notes=notes, lengths=tuple(group.lengths))
