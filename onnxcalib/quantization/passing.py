"""Run a block of the quantized model once, from layer to layer, and solve its layers on the way.

Blocks that are not learned go so. What a step computes is stored while a later one, or a block behind, reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..graph.extract import needed_nodes
from ..graph.index import reads
from ..spec import Block, LayerScheme
from .layer_targets import KeptTargets
from .shortcuts import find_shortcut
from .siblings import find_siblings
from .solve import solve_layers
from .state import QUANTIZED, ReconstructionState, run_block


def solve_in_passing(state: ReconstructionState, block: Block, later: set[str]) -> dict[str, str]:
    """As ``solve_block``; the block's outputs in ``later`` are stored too. Targets of the layers were kept."""
    reasons: dict[str, str] = {}
    for part, layers in pass_through(state, block, later):
        reasons |= solve_layers(state, part, layers)
    return reasons


def pass_through(
    state: ReconstructionState, block: Block, later: set[str]
) -> Iterator[tuple[Block, tuple[LayerScheme, ...]]]:
    """Yield what is left of the block and the layers that come next, once what they read is stored.

    ``state`` must have their LayerParams when the next ones are asked for.
    """
    groups = find_siblings(state, block)
    steps = [*_list_read(state, block, groups), [t for t in block.outputs if t in later]]
    for number, layers in enumerate(groups):
        block = _advance(state, block, steps[number:], later)
        yield block, layers
    _advance(state, block, steps[-1:], later)


def _list_read(state: ReconstructionState, block: Block, groups: Sequence[tuple[LayerScheme, ...]]) -> list[list[str]]:
    """For each group of siblings the tensors of the quantized model that they are solved on; none if they are not."""
    found, solved = [], set(state.layers)
    for layers in groups:
        shortcut = find_shortcut(state, block, layers[0], solved) if len(layers) == 1 else None
        read = [layers[0].input, *([shortcut.tensor] if shortcut else [])]
        found.append(read if KeptTargets.has(state.stored, layers) else [])
        solved.update(layer.name for layer in layers)
    return found


def _advance(state: ReconstructionState, block: Block, steps: Sequence[Sequence[str]], later: set[str]) -> Block:
    """Store the tensors of the first of these steps, and what the others need of the nodes in between.

    Returns what is left of the block, its inputs being all that is stored of it.
    """
    stored, index = state.stored, state.problem.index
    missing = [t for t in steps[0] if QUANTIZED + t not in stored.store]
    now = needed_nodes(index, block.inputs, missing)
    wanted = {tensor for step in steps for tensor in step}
    rest = needed_nodes(index, block.inputs, [t for step in steps[1:] for t in step]) - now
    read = wanted.union(*(reads(index.nodes[name]) for name in rest))
    made = [t for name in sorted(now, key=index.position.__getitem__) for t in index.nodes[name].output if t in read]
    run_block(state, replace(block, outputs=tuple(made)), read, quantized=True)
    stored.forget(read | later)
    return replace(
        block, inputs=tuple(t for t in dict.fromkeys((*block.inputs, *made)) if QUANTIZED + t in stored.store)
    )
