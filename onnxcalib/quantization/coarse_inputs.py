"""Layers whose input 256 levels cannot hold: where few channels take the range, and others are what the layer needs.

That is so with columns of a table in unlike units, large constants with small changes, and sums that cancel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto

from ..errors import ModelError
from ..graph.twins import add_twins
from ..runtime.session import Session
from ..spec import QParams, QuantScheme

# A layer stays in float where rounding its input leaves less than so many dB between what its outputs vary by and the
# error. The worst layers of seven real networks have 21 dB and more; those of unlike units have less than 9.
LEAST_DB = 12.0
# A layer's outputs count as constant where they vary by less than this share of their power: sums are of float32.
CONSTANT = 1e-6
# A mean is taken off where it is of so many values a channel.
LEAST_VALUES = 8
# No more batches are read when the layers have given so many values.
MOST_VALUES = 10**7


def find_coarse_inputs(
    model: ModelProto,
    scheme: QuantScheme,
    lossless: Mapping[str, QParams],
    batches: Iterable[Mapping[str, Any]],
    threads: int = 0,
) -> dict[str, str]:
    """Maps the layers whose input 256 levels cannot hold to why they stay in float.

    lossless: grids of some inputs that are said to hold their values. Raises ModelError where no layer would be left.
    """
    layers = [layer for layer in scheme.layers if not layer.reads_float]
    ratios = measure_rounding(add_twins(model, layers, lossless), batches, threads) if layers else {}
    coarse = {name: ratio for name, ratio in ratios.items() if ratio < LEAST_DB}
    if coarse and len(coarse) == len(scheme.layers):
        name, ratio = min(coarse.items(), key=lambda item: item[1])
        raise ModelError(
            f"graph: 256 levels hold the input of no layer: the outputs of {name} would have {ratio:.1f} dB;"
            f" {LEAST_DB:g} dB are needed; scale the channels of the input alike, or keep the float model"
        )
    return {
        name: f"256 levels do not hold its input, whose channels are of unlike scale: its outputs would have"
        f" {ratio:.1f} dB"
        for name, ratio in coarse.items()
    }


def measure_rounding(
    twins: tuple[ModelProto, Mapping[str, tuple[str, ...]]], batches: Iterable[Mapping[str, Any]], threads: int = 0
) -> dict[str, float]:
    """For each layer how much its outputs vary, in dB of the error that its input on 256 levels makes.

    twins: as ``add_twins`` gives them. Layers without an error, and those whose outputs are constant or not finite, are
    left out.
    """
    model, tensors = twins
    wanted = sorted({t for each in tensors.values() for t in each})
    session = Session(model, also=wanted, name="the prepared model", threads=threads)
    totals: dict[str, Any] = dict.fromkeys(wanted, 0.0)
    for feeds in batches:
        for name, value in session.run(feeds, wanted).items():
            totals[name] = totals[name] + value.astype(np.float64)
        if sum(totals[each[-1]] for each in tensors.values()) >= MOST_VALUES:
            break
    found = {}
    for name, (error, total, squares, size) in tensors.items():
        wrong, varies = float(np.sum(totals[error])), _variation(totals[total], totals[squares], totals[size])
        if wrong > 0 and varies > 0 and np.isfinite(wrong / varies):
            found[name] = float(10 * np.log10(varies / wrong))
    return found


def _variation(total: np.ndarray, squares: np.ndarray, size: float) -> float:
    """The squares of a layer's outputs about the mean of their channel; 0 where that is too small to be measured."""
    power, values = float(np.sum(squares)), size / max(np.size(total), 1)
    if values < LEAST_VALUES:
        return power
    varies = float(np.sum(np.maximum(squares - total**2 / values, 0)))
    return varies if varies > CONSTANT * power else 0.0
