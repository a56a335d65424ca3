"""Samples of a decoder behind a past: the model itself reads the first half of each sequence.

A merged decoder has a branch for each: with and without a past. Both get samples, every other sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..data import CalibrationSet, InputSpec, open_calibration
from ..data.padding import MASK, TOKEN_IDS, TOKENS
from ..data.past import is_past, says_past
from ..errors import DataError
from ..graph.states import name_present
from ..runtime.session import Session

BATCH = 8  # sequences run at once: their keys and values are in memory


def fill_past(model: Session, samples: CalibrationSet) -> CalibrationSet:
    """The second half of each sequence, with the keys and values of the first, which the float model computes.

    Where an input says whether a past is read, every other sequence stays whole, with an empty past.

    Raises DataError for a model without a past, for one that gives no past, and for samples that have one already.
    """
    pasts = _match_pasts(samples.inputs, model.outputs)
    if TOKEN_IDS not in {spec.name for spec in samples.inputs} or not pasts or not samples.batched:
        raise DataError(
            "past: found no inputs of tokens and of a past, whose shape leaves one axis open; only a decoder with these"
            " can fill it; leave --past out"
        )
    return open_calibration(_read_halves(model, samples, pasts), samples.inputs)


def _match_pasts(inputs: Sequence[InputSpec], outputs: Sequence[str]) -> dict[str, str]:
    """Input of a past -> the output that gives it for the next run."""
    found = {}
    for spec in filter(is_past, inputs):
        names = name_present(spec.name)
        name = next((name for name in names if name in outputs), None)
        if name is None:
            raise DataError(
                f"past: found no output for input {spec.name!r}; {names[0] if names else 'present...'} is needed, which"
                " gives the past of the next tokens; leave --past out, or give arrays"
            )
        found[spec.name] = name
    return found


def _read_halves(model: Session, samples: CalibrationSet, pasts: dict[str, str]) -> Iterator[dict[str, np.ndarray]]:
    switches = [spec.name for spec in samples.inputs if says_past(spec)]
    for run in samples.split(BATCH):
        feeds = samples.read(run)
        tokens = feeds[TOKEN_IDS].shape[1]
        half = tokens // 2
        if not half or any(feeds[name].size for name in pasts):
            found = "a past" if half else "one token"
            raise DataError(f"past: found {found} in sample {run[0]}; two tokens and an empty past can be filled")
        if switches and run[0] % 2 == 0:
            yield feeds
            continue
        counted = [name for name in TOKENS if name in feeds and feeds[name].shape[1:2] == (tokens,)]
        made = model.run(feeds | {name: feeds[name][:, :half] for name in counted}, list(pasts.values()))
        second = {name: feeds[name][:, half:] for name in counted if name != MASK}  # which counts the past too
        read = {name: np.ones_like(feeds[name]) for name in switches}
        yield feeds | second | {name: made[output] for name, output in pasts.items()} | read
