"""Smoothing: range moves from the channels of activations into weights, where that brings the outputs nearer.

In a transformer a few channels of what norms and feed-forwards give reach twenty times as far as the others, which one
grid leaves few levels. The exponent of SmoothQuant (Xiao et al. 2023, eq. 4) is one for the whole model: it is chosen
by the outputs on samples that the factors were not made from, with the layers' weights and inputs rounded. By the error
of single layers it is chosen worse: rare large tokens decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from onnx import ModelProto

from ..config import FULL_BITS
from ..data import CalibrationSet
from ..graph.factors import add_factors, feed_factors, feed_weight
from ..graph.index import Index, known_constant
from ..graph.passes.smooth import Smoothable, find_smoothable, smooth
from ..numeric.histogram import Histogram
from ..numeric.ranges import choose_grid
from ..numeric.smooth import smoothing_factors
from ..runtime.session import Session
from ..spec import LayerScheme, QParams, QuantScheme, QuantSpec
from .calibrate import BATCH_BYTES, batch_size
from .output_parts import Parts
from .output_tally import OutputTally
from .padding_mask import PaddingMask, find_real

if TYPE_CHECKING:
    from .prepared import Prepared

# On MiniLM-L6 the sum of all errors is least at 0.8, and 1 dB more at 0.65 and at 1.
EXPONENTS = (0.5, 0.65, 0.8, 0.95)
# The search starts at this one, and goes on to each side as long as the outputs gain.
FIRST_EXPONENT = EXPONENTS.index(0.8)
# Samples from which the factors are made, and others by which the exponent is chosen. Of MiniLM-L6, factors of 64 leave
# 0.3 dB less, of 256 0.3 dB more.
PEAK_SAMPLES, CHOICE_SAMPLES = 128, 16
# What the outputs must gain on the samples of the choice, in dB.
LEAST_GAIN_DB = 0.5
# Weights of more integers than these are not tried: a run would hold them beside the model.
MOST_WEIGHTS = 2**29
SMOOTHING = "smoothing"  # the record in the checkpoints
SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Smoothing:
    """What was chosen for a model, and how it was done.

    exponent: None where the outputs gain nothing. factors: activation -> (channels,), empty without an exponent.
    decibels: exponent that was tried, or "off" -> the least SQNR of an output with it. layers: activation -> the layers
    that read it. muls: activation -> the Mul in front of the layers, None where what makes the activation takes the
    factors.
    """

    exponent: float | None
    factors: dict[str, np.ndarray]
    decibels: dict[str, float]
    layers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    muls: dict[str, str | None] = field(default_factory=dict)

    @property
    def ends(self) -> dict[str, tuple[float, float]]:
        """Activation -> its least and its greatest factor."""
        return {tensor: (float(each.min()), float(each.max())) for tensor, each in self.factors.items()}

    def describe(self) -> str:
        """What was chosen, in one line."""
        told = ", ".join(f"{name} {value:.1f}" for name, value in self.decibels.items())
        chosen = "none" if self.exponent is None else f"exponent {self.exponent:g} for {len(self.muls)} activations"
        return f"smoothing: {chosen}; dB of the worst output by these layers' weights and inputs alone: {told}"

    def record(self) -> dict[str, Any]:
        """What the report has of it: the exponent, the dB of each that was tried, and for each activation the rest."""
        smoothed = [{"tensor": t, "layers": self.layers[t], "mul": mul} for t, mul in self.muls.items()]
        return {"exponent": self.exponent, "tried_db": self.decibels, "smoothed": smoothed}


def smooth_inputs(prepared: Prepared, scheme: QuantScheme) -> Smoothing | None:
    """Smooth what layers read, where the outputs gain by it; changes the model, which then needs a new scheme.

    None where nothing was tried: without norms in front of layers, with weights of less than 8 bits or activations of
    16, for a target whose device may round what a Mul gives, and where the settings say so.
    """
    run, config = prepared.run, prepared.config
    if config.smoothing == "off" or not run.target.is_onnxruntime or config.wide:
        return None
    model = prepared.model
    found = find_smoothable(model, scheme)
    layers = [layer for each in found for layer in each.layers]
    # With fewer bits, weights lose more by the range that they take than activations gain.
    if any(layer.weight_spec.bits != FULL_BITS for layer in layers):
        return None
    index = Index(model.graph)
    weights = sum(math.prod(index.initializers[layer.weight].dims) for layer in layers)
    if weights > MOST_WEIGHTS:
        run.leave_out("smoothing", f"the weights behind norms are {weights:,}, and {MOST_WEIGHTS:,} are tried at most")
    if not found or weights > MOST_WEIGHTS:
        return None
    chosen = run.checkpoints.find(SMOOTHING, Smoothing)
    if chosen is None:
        chosen = _Trial(model, found, prepared.samples, prepared.parts, run.threads).choose()
    if chosen.exponent is not None:
        muls = {each.tensor: smooth(model, each, chosen.factors[each.tensor]) for each in found}
        names = {each.tensor: tuple(layer.name for layer in each.layers) for each in found}
        chosen = replace(chosen, layers=names, muls=muls)
    run.observer.note(chosen.describe())
    return chosen


class _Batch(NamedTuple):
    feeds: dict[str, np.ndarray]
    outputs: Mapping[str, Any]


class _Trial:
    """The float model's activations on some samples, its outputs on others, and a session that tries factors."""

    def __init__(
        self, model: ModelProto, found: Sequence[Smoothable], samples: CalibrationSet, parts: Parts, threads: int
    ) -> None:
        self.model, self.found, self.samples, self.parts, self.threads = model, found, samples, parts, threads
        self.index, self.padding = Index(model.graph), PaddingMask(model)
        self.peaks: dict[str, np.ndarray] = {}
        self.values: dict[str, np.ndarray] = {}
        self.batches: list[_Batch] = []

    def choose(self) -> Smoothing:
        """The exponent that leaves the outputs most, or none."""
        self._look()
        if not all(np.isfinite(each).all() for each in self.peaks.values()):  # as calibration tells
            return Smoothing(None, {}, {})
        readers = {each.tensor: [layer.name for layer in each.layers] for each in self.found}
        dynamic = {each.tensor for each in self.found if each.dynamic}
        session = Session(add_factors(self.model, readers, dynamic), threads=self.threads)
        weights = {layer.name: np.abs(self._read(layer)).max(axis=1) for each in self.found for layer in each.layers}
        off = self._measure(session, {t: np.ones(peaks.shape, np.float32) for t, peaks in self.peaks.items()})
        tried: dict[int, tuple[float, dict[str, np.ndarray]]] = {}

        def measure(number: int) -> float:
            """What the outputs have with the exponent of this number, which is tried once."""
            if number not in tried:
                factors = self._make_factors(weights, EXPONENTS[number])
                tried[number] = self._measure(session, factors), factors
            return tried[number][0]

        best = FIRST_EXPONENT
        for step in (1, -1):
            while 0 <= best + step < len(EXPONENTS) and measure(best + step) > measure(best):
                best += step
        told = {"off": off, **{f"{EXPONENTS[number]:g}": tried[number][0] for number in sorted(tried)}}
        if measure(best) > off + LEAST_GAIN_DB:
            return Smoothing(EXPONENTS[best], tried[best][1], told)
        return Smoothing(None, {}, told)

    def _look(self) -> None:
        """Read the activations of some samples, and the outputs on others."""
        tensors = [each.tensor for each in self.found]
        session = Session(self.model, also=tensors, name="the prepared model", threads=self.threads)
        size = batch_size(session, self.samples)
        order = np.arange(len(self.samples))
        ours, others = (order[::2], order[1::2]) if len(order) >= 2 * CHOICE_SAMPLES else (order, order)
        seen, held = _spread(ours, PEAK_SAMPLES), _spread(others, CHOICE_SAMPLES)
        room = BATCH_BYTES // max(len(self.samples.split(size, seen)), 1)
        rows: dict[str, list[np.ndarray]] = {tensor: [] for tensor in tensors}
        for run in self.samples.split(size, seen):
            feeds = self.samples.read(run)
            values = session.run(feeds, tensors)
            width = sum(value.shape[-1] for value in values.values()) * 4
            for tensor, value in values.items():
                rows[tensor].append(self._take(tensor, value, find_real(feeds), room // width))
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

    def _make_factors(self, weights: Mapping[str, np.ndarray], exponent: float) -> dict[str, np.ndarray]:
        """Factors of all activations; weights: the largest magnitude in each row of each layer's weight."""
        return {
            each.tensor: smoothing_factors(self.peaks[each.tensor], [weights[k.name] for k in each.layers], exponent)
            for each in self.found
        }

    def _read(self, layer: LayerScheme) -> np.ndarray:
        """The weight of a layer, (inputs, outputs)."""
        weight = known_constant(self.index, layer.weight)
        return weight if layer.axis == 1 else weight.T

    def _choose_grid(self, tensor: str, factor: np.ndarray) -> QParams:
        histogram = Histogram()
        histogram.add(self.values[tensor] * factor.astype(np.float32))
        return choose_grid(histogram, QuantSpec(FULL_BITS))

    def _measure(self, session: Session, factors: Mapping[str, np.ndarray]) -> float:
        """The least SQNR of an output, with the weights of these factors and the inputs rounded."""
        given: dict[str, np.ndarray] = {}
        for each in self.found:
            factor = factors[each.tensor]
            given |= feed_factors(each.tensor, factor, None if each.dynamic else self._choose_grid(each.tensor, factor))
            for layer in each.layers:
                integers, steps = _round(self._read(layer) / factor[:, None])
                given |= feed_weight(layer.name, integers if layer.axis == 1 else integers.T, steps)
        tally = OutputTally(self.padding, self.parts)
        for feeds, outputs in self.batches:
            found = session.run({**feeds, **given}, list(outputs))
            tally.add(outputs, found, self.samples.count(feeds), find_real(feeds))
        records = [part for record in tally.records() for part in (record.parts or (record,))]
        return min((record.sqnr_db for record in records if record.sqnr_db is not None), default=-np.inf)


def _round(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integers of a weight (inputs, outputs), and the scale of each output."""
    most = QuantSpec(FULL_BITS, signed=True).qmax
    steps = np.maximum(np.abs(weight).max(axis=0), SMALLEST) / most
    return np.rint(weight / steps), steps


def _spread(indices: np.ndarray, most: int) -> list[int]:
    """At most so many of the indices, evenly spread."""
    places = np.linspace(0, len(indices) - 1, min(most, len(indices))).round().astype(int)
    return [int(index) for index in indices[places]]
