"""Lossless input grids: 8-bit grids on the levels of what the first layers read, where these have few levels.

The pixels of an image have 256 levels a channel. Normalization by a mean and a deviation of each channel moves them off
any grid of one scale a tensor, and on the ResNets half of what 8 bits lost was lost there, at the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from onnx import ModelProto

from ..config import FULL_BITS
from ..data import CalibrationSet
from ..graph.extract import extract, infer_types, needed_inputs, needed_nodes
from ..graph.fusion import moves_values
from ..graph.index import Index
from ..graph.passes.rescale import can_rescale, rescale_input
from ..numeric.histogram import Histogram
from ..numeric.levels import Levels, find_levels, shared_grid, stretch
from ..runtime.session import Session
from ..spec import LayerScheme, QParams, QuantScheme
from .padding_mask import PaddingMask, find_real, select

# Samples from all over the set in which levels are looked for, a few at a time.
LEVEL_SAMPLES, LEVEL_BATCH = 32, 4


class LosslessGrids(NamedTuple):
    """Grids of tensors that hold their levels without error; rescaled: layers that were made to read other units."""

    grids: Mapping[str, QParams]
    rescaled: int


def find_lossless_grids(
    model: ModelProto, scheme: QuantScheme, samples: CalibrationSet, padding: PaddingMask, threads: int = 0
) -> LosslessGrids:
    """The grids on which the first layers read the levels of their inputs without error, by some of the samples.

    Where no grid of one scale does, the layer is made to read its input in units of the levels, if it can. That changes
    ``model``, which then needs another scheme. ``keep_lossless`` drops the grids that do not hold all samples.
    """
    index = Index(model.graph)
    types = infer_types(model)
    names = {layer.name for layer in scheme.layers}
    found: dict[tuple[str, bool], Levels | None] = {}
    fixed: dict[str, QParams] = {}
    rewritten = 0
    for layer in (layer for layer in scheme.layers if not layer.reads_float):
        before = needed_nodes(index, index.inputs, [layer.input])
        spec = scheme.activations[layer.input]
        own_grid = layer.activation_spec == spec and spec.bits >= FULL_BITS and layer.input not in scheme.nonnegative
        if before & names or not own_grid:
            continue
        key = (layer.input, layer.op == "Conv")
        if key not in found:
            inputs = needed_inputs(index, index.inputs, [layer.input])
            subgraph = extract(model, types, inputs=inputs, outputs=[layer.input])
            found[key] = _read_levels(layer, _values(subgraph, samples, threads, padding))
        levels = found[key]
        if levels is None:
            continue
        grid, units = shared_grid(levels, spec), stretch(levels, spec)
        members = next((m for m in scheme.shared if layer.input in m), (layer.input,))
        if grid is not None and _moved_from_input(index, layer.input).issuperset(members):
            fixed |= dict.fromkeys(members, grid)
        elif units is not None and can_rescale(model, layer):
            factor, shift, unit_grid = units
            fixed[rescale_input(model, layer, factor, shift)] = unit_grid
            rewritten += 1
    return LosslessGrids(fixed, rewritten)


def keep_lossless(fixed: Mapping[str, QParams], histograms: Mapping[str, Histogram]) -> dict[str, QParams]:
    """Those of the grids that hold all values of the calibration set; other tensors get grids as any.

    A grid that tensors share is kept for all of them or for none. Where a grid is dropped for which a layer was made to
    read other units, the layer goes on to read them.
    """
    dropped = {id(grid) for tensor, grid in fixed.items() if not _holds(grid, histograms[tensor])}
    return {tensor: grid for tensor, grid in fixed.items() if id(grid) not in dropped}


def _holds(grid: QParams, histogram: Histogram) -> bool:
    zero_point, scale = int(grid.zero_point), float(grid.scale)
    low, high = ((end - zero_point) * scale for end in (grid.spec.qmin - 0.5, grid.spec.qmax + 0.5))
    return low <= histogram.minimum and histogram.maximum <= high


def _moved_from_input(index: Index, tensor: str) -> set[str]:
    """The tensor and those before it that hold the same values in another order."""
    found = {tensor}
    while (node := index.producer.get(tensor)) is not None and moves_values(index, node):
        tensor = node.input[0]
        found.add(tensor)
    return found


def _read_levels(layer: LayerScheme, given: Iterator[tuple[np.ndarray, np.ndarray | None]]) -> Levels | None:
    """Levels of a layer's input, given as values and which of them count: of a Conv by channel, else of all alike."""
    levels: Levels | None = None
    most = layer.activation_spec.qmax - layer.activation_spec.qmin + 1
    for number, (values, kept) in enumerate(given):
        if values.dtype != np.float32 or not values.size or values.ndim < 2:
            return None
        conv = layer.op == "Conv"
        rows = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1) if conv else select(values, kept).reshape(1, -1)
        levels = levels.extend(rows) if number else find_levels(rows, most)
        if levels is None:
            return None
    return levels


def _values(
    subgraph: ModelProto, samples: CalibrationSet, threads: int, padding: PaddingMask
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The one output of a subgraph on samples from all over the set, and which of its elements are no padding."""
    tensor = subgraph.graph.output[0].name
    names = [value.name for value in subgraph.graph.input]
    session = Session(subgraph, name=f"the model up to {tensor}", threads=threads) if subgraph.graph.node else None
    size = samples.fixed_batch or LEVEL_BATCH
    chosen = np.linspace(0, max(0, len(samples) - size), max(1, LEVEL_SAMPLES // size)).astype(int)
    for start in np.unique(chosen):
        for part in samples.split(size, range(start, min(start + size, len(samples)))):
            feeds = samples.read(part)
            given = feeds if session is None else session.run({name: feeds[name] for name in names})
            yield given[tensor], padding.mask_of(tensor, given[tensor].shape, find_real(feeds))
