"""Time sessions in turn, so that other load of the machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto

from .session import Session


def open_as_users(model: ModelProto) -> Session:
    """A model as its users run it, its own draws included, on one thread."""
    return Session(model, deployed=True, draws=True, whole=True, threads=1)


def time_in_turn(
    sessions: Sequence[Session],
    feeds: Mapping[str, Any],
    *,
    rounds: tuple[int, int],
    seconds: float,
    clock: Callable[[], float],
    warm_up: int = 1,
) -> np.ndarray:
    """Seconds of one run of each session, (rounds, sessions).

    rounds: the least and the most of them; between these as many as fit into ``seconds``. clock: what the runs are
    timed by. warm_up: first rounds, which allocate memory and are not counted.
    """
    found: list[list[float]] = []
    end = np.inf
    least, most = (warm_up + count for count in rounds)
    while len(found) < least or (len(found) < most and time.perf_counter() < end):
        if len(found) == warm_up:
            end = time.perf_counter() + seconds
        found.append([_time(session, feeds, clock) for session in sessions])
    return np.array(found[warm_up:])


def _time(session: Session, feeds: Mapping[str, Any], clock: Callable[[], float]) -> float:
    start = clock()
    session.run(feeds)
    return clock() - start
