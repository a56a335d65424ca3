"""Tensors of unlike ranges that a Concat joins: the smaller ones are scaled up, which the layers behind it undo.

On one grid the range of one would leave few of the 256 levels to another. All factors are powers of two, so that
nothing is rounded, and in the file the scales of grids take them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from onnx import ModelProto

from ..config import FULL_BITS
from ..data import CalibrationSet
from ..graph.fusion import rectified
from ..graph.index import Index, attribute_of, is_op, known_constant
from ..graph.layers import find_layers
from ..graph.passes.even_joins import Ahead, factors_of, group_joins, look_ahead, scale_joined
from ..runtime.session import Session
from ..spec import LayerScheme, QuantScheme

# Ranges that differ less cost the smaller one less than 2 of 8 bits.
UNLIKE = 4.0
# Ranges that differ more leave the smaller one less than 4 of 8 bits.
MOST_UNLIKE = 16.0
# The error that scaling must leave, as a share of that without, in one of the layers behind a Concat; in none it may
# grow, with weights of 8 bits or of the fewest.
LEAST_GAIN, FEWEST_BITS = 0.5, 4
# Samples on which ranges are looked at, and how many at once: their factors are rounded to powers of two.
SAMPLES, AT_ONCE = 8, 4


class Joined(NamedTuple):
    """A tensor that a Concat joins: the least and the largest value and the mean square of each channel."""

    low: np.ndarray
    high: np.ndarray
    squares: np.ndarray

    @property
    def peak(self) -> float:
        return float(max(-self.low.min(), self.high.max()))

    def times(self, factors: np.ndarray) -> Joined:
        return Joined(self.low * factors, self.high * factors, self.squares * factors**2)


def even_joins(model: ModelProto, scheme: QuantScheme, samples: CalibrationSet, threads: int = 0) -> Mapping[str, str]:
    """Scale what Concats join, where ranges are unlike and layers alone read it: Concat -> what was found, in one line.

    That changes ``model``, which then needs a new scheme. What layers give stays as it is.
    """
    done: dict[str, str] = {}
    index = Index(model.graph)
    joins = [node for node in model.graph.node if is_op(node, "Concat")]
    names = [node.name for node in joins if rectified(index, node.output[0]) in scheme.activations]
    joined = _measure(model, names, samples, threads) if names else {}
    sizes = {tensor: each.squares.size for tensor, each in joined.items()}
    groups = group_joins(index, names)
    singles = [[name] for joint in groups if len(joint) > 1 for name in joint]
    # A group with a reader that needs the values as they are may have Concats without.
    for group in [*groups, *singles]:
        index = Index(model.graph)
        if group[0] in done or not all(sizes.get(t) for name in group for t in index.nodes[name].input):
            continue
        layers = {layer.name: layer for layer in find_layers(model, index, FULL_BITS, FULL_BITS)}
        ahead = look_ahead(index, layers, group, sizes)
        if ahead is None:
            continue
        parts = {leaf: joined[leaf] for leaf in ahead.leaves}
        factors = _choose_factors(parts)
        if max(factors.values()) < UNLIKE or not _gains(index, parts, factors, ahead):
            continue
        least, most = max(factors, key=factors.__getitem__), min(factors, key=factors.__getitem__)
        times = joined[most].peak / joined[least].peak
        found = (
            f"{group[-1]}: {most} reaches {times:,.0f} times as far as {least}; they are scaled alike in front of it"
        )
        done |= dict.fromkeys(group, found)
        factor = ahead.repeat(factors)
        for old, new in scale_joined(model, index, group, factors, ahead).items():
            if old in joined:
                joined[new] = joined[old].times(factors_of(ahead.tensors[old], factor))
                sizes[new] = sizes[old]
    return done


def find_unlike_joins(model: ModelProto, scheme: QuantScheme, samples: CalibrationSet, threads: int = 0) -> list[str]:
    """Concats with a grid that join ranges which differ more than MOST_UNLIKE-fold, each as one line."""
    index = Index(model.graph)
    names = [n.name for n in index.nodes.values() if is_op(n, "Concat") and n.output[0] in scheme.activations]
    joined = _measure(model, names, samples, threads) if names else {}
    lines = []
    for name in names:
        peaks = {t: joined[t].peak for t in index.nodes[name].input if t in joined and joined[t].peak > 0}
        most, least = (choose(peaks, key=peaks.__getitem__, default="") for choose in (max, min))
        if peaks and (times := peaks[most] / peaks[least]) > MOST_UNLIKE:
            lines.append(
                f"{name}: {most} reaches {times:,.0f} times as far as {least}, and the Concat gives both on one grid;"
                f" at most {MOST_UNLIKE:g} times leaves the smaller one enough levels; scale it up in the model, or"
                " exclude the Concat"
            )
    return lines


def _choose_factors(parts: Mapping[str, Joined]) -> dict[str, float]:
    """Powers of two that bring the parts up to the largest, and not beyond it: its own grid does not change."""
    most = max(each.peak for each in parts.values())
    return {
        leaf: float(2.0 ** np.floor(np.log2(most / each.peak))) if each.peak > 0 else 1.0
        for leaf, each in parts.items()
    }


def _gains(index: Index, parts: Mapping[str, Joined], factors: Mapping[str, float], ahead: Ahead) -> bool:
    """Whether scaling leaves some layer clearly less error, and none more, as far as uniform errors tell."""
    factor = ahead.repeat(factors)
    before = Joined(*(np.concatenate(values) for values in zip(*parts.values(), strict=True)))
    after = before.times(factor)
    shares = [
        _error(index, layer, at, after, factor, bits=bits)
        / _error(index, layer, at, before, np.ones_like(factor), bits=bits)
        for layer, at in ahead.layers
        for bits in (FULL_BITS, FEWEST_BITS)
    ]
    return bool(np.max(shares) <= 1 and np.min(shares[::2]) <= LEAST_GAIN)


def _error(
    index: Index, layer: LayerScheme, channels: np.ndarray, values: Joined, factor: np.ndarray, *, bits: int
) -> float:
    """The squared error of a layer's outputs by its input's 256 levels and by weights of these bits, up to a factor.

    Of the channels that come from the Concat; others have the same error on either side but for their weights' steps.
    """
    weight = known_constant(index, layer.weight).astype(np.float64)
    rows = np.moveaxis(weight, layer.axis, 0)
    if layer.op == "Conv":
        # By group: (groups, outputs, inputs, kernel).
        rows = rows.reshape(layer.groups, -1, rows.shape[1], int(np.prod(rows.shape[2:])))
    else:
        rows = rows[None, :, :, None]
    own = channels >= 0
    scale = np.where(own, factor[channels], 1.0).reshape(layer.groups, 1, -1, 1)
    rows = rows / scale
    step = (max(values.high.max(), 0) - min(values.low.min(), 0)) / (2**FULL_BITS - 1)
    here = own.reshape(layer.groups, 1, -1, 1)
    of_input = (rows**2 * here).sum() * step**2
    weight_steps = np.abs(rows).max(axis=(2, 3)) / (2 ** (bits - 1) - 1)
    squares = np.where(own, values.squares[channels], 0.0).reshape(layer.groups, 1, -1)
    of_weight = (weight_steps**2 * squares.sum(axis=2)).sum() * rows.shape[3]
    return float(of_input + of_weight) or np.finfo(float).tiny


def _measure(model: ModelProto, names: Sequence[str], samples: CalibrationSet, threads: int) -> dict[str, Joined]:
    """What the Concats join, on some samples; without tensors that are not of one number of channels."""
    index = Index(model.graph)
    axes = {t: attribute_of(index.nodes[n], "axis", 0) for n in names for t in index.nodes[n].input}
    wanted = [tensor for tensor in axes if tensor not in index.initializers]
    inside = [tensor for tensor in wanted if tensor not in index.inputs]
    session = Session(model, also=inside, name="the prepared model", threads=threads)
    found: dict[str, Joined] = {
        tensor: _look(known_constant(index, tensor), axis) for tensor, axis in axes.items() if tensor not in wanted
    }
    for run in samples.split(AT_ONCE)[: -(-SAMPLES // (samples.fixed_batch or AT_ONCE))]:
        feeds = samples.read(run)
        values = session.run(feeds, inside)
        for tensor, value in {**values, **{t: feeds[t] for t in wanted if t in feeds}}.items():
            seen = _look(value, axes[tensor])
            if (known := found.setdefault(tensor, seen)).squares.size == seen.squares.size:
                found[tensor] = Joined(
                    np.minimum(known.low, seen.low),
                    np.maximum(known.high, seen.high),
                    np.maximum(known.squares, seen.squares),
                )
    return {tensor: each for tensor, each in found.items() if np.isfinite(each.squares).all() and each.squares.size}


def _look(values: np.ndarray, axis: int) -> Joined:
    if not values.size or not -values.ndim <= axis < values.ndim:
        empty = np.zeros(0)
        return Joined(empty, empty, empty)
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)
    return Joined(rows.min(axis=1), rows.max(axis=1), (rows**2).mean(axis=1))
