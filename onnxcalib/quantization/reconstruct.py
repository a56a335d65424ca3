"""Reconstruct: block after block, solve the layers, then learn the block; the quantized prefix feeds the next one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from ..config import FULL_BITS
from ..graph.blocks import single_layers
from ..graph.index import reads
from ..numeric.adaquant import Outcome
from ..report import BlockRecord, Observer
from ..runtime.blocks import BlockError
from ..spec import Block
from .learn import Learner, Samples, layer_of
from .solve import solve_block
from .state import ReconstructionState, read_later, run

# One sample in so many judges a block and is not learned from.
HELD_OUT = 8


def reconstruct(state: ReconstructionState, blocks: Sequence[Block], observer: Observer) -> tuple[BlockRecord, ...]:
    """Walk the blocks in order; ``walk`` ends with the grids and the LayerParams of all layers."""
    records: list[BlockRecord] = []
    observer.blocks(sum(bool(b.layers) for b in blocks))
    for block, later in zip(blocks, read_later(state, blocks, set()), strict=True):
        run(state, block, later, quantized=False)
        if block.layers:
            settled = list(_settle(state, block, later))
            records += settled
            observer.block(settled[-1])
        state.frozen |= _read_inside(state, block)
        run(state, block, later, quantized=True)
        state.forget(later)
    return tuple(records)


def _settle(state: ReconstructionState, block: Block, later: set[str]) -> Iterator[BlockRecord]:
    """Solve and learn one block; where it cannot be learned as one, its layers are, one by one."""
    start = time.perf_counter()
    reasons = solve_block(state, block)
    rounded = _join(reasons, block)
    steps = _steps(state, block, rounded)
    if not steps:
        yield _solved_record(block, rounded, None, start)
        return
    try:
        yield _learned_record(state, block, rounded, start, steps=steps)
        return
    except BlockError as error:
        reason = str(error)
    if len(block.layers) == 1:
        yield _settle_part(state, block, rounded, reason, steps=0)
        return
    parts = single_layers(state.model, state.scheme, block)
    for part, read in zip(parts, read_later(state, parts, later), strict=True):
        run(state, part, read, quantized=False)
        if part.layers:
            rounded = _join(reasons, part)
            yield _settle_part(state, part, rounded, reason, steps=_steps(state, part, rounded))
        state.frozen |= _read_inside(state, part)
        run(state, part, read, quantized=True)


def _steps(state: ReconstructionState, block: Block, rounded: str | None) -> int:
    layers = [layer_of(state, name) for name in block.layers]
    hard = any(layer.groups > 1 and layer.activation_spec.bits < FULL_BITS for layer in layers)
    return state.config.block_steps(solved=rounded is None, hard=hard)


def _join(reasons: dict[str, str], block: Block) -> str | None:
    return "; ".join(reason for name, reason in reasons.items() if name in block.layers) or None


def _learned_record(
    state: ReconstructionState, block: Block, reason: str | None, start: float, *, steps: int
) -> BlockRecord:
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on as they were
        outcome = _learn(state, block, steps)
    kept = outcome.step > 0
    if not kept:
        reason = "; ".join(filter(None, (reason, "the loss on held-out samples did not fall")))
    name = "reconstructed" if kept else "rolled back"
    seconds = time.perf_counter() - start
    return BlockRecord(block.name, block.layers, name, reason, outcome.before, outcome.after, seconds)


def _settle_part(
    state: ReconstructionState, part: Block, rounded: str | None, reason: str, *, steps: int
) -> BlockRecord:
    """One layer of a block that torch does not take: learned alone if it can be, else left as it was solved."""
    start = time.perf_counter()
    try:
        if steps:
            joined = "; ".join(filter(None, (f"not as one block: {reason}", rounded)))
            return _learned_record(state, part, joined, start, steps=steps)
    except BlockError as error:
        reason = f"{reason}; alone: {error}"
    return _solved_record(part, rounded, reason, start)


def _solved_record(block: Block, rounded: str | None, reason: str | None, start: float) -> BlockRecord:
    """A block that is not learned; ``rounded`` says which of its layers were not solved either, and why."""
    reason = "; ".join(filter(None, (reason, rounded))) or None
    outcome = "rounded" if rounded else "solved"
    return BlockRecord(block.name, block.layers, outcome, reason, seconds=time.perf_counter() - start)


def _read_inside(state: ReconstructionState, block: Block) -> set[str]:
    """Tensors that the block reads: what follows was learned on their grids, which must not change any more."""
    return {t for n in state.model.graph.node if n.name in block.nodes for t in reads(n)}


def _learn(state: ReconstructionState, block: Block, steps: int) -> Outcome:
    """AdaQuant on the block; its results go into ``walk``. Raises BlockError, having changed nothing."""
    learner = Learner(state, block, frozen=False)
    data = Samples(state, block, learner.size, judges=HELD_OUT)
    outcome = learner.learn(data.draw, data.held_out, steps=steps)
    if outcome.step:
        learner.read_back()
    return outcome
