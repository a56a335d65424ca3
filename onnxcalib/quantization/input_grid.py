"""Lossless input grids: 8-bit grids that hold every value of the first layers' inputs, where these have few levels.

The pixels of an image have 256 levels a channel. After normalization by the mean and the deviation of each channel they
lie on no grid with one scale a tensor. On the ResNets half of the loss at 8 bits came from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto

from ..config import FULL_BITS
from ..data import CalibrationSet
from ..graph.extract import extract, infer_types, needed_inputs
from ..graph.fusion import moves_values
from ..graph.index import Index, tensors_behind
from ..graph.passes.rescale import can_rescale, rescale_input
from ..numeric.histogram import Histogram
from ..numeric.levels import Levels, find_levels, shared_grid, stretch
from ..runtime.session import Session
from ..spec import LayerScheme, QParams, QuantScheme
from .padding_mask import PaddingMask, find_real, select

# Samples, spread evenly over the set, in which levels are looked for, and how many of them are read at once.
LEVEL_SAMPLES, LEVEL_BATCH = 32, 4


class LosslessGrids(NamedTuple):
    """Tensor -> the grid that holds its levels without error, and those of the tensors that rescaling has made."""

    grids: Mapping[str, QParams]
    rescaled: tuple[str, ...]


def find_lossless_grids(
    model: ModelProto,
    scheme: QuantScheme,
    samples: CalibrationSet,
    padding: PaddingMask,
    threads: int = 0,
    *,
    rescales: bool = True,
) -> LosslessGrids:
    """Grids that hold the levels of the first layers' inputs without error, as found in some of the samples.

    Where no grid with one scale holds them, the layer is rescaled, if possible and if ``rescales``, to read its input
    in units of the levels. That changes ``model``, which then needs a new scheme. ``keep_lossless`` later drops the
    grids that do not hold the values of all samples.
    """
    index = Index(model.graph)
    found: dict[tuple[str, bool], Levels | None] = {}
    fixed: dict[str, QParams] = {}
    rescaled: list[str] = []
    for layer in first_layers(index, scheme):
        spec = scheme.activations[layer.input]
        key = (layer.input, layer.op == "Conv")
        if key not in found:
            found[key] = _read_levels(layer, _read_values(model, layer.input, samples, threads, padding))
        levels = found[key]
        if levels is None:
            continue
        grid, units = shared_grid(levels, spec), stretch(levels, spec)
        members = next((m for m in scheme.shared if layer.input in m), (layer.input,))
        if grid is not None and _moved_from_input(index, layer.input).issuperset(members):
            fixed |= dict.fromkeys(members, grid)
        elif units is not None and rescales and can_rescale(model, layer):
            factor, shift, unit_grid = units
            rescaled.append(rescale_input(model, layer, factor, shift))
            fixed[rescaled[-1]] = unit_grid
    return LosslessGrids(fixed, tuple(rescaled))


def first_layers(index: Index, scheme: QuantScheme) -> Iterator[LayerScheme]:
    """Layers that have none on integers before them, and read an 8-bit grid whose range is not known beforehand."""
    behind = tensors_behind(index, {layer.name for layer in scheme.layers if not layer.reads_float})
    for layer in scheme.layers:
        if not layer.on_grid or layer.input in behind:
            continue
        spec = scheme.activations[layer.input]
        if layer.activation_spec == spec and spec.bits == FULL_BITS and layer.input not in scheme.nonnegative:
            yield layer


def keep_lossless(fixed: Mapping[str, QParams], histograms: Mapping[str, Histogram]) -> dict[str, QParams]:
    """Those of the grids that hold all values of the calibration set; the other tensors get calibrated grids.

    A grid that tensors share is kept for all of them or for none. A layer that was rescaled stays rescaled, even if its
    grid is dropped.
    """
    dropped = {id(grid) for tensor, grid in fixed.items() if not _holds(grid, histograms[tensor])}
    return {tensor: grid for tensor, grid in fixed.items() if id(grid) not in dropped}


def _holds(grid: QParams, histogram: Histogram) -> bool:
    zero_point, scale = int(grid.zero_point), float(grid.scale)
    low, high = ((end - zero_point) * scale for end in (grid.spec.qmin - 0.5, grid.spec.qmax + 0.5))
    return low <= histogram.minimum and histogram.maximum <= high


def _moved_from_input(index: Index, tensor: str) -> set[str]:
    """The tensor, and the tensors before it that hold the same values in another order."""
    found = {tensor}
    while (node := index.producer.get(tensor)) is not None and moves_values(index, node):
        tensor = node.input[0]
        found.add(tensor)
    return found


def _read_levels(layer: LayerScheme, given: Iterator[tuple[np.ndarray, np.ndarray | None]]) -> Levels | None:
    """Levels of a layer's input: for a Conv those of each channel, for other layers those of all values together.

    given: batches of values, each with the mask of those that are no padding.
    """
    levels: Levels | None = None
    most = layer.activation_spec.qmax - layer.activation_spec.qmin + 1
    for values, mask in given:
        if values.dtype != np.float32 or not values.size or values.ndim < 2:
            return None
        conv = layer.op == "Conv"
        rows = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1) if conv else select(values, mask).reshape(1, -1)
        levels = find_levels(rows, most) if levels is None else levels.extend(rows)
        if levels is None:
            return None
    return levels


def compute_up_to(model: ModelProto, tensor: str, threads: int = 0) -> Callable[[Mapping[str, Any]], np.ndarray]:
    """A function that gives a tensor of the model for feeds, by the nodes in front of it alone."""
    index = Index(model.graph)
    inputs = needed_inputs(index, index.inputs, [tensor])
    if tensor in inputs:
        return itemgetter(tensor)
    subgraph = extract(model, infer_types(model), inputs=inputs, outputs=[tensor], index=index)
    session = Session(subgraph, name=f"the model up to {tensor}", threads=threads)
    return lambda feeds: session.run(feeds)[tensor]


def _read_values(
    model: ModelProto, tensor: str, samples: CalibrationSet, threads: int, padding: PaddingMask
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Batches of a tensor in some of the samples, each with the mask of its elements that are no padding."""
    compute = compute_up_to(model, tensor, threads)
    size = samples.fixed_batch or LEVEL_BATCH
    chosen = np.linspace(0, max(0, len(samples) - size), max(1, LEVEL_SAMPLES // size)).astype(int)
    for start in np.unique(chosen):
        for part in samples.split(size, range(start, min(start + size, len(samples)))):
            feeds = samples.read(part)
            values = compute(feeds)
            yield values, padding.mask_of(tensor, values.shape, find_real(feeds))
