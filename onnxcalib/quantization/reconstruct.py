"""Reconstruct block after block: solve its layers, then learn it, on what the quantized blocks before it give."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..graph.blocks import single_layers
from ..graph.index import Index, reads
from ..layer_record import LossRecord
from ..numeric.adaquant import Outcome
from ..report import BlockRecord, Observer
from ..runtime.blocks import BlockError
from ..runtime.memory import release
from ..spec import Block
from .block_checkpoints import BlockCheckpoints
from .learn import Learner, MiniBatches, convert_block
from .passing import solve_in_passing
from .solve import solve_block
from .state import ReconstructionState, read_later, run_block

# One sample in so many is held out from learning a block: these choose the iteration that is kept.
BLOCK_HOLDOUT = 8


def reconstruct(
    state: ReconstructionState, blocks: Sequence[Block], observer: Observer, kept: BlockCheckpoints | None = None
) -> tuple[BlockRecord, ...]:
    """Reconstruct the blocks in order; ``state`` ends with the grids and the LayerParams of all layers.

    kept: the checkpoints; ``state`` is behind the first ``kept.done`` blocks already.
    """
    records = list(kept.records) if kept else []
    observer.blocks(sum(bool(b.layers) for b in blocks))
    for record in kept.told if kept else ():
        observer.block(record)
    walk = zip(blocks, read_later(state, blocks, set()), strict=True)
    for number, (block, later) in enumerate(walk, 1):
        if kept and number <= kept.done:
            continue
        found: list[BlockRecord] = []
        if state.stored.has_float:
            run_block(state, block, later, quantized=False)
        if block.layers:
            found = list(reconstruct_block(state, block, later))
            release()
            records += found
            observer.block(found[-1])
        state.frozen |= tensors_read(state.problem.index, block)
        if state.sum_elsewhere is None:
            run_block(state, block, later, quantized=True)
        state.stored.forget(later)
        if kept and (block.layers or number == len(blocks)):
            kept.commit(number, found)
    return tuple(records)


def reconstruct_block(state: ReconstructionState, block: Block, later: set[str]) -> Iterator[BlockRecord]:
    """Solve the block's layers, then learn the block; if torch does not take it, learn its layers one by one."""
    start = time.perf_counter()
    passes = not state.stored.has_float and state.sum_elsewhere is None
    rounded = solve_in_passing(state, block, later) if passes else solve_block(state, block)
    attempt = _Attempt(state, block, start, rounded)
    if not attempt.steps:
        yield attempt.keep_solved(None)
        return
    try:
        yield attempt.learn()
        return
    except BlockError as error:  # left before other work begins, as its traceback holds the block in torch
        reason = str(error)
    if len(block.layers) == 1:
        yield attempt.keep_solved(reason)
    else:
        yield from _reconstruct_layers(state, block, later, rounded, reason)


def _reconstruct_layers(
    state: ReconstructionState, block: Block, later: set[str], rounded: dict[str, str], reason: str
) -> Iterator[BlockRecord]:
    """Learn each solved layer of a block alone, as the block cannot be learned, for this ``reason``."""
    problem = state.problem
    parts = single_layers(problem.model, problem.scheme, block, index=problem.index)
    for part, read in zip(parts, read_later(state, parts, later), strict=True):
        run_block(state, part, read, quantized=False)
        if part.layers:
            yield _reconstruct_layer(_Attempt(state, part, time.perf_counter(), rounded), reason)
        state.frozen |= tensors_read(problem.index, part)
        run_block(state, part, read, quantized=True)


def _reconstruct_layer(attempt: _Attempt, reason: str) -> BlockRecord:
    """Learn one layer of a block that cannot be learned, for this ``reason``; keep it solved if that fails too."""
    if not attempt.steps:
        return attempt.keep_solved(reason)
    try:
        return attempt.learn(f"not as one block: {reason}")
    except BlockError as error:
        return attempt.keep_solved(f"{reason}; alone: {error}")


@dataclass(frozen=True)
class _Attempt:
    """One block, its layers solved, before it is learned.

    start: the time at which work on the block began. rounded: layer -> why it was rounded and not solved.
    """

    state: ReconstructionState
    block: Block
    start: float
    rounded: dict[str, str]

    @property
    def why_rounded(self) -> str | None:
        return _join_reasons(*(reason for name, reason in self.rounded.items() if name in self.block.layers))

    @property
    def steps(self) -> int:
        """Iterations for which the block is learned; 0: it is not."""
        if not self.state.stored.has_float or not self.state.given.keys().isdisjoint(self.block.layers):
            return 0
        layers = [self.state.problem.layers[name] for name in self.block.layers]
        return self.state.problem.block_steps(layers, solved=self.why_rounded is None)

    @property
    def losses(self) -> tuple[LossRecord, ...]:
        known = self.state.losses
        return tuple(known[name] for name in self.block.layers if name in known)

    def learn(self, remark: str | None = None) -> BlockRecord:
        """Learn the block; ``remark`` is recorded with it. Raises BlockError, having changed nothing."""
        outcome = _learn(self.state, self.block, self.steps)
        kept = outcome.step > 0
        reason = _join_reasons(remark, self.why_rounded, None if kept else "the loss on held-out samples did not fall")
        name = "reconstructed" if kept else "rolled back"
        seconds = time.perf_counter() - self.start
        losses = outcome.before, outcome.after
        return BlockRecord(self.block.name, self.block.layers, name, reason, *losses, seconds, self.losses)

    def keep_solved(self, reason: str | None) -> BlockRecord:
        """The record of a block that is not learned, for this ``reason``."""
        outcome = "rounded" if self.why_rounded else "solved"
        joined = _join_reasons(reason, self.why_rounded)
        seconds = time.perf_counter() - self.start
        return BlockRecord(self.block.name, self.block.layers, outcome, joined, None, None, seconds, self.losses)


def _join_reasons(*reasons: str | None) -> str | None:
    return "; ".join(filter(None, reasons)) or None


def tensors_read(index: Index, block: Block) -> set[str]:
    """Tensors that the block reads. Its layers were solved on their grids, which must not change any more."""
    return {tensor for name in block.nodes for tensor in reads(index.nodes[name])}


def _learn(state: ReconstructionState, block: Block, steps: int) -> Outcome:
    """Run AdaQuant on the block; its results go into ``state``. Raises BlockError, having changed nothing."""
    learner = Learner(state, convert_block(state, block))
    data = MiniBatches(state, block, learner.size, holdout=BLOCK_HOLDOUT)
    outcome = learner.learn(data.draw, data.read_held_out, steps=steps)
    if outcome.step:
        learner.read_back()
    return outcome
