"""Tensors of a store that go to another process by value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..runtime.store import Store


class Carried:
    """Tensors of a store. A pickle holds their values, which go into a store of its own where it is read."""

    def __init__(self, store: Store, names: Sequence[str]) -> None:
        self.store, self.names = store, tuple(names)

    def copy_to(self, store: Store) -> None:
        for name in self.names:
            for value in self._read_all(name):
                store.append(name, value)

    def read(self, name: str, number: int) -> Any:
        """The batch of a tensor that was stored as this number."""
        return self.store.batch(name, number)

    def _read_all(self, name: str) -> Iterator[Any]:
        for number in range(len(self.store.counts(name))):
            yield self.read(name, number)

    def __getstate__(self) -> dict[str, list[Any]]:
        return {name: list(self._read_all(name)) for name in self.names}

    def __setstate__(self, values: Mapping[str, list[Any]]) -> None:
        self.store, self.names = Store(), tuple(values)
        for name in self.names:
            for value in values[name]:
                self.store.append(name, value)
