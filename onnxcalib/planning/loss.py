"""The loss of a quantized model: the divergence of its outputs from the float model's, on the first samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..numeric.divergence import Divergence
from ..quantization.output_parts import Parts, take_parts
from ..runtime.session import Session

# Samples on which the divergence of the outputs is measured.
LOSS_SAMPLES = 64
# Steps of sequences on which it is: on 64, silero-vad's plans lost 2.4 dB to the same 8 bits everywhere.
LOSS_STEPS = 256
# Positions of next-token distributions on which it is.
LOSS_POSITIONS = 2048
# Relative standard error of a divergence at which no more samples are run.
RELATIVE_ERROR = 0.05
# The standard error of fewer samples is not relied on.
LEAST_SAMPLES = 16

Blank = Callable[[str, Any], Any]  # a tensor's name and values -> the values, zero where they are padding


@dataclass(frozen=True)
class Extent:
    """How many samples a loss is measured on, at most and at least: the first of all, as far as there are so many."""

    most: int = LOSS_SAMPLES
    least: int = LEAST_SAMPLES


USUAL = Extent()


@dataclass(frozen=True)
class ReferenceBatch:
    """Feeds of one batch, the float model's outputs with padding blanked, and what blanks other models' outputs.

    parts: of the outputs; see ``find_parts``. same: whether the other models are known to give the same.
    """

    feeds: Mapping[str, Any]
    outputs: Mapping[str, Any]
    blank: Blank
    parts: Parts | None = None
    same: bool = False


def divergence_of(
    session: Session,
    batches: Sequence[ReferenceBatch],
    names: Sequence[str],
    axes: Mapping[str, int] | None = None,
    *,
    extent: Extent = USUAL,
) -> float:
    """Divergence of a model's outputs from the reference, the mean over the parts of the outputs ``names``.

    axes: see ``Compared``. extent: its least number of samples is run.

    Batches in which the shapes of an output differ do not count for it; the result is infinite if that leaves none.
    Once the relative standard error of all outputs is at most RELATIVE_ERROR, no more batches are run.
    """
    found: dict[str, Divergence] = {}
    compared: set[str] = set()
    for batch in batches:
        given = batch.outputs if batch.same else session.run(batch.feeds, names)
        for name in names:
            wanted = batch.outputs[name]
            if wanted.shape == given[name].shape:
                compared.add(name)
                for label, pair in take_parts(batch.parts, name, wanted, batch.blank(name, given[name])):
                    found.setdefault(label, Divergence((axes or {}).get(name))).add(*pair)
        known = len(compared) == len(names)
        if known and all(
            each.samples >= extent.least and each.error <= RELATIVE_ERROR * each.value for each in found.values()
        ):
            break
    values = [divergence.value for divergence in found.values()]
    return float(np.mean(values)) if values else math.inf
