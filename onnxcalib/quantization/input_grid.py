"""Align: give the first layers' inputs 8-bit grids whose steps are the levels of their values, where they have such.

The pixels of an image have 256 levels a channel. Normalization by a mean and a deviation of each channel moves them off
any grid of one scale a tensor, and on the ResNets half of what 8 bits lost was lost there, at the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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
from .padding_mask import Padding, find_real, select

# Samples from all over the set in which levels are looked for, a few at a time.
SAMPLES, BATCH = 32, 4


def find_lossless_grids(
    model: ModelProto, scheme: QuantScheme, samples: CalibrationSet, threads: int = 0
) -> tuple[dict[str, QParams], int]:
    """The grids of tensors on which first layers read the levels of their inputs as they are.

    Where no grid of one scale does, the layer is made to read its input in units of the levels, if it can: mutates
    ``model``, and counts how often; the model then needs another plan. What the other samples hold is for
    ``keep_aligned`` to judge.
    """
    index, padding = Index(model.graph), Padding(model)
    types = infer_types(model)
    names = {layer.name for layer in scheme.layers}
    found: dict[tuple[str, bool], Levels | None] = {}
    fixed: dict[str, QParams] = {}
    rewritten = 0
    for layer in (layer for layer in scheme.layers if not layer.reads_float):
        before = needed_nodes(index, index.inputs, [layer.input])
        spec = scheme.activations[layer.input]
        if (
            before & names
            or layer.activation_spec != spec
            or spec.bits < FULL_BITS
            or layer.input in scheme.nonnegative
        ):
            continue
        key = (layer.input, layer.op == "Conv")
        if key not in found:
            inputs = needed_inputs(index, index.inputs, [layer.input])
            cut = extract(model, types, inputs=inputs, outputs=[layer.input])
            found[key] = _read_levels(layer, _values(cut, samples, threads, padding))
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
    return fixed, rewritten


def keep_lossless(fixed: Mapping[str, QParams], histograms: Mapping[str, Histogram]) -> dict[str, QParams]:
    """Of ``fixed`` the grids that hold all values of the calibration set; the others are to be chosen as any.

    A grid that tensors share is kept for all of them or for none. A layer that was made to read other units for the
    sake of a grid that is dropped goes on to do so.
    """
    dropped = {id(grid) for tensor, grid in fixed.items() if not _holds(grid, histograms[tensor])}
    return {tensor: grid for tensor, grid in fixed.items() if id(grid) not in dropped}


def _holds(grid: QParams, histogram: Histogram) -> bool:
    zero_point, scale = int(grid.zero_point), float(grid.scale)
    low, high = ((end - zero_point) * scale for end in (grid.spec.qmin - 0.5, grid.spec.qmax + 0.5))
    return low <= histogram.minimum and histogram.maximum <= high


def _moved_from_input(index: Index, tensor: str) -> set[str]:
    """The tensor and those before it that hold the same values in other places."""
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
    cut: ModelProto, samples: CalibrationSet, threads: int, padding: Padding
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The one output of ``cut`` on samples from all over the set, and which of its places count."""
    tensor = cut.graph.output[0].name
    names = [value.name for value in cut.graph.input]
    session = Session(cut, name=f"the model up to {tensor}", threads=threads) if cut.graph.node else None
    size = samples.fixed_batch or BATCH
    chosen = np.linspace(0, max(0, len(samples) - size), max(1, SAMPLES // size)).astype(int)
    for start in np.unique(chosen):
        for part in samples.split(size, range(start, min(start + size, len(samples)))):
            feeds = samples.read(part)
            given = feeds if session is None else session.run({name: feeds[name] for name in names})
            yield given[tensor], padding.places(tensor, given[tensor].shape, find_real(feeds))
