"""Reconstruct blocks apart from each other, each on what the float model gives: in any order, and in any process.

Parallel AdaQuant (Hubara et al. 2021, section 3.1). The result of a block depends on nothing that another block found,
so that any number of workers gives the same bytes. Inside a block, a layer still sees the errors of those before it.

A worker takes blocks in the order of the graph, large ones early, and keeps the float model's activations at the last
one it worked on: from there it goes on. So each worker runs the float model over all samples once, however the blocks
are shared out.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..config import FULL_BITS
from ..graph.layer_params import LayerParams
from ..report import BlockRecord
from ..runtime.device import computing
from ..runtime.store import Store
from ..spec import Block
from .carried import Carried, CarriedProblem
from .checkpoints import PARALLEL, BlockDone, find_changed
from .reconstruct import reconstruct_block, tensors_read
from .run import Run
from .spread import spread_tasks
from .state import PROBE, FloatActivations, Problem, ReaderMoments, ReconstructionState, read_later, run_block

# What a weight of fewer bits than 8 costs, one of 8, and a layer beside its weights: measured on MobileNetV2 at W4A8
# from 16 samples, where 100,000 weights of 4 bits take half a second.
COST_OF_WEIGHT, COST_OF_FULL, COST_OF_LAYER = 1.0, 0.1, 2.0**14
DIGITS = 16  # of the digest of decisions, in the name of a checkpoint


@dataclass(frozen=True)
class BlockTask:
    """A block by its number, with the probes of its layers.

    given: layer -> the weight that it has, which a layer of another block has too, or another graph; others: see the
    state.
    """

    number: int
    probes: Carried
    given: Mapping[str, LayerParams] = field(default_factory=dict)
    others: Mapping[str, ReaderMoments] = field(default_factory=dict)


@dataclass
class ParallelProblem(CarriedProblem):
    """What every worker gets, and, in each of its threads, how far it has come."""

    _here: threading.local = field(default_factory=threading.local)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_here"}

    def __setstate__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values, _here=threading.local())

    def solve(self, task: BlockTask) -> BlockDone:
        """Reconstruct one block. The worker goes on from the block before, or else from the samples."""
        walk: _Walk | None = self._here.__dict__.pop("walk", None)  # one that fails is not gone on with
        if walk is None or walk.position > task.number:
            walk = _Walk(self)
        walk.advance(task.number)
        task.probes.copy_to(walk.stored.store)
        solved = walk.solve(task)
        self._here.walk = walk
        return solved


def solve_task(common: ParallelProblem, task: BlockTask) -> BlockDone:
    """``ParallelProblem.solve`` as a task of a worker."""
    with computing():
        return common.solve(task)


class _Walk:
    """The float model's activations at one block after the other."""

    def __init__(self, common: ParallelProblem) -> None:
        self.problem = common.open()
        self.stored = FloatActivations(Store(), common.padding, self.problem.types)
        self._add_samples(common)
        self.blocks, self.grids, self.frozen = common.blocks, common.grids, common.frozen
        self.readers = Counter(tensor for block in common.blocks for tensor in self._read_by(block))
        self.later = read_later(self._make_state(), common.blocks, set())
        self.position = 0

    def _add_samples(self, common: ParallelProblem) -> None:
        for number, size in enumerate(common.sizes):
            self.stored.add(common.read_samples(number), size)
        self.stored.passes = common.passes

    def _read_by(self, block: Block) -> set[str]:
        return tensors_read(self.problem.index, block)

    def _make_state(self, frozen: Sequence[str] = ()) -> ReconstructionState:
        return ReconstructionState(self.problem, self.stored, self.grids, frozen={*self.frozen, *frozen})

    def advance(self, number: int) -> None:
        """Go on to a block that is not behind this one."""
        while self.position < number:
            block, later = self.blocks[self.position], self.later[self.position]
            run_block(self._make_state(), block, later, quantized=False)
            self.stored.forget(later)
            self.position += 1

    def solve(self, task: BlockTask) -> BlockDone:
        """Reconstruct the present block, which is that of the task, and go on to the next one."""
        block, later = self.blocks[self.position], self.later[self.position]
        shared = [tensor for tensor in self._read_by(block) if self.readers[tensor] > 1]
        state = self._make_state(shared)
        state.given, state.others = task.given, task.others
        run_block(state, block, later, quantized=False)
        records = tuple(reconstruct_block(state, block, later))
        self.advance(self.position + 1)
        return BlockDone(
            state.layers,
            find_changed(self.grids.activations, state.grids.activations),
            find_changed(self.grids.requantized, state.grids.requantized),
            records,
        )


def _estimate_cost(problem: Problem, block: Block) -> float:
    """About how long the block takes, to compare it with others."""
    total = 0.0
    for layer in (problem.layers[name] for name in block.layers):
        weights = math.prod(problem.index.initializers[layer.weight].dims)
        full = layer.weight_spec.bits >= FULL_BITS
        total += COST_OF_LAYER + weights * (COST_OF_FULL if full else COST_OF_WEIGHT)
    return total


def _list_ready(
    problem: Problem, blocks: Sequence[Block], left: Mapping[Hashable, BlockTask], found: Mapping[Hashable, BlockDone]
) -> dict[Hashable, BlockTask]:
    """Those of the tasks that wait for no other one, with the weights that layers of other blocks have for them."""
    known = {name: params for solved in found.values() for name, params in solved.layers.items()}
    waiting = {name for task in left.values() for name in blocks[task.number].layers}
    ready: dict[Hashable, BlockTask] = {}
    for key, task in left.items():
        own = blocks[task.number].layers
        firsts = {name: problem.readers.leaders[name].name for name in own if name in problem.readers.leaders}
        outside = {name: first for name, first in firsts.items() if first not in own}
        if waiting.isdisjoint(outside.values()):
            given = {name: known[first] for name, first in outside.items() if first in known}
            ready[key] = replace(task, given={**given, **task.given})
    return ready


def reconstruct_apart(
    state: ReconstructionState, blocks: Sequence[Block], run: Run, decisions: str
) -> tuple[BlockRecord, ...]:
    """Reconstruct the blocks on the workers of the settings; ``state`` ends with the grids and LayerParams of all.

    ``state`` stores the model's inputs, and probes. decisions: a digest of all that the blocks follow from, under which
    each of them has a checkpoint.
    """
    problem, store = state.problem, state.stored.store
    common = ParallelProblem.of(state, state.stored, blocks)
    tasks: dict[Hashable, BlockTask] = {}
    for number, block in enumerate(blocks):
        if block.layers:
            outputs = [PROBE + problem.layers[name].output for name in block.layers]
            probes = Carried(store, [name for name in outputs if name in store])
            given = {name: state.given[name] for name in block.layers if name in state.given}
            others = {name: state.others[name] for name in block.layers if name in state.others}
            tasks[number] = BlockTask(number, probes, given, others)
    run.observer.blocks(len(tasks))
    names = {key: f"{PARALLEL}-{decisions[:DIGITS]}-{key}" for key in tasks}
    kept = {key: run.checkpoints.find(name, BlockDone) for key, name in names.items()}
    found: dict[Hashable, BlockDone] = {key: solved for key, solved in kept.items() if solved is not None}
    for solved in found.values():
        run.observer.block(solved.records[-1])
    options: dict[str, Any] = {"model": problem.model, "device": problem.device, "warn": run.warn}
    while left := _list_ready(problem, blocks, {key: task for key, task in tasks.items() if key not in found}, found):
        options["costs"] = {key: _estimate_cost(problem, blocks[task.number]) for key, task in left.items()}
        for key, solved in spread_tasks(solve_task, common, left, problem.config, **options):
            found[key] = solved = replace(solved, layers={name: each.to_file() for name, each in solved.layers.items()})
            run.checkpoints.keep((names[key], solved, BlockDone))
            run.observer.block(solved.records[-1])
    in_order = [found[key] for key in tasks]
    for solved in in_order:
        state.layers |= solved.layers
        state.grids = state.grids.updated(solved.activations, solved.requantized)
    return tuple(record for solved in in_order for record in solved.records)
