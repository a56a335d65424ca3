"""Align: give the first layers' inputs 8-bit grids whose steps are the levels of their values, where they have such.

The pixels of an image have 256 levels a channel. Normalization by a mean and a deviation of each channel moves them off
any grid of one scale a tensor, and on the ResNets half of what 8 bits lost was lost there, at the input.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto

from ..data import CalibrationSet
from ..graph.extract import extract, infer_types, needed_nodes
from ..graph.fusion import moves_values
from ..graph.index import Index
from ..graph.rescale import can_rescale, rescale_input
from ..numeric.levels import Levels, find_levels, shared_grid, stretch
from ..runtime.session import Session
from ..spec import LayerPlan, QParams, QuantPlan

# Samples in which levels are looked for, a few at a time: by then all that there are have been seen.
SAMPLES, BATCH = 64, 8
UNIT = np.float32(1)


def align_inputs(
    model: ModelProto, plan: QuantPlan, samples: CalibrationSet, threads: int = 0
) -> tuple[dict[str, QParams], int]:
    """The grids of tensors, not to be changed, on which first layers read their levels without error.

    Where no grid of one scale does, the layer is made to read its input in units of the levels, if it can: mutates
    ``model``, and counts how often; the model then needs another plan.
    """
    index = Index(model.graph)
    types = infer_types(model)
    names = {layer.name for layer in plan.layers}
    fixed: dict[str, QParams] = {}
    rewritten = 0
    for layer in plan.layers:
        before = needed_nodes(index, index.inputs, [layer.input])
        spec = plan.activations[layer.input]
        if before & names or layer.activation_spec != spec or spec.bits < 8 or layer.input in plan.nonnegative:
            continue
        cut = extract(model, types, inputs=_inputs_read(index, before, layer), outputs=[layer.input])
        levels = _read_levels(cut, layer, samples, threads)
        if levels is None:
            continue
        grid, units = shared_grid(levels, spec), stretch(levels, spec)
        moved = _moved_from_input(index, layer.input)
        members = next((m for m in plan.shared if layer.input in m), (layer.input,))
        if grid is not None and moved.issuperset(members):
            fixed |= dict.fromkeys(members, grid)
        elif units is not None and can_rescale(model, layer):
            unit_grid = QParams(np.asarray(UNIT), np.asarray(0, np.int32), spec)
            fixed[rescale_input(model, layer, *units)] = unit_grid
            rewritten += 1
    return fixed, rewritten


def _inputs_read(index: Index, before: set[str], layer: LayerPlan) -> list[str]:
    """The model's inputs from which the layer's input is computed."""
    read = {t for t, nodes in index.consumers.items() if any(n.name in before for n in nodes)}
    return [t for t in index.inputs if t in read or t == layer.input]


def _moved_from_input(index: Index, tensor: str) -> set[str]:
    """The tensor and those before it that hold the same values in other places."""
    found = {tensor}
    while (node := index.producer.get(tensor)) is not None and moves_values(index, node):
        tensor = node.input[0]
        found.add(tensor)
    return found


def _read_levels(cut: ModelProto, layer: LayerPlan, samples: CalibrationSet, threads: int) -> Levels | None:
    """Levels of the tensor that ``cut`` makes, by channel of a Conv, else of all values alike."""
    levels: Levels | None = None
    for number, values in enumerate(_values(cut, samples, threads)):
        if values.dtype != np.float32 or not values.size or values.ndim < 2:
            return None
        rows = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1) if layer.op == "Conv" else values.reshape(1, -1)
        most = layer.activation_spec.qmax - layer.activation_spec.qmin + 1
        levels = levels.extend(rows) if number else find_levels(rows, most)
        if levels is None or levels.highest.max() >= most:
            return None
    return levels


def _values(cut: ModelProto, samples: CalibrationSet, threads: int) -> Iterator[np.ndarray]:
    """The one output of ``cut`` on samples from all over the set."""
    tensor = cut.graph.output[0].name
    names = [value.name for value in cut.graph.input]
    session = Session(cut, name=f"the model up to {tensor}", threads=threads) if cut.graph.node else None
    size = samples.fixed_batch or BATCH
    chosen = np.unique(np.linspace(0, len(samples) - size, max(1, SAMPLES // size)).astype(int).clip(0))
    for start in chosen:
        feeds = samples.read(range(start, min(start + size, len(samples))))
        yield feeds[tensor] if session is None else session.run({name: feeds[name] for name in names})[tensor]
