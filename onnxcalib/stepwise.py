"""Records of models with states, which were run step by step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GrowthRecord:
    """SQNR of an output over some steps of all sequences that have them.

    first, last: those steps, counted from 1; both None stand for the last step of each sequence. sequences: how many
    have any of these steps.
    """

    output: str
    first: int | None
    last: int | None
    sqnr_db: float
    sequences: int


@dataclass(frozen=True)
class ClosedLoopRecord:
    """How far two models grow apart that each read their own states.

    states: OUT:IN of each. sequences, steps: those that were run.
    """

    states: tuple[str, ...]
    sequences: int
    steps: int
    growth: tuple[GrowthRecord, ...]


def list_growth(found: ClosedLoopRecord) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Headers and rows of a table: an output a row, the steps in the columns."""
    places = list(dict.fromkeys((record.first, record.last) for record in found.growth))
    cells = {(record.output, record.first, record.last): f"{record.sqnr_db:.1f}" for record in found.growth}
    headers = ("closed loop, dB at step", *(_spell(*place) for place in places))
    outputs = dict.fromkeys(record.output for record in found.growth)
    return headers, tuple((name, *(cells.get((name, *place), "-") for place in places)) for name in outputs)


def _spell(first: int | None, last: int | None) -> str:
    if first is None:
        return "last"
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def describe_loop(found: ClosedLoopRecord) -> str:
    """A line on what was run."""
    sequences = "1 sequence" if found.sequences == 1 else f"{found.sequences:,} sequences"
    return (
        f"closed loop: {sequences} of {found.steps:,} steps in all; each model reads its own states"
        f" ({', '.join(found.states)})"
    )
