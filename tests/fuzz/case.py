"""A case as plain data: which command runs on which files, what was done to these, and how it must end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

EDITS: dict[str, Callable[..., None]] = {}
AROUND: dict[str, Callable[..., None]] = {}


def edit(function: Callable[..., None]) -> Callable[..., None]:
    """Register a change of a file by its function's name: the path comes first, then values that JSON can hold."""
    EDITS[function.__name__] = function
    return function


def surrounding(function: Callable[..., None]) -> Callable[..., None]:
    """Register a change of the process that runs a case, made in that process: it takes values that JSON can hold."""
    AROUND[function.__name__] = function
    return function


@dataclass(frozen=True)
class Edit:
    """A change of one file of the case's folder, by its name in EDITS."""

    kind: str
    file: str
    values: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Case:
    """A command on changed files.

    base: which of bases.BASES. options: added to its command line. around: names in AROUND with their values. fresh: in
    a process of its own, and not in a fork of one that has imported everything. refused: must end with 1 or 2.
    """

    generator: str
    base: str
    edits: tuple[Edit, ...] = ()
    options: tuple[str, ...] = ()
    around: tuple[tuple[Any, ...], ...] = ()
    fresh: bool = False
    refused: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Case:
        found = json.loads(text)
        edits = tuple(Edit(each["kind"], each["file"], tuple(each["values"])) for each in found.pop("edits"))
        around = tuple(tuple(each) for each in found.pop("around"))
        return cls(**{**found, "edits": edits, "options": tuple(found["options"]), "around": around})

    def simpler(self) -> Iterator[Case]:
        """This case without one of its changes each; what is left may have a meaning."""
        for name in ("edits", "around", "options"):
            changes = getattr(self, name)
            for i in range(len(changes)):
                yield replace(self, refused=False, **{name: changes[:i] + changes[i + 1 :]})


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    status: exit status, None after a signal. memory: peak of resident bytes above that of runs on good files. changed,
    appeared: paths in its folder; left: in its folder for temporary files.
    """

    status: int | None
    signal: int | None
    hung: bool
    seconds: float
    memory: int
    stdout: str
    stderr: str
    changed: tuple[str, ...]
    appeared: tuple[str, ...]
    left: tuple[str, ...]
