"""The targets of layers: what the float model gives where they are solved, computed then or kept before the walk.

Targets that were kept come from one pass of the whole float model, so that the walk needs no float activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..graph.layout import count_inputs
from ..runtime.memory import release
from ..runtime.session import Session
from ..spec import Block, LayerScheme
from .column_choice import MOST_INPUTS, Chunk, ColumnChoice
from .shortcuts import Shortcut, find_shortcut
from .siblings import find_siblings
from .state import FLOAT, SHAPE, TARGET, ReconstructionState, StoredActivations

# Targets of more bytes would take more room than the activations between two blocks, which are kept in their place.
MOST_TARGET_BYTES = 2**31


def describe_target(
    layers: Sequence[LayerScheme], shortcut: Shortcut | None, wanted: Mapping[str, np.ndarray]
) -> tuple[tuple[int, ...], bool]:
    """The shape of the first layer's output in a batch of the float model, and whether the shortcut has the same."""
    shape = wanted[layers[0].output].shape
    return shape, shortcut is not None and wanted[shortcut.tensor].shape == shape


def read_target(
    layers: Sequence[LayerScheme], shortcut: Shortcut | None, wanted: Mapping[str, np.ndarray], chunk: Chunk
) -> torch.Tensor:
    """Columns (G, C, P) of what the float model gives in one chunk of a batch: channels of all layers, in their order.

    The shortcut's value is added, which a layer alone has. Their order in memory is that of kept ones, as sums depend
    on it.
    """

    def read(layer: LayerScheme, tensor: str) -> torch.Tensor:
        return chunk.gather(chunk.take(wanted[tensor]), layer.groups)

    if len(layers) > 1:
        return torch.cat([read(layer, layer.output) for layer in layers], 1)
    target = read(layers[0], layers[0].output)
    return (target if shortcut is None else target + read(layers[0], shortcut.tensor)).contiguous()


class KeptTargets:
    """The targets that were kept of layers that are solved together; their chunks are read in their order."""

    def __init__(self, stored: StoredActivations, layers: Sequence[LayerScheme]) -> None:
        self.stored, self.store, self.output = stored, stored.store, layers[0].output
        self._next = 0
        self._described: list[list[int]] = []  # for each batch its shape, and whether the shortcut has the same

    @classmethod
    def has(cls, stored: StoredActivations, layers: Sequence[LayerScheme]) -> bool:
        """Whether the layers' targets were kept."""
        return SHAPE + layers[0].output in stored.store

    def describe(self, number: int) -> tuple[tuple[int, ...], bool]:
        """As ``describe_target`` of stored batch ``number``."""
        if not self._described:
            self._described = self.store.batch(SHAPE + self.output, 0).tolist()
        *shape, joined = self._described[self.stored.place(number)]
        return tuple(shape), bool(joined)

    def read(self) -> torch.Tensor:
        """The target of the next chunk."""
        self._next += 1
        return torch.from_numpy(self.store.batch(TARGET + self.output, self._next - 1))

    def keep(self, shape: tuple[int, ...], joined: bool, chunks: Sequence[torch.Tensor]) -> int:
        """Keep the targets of the next stored batch, until ``close``; returns their bytes."""
        self._described.append([*shape, int(joined)])
        for chunk in chunks:
            self.store.append(TARGET + self.output, chunk.numpy())
        return sum(chunk.nbytes for chunk in chunks)

    def close(self) -> None:
        """Keep the shapes of all batches."""
        self.store.append(SHAPE + self.output, np.array(self._described, np.int64))

    def drop(self) -> None:
        """Free their room."""
        for name in (SHAPE + self.output, TARGET + self.output):
            if name in self.store:
                self.store.drop(name)


def keep_targets(state: ReconstructionState, blocks: Sequence[Block]) -> None:
    """Keep the targets of all layers in place of the float model's inputs, unless blocks are learned or they are large.

    The samples are stored already.
    """
    if any(may_learn(state, block) for block in blocks):
        return
    wanted = [each for block in blocks for each in _list_wanted(state, block)]
    problem, stored = state.problem, state.stored
    tensors = {t for each in wanted for t in each.tensors}
    session = Session(problem.model, also=sorted(tensors), threads=problem.threads)
    made = [t for t in session.outputs if t in tensors]
    for number in stored.numbers:
        feeds = stored.feeds(FLOAT, session.inputs, number)
        values = {t: np.atleast_2d(v) for t, v in {**feeds, **session.run(feeds, made)}.items() if t in tensors}
        used = sum(each.keep(values, number, sum(stored.sizes[:number])) for each in wanted)
        # Of all samples, as this batch shows: so that one process decides as workers do that have some of them each.
        if used * sum(stored.sizes) > MOST_TARGET_BYTES * stored.sizes[number]:
            for each in wanted:
                each.kept.drop()
            return
    for each in wanted:
        each.kept.close()
    for name in [name for name in stored.store.names() if name.startswith(FLOAT)]:
        stored.store.drop(name)
    del session
    release()  # the memory of a session of the whole model


@dataclass(frozen=True)
class _Wanted:
    """Layers that are solved together, whose targets are kept."""

    layers: tuple[LayerScheme, ...]
    shortcut: Shortcut | None
    choice: ColumnChoice
    kept: KeptTargets

    @property
    def tensors(self) -> list[str]:
        return [*(layer.output for layer in self.layers), *([self.shortcut.tensor] if self.shortcut else [])]

    def keep(self, values: Mapping[str, np.ndarray], number: int, first: int) -> int:
        """Keep the targets in stored batch ``number``, whose first sample is ``first``; returns their bytes."""
        shape, joined = describe_target(self.layers, self.shortcut, values)
        own = self.shortcut if joined else None
        chunks = [read_target(self.layers, own, values, chunk) for chunk in self.choice.split(number, first, shape)]
        return self.kept.keep(shape, joined, chunks)


def _list_wanted(state: ReconstructionState, block: Block) -> Iterator[_Wanted]:
    """The block's layers that can be solved, in the order in which they are."""
    solved = set(state.layers)
    for layers in find_siblings(state, block):
        first = layers[0]
        shape = tuple(state.problem.index.initializers[first.weight].dims)
        if count_inputs(shape, first) <= MOST_INPUTS:
            choice = ColumnChoice(state, first, shape, first.weight_spec.bits)
            yield _Wanted(layers, find_shortcut(state, block, first, solved), choice, KeptTargets(state.stored, layers))
        solved.update(layer.name for layer in layers)


def may_learn(state: ReconstructionState, block: Block) -> bool:
    """Whether the settings have AdaQuant steps for the block, as far as is known before it is solved."""
    problem = state.problem
    layers = [problem.layers[name] for name in block.layers]
    weights = problem.index.initializers
    solved = all(count_inputs(weights[layer.weight].dims, layer) <= MOST_INPUTS for layer in layers)
    return bool(layers) and problem.block_steps(layers, solved=solved) > 0
