"""Layers that read one tensor in the same way, such as query, key and value: they are solved as one layer.

They have the same columns, and so one Gram matrix, one prior and one factorization for the channels of all.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

from ..graph.layout import count_inputs
from ..spec import Block, LayerScheme, QuantSpec
from .column_choice import MOST_INPUTS
from .shortcuts import find_shortcut
from .state import PROBE, ReconstructionState

# Weights of siblings that are solved together at most: each copy of them in float64, of which solving has some, takes
# 64 MB.
MOST_WEIGHTS = 2**23


def find_siblings(
    state: ReconstructionState, block: Block, specs: Mapping[str, Sequence[QuantSpec]] | None = None
) -> list[tuple[LayerScheme, ...]]:
    """The block's layers in the order in which they are solved; those in one tuple are solved together.

    specs: layer -> the weight specs that it is solved for, by default its own. Call this before any of the layers is
    solved, as that drops its probes.
    """
    found: list[list[LayerScheme]] = []
    latest: dict[Hashable, list[LayerScheme]] = {}
    for layer in (each for each in state.problem.scheme.layers if each.name in block.layers):
        key = _describe_reading(state, block, layer, tuple(specs[layer.name]) if specs else (layer.weight_spec,))
        group = latest.get(key)
        if key is None or group is None or _count_weights(state, [*group, layer]) > MOST_WEIGHTS:
            group = []
            found.append(group)
            latest[key] = group
        group.append(layer)
    return [tuple(group) for group in found]


def _describe_reading(
    state: ReconstructionState, block: Block, layer: LayerScheme, specs: tuple[QuantSpec, ...]
) -> Hashable | None:
    """Equal for siblings; None for a layer whose rows or columns are its own.

    So are rows that have one scale together, and the columns of groups, of probes and of a shortcut.
    """
    problem = state.problem
    shape = problem.index.initializers[layer.weight].dims
    inputs = count_inputs(shape, layer)
    if layer.groups > 1 or inputs > MOST_INPUTS or any(spec.axis is None for spec in specs):
        return None
    if PROBE + layer.output in state.stored.store or find_shortcut(state, block, layer, set(block.layers)) is not None:
        return None
    node = problem.index.nodes[layer.name]
    attributes = tuple(sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute))
    kernel = tuple(shape[2:])
    shared = (layer.name in problem.readers.leaders, problem.readers.describe(layer))
    reading = (layer.input, layer.activation_spec, layer.takes_bias, problem.padding.axes.get(layer.output), shared)
    return node.domain, layer.op, attributes, inputs, kernel, specs, reading


def _count_weights(state: ReconstructionState, layers: Sequence[LayerScheme]) -> int:
    return sum(math.prod(state.problem.index.initializers[layer.weight].dims) for layer in layers)
