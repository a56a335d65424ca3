"""Rotation: channels of a transformer mixed so that none sticks out, where the outputs gain by that.

A few channels of what norms give reach many times as far as the others, as the sums on the residual stream do. An
orthogonal matrix spreads them over all channels (Ashkboos et al. 2024, QuaRot). It is folded into the weights around,
on residual streams one that keeps means, so that norms stay what they are; and one into the layers in front of and
behind the values of attention's heads. No operator is added. Whether a model gains is measured, each side with the
smoothing that leaves it most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from onnx import ModelProto

from ..config import FULL_BITS
from ..graph.edit import copy_model
from ..graph.heads import Heads, find_heads
from ..graph.index import Index, has_bodies, is_op
from ..graph.norm_sums import NORMS
from ..graph.passes.rotate import rotate_heads, rotate_stream
from ..graph.passes.smooth import find_products, find_smoothable
from ..graph.residual_stream import Shape, Stream, find_streams
from ..numeric.rotation import turn, turn_keeping_ones
from ..runtime.session import Session, is_float
from ..spec import QuantScheme
from .shared_weights import Factors
from .smoothing import MOST_WEIGHTS, Smoothing, Trial, smooth_inputs
from .tensor_shapes import measure_shapes

if TYPE_CHECKING:
    from .prepared import Prepared

ROTATION = "rotation"  # the record in the checkpoints
# What the outputs must gain on the samples of the choice, in dB.
LEAST_GAIN_DB = 0.5
# The largest change of an output in float32, in units of its largest value.
MOST_CHANGE = 1e-4
SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Rotation:
    """What was found, and whether it was done.

    streams, heads: how many can be rotated. decibels: "off" and "on" -> the least SQNR of an output, each with its
    best smoothing. smoothing: that of the rotated model; None where the model is not rotated.
    """

    streams: int
    heads: int
    decibels: dict[str, float]
    smoothing: Smoothing | None

    @property
    def count(self) -> int:
        """How many streams and attentions are rotated."""
        return 0 if self.smoothing is None else self.streams + self.heads

    def describe(self) -> str:
        """What was chosen, in one line."""
        told = ", ".join(f"{name} {value:.1f}" for name, value in self.decibels.items())
        what = f"{self.streams} residual streams and the values of {self.heads} attentions"
        return f"rotation: {what if self.count else 'none'}; dB of the worst output by rounding around them: {told}"

    def record(self) -> dict[str, Any]:
        """What the report has of it."""
        return {"streams": self.streams, "heads": self.heads, "tried_db": self.decibels, "chosen": self.count > 0}


def mix_channels(
    prepared: Prepared, scheme: QuantScheme, *, planned: bool = False, given: Factors | None = None
) -> tuple[Rotation | None, Smoothing | None, QuantScheme]:
    """Rotate what ``rotate`` finds, then smooth what layers read; changes the model, and returns its new scheme.

    planned, given: see ``smooth_inputs``.
    """
    rotation = rotate(prepared, scheme, planned=planned)
    known = None if rotation is None else rotation.smoothing
    scheme = scheme if known is None else prepared.make_widest_scheme()
    smoothing = smooth_inputs(prepared, scheme, planned=planned, given=given, known=known)
    smoothed = smoothing is not None and len(smoothing.muls) > 0
    return rotation, smoothing, prepared.make_widest_scheme() if smoothed else scheme


def rotate(prepared: Prepared, scheme: QuantScheme, *, planned: bool = False) -> Rotation | None:
    """Rotate residual streams and heads, where the outputs gain by it; changes the model, and so its scheme.

    None where nothing can be rotated, for targets whose devices may round otherwise, with layers of 8 bits alone or
    grids that the file does not hold, in models with bodies, and where the settings say so. planned: bits are those of
    a plan, or are to be; nothing is tried then either.
    """
    run, model = prepared.run, prepared.model
    if planned or not _may_rotate(prepared, scheme):
        return None
    feeds = prepared.samples.read(prepared.samples.split(1)[0])
    found = _Found.of(model, measure_shapes(model, feeds, run.threads))
    for norm, why in found.refused.items():
        run.leave_out("rotation", f"of the sums that {norm} reads: {why}")
    if not found.streams and not found.heads:
        return None
    if named := sorted(found.tensors & prepared.config.tensors.keys()):
        run.leave_out("rotation", f"{named[0]} has bits in the settings, and would have another name")
        return None
    chosen = run.checkpoints.find(ROTATION, Rotation) or _choose(prepared, scheme, found, feeds)
    if chosen.count:
        found.rotate(model)
    run.observer.note(chosen.describe())
    return chosen


def _may_rotate(prepared: Prepared, scheme: QuantScheme) -> bool:
    """Whether the settings let anything be rotated, and layers have few bits on grids of the file."""
    run, config, model = prepared.run, prepared.config, prepared.model
    layers = [layer for layer in scheme.layers if layer.on_grid]
    if config.rotation == "off" or not run.target.is_onnxruntime or config.wide or not layers:
        return False
    bits = min(min(layer.weight_spec.bits, layer.activation_spec.bits) for layer in layers)
    dynamic = any(layer.dynamic for layer in scheme.layers)
    own = not run.place and not any(map(has_bodies, model.graph.node))
    normed = any(is_op(node, *NORMS) for node in model.graph.node)
    return own and normed and not dynamic and bits < FULL_BITS and sum(_sizes(model)) <= MOST_WEIGHTS


def _sizes(model: ModelProto) -> list[int]:
    return [math.prod(tensor.dims) for tensor in model.graph.initializer]


class _Found(NamedTuple):
    """All that can be rotated in a model. refused: norm -> why the stream that it reads cannot be."""

    streams: list[Stream]
    heads: list[Heads]
    refused: dict[str, str]

    @classmethod
    def of(cls, model: ModelProto, shapes: Mapping[str, Shape]) -> _Found:
        index = Index(model.graph)
        streams, refused = find_streams(index, shapes)
        return cls(streams, find_heads(index, shapes), refused)

    @property
    def tensors(self) -> frozenset[str]:
        """The activations that are others then."""
        return frozenset().union(*(each.tensors for each in self.streams), *(each.tensors for each in self.heads))

    def rotate(self, model: ModelProto) -> None:
        """Rotate all of them; mutates ``model``."""
        for number, heads in enumerate(self.heads):
            rotate_heads(model, heads, turn(heads.size, number))
        for number, stream in enumerate(self.streams):
            rotate_stream(model, stream, turn_keeping_ones(stream.width, number))


def _choose(prepared: Prepared, scheme: QuantScheme, found: _Found, feeds: Mapping[str, Any]) -> Rotation:
    """Try the model as it is and rotated, each with its best smoothing."""
    streams, heads = len(found.streams), len(found.heads)
    turned = copy_model(prepared.model)
    found.rotate(turned)
    change = _measure_change(prepared.model, turned, feeds, prepared.run.threads)
    if not change <= MOST_CHANGE:
        prepared.run.leave_out("rotation", f"it changes outputs by {change:.1e} of their largest value in float")
        return Rotation(streams, heads, {}, None)
    rotated = replace(prepared, model=turned)
    off, on = _smooth(prepared, scheme), _smooth(rotated, rotated.make_widest_scheme())
    decibels = {name: each.decibels.get(each.name or "off", -np.inf) for name, each in (("off", off), ("on", on))}
    gains = decibels["on"] > decibels["off"] + LEAST_GAIN_DB
    return Rotation(streams, heads, decibels, on if gains else None)


def _smooth(prepared: Prepared, scheme: QuantScheme) -> Smoothing:
    """The best smoothing of a model, by the rounding of all its products with a matrix."""
    model = prepared.model
    taken = {each.tensor for each in find_smoothable(model, scheme, encoding=prepared.config.encoding)}
    every = find_products(model, scheme)
    index = Index(model.graph)
    fixed = {
        each.tensor: np.ones(index.initializers[layer.weight].dims[1 - layer.axis], np.float32)
        for each in every
        for layer in each.layers[:1]
        if each.tensor not in taken
    }
    chosen = Trial(prepared, scheme, every, fixed).choose()
    return replace(chosen, factors={tensor: each for tensor, each in chosen.factors.items() if tensor in taken})


def _measure_change(model: ModelProto, turned: ModelProto, feeds: Mapping[str, Any], threads: int) -> float:
    """The largest change of an output in units of its largest value; NaN where one has values that are not finite."""
    before, after = (Session(each, threads=threads).run(feeds) for each in (model, turned))
    changes = [
        float(np.abs(after[name] - value).max(initial=0) / max(np.abs(value).max(initial=0), SMALLEST))
        for name, value in before.items()
        if is_float(value)
    ]
    return max(changes, default=0.0)
