"""Layers whose input or output 256 levels cannot hold: few channels take the range, and others are what is needed.

That is so with channels of unlike scale, large constants with small changes, and sums that cancel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto

from ..errors import ModelError
from ..graph.angles import find_turns
from ..graph.index import Index, is_op, walk_back
from ..graph.ops import FLOAT_OUTPUT_LAYERS, INTEGER_OPS, LAYERS
from ..graph.twins import add_twins
from ..runtime.session import Session
from ..spec import LayerScheme, QParams, QuantScheme

# A layer stays in float where rounding its input leaves less than so many dB between what its outputs vary by and the
# error. The worst layers of seven real networks have 21 dB and more; those of unlike units have less than 9.
LEAST_DB = 12.0
GIVES = "256 levels of its output do not hold what"
# Most that rounding may move angles by: a sine is then off by 5% of its range.
MOST_RADIANS = 0.1
# A channel counts as constant where it varies by less than this share of its power: sums are of float32.
CONSTANT = 1e-6
# A mean is taken off where it is of so many values a channel.
LEAST_VALUES = 8
# No more batches are read when the layers have given so many values.
MOST_VALUES = 10**7
# A first look on few samples ends the search where these give so many values, and no error is more than a half of what
# is allowed. In a ViT-S the ratios on 2 samples and on 8 are within 1 dB.
ENOUGH_VALUES, SURE = 10**6, 2.0


class Ratios(NamedTuple):
    """How much outputs of layers vary, in dB of the error of rounding to 256 levels.

    inputs: layer -> that ratio with its input rounded. outputs: last convolution -> that of the worst channel with its
    output rounded. errors: layer -> the root of the mean squared error of its outputs, with its input rounded.
    values: how many outputs of layers were seen.
    """

    inputs: Mapping[str, float]
    outputs: Mapping[str, float]
    errors: Mapping[str, float]
    values: int


def find_coarse_inputs(
    model: ModelProto,
    scheme: QuantScheme,
    lossless: Mapping[str, QParams],
    look: Iterable[Mapping[str, Any]],
    batches: Iterable[Mapping[str, Any]],
    *,
    threads: int = 0,
) -> dict[str, str]:
    """Maps the layers whose input, or last output, 256 levels cannot hold to why they stay in float.

    lossless: grids of some inputs that are said to hold their values. look: batches of a few samples, which are read
    first. Raises ModelError where no layer would be left.
    """
    layers = [layer for layer in scheme.layers if not layer.reads_float]
    if not layers:
        return {}
    twins = Twins(add_twins(model, layers, lossless), threads)
    factors = find_turns(model)
    turns = {layer.name: factors[layer.output] for layer in layers if layer.output in factors}
    first = twins.measure(look)
    if first.values >= ENOUGH_VALUES and not _judge(first, turns, SURE):
        return {}
    measured = twins.measure(batches)
    coarse = _judge(measured, turns)
    for layer in layers:
        if measured.inputs.get(layer.name, LEAST_DB) < LEAST_DB:
            coarse = dict.fromkeys(_find_makers(model, scheme, layer), f"{GIVES} {layer.name} reads") | coarse
    check_some_left(scheme, coarse)
    return coarse


def _find_makers(model: ModelProto, scheme: QuantScheme, layer: LayerScheme) -> list[str]:
    """The nodes back to the nearest convolutions, which would give a layer 256 levels though it reads float."""
    names = {other.name for other in scheme.layers}

    def is_layer(node: NodeProto) -> bool:
        return is_op(node, *LAYERS)

    before = [*walk_back(Index(model.graph), [layer.input], is_layer)]
    makers = [node.name for node in before if node.name in names and not is_op(node, *FLOAT_OUTPUT_LAYERS)]
    between = [node.name for node in before if is_op(node, *INTEGER_OPS)]
    return [*between, *makers] if makers else []


def check_some_left(scheme: QuantScheme, coarse: Mapping[str, str]) -> None:
    """Raise ModelError where every layer is among those that 256 levels cannot hold."""
    if coarse and coarse.keys() >= {layer.name for layer in scheme.layers}:
        name, reason = next(iter(coarse.items()))
        raise ModelError(
            f"graph: found no layer for which 256 levels are enough; {name}: {reason}; scale the channels alike,"
            " quantize the weights alone with activation_bits 32, or keep the float model"
        )


def _judge(ratios: Ratios, factors: Mapping[str, float], times: float = 1.0) -> dict[str, str]:
    """The layers whose errors, so many times as large as measured, are not allowed, with the reasons.

    factors: layer that gives angles -> what they are multiplied by.
    """
    least = LEAST_DB + 20 * math.log10(times)
    coarse = {
        name: f"256 levels do not hold {what} would have {ratio:.1f} dB"
        for what, found in (
            ("every channel of its output: one", ratios.outputs),
            ("its input: its outputs", ratios.inputs),
        )
        for name, ratio in found.items()
        if ratio < least
    }
    turns = {name: ratios.errors.get(name, 0.0) * factor for name, factor in factors.items()}
    return coarse | {
        name: f"it gives angles, which 256 levels of its input would move by {turn:.2f} radians"
        for name, turn in turns.items()
        if times * turn > MOST_RADIANS and name not in coarse
    }


class Twins:
    """A model with twins in a session."""

    def __init__(self, twins: tuple[ModelProto, Mapping[str, tuple[str, ...]]], threads: int = 0) -> None:
        """twins: what ``add_twins`` gives."""
        model, self._tensors = twins
        self._wanted = sorted({t for each in self._tensors.values() for t in each})
        self._session = Session(model, also=self._wanted, name="the prepared model", threads=threads)

    def measure(self, batches: Iterable[Mapping[str, Any]]) -> Ratios:
        """The ratios of all layers on the batches, or on the first that give MOST_VALUES.

        Without an error there is no ratio, nor for outputs that are constant or not finite.
        """
        tensors, values = self._tensors, 0
        totals: dict[str, Any] = dict.fromkeys(self._wanted, 0.0)
        for feeds in batches:
            for name, value in self._session.run(feeds, self._wanted).items():
                totals[name] = totals[name] + value.astype(np.float64)
            values = int(sum(totals[each[3]] for each in tensors.values()))
            if values >= MOST_VALUES:
                break
        inputs: dict[str, float] = {}
        outputs: dict[str, float] = {}
        errors = {k: float(np.sqrt(totals[each[0]].sum() / max(totals[each[3]], 1))) for k, each in tensors.items()}
        for name, (error, total, squares, size, *rounded) in tensors.items():
            varies = _variation(totals[total], totals[squares], totals[size])
            inputs |= _find_ratio(name, varies.sum(), totals[error].sum())
            for channel in np.flatnonzero(varies) if rounded else ():
                ratio = _find_ratio(name, varies[channel], totals[rounded[0]][channel])
                outputs |= {name: min(ratio[name], outputs.get(name, np.inf))} if ratio else {}
        return Ratios(inputs, outputs, errors, values)


def _find_ratio(name: str, varies: float, error: float) -> dict[str, float]:
    if not (varies > 0 and error > 0 and np.isfinite(error / varies)):
        return {}
    return {name: float(10 * np.log10(varies / error))}


def _variation(total: np.ndarray, squares: np.ndarray, size: float) -> np.ndarray:
    """The squares of a layer's outputs about the mean of their channel; 0 where that is too small to be measured."""
    total, squares = np.atleast_1d(total), np.atleast_1d(squares)
    values = size / max(total.size, 1)
    if values < LEAST_VALUES:
        return squares
    varies = np.maximum(squares - total**2 / values, 0)
    return np.where(varies > CONSTANT * squares, varies, 0)
