"""Weights of one scale: the channels between layers are multiplied by factors that leave their grids the least error.

A channel of small weights has few levels beside one of large weights. Factors move range from one layer to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import ModelProto

from ..config import FULL_BITS
from ..data import CalibrationSet
from ..graph.index import Index, known_constant
from ..graph.layers import channel_axis, find_layers
from ..graph.passes.equalize import Junction, find_junctions, scale_junction
from ..numeric.equalize import Equalized, Limits, choose_factors
from ..runtime.session import Session
from ..spec import LayerScheme, QuantScheme
from .batches import batch_size

# A channel reaches the bound of a Clip where its samples come this near to it, as a share of the bound: others may give
# more. On MobileNetV2, factors for all channels that stay below the bound itself change the float model's outputs on
# other images by 25 dB, these by 32.
MARGIN = 1.5


def even_layers(model: ModelProto, scheme: QuantScheme, samples: CalibrationSet, threads: int = 0) -> int:
    """Scale the channels between layers whose weights have one scale each; returns the number of tensors' sets.

    The float model's outputs on the samples stay as they are. A Clip(0, c) has one bound for all channels, so that
    those that reach it keep one common factor, by which the bound is multiplied too.
    """
    if not scheme.layers or any(layer.weight_spec.axis is not None for layer in scheme.layers):
        return 0
    index = Index(model.graph)
    layers = {layer.name: layer for layer in find_layers(model, index, FULL_BITS, FULL_BITS)}
    junctions, readers = find_junctions(model, layers)
    if not junctions:
        return 0
    around = [t for name in readers for t in (layers[name].input, layers[name].output)]
    clipped = [index.nodes[name].input[0] for each in junctions for name in each.clips]
    seen = _measure(model, [*around, *clipped], samples, threads)
    described = [_describe(index, layers[name], junctions, seen) for name in readers]
    own = dict(zip(readers, described, strict=True))
    weighed = [
        replace(own[name], weights=_weigh(own[name], [own[each] for each in behind]))
        for name, behind in readers.items()
    ]
    limits = [_limit(index, each, seen) for each in junctions]
    power = all(layer.weight_spec.power_of_two for layer in scheme.layers)
    found = choose_factors(weighed, limits, power_of_two=power)
    for junction, factors in zip(junctions, found, strict=True):
        scale_junction(model, junction, factors.by_channel, factors.common)
    return len(junctions)


class _Seen:
    """Of one tensor, by channel: the mean square, the largest magnitude and the largest value."""

    def __init__(self, channels: int) -> None:
        self.squares, self.count = np.zeros(channels), 0
        self.reach, self.most = np.zeros(channels), np.full(channels, -np.inf)

    def add(self, values: np.ndarray) -> None:
        """values: (samples, channels, ...)."""
        flat = values.reshape(*values.shape[:2], -1)
        self.squares += np.einsum("ncx,ncx->c", flat, flat, dtype=np.float64)
        self.count += flat.shape[0] * flat.shape[2]
        high, low = flat.max(axis=(0, 2)), flat.min(axis=(0, 2))
        self.reach, self.most = np.maximum(self.reach, np.maximum(high, -low)), np.maximum(self.most, high)

    @property
    def power(self) -> np.ndarray:
        return self.squares / max(self.count, 1)


def _measure(model: ModelProto, tensors: Iterable[str], samples: CalibrationSet, threads: int) -> dict[str, _Seen]:
    """The tensors over all samples."""
    inputs = {value.name for value in model.graph.input}
    inside = [t for t in dict.fromkeys(tensors) if t not in inputs]
    session = Session(model, also=inside, name="the prepared model", threads=threads)
    found: dict[str, _Seen] = {}
    for feeds in samples.batches(batch_size(session, samples)):
        for tensor, values in {
            **{t: feeds[t] for t in inputs.intersection(tensors)},
            **session.run(feeds, inside),
        }.items():
            found.setdefault(tensor, _Seen(values.shape[1])).add(values)
    return found


def _describe(index: Index, layer: LayerScheme, junctions: Sequence[Junction], seen: Mapping[str, _Seen]) -> Equalized:
    """The layer as numbers, with outputs that count as what is relative to the power of all of them."""
    weight, node = known_constant(index, layer.weight).astype(np.float64), index.nodes[layer.name]
    rows = np.abs(np.moveaxis(weight, channel_axis(node), 0))
    taps = rows.reshape(layer.groups, len(rows) // layer.groups, rows.shape[1], -1)
    power = max(float(seen[layer.output].power.sum()), np.finfo(float).tiny)
    return Equalized(
        peaks=taps.max(axis=3),
        squares=(taps**2).sum(axis=3),
        taps=taps.shape[3],
        powers=seen[layer.input].power,
        reaches=seen[layer.input].reach,
        weights=np.full(len(rows), 1 / power),
        before=next((i for i, each in enumerate(junctions) if layer.input in each.tensors), None),
        after=next((i for i, each in enumerate(junctions) if layer.output in each.tensors), None),
    )


def _weigh(layer: Equalized, readers: Sequence[Equalized]) -> np.ndarray:
    """How much the error of each output counts: by what it adds to the outputs of the layers that read it.

    A layer that none reads counts its outputs alike.
    """
    if not readers:
        return layer.weights
    weights = np.zeros_like(layer.weights)
    for each in readers:
        rows = each.squares * each.weights.reshape(*each.peaks.shape[:2], 1)
        weights += rows.sum(axis=1).reshape(-1)
    return weights


def _limit(index: Index, junction: Junction, seen: Mapping[str, _Seen]) -> Limits:
    """The most that channels may be multiplied by, so that none reaches the bound of a Clip behind it."""
    size = seen[junction.makers[0].output].power.size
    most = np.full(size, np.inf)
    for name in junction.clips:
        peaks = np.maximum(seen[index.nodes[name].input[0]].most, np.finfo(np.float32).tiny)
        most = np.minimum(most, junction.bound / (MARGIN * peaks))
    return Limits(np.maximum(most, 1.0), most < 1)
