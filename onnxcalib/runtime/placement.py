"""What a target's runtime is given, and what it says of the nodes of a file, as plain records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Off:
    """One node that the device does not run as it should. node and op: in the file. reason: as the runtime tells it."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class Placement:
    """What a runtime says of the file's nodes. of: what is counted, in words; off: those of ``total`` not placed."""

    of: str
    total: int
    off: tuple[Off, ...]


@dataclass(frozen=True)
class File:
    """What a worker opens. shapes: of the inputs of a run. log: where the runtime's own messages go."""

    open: Callable[[File], Opened]
    path: Path
    log: Path
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    threads: int


class Opened(Protocol):
    """A file in a runtime, in the worker."""

    def place(self) -> Placement: ...

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]: ...
