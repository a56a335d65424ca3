"""The tensor that an Add adds to a layer's output, whose error the layer can make up for."""

from __future__ import annotations

from dataclasses import dataclass

from ..graph.extract import needed_nodes
from ..spec import Block, LayerScheme
from .state import ReconstructionState


@dataclass(frozen=True)
class Shortcut:
    """The tensor that an Add adds to a layer's output; on_grid: whether the Add reads it quantized."""

    tensor: str
    on_grid: bool


def find_shortcut(
    state: ReconstructionState, block: Block, layer: LayerScheme, solved: set[str] | None = None
) -> Shortcut | None:
    """What an Add adds to the layer's output, if all other layers before the Add are ``solved``, by default by now."""
    index = state.problem.index
    readers = index.readers(layer.output)
    if len(readers) != 1 or readers[0].op_type != "Add" or readers[0].name not in block.nodes:
        return None
    other = next((t for t in readers[0].input if t != layer.output), None)
    if other is None or other in index.initializers:
        return None
    needed = needed_nodes(index, block.inputs, [other])
    waiting = set(block.layers) - (set(state.layers) if solved is None else solved)
    if not needed <= set(block.nodes) or needed & waiting:
        return None
    return Shortcut(other, readers[0].name not in state.problem.scheme.float_reads.get(other, ()))
