"""The targets of layers: what the float model gives where they are solved, computed then or kept before the walk.

Targets that were kept come from one pass of the whole float model, so that the walk needs no float activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data import CalibrationSet
from ..graph.index import Index, known_constant
from ..graph.layout import count_inputs
from ..graph.ops import CONVOLUTIONS
from ..numeric.gram import flatten_rows
from ..runtime.memory import release
from ..runtime.session import Session
from ..spec import Block, LayerScheme, QuantScheme
from .column_choice import MOST_INPUTS, Chunk, ColumnChoice
from .padding_mask import find_real
from .shortcuts import Shortcut, find_shortcut
from .siblings import find_siblings
from .state import FLOAT, SHAPE, TARGET, Problem, ReconstructionState, StoredActivations

# Targets of more bytes would take more room than the activations between two blocks, which are kept in their place.
MOST_TARGET_BYTES = 2**31


@dataclass(frozen=True)
class Target:
    """What layers that are solved together are to give: channels of all of them, in their order.

    shortcut: what is added, which a layer alone has. of_input: the float model's input is read in place of outputs that
    are more, from which they follow: ``y = W x + b``.
    """

    layers: tuple[LayerScheme, ...]
    shortcut: Shortcut | None
    of_input: bool

    @classmethod
    def of(cls, problem: Problem, layers: Sequence[LayerScheme], shortcut: Shortcut | None) -> Target:
        return cls(tuple(layers), shortcut, shortcut is None and _makes_more(problem, layers))

    @property
    def tensors(self) -> list[str]:
        """The tensors of the float model that are read."""
        if self.of_input:
            return [self.layers[0].input]
        return [*(layer.output for layer in self.layers), *([self.shortcut.tensor] if self.shortcut else [])]

    def describe(self, wanted: Mapping[str, np.ndarray]) -> tuple[tuple[int, ...], bool]:
        """The shape of the first layer's output in a batch, and whether the shortcut has the same.

        Of what is read in place of outputs the last axis is that of the input.
        """
        shape = wanted[self.tensors[0]].shape
        return shape, self.shortcut is not None and wanted[self.shortcut.tensor].shape == shape

    def read(self, wanted: Mapping[str, np.ndarray], chunk: Chunk, *, joined: bool) -> torch.Tensor:
        """Columns (G, C, P), or (G, K, P) of the input, of what the float model gives in one chunk of a batch.

        joined: the shortcut's value is added. Their order in memory is that of kept ones, as sums depend on it.
        """
        first = self.layers[0]
        if chunk.positions is None:
            tensors = self.tensors if self.shortcut is None else [first.output]
            parts = [chunk.take(wanted[tensor]) for tensor in tensors]
            rows = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
            if self.shortcut and joined:
                rows = rows + chunk.take(wanted[self.shortcut.tensor])
            return flatten_rows(rows)

        def gather(tensor: str) -> torch.Tensor:
            return chunk.gather(chunk.take(wanted[tensor]), first.groups)

        if len(self.layers) > 1:
            return torch.cat([gather(layer.output) for layer in self.layers], 1)
        target = gather(first.output)
        return (target + gather(self.shortcut.tensor) if self.shortcut and joined else target).contiguous()


def _makes_more(problem: Problem, layers: Sequence[LayerScheme]) -> bool:
    """Whether the layers are products with more outputs than inputs that add constants, or nothing."""
    index, first = problem.index, layers[0]
    if first.op in CONVOLUTIONS or first.input in index.initializers:
        return False
    for layer in layers:
        if layer.bias is None and len(index.nodes[layer.name].input) > 2:
            return False
        if layer.bias is not None and known_constant(index, layer.bias).size != _count_outputs(problem, layer):
            return False
    shape = problem.index.initializers[first.weight].dims
    return sum(_count_outputs(problem, layer) for layer in layers) > count_inputs(shape, first)


def _count_outputs(problem: Problem, layer: LayerScheme) -> int:
    """Output channels of a product."""
    return int(problem.index.initializers[layer.weight].dims[layer.axis])


class KeptTargets:
    """The targets that were kept of layers that are solved together; their chunks are read in their order."""

    def __init__(self, stored: StoredActivations, layers: Sequence[LayerScheme]) -> None:
        self.stored, self.store, self.output = stored, stored.store, layers[0].output
        self._by_row = layers[0].op not in CONVOLUTIONS
        self._next = 0
        self._described: list[list[int]] = []  # for each batch its shape, and whether the shortcut has the same

    @classmethod
    def has(cls, stored: StoredActivations, layers: Sequence[LayerScheme]) -> bool:
        """Whether the layers' targets were kept."""
        return SHAPE + layers[0].output in stored.store

    def describe(self, number: int) -> tuple[tuple[int, ...], bool]:
        """As ``Target.describe`` of stored batch ``number``."""
        if not self._described:
            self._described = self.store.batch(SHAPE + self.output, 0).tolist()
        *shape, joined = self._described[self.stored.place(number)]
        return tuple(shape), bool(joined)

    def read(self) -> torch.Tensor:
        """The target of the next chunk."""
        self._next += 1
        return _turn(torch.from_numpy(self.store.batch(TARGET + self.output, self._next - 1)), self._by_row)

    def keep(self, shape: tuple[int, ...], joined: bool, chunks: Sequence[torch.Tensor]) -> int:
        """Keep the targets of the next stored batch, until ``close``; returns their bytes."""
        self._described.append([*shape, int(joined)])
        for chunk in chunks:
            self.store.append(TARGET + self.output, _turn(chunk, self._by_row).numpy())
        return sum(chunk.nbytes for chunk in chunks)

    def close(self) -> None:
        """Keep the shapes of all batches."""
        self.store.append(SHAPE + self.output, np.array(self._described, np.int64))

    def drop(self) -> None:
        """Free their room."""
        for name in (SHAPE + self.output, TARGET + self.output):
            if name in self.store:
                self.store.drop(name)


def _turn(columns: torch.Tensor, by_row: bool) -> torch.Tensor:
    """Columns (G, C, P) as they lie in memory and back: those of products row by row, (G, P, C)."""
    return columns.mT if by_row else columns


class TargetKeeper:
    """Keeps the targets of the layers of blocks, as the float model gives what they are read from.

    tensors: what that is. whole: whether those of all batches are kept.
    """

    def __init__(self, state: ReconstructionState, blocks: Sequence[Block]) -> None:
        self.stored = state.stored
        self.wanted = [each for block in blocks for each in _list_wanted(state, block)]
        self.tensors = sorted({t for each in self.wanted for t in each.target.tensors})
        self.whole = False

    def start(self, samples: CalibrationSet, size: int) -> None:
        """Make ready for ``samples.batches(size)``, where the samples are not stored."""
        self.stored.sizes = [len(run) if samples.batched else 1 for run in samples.split(size)]

    def add_feeds(self, feeds: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> bool:
        """Keep those of the next batch of these feeds, where the samples are not stored; as ``add``."""
        number = len(self.stored.masks)
        self.stored.masks.append(find_real(feeds))
        return self.add(number, values)

    def add(self, number: int, values: Mapping[str, np.ndarray]) -> bool:
        """Keep those of stored batch ``number``; all are dropped where those of all samples would take too much room.

        Returns whether they are kept.
        """
        sizes = self.stored.sizes
        values = {t: np.atleast_2d(values[t]) for t in self.tensors}
        used = sum(each.keep(values, number, sum(sizes[:number])) for each in self.wanted)
        # Of all samples, as this batch shows: so that one process decides as workers do that have some of them each.
        if used * sum(sizes) <= MOST_TARGET_BYTES * sizes[number]:
            return True
        for each in self.wanted:
            each.kept.drop()
        return False

    def close(self) -> None:
        """All batches are kept."""
        for each in self.wanted:
            each.kept.close()
        self.whole = True

    def take(self, other: TargetKeeper) -> bool:
        """Have what another kept of the same targets in the same batches, which must not be used any more."""
        mine, theirs = ([each.target for each in keeper.wanted] for keeper in (self, other))
        if not other.whole or mine != theirs or self.stored.sizes != other.stored.sizes:
            return False
        self.stored.store.take(other.stored.store)
        return True


def list_float_tensors(index: Index, scheme: QuantScheme) -> list[str]:
    """What a session of the float model gives, for ranges and for targets alike: the scheme's activations, layers'
    inputs and outputs, and what Adds behind them read.

    Calibration and ``keep_targets`` ask for the same, as it decides what onnxruntime fuses, and so the last bits.
    """
    names = dict.fromkeys(scheme.activations)
    for layer in scheme.layers:
        names |= dict.fromkeys((layer.input, layer.output))
        for node in index.readers(layer.output):
            names |= dict.fromkeys(node.input if node.op_type == "Add" else ())
    return [name for name in names if name not in index.initializers]


def keep_targets(state: ReconstructionState, blocks: Sequence[Block], given: TargetKeeper | None = None) -> None:
    """Keep the targets of all layers in place of the float model's inputs, unless blocks are learned or they are large.

    The samples are stored already. given: has kept targets meanwhile.
    """
    if any(may_learn(state, block) for block in blocks):
        return
    keeper = TargetKeeper(state, blocks)
    if not (given and keeper.take(given)) and not _run_float(state, keeper):
        return
    for name in [name for name in state.stored.store.names() if name.startswith(FLOAT)]:
        state.stored.store.drop(name)
    release()  # the memory of a session of the whole model


def _run_float(state: ReconstructionState, keeper: TargetKeeper) -> bool:
    """Run the float model on the stored samples; returns whether targets were kept."""
    problem, stored = state.problem, state.stored
    also = list_float_tensors(problem.index, problem.scheme)
    session = Session(problem.model, also=also, threads=problem.threads)
    made = [t for t in session.outputs if t in keeper.tensors]
    for number in stored.numbers:
        feeds = stored.arrays(FLOAT, session.inputs, number)
        if not keeper.add(number, {**feeds, **session.run(feeds, made)}):
            return False
    keeper.close()
    return True


@dataclass(frozen=True)
class _Wanted:
    """Layers that are solved together, whose targets are kept."""

    target: Target
    choice: ColumnChoice
    kept: KeptTargets

    def keep(self, values: Mapping[str, np.ndarray], number: int, first: int) -> int:
        """Keep the targets in stored batch ``number``, whose first sample is ``first``; returns their bytes."""
        shape, joined = self.target.describe(values)
        chunks = [self.target.read(values, chunk, joined=joined) for chunk in self.choice.split(number, first, shape)]
        return self.kept.keep(shape, joined, chunks)


def _list_wanted(state: ReconstructionState, block: Block) -> Iterator[_Wanted]:
    """The block's layers that can be solved, in the order in which they are."""
    solved = set(state.layers)
    for layers in find_siblings(state, block):
        first = layers[0]
        shape = tuple(state.problem.index.initializers[first.weight].dims)
        if count_inputs(shape, first) <= MOST_INPUTS:
            choice = ColumnChoice(state, first, shape, first.weight_spec.bits)
            target = Target.of(state.problem, layers, find_shortcut(state, block, first, solved))
            yield _Wanted(target, choice, KeptTargets(state.stored, layers))
        solved.update(layer.name for layer in layers)


def may_learn(state: ReconstructionState, block: Block) -> bool:
    """Whether the settings have AdaQuant steps for the block, as far as is known before it is solved."""
    problem = state.problem
    layers = [problem.layers[name] for name in block.layers]
    weights = problem.index.initializers
    solved = all(count_inputs(weights[layer.weight].dims, layer) <= MOST_INPUTS for layer in layers)
    return bool(layers) and problem.block_steps(layers, solved=solved) > 0
