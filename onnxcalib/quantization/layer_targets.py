"""The targets of layers: what the float model gives where they are solved, computed then or kept before the walk.

Targets that were kept come from one pass of the whole float model, so that the walk needs no float activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..graph.extract import needed_nodes
from ..graph.layout import count_inputs
from ..runtime.memory import release
from ..runtime.session import Session
from ..spec import Block, LayerScheme
from .column_choice import MOST_INPUTS, Chunk, ColumnChoice
from .state import FLOAT, SHAPE, TARGET, ReconstructionState, StoredActivations

# Targets of more bytes would take more room than the activations between two blocks, which are kept in their place.
MOST_TARGET_BYTES = 2**31


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


def describe_target(
    layer: LayerScheme, shortcut: Shortcut | None, wanted: Mapping[str, np.ndarray]
) -> tuple[tuple[int, ...], bool]:
    """The shape of the layer's output in a batch of the float model, and whether the shortcut has the same."""
    shape = wanted[layer.output].shape
    return shape, shortcut is not None and wanted[shortcut.tensor].shape == shape


def read_target(
    layer: LayerScheme, shortcut: Shortcut | None, wanted: Mapping[str, np.ndarray], chunk: Chunk
) -> torch.Tensor:
    """Columns (G, C, P) of the float model's output, with the shortcut's value added, in one chunk of a batch."""
    target = chunk.gather(chunk.take(wanted[layer.output]), layer.groups)
    return target if shortcut is None else target + chunk.gather(chunk.take(wanted[shortcut.tensor]), layer.groups)


class KeptTargets:
    """The targets of one layer that were kept; its chunks are read in their order."""

    def __init__(self, stored: StoredActivations, layer: LayerScheme) -> None:
        self.store, self.output = stored.store, layer.output
        self._next = 0

    @classmethod
    def has(cls, stored: StoredActivations, layer: LayerScheme) -> bool:
        """Whether the layer's targets were kept."""
        return SHAPE + layer.output in stored.store

    def describe(self, number: int) -> tuple[tuple[int, ...], bool]:
        """As ``describe_target`` of stored batch ``number``."""
        *shape, joined = self.store.batch(SHAPE + self.output, number).tolist()
        return tuple(shape), bool(joined)

    def read(self) -> torch.Tensor:
        """The target of the next chunk."""
        self._next += 1
        return torch.from_numpy(self.store.batch(TARGET + self.output, self._next - 1))

    def keep(self, shape: tuple[int, ...], joined: bool, chunks: Sequence[torch.Tensor]) -> int:
        """Keep the targets of the next stored batch; returns their bytes."""
        self.store.append(SHAPE + self.output, np.array([*shape, int(joined)], np.int64))
        for chunk in chunks:
            self.store.append(TARGET + self.output, chunk.numpy())
        return sum(chunk.nbytes for chunk in chunks)

    def drop(self) -> None:
        """Free their room."""
        for name in (SHAPE + self.output, TARGET + self.output):
            if name in self.store:
                self.store.drop(name)


def keep_targets(state: ReconstructionState, blocks: Sequence[Block]) -> None:
    """Keep the targets of all layers in place of the float model's inputs, if no block is learned and disk has room.

    The samples are stored already.
    """
    if any(may_learn(state, block) for block in blocks):
        return
    wanted = [each for block in blocks for each in _list_wanted(state, block)]
    problem, stored, first = state.problem, state.stored, 0
    tensors = {t for each in wanted for t in each.tensors}
    session = Session(problem.model, also=sorted(tensors), threads=problem.threads)
    made = [t for t in session.outputs if t in tensors]
    for number, size in enumerate(stored.sizes):
        feeds = stored.feeds(FLOAT, session.inputs, number)
        values = {t: np.atleast_2d(v) for t, v in {**feeds, **session.run(feeds, made)}.items() if t in tensors}
        used = sum(each.keep(values, number, first) for each in wanted)
        first += size
        if used * sum(stored.sizes) > MOST_TARGET_BYTES * size:  # as the first batch shows
            for each in wanted:
                each.kept.drop()
            return
    for name in [name for name in stored.store.names() if name.startswith(FLOAT)]:
        stored.store.drop(name)
    del session
    release()  # the memory of a session of the whole model


@dataclass(frozen=True)
class _Wanted:
    """A layer whose targets are kept."""

    layer: LayerScheme
    shortcut: Shortcut | None
    choice: ColumnChoice
    kept: KeptTargets

    @property
    def tensors(self) -> list[str]:
        return [self.layer.output, *([self.shortcut.tensor] if self.shortcut else [])]

    def keep(self, values: Mapping[str, np.ndarray], number: int, first: int) -> int:
        """Keep the targets in stored batch ``number``, whose first sample is ``first``; returns their bytes."""
        shape, joined = describe_target(self.layer, self.shortcut, values)
        own = self.shortcut if joined else None
        chunks = [read_target(self.layer, own, values, chunk) for chunk in self.choice.split(number, first, shape)]
        return self.kept.keep(shape, joined, chunks)


def _list_wanted(state: ReconstructionState, block: Block) -> Iterator[_Wanted]:
    """The block's layers that can be solved, in the order in which they are."""
    solved = set(state.layers)
    for layer in (each for each in state.problem.scheme.layers if each.name in block.layers):
        shape = tuple(state.problem.index.initializers[layer.weight].dims)
        if count_inputs(shape, layer) <= MOST_INPUTS:
            choice = ColumnChoice(state, layer, shape, layer.weight_spec.bits)
            yield _Wanted(layer, find_shortcut(state, block, layer, solved), choice, KeptTargets(state.stored, layer))
        solved.add(layer.name)


def may_learn(state: ReconstructionState, block: Block) -> bool:
    """Whether the settings have AdaQuant steps for the block, as far as is known before it is solved."""
    problem = state.problem
    layers = [problem.layers[name] for name in block.layers]
    weights = problem.index.initializers
    solved = all(count_inputs(weights[layer.weight].dims, layer) <= MOST_INPUTS for layer in layers)
    return bool(layers) and problem.block_steps(layers, solved=solved) > 0
