"""Channels of linear bottlenecks are mixed, where few levels of the mixed channels lose less.

Between the last layer of a block and the first ones of those behind it many networks have nothing but Adds: a matrix
goes into the layers in front, its inverse into those behind, and nothing else changes (``numeric.mixing``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from ..config import FULL_BITS
from ..data import CalibrationSet
from ..graph.index import Index, known_constant
from ..graph.layers import channel_axis, find_layers
from ..graph.passes.equalize import find_junctions
from ..graph.passes.mix import find_bottlenecks, mix_bottleneck
from ..numeric.mixing import find_mixing, rounding_ratio
from ..runtime.session import Session
from ..spec import LayerScheme, QuantScheme
from .batches import batch_size, choose_step

# Samples that are looked at, by every second of which the matrix is found; the others decide. Positions of each, about.
MOST_SAMPLES, POSITIONS = 64, 64
# The error of rounding must fall to this share of what it was.
WORTH = 0.95


@dataclass(frozen=True)
class _Reader:
    """What a layer reads: its metric M (K, K), and columns (K, any) of each sample."""

    metric: np.ndarray
    columns: Sequence[np.ndarray]
    levels: int

    @property
    def power(self) -> float:
        return float((self.covariance * self.metric).sum())

    @property
    def covariance(self) -> np.ndarray:
        flat = self.take(0)
        found: np.ndarray = flat @ flat.T / flat.shape[1]
        return found

    def take(self, first: int) -> np.ndarray:
        """The columns (K, any) of every second sample, less their means."""
        flat = np.concatenate(self.columns[first::2], axis=1).astype(np.float64)
        centred: np.ndarray = flat - flat.mean(axis=1, keepdims=True)
        return centred


def mix_bottlenecks(
    model: ModelProto, scheme: QuantScheme, samples: CalibrationSet, threads: int = 0
) -> dict[str, tuple[float, float]]:
    """Mix the channels of bottlenecks that layers of few bits read, where that lowers the error of rounding.

    Returns the least and the greatest entry of each matrix, under the name of a tensor of the bottleneck.
    """
    few = {layer.name: layer for layer in scheme.layers if layer.activation_spec.bits < FULL_BITS}
    index = Index(model.graph)
    layers = {layer.name: layer for layer in find_layers(model, index, FULL_BITS, FULL_BITS)}
    junctions = find_bottlenecks(model, layers) if few else []
    junctions = [each for each in junctions if all(layer.name in few for layer in each.readers)]
    if not junctions or len(samples) < 2:
        return {}
    ends = {t for each in junctions for t in each.tensors}
    weights = _weigh_outputs(index, layers, find_junctions(model, layers)[1], ends)
    seen = _read_columns(model, sorted({layer.input for each in junctions for layer in each.readers}), samples, threads)
    found: dict[str, tuple[float, float]] = {}
    for junction in junctions:
        readers = [
            _Reader(
                _find_metric(index, layer, weights[layer.name]),
                seen[layer.input],
                2 ** few[layer.name].activation_spec.bits,
            )
            for layer in junction.readers
        ]
        matrix = _find_matrix(readers)
        if matrix is not None:
            mix_bottleneck(model, junction, matrix)
            # Other signs of its directions give a matrix of the same singular values, and a tensor of other ranges.
            found[junction.readers[0].input] = (float(matrix.min()), float(matrix.max()))
    return found


def _find_matrix(readers: Sequence[_Reader]) -> np.ndarray | None:
    """The matrix for all readers, None where it is not worth it on the samples that it was not found by."""
    readers = [each for each in readers if each.power > 0]
    if not readers:
        return None
    matrix = find_mixing(
        sum((each.covariance / np.trace(each.covariance) for each in readers), start=np.zeros(1)),
        sum((each.metric * (np.trace(each.covariance) / each.power) for each in readers), start=np.zeros(1)),
    )
    inverse, changes = np.linalg.inv(matrix), list[float]()
    for each in readers:
        held_out = each.take(1)
        # Factors alone can make channels vary alike.
        spread = np.sqrt(np.diag(each.covariance)) + np.finfo(np.float32).tiny
        before = rounding_ratio(held_out / spread[:, None], each.metric * np.outer(spread, spread), each.levels)
        after = rounding_ratio(matrix @ held_out, inverse.T @ each.metric @ inverse, each.levels)
        changes.append(math.log(max(after, 1e-12) / max(before, 1e-12)))
    return matrix if np.mean(changes) < math.log(WORTH) else None


def _read_columns(
    model: ModelProto, tensors: Sequence[str], samples: CalibrationSet, threads: int
) -> dict[str, list[np.ndarray]]:
    """Each tensor at some positions of some samples, (K, positions) of each."""
    session = Session(model, also=[*tensors], name="the prepared model", threads=threads)
    every = max(1, len(samples) // MOST_SAMPLES)
    found: dict[str, list[np.ndarray]] = {tensor: [] for tensor in tensors}
    for part in samples.split(batch_size(session, samples), range(0, len(samples), every)):
        for tensor, values in session.run(samples.read(part), [*tensors]).items():
            flat = values.reshape(*values.shape[:2], -1)
            found[tensor].extend(flat[:, :, :: choose_step(flat.shape[2], POSITIONS)].copy())
    return found


def _find_metric(index: Index, layer: LayerScheme, weights: np.ndarray) -> np.ndarray:
    """``W^T diag(weights) W`` of a layer of one group, summed over its taps, (K, K)."""
    weight = known_constant(index, layer.weight).astype(np.float64)
    taps = np.moveaxis(weight.reshape(*weight.shape[:2], -1), 2, 0)
    found: np.ndarray = np.einsum("tok,o,toj->kj", taps, weights, taps, optimize=True)
    return found


def _weigh_outputs(
    index: Index, layers: Mapping[str, LayerScheme], readers: Mapping[str, Mapping[str, int]], ends: set[str]
) -> dict[str, np.ndarray]:
    """How much the error of each output counts: by what layers make of it up to the next bottleneck, each output alone.

    layers: all, in graph order. readers: of each layer, as ``find_junctions`` has them: a shortcut has some in front of
    the layer too.
    """
    found: dict[str, np.ndarray] = {}
    for name in reversed([each for each in layers if each in readers]):
        layer = layers[name]
        count = known_constant(index, layer.weight).shape[channel_axis(index.nodes[name])]
        later = {each: first for each, first in readers[name].items() if each in found}
        if not later or layer.output in ends:
            found[name] = np.ones(count)
            continue
        found[name] = np.zeros(count)
        for each, first in later.items():
            columns = _sum_columns(index, layers[each], found[each])
            start, stop = max(first, 0), min(first + len(columns), count)
            found[name][start:stop] += columns[start - first : stop - first]
    return found


def _sum_columns(index: Index, layer: LayerScheme, weights: np.ndarray) -> np.ndarray:
    """What a layer makes of an error in each of its inputs alone, with these weights of its outputs."""
    weight = known_constant(index, layer.weight).astype(np.float64)
    rows = np.moveaxis(weight, channel_axis(index.nodes[layer.name]), 0)
    squares = np.square(rows).reshape(layer.groups, len(rows) // layer.groups, rows.shape[1], -1).sum(3)
    found: np.ndarray = (squares * weights.reshape(layer.groups, -1, 1)).sum(1).reshape(-1)
    return found
