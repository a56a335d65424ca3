"""Smoothing: range moves from the channels of activations into weights, where that brings the outputs nearer.

In a transformer a few channels of what norms and feed-forwards give reach twenty times as far as the others, which one
grid leaves few levels. 8-bit weights have room for SmoothQuant (Xiao et al. 2023, eq. 4), which evens all channels by
an exponent. With fewer bits, only channels are cut that reach over so many times as far as the median one. The
exponent, or the reach, is one for the whole model: it is chosen by the outputs on other samples than those that the
factors were made from, where there are enough, with the layers' weights and inputs rounded. By the error of single
layers it is chosen worse: rare large tokens decide.

Where each row of the activations has a range of its own, the factors of the best exponent are fitted to what rounding
costs these layers, which is a smooth function of them, and kept where the outputs gain by that too.

Weights are rounded to nearest, or solved where their rounding costs most and layers are reconstructed: rounded to
nearest, they would lose more than in the end, and smoothing, which moves range into or out of them, would be misjudged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..config import FULL_BITS
from ..graph.embeddings import find_tied
from ..graph.factors import add_factors, feed_factors, feed_float_weight, feed_weight
from ..graph.index import Index, known_constant
from ..graph.passes.smooth import Smoothable, find_smoothable, rejoin_weights, smooth
from ..graph.weight_readers import WeightReaders
from ..numeric.histogram import Histogram
from ..numeric.ranges import choose_grid
from ..numeric.rounding import fake_quantize, fake_quantize_rows
from ..numeric.smooth import (
    Steps,
    climb,
    fit_factors,
    reaching_factors,
    round_in_blocks,
    round_weight,
    smoothing_factors,
    solve_weight,
)
from ..runtime.session import Session
from ..spec import LayerScheme, QParams, QuantScheme
from .batches import BATCH_BYTES, batch_size
from .channel_scales import even_factors
from .input_grid import first_layers
from .output_tally import OutputTally
from .padding_mask import PaddingMask, find_real
from .shared_weights import Factors, fix_factors

if TYPE_CHECKING:
    from .prepared import Prepared

# On MiniLM-L6 the sum of all errors is least at 0.8, and 1 dB more at 0.65 and at 1.
EXPONENTS = (0.5, 0.65, 0.8, 0.95)
# How far a channel reaches at most, in units of the median one, where weights have fewer bits. (MiniLM-L6 at W4A8 has
# 14.4 dB without, 14.9 with 8, 15.1 with 4. The exponent 0.8 leaves it 13.8.)
REACHES = (2.0, 4.0, 8.0)
# The search starts at these, and goes on to each side as long as the outputs gain.
FIRST = (0.8, 4.0)
# Samples from which the factors are made, and others by which the exponent is chosen. Of MiniLM-L6, factors of 64 leave
# 0.3 dB less, of 256 0.3 dB more.
PEAK_SAMPLES, CHOICE_SAMPLES = 128, 16
# What the outputs must gain on the samples of the choice, in dB: by an exponent, and by a reach, which changes less.
# (MiniLM-L6 at W4A8: 8 gains 0.4 dB there and 0.5 on other samples.)
LEAST_GAIN_DB, LEAST_GAIN_OF_REACH_DB = 0.5, 0.2
# Rows that weights of few bits are solved on, or factors fitted on, take so many times the bytes of a batch.
MORE_BATCHES = 4
# Weights of more integers than these are not tried: a run would hold them beside the model.
MOST_WEIGHTS = 2**29
SMOOTHING = "smoothing"  # the record in the checkpoints
SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Smoothing:
    """What was chosen for a model, and how it was done.

    exponent, reach: what was chosen, one of them; neither where the outputs gain nothing. fitted: whether the factors
    of the exponent were fitted (``fit_factors``) where each row has a range of its own. given: activations with the
    factors of another graph. factors: activation -> (channels,), empty where nothing was chosen or given. decibels:
    what was tried, by ``name``, or "off" -> the least SQNR of an output with it.
    layers: activation -> the layers that read it. muls: activation -> the Mul in front of the layers, None where what
    makes the activation takes the factors.
    """

    exponent: float | None
    factors: dict[str, np.ndarray]
    decibels: dict[str, float]
    layers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    muls: dict[str, str | None] = field(default_factory=dict)
    reach: float | None = None
    fitted: bool = False
    given: int = 0

    @property
    def name(self) -> str | None:
        """What was chosen, as the file's metadata have it."""
        if self.reach is not None:
            return f"reach {self.reach:g}"
        return None if self.exponent is None else f"{self.exponent:g}{' fitted' if self.fitted else ''}"

    @property
    def by_layer(self) -> dict[str, np.ndarray]:
        """Layer -> the factors (channels,) of the activation that it reads."""
        return {name: self.factors[tensor] for tensor, names in self.layers.items() for name in names}

    @property
    def ends(self) -> dict[str, tuple[float, float]]:
        """Activation -> its least and its greatest factor."""
        return {tensor: (float(each.min()), float(each.max())) for tensor, each in self.factors.items()}

    def describe(self) -> str:
        """What was chosen, in one line."""
        told = ", ".join(f"{name} {value:.1f}" for name, value in self.decibels.items())
        what = f"exponent {self.name}" if self.reach is None else self.name
        chosen = "none" if self.name is None else f"{what} for {len(self.muls)} activations"
        if self.given:
            others = f"; else {chosen}" if self.decibels else ""
            chosen = f"factors of {self.given} activations are those with which their weights are stored{others}"
        if not self.decibels:
            return f"smoothing: {chosen}"
        return f"smoothing: {chosen}; dB of the worst output by these layers' weights and inputs alone: {told}"

    def record(self) -> dict[str, Any]:
        """What the report has of it: the choice, the dB of each that was tried, and for each activation the rest."""
        smoothed = [{"tensor": t, "layers": self.layers[t], "mul": mul} for t, mul in self.muls.items()]
        chosen = {"exponent": self.exponent, "reach": self.reach, "fitted": self.fitted}
        return {**chosen, "tried_db": self.decibels, "smoothed": smoothed}


def smooth_inputs(
    prepared: Prepared,
    scheme: QuantScheme,
    *,
    planned: bool = False,
    given: Factors | None = None,
    known: Smoothing | None = None,
) -> Smoothing | None:
    """Smooth what layers read, where the outputs gain by it; changes the model, which then needs a new scheme.

    None where nothing was tried: without norms in front of layers, with activations of 16 bits, for a target whose
    device may round what a Mul gives, and where the settings say so. planned: bits are those of a plan, or are to be;
    nothing is tried then either. given: factors that layers have in another graph, with whose weights theirs are
    stored; they have the same. known: what was chosen already.
    """
    run, config = prepared.run, prepared.config
    if config.smoothing == "off" or not run.target.is_onnxruntime or config.wide:
        return None
    model = prepared.model
    alone = all(layer.reads_float for layer in scheme.layers)
    found = find_smoothable(model, scheme, find_tied(model).values() if alone else (), config.encoding)
    layers = [layer for each in found for layer in each.layers]
    if found and planned and found[0].block is not None:  # of float activations nobody expects it
        return None
    if found and planned:
        run.leave_out(
            "smoothing", "bits are planned by what layers lose without it; give the bits, and none are planned"
        )
        return None
    index = Index(model.graph)
    weights = sum(math.prod(index.initializers[layer.weight].dims) for layer in layers)
    if weights > MOST_WEIGHTS:
        run.leave_out("smoothing", f"the weights behind norms are {weights:,}, and {MOST_WEIGHTS:,} are tried at most")
    if not found or weights > MOST_WEIGHTS:
        return None
    chosen = known or run.checkpoints.find(SMOOTHING, Smoothing) or _choose(prepared, scheme, found, given or {})
    if chosen.factors:
        several = WeightReaders.find(index, scheme, config.encoding)
        taken = [each for each in found if np.any(chosen.factors.get(each.tensor, np.ones(1)) != 1)]
        muls = {each.tensor: smooth(model, each, chosen.factors[each.tensor]) for each in taken}
        names = {each.tensor: tuple(layer.name for layer in each.layers) for each in taken}
        chosen = replace(chosen, layers=names, muls=muls)
        rejoin_weights(model, several)
    run.observer.note(chosen.describe())
    return chosen


def _choose(prepared: Prepared, scheme: QuantScheme, found: Sequence[Smoothable], given: Factors) -> Smoothing:
    """What leaves the outputs most, of the activations without given factors; the others have these."""
    fixed = fix_factors(Index(prepared.model.graph), {each.tensor: each.layers for each in found}, given)
    if len(fixed) == len(found):
        return Smoothing(None, fixed, {}, given=len(fixed))
    chosen = Trial(prepared, scheme, found, fixed).choose()
    return replace(chosen, factors={**chosen.factors, **fixed}, given=len(fixed))


class _Batch(NamedTuple):
    feeds: dict[str, np.ndarray]
    outputs: Mapping[str, Any]


class Trial:
    """The float model's activations on some samples, its outputs on others, and a session that tries factors."""

    def __init__(
        self,
        prepared: Prepared,
        scheme: QuantScheme,
        found: Sequence[Smoothable],
        fixed: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """fixed: the factors of some activations, which are not chosen."""
        self.model, self.found, self.samples, self.parts = prepared.model, found, prepared.samples, prepared.parts
        self.threads, self.scheme, self.fixed = prepared.run.threads, scheme, fixed or {}
        self.index, self.padding = Index(self.model.graph), PaddingMask(self.model)
        self.peaks: dict[str, np.ndarray] = {}
        self.values: dict[str, np.ndarray] = {}
        self.batches: list[_Batch] = []
        self.unscaled: dict[str, dict[str, np.ndarray]] = {}
        self.reconstructs, self.solves = prepared.config.does("reconstruct"), False
        self.few_bits = any(layer.weight_spec.bits < FULL_BITS for each in found for layer in each.layers)

    def choose(self) -> Smoothing:
        """What leaves the outputs most, or nothing."""
        self._look()
        if not all(np.isfinite(each).all() for each in self.peaks.values()):  # as calibration tells
            return Smoothing(None, {}, {})
        readers = {each.tensor: [layer.name for layer in each.layers] for each in self.found}
        dynamic = {each.tensor for each in self.found if each.dynamic}
        blocks = {each.tensor: each.block for each in self.found if each.block is not None}
        session = Session(add_factors(self.model, readers, dynamic, blocks), threads=self.threads)
        plain = self._plain_factors()
        self.solves = self.reconstructs and self._loses_more_to_weights(plain)
        off = self._measure(session, plain)
        if self.fixed.keys() >= self.peaks.keys():
            return Smoothing(None, {}, {"off": off})
        tried: dict[int, tuple[float, Smoothing]] = {}
        ways = self._list_ways()

        def measure(number: int) -> float:  # once for each
            if number not in tried:
                tried[number] = self._measure(session, ways[number].factors), ways[number]
            return tried[number][0]

        first = next(number for number, way in enumerate(ways) if (way.exponent or way.reach) in FIRST)
        best = climb(len(ways), first, measure)
        told = {"off": off, **{str(ways[number].name): tried[number][0] for number in sorted(tried)}}
        reached, way = measure(best), ways[best]
        if (dynamic or blocks) and way.exponent is not None:
            fitted = self._fit(way)
            told[str(fitted.name)] = by_fit = self._measure(session, fitted.factors)
            reached, way = max((reached, way), (by_fit, fitted), key=lambda each: each[0])
        if reached > off + (LEAST_GAIN_DB if way.reach is None else LEAST_GAIN_OF_REACH_DB):
            return replace(way, decibels=told)
        return Smoothing(None, {}, told)

    def _fit(self, way: Smoothing) -> Smoothing:
        """The same with the factors fitted of all activations whose rows have ranges of their own."""
        fitted = {
            each.tensor: fit_factors(
                self.values[each.tensor],
                [self._read(layer) for layer in each.layers],
                way.factors[each.tensor],
                Steps(each.block, each.layers[0].weight_spec.block),
            )
            for each in self.found
            if each.dynamic or each.block is not None
        }
        return replace(way, factors={**way.factors, **fitted}, fitted=True)

    def _list_ways(self) -> list[Smoothing]:
        """What may be chosen, with the factors of all activations."""
        weights = {layer.name: np.abs(self._read(layer)).max(axis=1) for each in self.found for layer in each.layers}
        if self.few_bits:
            return [
                Smoothing(None, {t: reaching_factors(peaks, reach) for t, peaks in self.peaks.items()}, {}, reach=reach)
                for reach in REACHES
            ]

        def find_factors(exponent: float) -> dict[str, np.ndarray]:
            own = {each.tensor: [weights[layer.name] for layer in each.layers] for each in self.found}
            return {t: smoothing_factors(self.peaks[t], found, exponent) for t, found in own.items()}

        return [Smoothing(exponent, find_factors(exponent), {}) for exponent in EXPONENTS]

    def _look(self) -> None:
        """Read the activations of some samples, and the outputs on others."""
        tensors = [each.tensor for each in self.found]
        session = Session(self.model, also=tensors, name="the prepared model", threads=self.threads)
        size = batch_size(session, self.samples)
        runs = self.samples.split(1)  # of a model of a fixed batch as many samples as it takes
        enough = len(runs) > 1 and len(self.samples) >= 2 * CHOICE_SAMPLES
        ours, others = (runs[::2], runs[1::2]) if enough else (runs, runs)
        seen, held = _spread(ours, PEAK_SAMPLES), _spread(others, CHOICE_SAMPLES)
        more = self.few_bits or not all(layer.on_grid for each in self.found for layer in each.layers)
        room = BATCH_BYTES * (MORE_BATCHES if more else 1) // max(len(self.samples.split(size, seen)), 1)
        rows: dict[str, list[np.ndarray]] = {tensor: [] for tensor in tensors}
        for run in self.samples.split(size, seen):
            feeds = self.samples.read(run)
            values = session.run(feeds, tensors)
            width = sum(value.shape[-1] for value in values.values()) * 4
            for tensor, value in values.items():
                rows[tensor].append(self._take(tensor, value, find_real(feeds), room // width))
        for each in self.found:  # those of the same weights have the same factors
            alike = [other.tensor for other in self.found if other.weights == each.weights]
            self.peaks[each.tensor] = np.max([self.peaks[tensor] for tensor in alike], axis=0)
        self.values = {tensor: np.concatenate(parts) for tensor, parts in rows.items()}
        for run in self.samples.split(size, held):
            feeds = self.samples.read(run)
            self.batches.append(_Batch(feeds, session.run(feeds, self.index.outputs)))

    def _take(self, tensor: str, value: np.ndarray, real: np.ndarray | None, most: int) -> np.ndarray:
        """Take in the largest magnitude of each channel; returns some of the rows."""
        mask = self.padding.mask_of(tensor, value.shape, real, last=False)
        rows = value.reshape(-1, value.shape[-1])
        if mask is not None:
            rows = rows[np.broadcast_to(mask, (*value.shape[:-1], 1)).reshape(-1)]
        peaks = np.abs(rows).max(axis=0, initial=0.0).astype(np.float64)
        self.peaks[tensor] = np.maximum(self.peaks.get(tensor, 0.0), peaks)
        return rows[:: -(-len(rows) // max(most, 1)) or 1].copy()

    def _plain_factors(self) -> dict[str, np.ndarray]:
        """The factors without smoothing, which are those of ``even_channels`` in front of first layers."""
        first = set() if self.samples.images else {layer.name for layer in first_layers(self.index, self.scheme)}
        factors = {tensor: np.ones(peaks.shape, np.float32) for tensor, peaks in self.peaks.items()}
        for each in self.found:
            if each.block is None and first.issuperset(layer.name for layer in each.layers):
                factors[each.tensor] = even_factors(self.peaks[each.tensor]).astype(np.float32)
        return {**factors, **self.fixed}

    def _read(self, layer: LayerScheme) -> np.ndarray:  # (inputs, outputs)
        weight = known_constant(self.index, layer.weight)
        return weight if layer.axis == 1 else weight.T

    def _loses_more_to_weights(self, factors: Mapping[str, np.ndarray]) -> bool:
        """Whether rounding the layers' weights costs more than rounding their inputs, relative to what they give."""
        by_weights = by_inputs = 0.0
        for each in self.found:
            if each.block is not None:  # blocks are never solved here
                continue
            values = self.values[each.tensor] * factors[each.tensor]
            powers, (rounded, _) = np.square(values).mean(axis=0), self._round(each, values)
            errors = np.square(rounded - values).mean(axis=0)
            for layer in each.layers:
                weight = self._read(layer) / factors[each.tensor][:, None]
                steps = np.abs(weight).max(axis=0) / layer.weight_spec.qmax
                squares = np.square(weight).sum(axis=1)
                given = max(float(powers @ squares), SMALLEST)
                by_weights += float(powers.sum() * np.square(steps).sum()) / 12 / given
                by_inputs += float(errors @ squares) / given
        return by_weights > by_inputs

    def _round(self, chosen: Smoothable, values: np.ndarray) -> tuple[np.ndarray, QParams | None]:
        """Values as the layers read them, and their grid; None where each row has one of its own."""
        if chosen.dynamic:
            return fake_quantize_rows(torch.from_numpy(values)).numpy(), None
        histogram = Histogram()
        histogram.add(values)
        grid = choose_grid(histogram, chosen.layers[0].activation_spec)
        return fake_quantize(values, grid.scale, grid.zero_point, grid.spec), grid

    def _measure(self, session: Session, factors: Mapping[str, np.ndarray]) -> float:
        """The least SQNR of an output, with the weights of these factors and the inputs rounded."""
        factors = {**factors, **self.fixed}
        given = {name: value for each in self.found for name, value in self._feed(each, factors[each.tensor]).items()}
        tally = OutputTally(self.padding, self.parts)
        for feeds, outputs in self.batches:
            found = session.run({**feeds, **given}, list(outputs))
            tally.add(outputs, found, self.samples.count(feeds), find_real(feeds))
        records = [part for record in tally.records() for part in (record.parts or (record,))]
        return min((record.sqnr_db for record in records if record.sqnr_db is not None), default=-np.inf)

    def _feed(self, chosen: Smoothable, factor: np.ndarray) -> dict[str, np.ndarray]:
        """What a run reads for an activation and its layers; without factors it is made once."""
        plain = bool((factor == 1).all())
        if plain and chosen.tensor in self.unscaled:
            return self.unscaled[chosen.tensor]
        if chosen.block is not None:
            return self._feed_blocks(chosen, factor)
        values = self.values[chosen.tensor] * factor.astype(np.float32)
        rounded, grid = self._round(chosen, values)
        given = feed_factors(chosen.tensor, factor, grid)
        gram = rounded.T @ rounded / max(len(rounded), 1) if self.solves else None
        for layer in chosen.layers:
            rows, spec = np.ascontiguousarray((self._read(layer) / factor[:, None]).T), layer.weight_spec
            integers, steps = round_weight(rows, spec) if gram is None else solve_weight(rows, gram, spec)
            given |= feed_weight(layer.name, integers.T if layer.axis == 1 else integers, steps)
        if plain:
            self.unscaled[chosen.tensor] = given
        return given

    def _feed_blocks(self, chosen: Smoothable, factor: np.ndarray) -> dict[str, np.ndarray]:
        """The same of float activations, which the session itself rounds."""
        given = feed_factors(chosen.tensor, factor, None)
        for layer in chosen.layers:
            rounded = round_in_blocks((self._read(layer) / factor[:, None]).T, layer.weight_spec)
            given |= feed_float_weight(layer.name, rounded.T if layer.axis == 1 else rounded)
        return given


def _spread(runs: Sequence[list[int]], most: int) -> list[int]:
    """Samples of evenly spread runs: of one, or of as many as have at most so many samples."""
    count = min(max(most // len(runs[0]), 1), len(runs))
    places = np.linspace(0, len(runs) - 1, count).round().astype(int)
    return [sample for place in places for sample in runs[place]]
