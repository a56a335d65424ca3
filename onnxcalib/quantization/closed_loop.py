"""Models with states, run step by step: what an output gives is an input of the next step of the sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import ModelProto

from ..config import DataConfig
from ..data import CalibrationSet, open_calibration
from ..data.padding import TOKEN_IDS
from ..errors import DataError
from ..graph.states import offer_states
from ..progress import track
from ..runtime.session import Session
from ..spec import InputSpec, spell_shape
from .growth import GrowthTally
from .joined_runs import Outputs, join_steps

# Steps that layers are solved on, spread over all sequences and over their time.
MOST_STEPS = 2048


class ClosedLoop:
    """A model that reads its own states: those that it gave in the step before.

    The first step of each sequence starts with the states of its sample, and so does one that does not follow the last.
    """

    def __init__(self, model: Session, samples: CalibrationSet) -> None:
        self._model, self._samples = model, samples
        self._kept: dict[str, Any] = {}
        self._last = -1

    def feed(self, index: int) -> dict[str, Any]:
        """What the model reads in the step of this index."""
        feeds, sequences = self._samples.read([index]), self._samples.sequences
        assert sequences is not None, "only steps have states"
        follows = index > 0 and index == self._last + 1 and sequences[index] == sequences[index - 1]
        return {**feeds, **self._kept} if follows else feeds

    def run(self, index: int, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs for what ``feed`` gave, of which the states are kept for the next step. Raises DataError."""
        outputs, self._last = self._model.run(feeds), index
        for name, output in self._samples.states.items():
            given, wanted = outputs[output], feeds[name]
            if given.dtype != wanted.dtype or given.ndim != wanted.ndim:
                raise DataError(
                    f"state: output {output!r} is {given.dtype} of shape {spell_shape(given.shape)}, input {name!r}"
                    f" {wanted.dtype} of shape {spell_shape(wanted.shape)}; a state is both; name another"
                )
            self._kept[name] = given
        return outputs


def fill_states(model: Session, samples: CalibrationSet, *, labelled: bool = False) -> CalibrationSet:
    """The steps with the states of the float model, each with what it gave in the step before.

    labelled: keep the labels of the samples, if they have any. Raises DataError.
    """
    loop = ClosedLoop(model, samples)
    labels = samples.labels if labelled else None

    def read() -> Iterator[dict[str, Any]]:
        for index in track(range(len(samples))):
            feeds = loop.feed(index)
            loop.run(index, feeds)
            yield feeds if labels is None else {**feeds, "label": labels[index : index + 1]}

    filled = open_calibration(read(), [replace(spec, state="") for spec in samples.inputs])
    filled.sequences, filled.states, filled.steps = samples.sequences, samples.states, True
    return filled


def spread_steps(samples: CalibrationSet, most: int | None = None) -> CalibrationSet:
    """So many of the steps at most, evenly spread over the sequences and their time; MOST_STEPS for None.

    Samples that are no steps stay.
    """
    most = MOST_STEPS if most is None else most
    if not samples.states or len(samples) <= most:
        return samples
    return samples.take(np.linspace(0, len(samples) - 1, most).round().astype(int).tolist())


def run_closed(
    original: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    quantized: Session,
    samples: CalibrationSet,
    growth: GrowthTally,
) -> Iterator[Outputs]:
    """Both models over all sequences, each with its own states, a sequence at a time.

    original: what the float model gives for what a sample holds, whose states are its own.
    """
    loop = ClosedLoop(quantized, samples)
    assert samples.sequences is not None, "only steps have states"

    def run(index: int) -> Outputs:
        wanted, given = original(samples.read([index])), loop.run(index, loop.feed(index))
        growth.add(index, wanted, given)
        return Outputs(wanted, given, 1, None)

    yield from join_steps(map(run, track(range(len(samples)))), samples.sequences.tolist())


def offer(original: ModelProto, inputs: Sequence[InputSpec], config: DataConfig, warn: Callable[[str], None]) -> None:
    """Warn of inputs that may be states, where no state is set; those of a decoder's past are another setting's."""
    if config.state or any(spec.name == TOKEN_IDS for spec in inputs):
        return
    if offered := offer_states(original, inputs):
        warn(
            f"state: found outputs and inputs of like names; if these are states, give {offered}: samples are then"
            " sequences, and each step reads the states of the one before"
        )
