"""Channels of unlike scale in what the first layers read: each is brought to the scale of the median channel.

The features of a table come in units of their own: one grid over years and incomes has no level left for the years.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
from onnx import ModelProto

from ..data import CalibrationSet
from ..graph.index import Index
from ..graph.passes.rescale import can_scale, scale_input
from ..spec import QuantScheme
from .input_grid import compute_up_to, first_layers

# The largest magnitude of one channel in that of another: one grid costs the smaller one 4 of 8 bits.
UNLIKE = 16.0
AT_ONCE = 32  # samples that are run at once


class Evened(NamedTuple):
    """What was found in front of a layer, in one line, and the factors (channels,) of what it reads."""

    line: str
    factor: np.ndarray


def even_channels(
    model: ModelProto,
    scheme: QuantScheme,
    samples: CalibrationSet,
    threads: int = 0,
    *,
    smoothed: Collection[str] = (),
    given: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Evened]:
    """Scale the channels that first layers read, where they are unlike: layer -> what was done.

    A Mul by powers of two stands in front of a layer then, and its weight is divided by them, so that the float model's
    values stay as they are. That changes ``model``, which then needs a new scheme. Image files are not read.
    smoothed: layers that stay as they are, since their channels have factors already. given: factors that layers have
    in another graph, with whose weights theirs are stored; these have the same, first or not.
    """
    done: dict[str, Evened] = {}
    known = {name: factor for name, factor in (given or {}).items() if name not in smoothed}
    for layer in [each for each in scheme.layers if each.name in known]:
        if can_scale(Index(model.graph), layer):
            scale_input(model, layer, known[layer.name])
            why = f"{layer.input}: channels are scaled in front of {layer.name} as in front of others with its weight"
            done[layer.name] = Evened(why, known[layer.name])
    seen: dict[tuple[str, bool], np.ndarray] = {}
    for layer in () if samples.images else tuple(first_layers(Index(model.graph), scheme)):
        if layer.name in smoothed or layer.name in done or not can_scale(Index(model.graph), layer):
            continue
        key = (layer.input, layer.op == "Conv")
        if key not in seen:
            seen[key] = _find_peaks(model, *key, samples, threads)
        peaks = seen[key]
        factor = even_factors(peaks)
        if (factor == 1).all():
            continue
        used = peaks[peaks > 0]
        scale_input(model, layer, factor)
        largest, least = int(peaks.argmax()), int(np.where(peaks > 0, peaks, np.inf).argmin())
        line = (
            f"{layer.input}: channel {largest} reaches {used.max() / used.min():,.0f} times as far as channel {least};"
            f" each is scaled in front of {layer.name}"
        )
        done[layer.name] = Evened(line, factor)
    return done


def even_factors(peaks: np.ndarray) -> np.ndarray:
    """Powers of two that bring channels (channels,) of these peaks to the median one; 1 where they are alike."""
    factor, used = np.ones_like(peaks), peaks[peaks > 0]
    if used.size and used.max() > UNLIKE * used.min():
        factor[peaks > 0] = 2.0 ** -np.rint(np.log2(used / np.median(used)))
    return factor


def _find_peaks(model: ModelProto, tensor: str, of_conv: bool, samples: CalibrationSet, threads: int) -> np.ndarray:
    """The largest magnitude in each channel of what a Conv or another layer reads, (channels,)."""
    peaks: np.ndarray = np.zeros(1)
    compute = compute_up_to(model, tensor, threads)
    for feeds in samples.batches(AT_ONCE):
        value = compute(feeds)
        axis = 1 if of_conv else value.ndim - 1
        peaks = np.maximum(peaks, np.abs(value).max(axis=tuple(i for i in range(value.ndim) if i != axis), initial=0))
    return peaks.astype(np.float64)
