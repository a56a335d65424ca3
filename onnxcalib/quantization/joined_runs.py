"""Outputs of several runs as those of one: of small runs, as comparing costs by the call, and of a sequence's steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# Samples, and bytes of the float model's outputs, that are compared together at most.
MOST_SAMPLES, MOST_BYTES = 32, 2**24


class Outputs(NamedTuple):
    """What two models give in a run of so many samples; real: the mask of its tokens (see ``PaddingMask``)."""

    wanted: Mapping[str, Any]
    given: Mapping[str, Any]
    samples: int
    real: np.ndarray | None


def join_runs(runs: Iterable[Outputs]) -> Iterator[Outputs]:
    """The runs in their order; neighbours are joined where all outputs have samples on axis 0, and one shape behind."""
    waiting: list[Outputs] = []
    for run in runs:
        if waiting and not (_fit(waiting[-1], run) and _has_room(waiting, run)):
            yield _join(waiting)
            waiting = []
        waiting.append(run)
    if waiting:
        yield _join(waiting)


def join_steps(runs: Iterable[Outputs], sequences: Sequence[int]) -> Iterator[Outputs]:
    """Runs of one step each, those of a sequence as one sample: its steps are no independent draws.

    A sequence of which MOST_BYTES do not hold all, or whose outputs change their shapes, is several samples.
    """
    waiting: list[Outputs] = []
    last = -1
    for run, sequence in zip(runs, sequences, strict=True):
        if waiting and (sequence != last or not (_fit_steps(waiting[-1], run) and _has_bytes(waiting, run))):
            yield _join_steps(waiting)
            waiting = []
        waiting.append(run)
        last = sequence
    if waiting:
        yield _join_steps(waiting)


def _fit_steps(one: Outputs, other: Outputs) -> bool:
    """Whether all outputs of two steps are tensors of the same shapes."""
    return all(
        isinstance(mine[name], np.ndarray)
        and isinstance(theirs[name], np.ndarray)
        and (mine[name].shape, mine[name].dtype) == (theirs[name].shape, theirs[name].dtype)
        for mine, theirs in ((one.wanted, other.wanted), (one.given, other.given))
        for name in one.wanted
    )


def _join_steps(runs: Sequence[Outputs]) -> Outputs:
    if not _fit_steps(runs[0], runs[0]):  # sequences of tensors
        return runs[0]
    wanted, given = (
        {name: np.concatenate([np.atleast_1d(each[name]) for each in side]) for name in runs[0].wanted}
        for side in ([run.wanted for run in runs], [run.given for run in runs])
    )
    return Outputs(wanted, given, 1, None)


def _has_bytes(waiting: Sequence[Outputs], run: Outputs) -> bool:
    return bool(sum(value.nbytes for value in run.wanted.values()) * (len(waiting) + 1) <= MOST_BYTES)


def _has_room(waiting: Sequence[Outputs], run: Outputs) -> bool:
    return sum(each.samples for each in (*waiting, run)) <= MOST_SAMPLES and _has_bytes(waiting, run)


def _fit(one: Outputs, other: Outputs) -> bool:
    """Whether two runs can be joined."""
    if one.real is not None or other.real is not None:
        return False
    return all(
        _has_rows(mine[name], one.samples)
        and _has_rows(theirs[name], other.samples)
        and (mine[name].shape[1:], mine[name].dtype) == (theirs[name].shape[1:], theirs[name].dtype)
        for mine, theirs in ((one.wanted, other.wanted), (one.given, other.given))
        for name in one.wanted
    )


def _has_rows(value: Any, samples: int) -> bool:
    return isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == samples


def _join(runs: Sequence[Outputs]) -> Outputs:
    if len(runs) == 1:
        return runs[0]
    wanted, given = (
        {name: np.concatenate([each[name] for each in side]) for name in runs[0].wanted}
        for side in ([run.wanted for run in runs], [run.given for run in runs])
    )
    return Outputs(wanted, given, sum(run.samples for run in runs), None)
