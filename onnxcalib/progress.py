"""How far a stage is: long loops anywhere in the library tell it to whoever listens to the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Tell = Callable[[int, int], None]  # what is done, and how much there is


class _Listener:
    """busy: a loop tells it already, so that loops inside of it do not."""

    def __init__(self, tell: Tell) -> None:
        self.tell, self.busy = tell, False


_LISTENER: ContextVar[_Listener | None] = ContextVar("onnxcalib_progress", default=None)


@contextmanager
def listening(tell: Tell) -> Iterator[None]:
    """Call ``tell`` as the loops inside of this context go on, in this thread."""
    token = _LISTENER.set(_Listener(tell))
    try:
        yield
    finally:
        _LISTENER.reset(token)


def track(items: Sequence[Item], size: Callable[[Item], int] = lambda _: 1) -> Iterator[Item]:
    """The items, telling after each the sum of the sizes so far. A loop inside of another tells nothing."""
    listener = _LISTENER.get()
    if listener is None or listener.busy:
        yield from items
        return
    total, done = sum(map(size, items)), 0
    listener.busy = True
    try:
        for item in items:
            yield item
            done += size(item)
            listener.tell(done, total)
    finally:  # also where the loop is left early
        listener.busy = False
