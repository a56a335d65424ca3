"""The channels between layers are multiplied by factors that leave the grids of one scale the least error.

A channel of small weights has few levels beside one of large weights, where a weight has one scale. Of an activation of
4 bits, a channel of small values has few. Factors move range from one layer to the next.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import ModelProto

from ..config import FULL_BITS
from ..data import CalibrationSet
from ..graph.index import Index, known_constant
from ..graph.layers import channel_axis, find_layers
from ..graph.passes.equalize import Junction, find_junctions, scale_junction
from ..numeric.equalize import (
    LEVELS,
    STEPS_TRIED,
    TINY,
    Equalized,
    Gains,
    Limits,
    Rounding,
    choose_factors,
    measure_rounding,
)
from ..runtime.session import Session
from ..spec import LayerScheme, QuantScheme
from .batches import batch_size, choose_step
from .noise_gains import measure_gains

# A channel reaches the bound of a Clip where its samples come this near to it, as a share of the bound: others may give
# more. On MobileNetV2, factors for all channels that stay below the bound itself change the float model's outputs on
# other images by 25 dB, these by 32.
MARGIN = 1.5
# Values of a channel that are looked at, about, and that must differ from 0 for a grid that leaves some of them out.
VALUES, LEAST_VALUES = 2048, 32
LEAST_POWER = 1e-30  # of outputs that are more than rounding leaves of none
MOST_FACTOR = 50.0  # of a channel that hardly gives anything
MOST_SAMPLES = 64  # whose moments are as good as those of more
# Share of the error of a rounded weight that solving leaves (ResNet-20 at W4A4: 0.13).
SOLVED = 0.1
MOST_SHARE = 10.0  # of the power of all values to that of those looked at


def even_layers(
    model: ModelProto,
    scheme: QuantScheme,
    samples: CalibrationSet,
    threads: int = 0,
    *,
    few_levels: bool = True,
    solved: bool = True,
    but: Collection[str] = (),
) -> dict[str, tuple[float, float]]:
    """Scale the channels between layers whose weights have one scale each, or of which some read few levels.

    few_levels: whether layers that read few levels ask for it. solved: whether layers will be. but: tensors that stay,
    as their channels were mixed. Returns the least and the greatest factor of each set of tensors that have the same,
    under the name of one.
    The float model's outputs on the samples stay as they are. A Clip(0, c) has one bound for all channels, so that
    those that reach it keep one common factor, by which the bound is multiplied too. Where grids do what Clips do, for
    onnxruntime, each channel has a bound of its own in place of that (see ``scale_junction``).
    """
    one_scale = bool(scheme.layers) and all(layer.weight_spec.axis is None for layer in scheme.layers)
    reading = [layer for layer in scheme.layers if few_levels and layer.activation_spec.bits < FULL_BITS]
    few = {layer.name for layer in reading}
    if not one_scale and not few:
        return {}
    index = Index(model.graph)
    layers = {layer.name: layer for layer in find_layers(model, index, FULL_BITS, FULL_BITS)}
    layers |= {layer.name: layer for layer in scheme.layers if layer.name in layers}
    junctions, readers = find_junctions(model, layers)
    if not one_scale:
        junctions = [each for each in junctions if any(layer.name in few for layer in each.readers)]
    junctions = [each for each in junctions if each.tensors.keys().isdisjoint(but)]
    if not junctions:
        return {}
    around = [t for name in readers for t in (layers[name].input, layers[name].output)]
    bounded = not one_scale and scheme.requirements.for_onnxruntime
    clipped = [] if bounded else [index.nodes[name].input[0] for each in junctions for name in each.clips]
    # What reaches the bound of a Clip is looked for in all of them.
    most = len(samples) if one_scale or clipped else MOST_SAMPLES
    seen = _measure(model, [*around, *clipped], samples, most=most, threads=threads)
    described = [_describe(index, layers[name], junctions, seen) for name in readers]
    own = dict(zip(readers, described, strict=True))
    # With depthwise layers errors are large: solving leaves most of them, and the Jacobian tells little.
    small = not one_scale and not any(layer.groups > 1 for layer in layers.values())
    left = SOLVED if small and solved else 1.0
    made = {name: layers[name].output for name in readers}
    gains = measure_gains(model, made, samples, threads) if small else {}
    weighed = [
        replace(each, left=left, rounding=each.rounding if small else None) for each in _weigh_all(own, readers, gains)
    ]
    limits = [_limit_to_grid(each, own) if bounded and each.clips else _limit(index, each, seen) for each in junctions]
    power = all(layer.weight_spec.power_of_two for layer in scheme.layers)
    found = choose_factors(weighed, limits, power_of_two=power)
    for junction, factors in zip(junctions, found, strict=True):
        scale_junction(model, junction, factors.by_channel, None if bounded else factors.common)
    ends = [(float(each.by_channel.min()), float(each.by_channel.max())) for each in found]
    return {junction.readers[0].input: pair for junction, pair in zip(junctions, ends, strict=True)}


class _Seen:
    """Of one tensor, by channel: mean square, largest magnitude, largest value, and how far few levels should reach."""

    def __init__(self, channels: int) -> None:
        self.squares, self.count = np.zeros(channels), 0
        self.reach, self.most, self.least = np.zeros(channels), np.full(channels, -np.inf), np.inf
        self.some: list[np.ndarray] = []

    def add(self, values: np.ndarray, places: int) -> None:
        """values: (samples, channels, ...), of which about so many places of each sample are kept."""
        flat = values.reshape(*values.shape[:2], -1)
        self.squares += np.einsum("ncx,ncx->c", flat, flat, dtype=np.float64)
        self.count += flat.shape[0] * flat.shape[2]
        high, low = flat.max(axis=(0, 2)), flat.min(axis=(0, 2))
        self.reach, self.most = np.maximum(self.reach, np.maximum(high, -low)), np.maximum(self.most, high)
        self.least = min(self.least, float(low.min()))
        self.some.append(np.moveaxis(flat[:, :, :: choose_step(flat.shape[2], places)], 1, 0).reshape(len(high), -1))

    def reaches(self, rounding: Rounding | None, levels: int) -> np.ndarray:
        """What a grid would reach in each channel, were it alone."""
        if rounding is None:
            return self.reach
        told = np.count_nonzero(np.concatenate(self.some, axis=1), axis=1) >= LEAST_VALUES
        best = STEPS_TRIED[rounding.errors.argmin(1)] * rounding.steps * levels
        return np.where(told, np.minimum(best, self.reach), self.reach)

    def round(self, bits: int) -> Rounding | None:
        """What grids of so few bits leave of each channel; None for 8 bits."""
        if bits >= FULL_BITS:
            return None
        some = np.concatenate(self.some, axis=1)
        found = measure_rounding(some, self.levels(bits))
        # Some values stand for all, of which few may differ from 0.
        share = self.power / np.maximum(np.einsum("cx,cx->c", some, some) / some.shape[1], TINY)
        return replace(found, errors=found.errors * np.minimum(share, MOST_SHARE)[:, None])

    def levels(self, bits: int) -> int:
        """Of a grid of so many bits on one side of zero."""
        return LEVELS if bits >= FULL_BITS else (2**bits if self.least >= 0 else 2 ** (bits - 1)) - 1

    @property
    def power(self) -> np.ndarray:
        return self.squares / max(self.count, 1)


def _measure(
    model: ModelProto, tensors: Iterable[str], samples: CalibrationSet, *, most: int, threads: int
) -> dict[str, _Seen]:
    """The tensors over about ``most`` samples, spread evenly over the set."""
    inputs = {value.name for value in model.graph.input}
    inside = [t for t in dict.fromkeys(tensors) if t not in inputs]
    session = Session(model, also=inside, name="the prepared model", threads=threads)
    found: dict[str, _Seen] = {}
    size = batch_size(session, samples)
    every = max(1, len(samples) // max(most, 1))
    places = max(VALUES * every // len(samples), 1)
    for part in samples.split(size, range(0, len(samples), every)):
        feeds = samples.read(part)
        for tensor, values in {
            **{t: feeds[t] for t in inputs.intersection(tensors)},
            **session.run(feeds, inside),
        }.items():
            found.setdefault(tensor, _Seen(values.shape[1])).add(values, places)
    return found


def _describe(index: Index, layer: LayerScheme, junctions: Sequence[Junction], seen: Mapping[str, _Seen]) -> Equalized:
    """The layer as numbers, with outputs that count as what is relative to the power of all of them."""
    weight, node = known_constant(index, layer.weight).astype(np.float64), index.nodes[layer.name]
    rows = np.abs(np.moveaxis(weight, channel_axis(node), 0))
    taps = rows.reshape(layer.groups, len(rows) // layer.groups, rows.shape[1], -1)
    power = float(seen[layer.output].power.sum())
    power = power if power > LEAST_POWER else 1.0  # samples that are all black say nothing of the outputs
    given, bits = seen[layer.input], layer.activation_spec.bits
    rounding = given.round(bits)
    before, read = _find_junction(junctions, layer.input)
    after, written = _find_junction(junctions, layer.output)
    return Equalized(
        peaks=taps.max(axis=3),
        squares=(taps**2).sum(axis=3),
        taps=taps.shape[3],
        powers=given.power,
        reaches=given.reaches(rounding, given.levels(bits)),
        weights=np.full(len(rows), 1 / power),
        before=before,
        after=after,
        read=read,
        written=written,
        weight_levels=2 ** (min(layer.weight_spec.bits, FULL_BITS) - 1) - 1,
        input_levels=given.levels(bits),
        by_row=layer.weight_spec.axis is not None,
        rounding=rounding,
    )


def _find_junction(junctions: Sequence[Junction], tensor: str) -> tuple[int | None, int]:
    """The number of the junction that a tensor is in, and which of its channels is the tensor's first."""
    found = ((i, each.tensors[tensor].start or 0) for i, each in enumerate(junctions) if tensor in each.tensors)
    return next(found, (None, 0))


def _weigh_all(
    own: Mapping[str, Equalized], readers: Mapping[str, Mapping[str, int]], gains: Mapping[str, Gains]
) -> list[Equalized]:
    """The layers with how much their errors count: by their gains, or else by what the layers behind make of them."""
    if gains:
        return [replace(own[name], gains=gains[name].inputs, weights=gains[name].outputs) for name in readers]
    return [
        replace(own[name], weights=_weigh(own[name], [(own[each], first) for each, first in behind.items()]))
        for name, behind in readers.items()
    ]


def _weigh(layer: Equalized, readers: Sequence[tuple[Equalized, int]]) -> np.ndarray:
    """How much the error of each output counts: by what it adds to the outputs of the layers that read it.

    readers: each with the number of the output that it reads first. A layer that none reads counts its outputs alike.
    """
    if not readers:
        return layer.weights
    weights = np.zeros_like(layer.weights)
    for each, first in readers:
        columns = (each.squares * each.weights.reshape(*each.peaks.shape[:2], 1)).sum(axis=1).reshape(-1)
        start, stop = max(first, 0), min(first + len(columns), len(weights))
        weights[start:stop] += columns[start - first : stop - first]
    return weights


def _limit_to_grid(junction: Junction, layers: Mapping[str, Equalized]) -> Limits:
    """Factors with which no channel's grid reaches further than the widest of them does without.

    Where that ends no channel's bound, times its factor, lies below: a grid that ends there has the Clip's effect. A
    depthwise layer's rows take any factors, so that all channels of what it alone reads reach as far.
    """
    readers = [layers[each.name] for each in junction.readers]
    reaches = np.max([each.reaches for each in readers], axis=0)
    widest = min(float(reaches.max()), junction.bound)
    most = np.maximum(widest / np.maximum(reaches, widest / MOST_FACTOR), 1.0)
    free = all(each.by_row and each.peaks.shape[2] == 1 for each in readers)
    return Limits(most, np.zeros(most.size, bool), least=most if free else widest / junction.bound)


def _limit(index: Index, junction: Junction, seen: Mapping[str, _Seen]) -> Limits:
    """The most that channels may be multiplied by, so that none reaches the bound of a Clip behind it."""
    around = [*(each.output for each in junction.makers), *(each.input for each in junction.readers)]
    most = np.full(max((junction.tensors[t].start or 0) + seen[t].power.size for t in around), np.inf)
    for name in junction.clips:
        given = index.nodes[name].input[0]
        peaks, own = np.maximum(seen[given].most, np.finfo(np.float32).tiny), junction.tensors[given]
        most[own] = np.minimum(most[own], junction.bound / (MARGIN * peaks))
    return Limits(np.maximum(most, 1.0), most < 1)
