"""Rotation: channels of a transformer mixed so that none sticks out, where the outputs gain by that.

A few channels of what norms give reach many times as far as the others, as the sums on the residual stream do. An
orthogonal matrix spreads them over all channels (Ashkboos et al. 2024, QuaRot). It is folded into the weights around,
on residual streams one that keeps means, so that norms stay what they are; and one into the layers in front of and
behind the values of attention's heads. No operator is added. Where it gains more, a MatMul mixes blocks of what a norm
elsewhere or a feed-forward's activation function gives, whose channels have factors first. Whether a model gains is
measured, each side with the smoothing that leaves it most.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from onnx import ModelProto

from ..config import FULL_BITS
from ..graph.channel_norms import find_channel_norms
from ..graph.edit import copy_model
from ..graph.index import Index, has_bodies
from ..graph.passes.rotate import BLOCK, find_rotatable, rotate_input
from ..graph.passes.smooth import find_products, find_smoothable
from ..numeric.rotation import turn
from ..numeric.smooth import smoothing_factors
from ..spec import QuantScheme
from .rotatable import MOST_CHANGE, Rotatable, measure_change
from .shared_weights import Factors
from .smoothing import MOST_WEIGHTS, Smoothing, Trial, smooth_inputs
from .tensor_shapes import measure_shapes

if TYPE_CHECKING:
    from .prepared import Prepared

ROTATION = "rotation"  # the record in the checkpoints
# What the outputs must gain on the samples of the choice, in dB: without another operator, and more by some. (A decoder
# of two layers, none of whose channels stick out, seems to gain 0.7 at W4A8, and loses 0.3 on other samples.)
LEAST_GAIN_DB, LEAST_MIXED_DB = 1.0, 1.0
# Of the largest magnitude of a channel, the exponent of its factor in front of a MatMul that mixes. (In four layers of
# a ViT-S at W4A4, -0.5 leaves 17.4 dB in the mean, 0 15.6.)
EXPONENT = -0.5
MIXES = "it mixes the channels of what a layer of few bits reads"  # why such a MatMul is in float


@dataclass(frozen=True)
class Rotation:
    """What was found, and whether it was done.

    sizes: of the matrices that constants can take, as ``Rotatable`` has them. decibels: "off", "on" without another
    operator, and "mixed" -> the least SQNR of an output, each with its best smoothing. smoothing: that of the rotated
    model; None where the model is not rotated. mixed: activation -> the factors (channels,) in front of a MatMul that
    mixes its channels. left_out: why something was not tried, or not done.
    """

    sizes: dict[str, tuple[int, ...]]
    decibels: dict[str, float]
    smoothing: Smoothing | None = None
    mixed: dict[str, np.ndarray] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def streams(self) -> int:
        """How many residual streams can be rotated."""
        return len(self.sizes["streams"])

    @property
    def heads(self) -> int:
        """The values of how many attentions can be rotated."""
        return len(self.sizes["heads"])

    @property
    def count(self) -> int:
        """How many streams, attentions and inputs of layers are rotated."""
        return 0 if self.smoothing is None else self.streams + self.heads + len(self.mixed)

    def describe(self) -> str:
        """What was chosen, in one line."""
        told = ", ".join(f"{name} {value:.1f}" for name, value in self.decibels.items())
        what = f"residual streams: {self.streams}, values of attentions: {self.heads}"
        what += f", inputs of layers by a MatMul: {len(self.mixed)}" if self.mixed else ""
        return f"rotation: {what if self.count else 'none'}; dB of the worst output by rounding around them: {told}"

    @property
    def told(self) -> str | None:
        """What the file's metadata have of it; None where nothing is rotated."""
        return json.dumps({**self.sizes, "mixed": len(self.mixed)}) if self.count else None

    def record(self) -> dict[str, Any]:
        """What the report has of it."""
        found = {"streams": self.streams, "heads": self.heads, "mixed": sorted(self.mixed)}
        return {**found, "tried_db": self.decibels, "chosen": self.count > 0}


def mix_channels(
    prepared: Prepared, scheme: QuantScheme, *, planned: bool = False, given: Factors | None = None
) -> tuple[Prepared, QuantScheme]:
    """Rotate what ``_rotate`` finds, then smooth what layers read; changes the model, and returns its new scheme.

    planned, given: see ``smooth_inputs``.
    """
    rotation, prepared = _rotate(prepared, scheme, planned=planned)
    known = None if rotation is None else rotation.smoothing
    scheme = scheme if known is None else prepared.make_widest_scheme()
    smoothing = smooth_inputs(prepared, scheme, planned=planned, given=given, known=known)
    if smoothing is not None and smoothing.muls:
        scheme = prepared.make_widest_scheme()
    return replace(prepared, rotation=rotation, smoothing=smoothing), scheme


def _rotate(prepared: Prepared, scheme: QuantScheme, *, planned: bool) -> tuple[Rotation | None, Prepared]:
    """Rotate what can be, where the outputs gain by it; changes the model, and so its scheme.

    None where nothing can be rotated or is to be, see ``_is_wanted`` and ``_refuse``. planned: bits are those of a
    plan, or are to be; nothing is tried then either.
    """
    run, model = prepared.run, prepared.model
    if not _is_wanted(prepared, scheme):
        return None, prepared
    if reason := _refuse(prepared, scheme, planned=planned):
        run.leave_out(ROTATION, reason)
        return None, prepared
    feeds = prepared.samples.read(prepared.samples.split(1)[0])
    found = Rotatable.of(model, measure_shapes(model, feeds, run.threads))
    for norm, why in found.refused.items():
        run.leave_out(ROTATION, f"of the sums that {norm} reads: {why}")
    if named := sorted(found.tensors & prepared.config.tensors.keys()):
        run.leave_out(ROTATION, f"{named[0]} has bits in the settings, and would have another name")
        return None, prepared
    chosen = run.checkpoints.find(ROTATION, Rotation) or _choose(prepared, scheme, found, feeds)
    if chosen is None:
        return None, prepared
    for reason in chosen.left_out:
        run.leave_out(ROTATION, reason)
    if chosen.count:
        found.rotate(model)
        prepared = prepared.leave(_mix(replace(prepared, scheme=prepared.make_scheme()), found, chosen.mixed))
    run.observer.note(chosen.describe())
    return chosen, prepared


def _is_wanted(prepared: Prepared, scheme: QuantScheme) -> bool:
    """Whether the settings let anything be rotated, and layers of few bits read activations behind norms."""
    few = [
        layer
        for layer in scheme.layers
        if not layer.reads_float and min(layer.weight_spec.bits, layer.activation_spec.bits) < FULL_BITS
    ]
    return prepared.config.rotation != "off" and bool(few and find_channel_norms(prepared.model))


def _refuse(prepared: Prepared, scheme: QuantScheme, *, planned: bool) -> str | None:
    """Why nothing is tried although layers have few bits; None where it is."""
    run, model = prepared.run, prepared.model
    weights = sum(_sizes(model))
    for found, reason in (
        (planned, "bits are planned by what layers lose without it; give the bits, and none are planned"),
        (not run.target.is_onnxruntime, "devices of the target may round otherwise than what it is chosen by"),
        (any(layer.dynamic for layer in scheme.layers), "each row of the activations has a range of its own"),
        (run.place or any(map(has_bodies, model.graph.node)), "the model has bodies of If, Loop or Scan"),
        (weights > MOST_WEIGHTS, f"the model has {weights:,} weights, and {MOST_WEIGHTS:,} are tried at most"),
    ):
        if found:
            return reason
    return None


def _sizes(model: ModelProto) -> list[int]:
    return [math.prod(tensor.dims) for tensor in model.graph.initializer]


def _choose(prepared: Prepared, scheme: QuantScheme, found: Rotatable, feeds: Mapping[str, Any]) -> Rotation | None:
    """Try the model as it is, rotated, and with mixed inputs too, each with its best smoothing; None: there is nothing.

    Where the outputs change in float32, the model is left as it is.
    """
    turned = replace(prepared, model=copy_model(prepared.model))
    found.rotate(turned.model)
    turned = replace(turned, scheme=turned.make_widest_scheme())
    inputs = find_rotatable(turned.model, turned.scheme, found.streams, prepared.config.encoding)
    if prepared.config.rotation == "folded":
        inputs = []
    named = [each for each in inputs if each.tensor in prepared.config.tensors]
    left_out = tuple(f"{each.tensor} has bits in the settings, and would have another name" for each in named)
    inputs = [each for each in inputs if each not in named]
    if not found.streams and not found.heads and not inputs:
        for reason in left_out:
            prepared.run.leave_out(ROTATION, reason)
        return None
    off = _smooth(prepared, scheme)
    ways = {"off": off.smoothing}
    ways["on"] = (_smooth(turned, turned.scheme) if found.streams or found.heads else off).smoothing
    factors = {each.tensor: _even(off.peaks[each.tensor]) for each in inputs if each.tensor in off.peaks}
    if factors:
        mixed = replace(turned, model=copy_model(turned.model))
        turned = mixed.leave(_mix(mixed, found, factors))
        ways["mixed"] = _smooth(turned, turned.make_widest_scheme()).smoothing
    change = measure_change(prepared.model, turned.model, feeds, prepared.run.threads)
    decibels = {name: each.decibels.get(each.name or "off", -np.inf) for name, each in ways.items()}
    rotation = Rotation(found.sizes, decibels, left_out=left_out)
    if not change <= MOST_CHANGE:
        why = f"it changes outputs by {change:.1e} of their largest value in float"
        return replace(rotation, left_out=(*left_out, why))
    if decibels.get("mixed", -np.inf) > max(decibels["off"], decibels["on"]) + LEAST_MIXED_DB:
        return replace(rotation, smoothing=ways["mixed"], mixed=factors)
    gains = decibels["on"] > decibels["off"] + LEAST_GAIN_DB
    return replace(rotation, smoothing=ways["on"]) if gains else rotation


def _even(peaks: np.ndarray) -> np.ndarray:
    """The factors (channels,) of an activation that is mixed, of geometric mean 1."""
    found = smoothing_factors(peaks, [np.ones_like(peaks)], -EXPONENT)
    return found


def _mix(prepared: Prepared, found: Rotatable, factors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Mix these activations; changes the model. Returns the MatMuls that do, and why they are in float."""
    model, names = prepared.model, list[str]()
    inputs = find_rotatable(model, prepared.scheme, found.streams, prepared.config.encoding) if factors else []
    for number, each in enumerate(each for each in inputs if each.tensor in factors):
        matrix = turn(BLOCK, number)
        names.append(rotate_input(model, each, factors[each.tensor], matrix, found.ranks[each.tensor]))
    return dict.fromkeys(names, MIXES)


class _Smoothed(NamedTuple):
    """The best smoothing of a model, and the largest magnitude of each channel of what layers read."""

    smoothing: Smoothing
    peaks: Mapping[str, np.ndarray]


def _smooth(prepared: Prepared, scheme: QuantScheme) -> _Smoothed:
    """Try smoothing by the rounding of all products with a matrix."""
    model = prepared.model
    found = find_smoothable(model, scheme, encoding=prepared.config.encoding)
    taken = {each.tensor for each in found} if prepared.config.smoothing != "off" else set()
    every = find_products(model, scheme)
    index = Index(model.graph)
    fixed = {
        each.tensor: np.ones(index.initializers[layer.weight].dims[1 - layer.axis], np.float32)
        for each in every
        for layer in each.layers[:1]
        if each.tensor not in taken
    }
    trial = Trial(prepared, scheme, every, fixed)
    chosen = trial.choose()
    own = {tensor: each for tensor, each in chosen.factors.items() if tensor in taken}
    return _Smoothed(replace(chosen, factors=own), trial.peaks)
